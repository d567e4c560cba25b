"""BatchNorm's running statistics estimated anew, as after pruning."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset

from dgprune_lite.checks import whole_number
from dgprune_lite.domains import count
from dgprune_lite.networks.source_domains import check_domains, mixed_batches, source_domains
from dgprune_lite.running import Logits, check_model, device_of, evaluating, in_dtype_of, layout_for


def recalibrate_batchnorm(
    model: nn.Module,
    train: Mapping[str, Dataset],
    *,
    images_per_domain: int = 512,
    batch_size: int = 128,
    seed: int = 0,
    workers: int = 0,
    logits: Logits | None = None,
) -> int:
    """Estimate the running statistics of every BatchNorm anew, on images of the source domains.

    Those of the larger network no longer fit after pruning. They are replaced by averages over
    batches that mix all domains, in the type of the weights. All else stays as it is, and if an
    error is raised, so do the statistics.

    Args:
        model: The network, changed in place; on its own device.
        train: Source domain name to its dataset, such as ``split.train``.
        images_per_domain: Images taken of each domain (all of a smaller one), drawn at random.
        batch_size: About how many images a batch has, all domains together; at least 2.
        seed: Seed of the draw; at least 0.
        workers: As for :func:`~dgprune_lite.networks.evaluation.evaluate`, also ``logits``.

    Returns:
        How many BatchNorm layers were recalibrated. Those that evaluation does not call, such as in
        auxiliary heads, keep their statistics.

    Raises:
        ValueError: No domain, an empty domain, images of different shapes, labels outside the
            classes, a setting out of range, or statistics that become NaN or infinite.
        TypeError: Arguments, images or labels of another kind, or a network without logits.

    >>> from torch.utils.data import TensorDataset
    >>> network = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))
    >>> bright = TensorDataset(torch.full((8, 3, 2, 2), 5.0), torch.zeros(8, dtype=torch.long))
    >>> recalibrate_batchnorm(network, {"bright": bright})
    1
    >>> network[0].running_mean
    tensor([5., 5., 5.])
    """
    check_model(model)
    train = source_domains(train)
    images_per_domain = whole_number("images_per_domain", images_per_domain, 1)
    batch_size, seed = whole_number("batch_size", batch_size, 2), whole_number("seed", seed)
    shape, classes = check_domains(model, train, logits)
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }
    if not layers:
        return 0
    generator = torch.Generator().manual_seed(seed)
    orders = {
        name: torch.randperm(count(dataset), generator=generator)[:images_per_domain]
        for name, dataset in train.items()
    }
    number = math.ceil(sum(map(len, orders.values())) / batch_size)
    chunks = {name: order.tensor_split(number) for name, order in orders.items()}
    device, layout = device_of(model), layout_for(model)
    found = {name: (x.momentum, copy.deepcopy(x.state_dict())) for name, x in layers.items()}
    try:
        with evaluating(model), torch.no_grad():  # dropout off
            for layer in layers.values():
                layer.reset_running_stats()
                layer.momentum = None  # a cumulative average: every batch counts the same
                layer.train()
            mixed = mixed_batches(
                train, chunks, shape, classes, workers=workers, seed=seed, device=device
            )
            for images, _ in mixed:
                model(in_dtype_of(model, images).contiguous(memory_format=layout))
        done = 0
        for name, layer in layers.items():
            if not layer.get_buffer("num_batches_tracked"):  # evaluation does not call it
                layer.load_state_dict(found[name][1])
                continue
            done += 1
            if not bool(torch.isfinite(layer.get_buffer("running_var")).all()):
                raise ValueError(
                    f"the statistics of BatchNorm {name!r} became NaN or infinite; check the "
                    f"images and weights for values that are not finite"
                )
    except BaseException:
        for name, layer in layers.items():
            layer.load_state_dict(found[name][1])
        raise
    finally:
        for name, layer in layers.items():
            layer.momentum = found[name][0]
    return done
