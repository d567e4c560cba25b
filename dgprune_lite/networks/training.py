"""Training on several source domains at once, by ERM or V-REx; fine-tuning is the same."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import starmap
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from dgprune_lite.checks import whole_number
from dgprune_lite.domains import count
from dgprune_lite.networks.cuda_graph import WARM_UP_STEPS, can_be_captured, replayed
from dgprune_lite.networks.source_domains import (
    check_algorithm,
    check_domains,
    check_losses,
    check_numbers,
    mixed_batches,
    source_domains,
)
from dgprune_lite.running import (
    Logits,
    check_model,
    gpus_of,
    in_dtype_of,
    layout_for,
    logits_of,
    modes_as_found,
    move,
)

if TYPE_CHECKING:
    import pandas as pd

WARM_UP = 0.3  # share of the steps in which learning rate and V-REx's weight grow


def fit(
    model: nn.Module,
    train: Mapping[str, Dataset],
    *,
    steps: int,
    lr: float = 4e-3,
    batch_size: int = 32,
    algorithm: str = "ERM",
    vrex_lambda: float = 1.0,
    vrex_anneal_steps: int | None = None,
    weight_decay: float = 0.0,
    max_shift: int = 2,
    seed: int = 0,
    device: torch.device | str | None = None,
    precision: str = "float32",
    workers: int = 0,
    cuda_graph: bool = False,
    progress: bool = False,
    logits: Logits | None = None,
) -> pd.DataFrame:
    """Train a network, in place, on images of all source domains: Adam with a one-cycle rate.

    On a CPU, equal arguments give equal weights, bit for bit, with the same number of threads.
    Gradients, modes and the global random state are left as found, also after an error.

    Args:
        model: Network from images (batch, channels, height, width) to logits (batch, classes).
        train: Source domain name to its dataset of (image float (channels, height, width), label
            int64) pairs, such as ``split.train``.
        steps: Updates to make; 0 leaves the network as it is.
        lr: The largest learning rate, reached after 30 % of the steps.
        batch_size: Images of *every* domain in a step, however many it has. A domain is walked
            through in random order, again and again.
        algorithm: "ERM" minimises the mean over domains of their risks, "VREx" adds ``vrex_lambda``
            times the (population) variance of these risks.
        vrex_lambda: Weight of the variance, at least 0 (in DomainBed 10, for 5000 steps).
        vrex_anneal_steps: Steps over which that weight grows linearly from 0 (DomainBed switches
            at once); None for 30 % of ``steps``, those in which the learning rate grows.
        weight_decay: Adam's L2 penalty.
        max_shift: Every image is moved by up to this many pixels, repeating those at the border.
        seed: Seed of the order of the images, the shifts and any dropout; at least 0.
        device: Where to train; the network is moved there and stays. None for where it is.
        precision: As for :func:`~dgprune_lite.networks.evaluation.evaluate`, also ``workers`` and
            ``logits``. Weights, losses and Adam stay in float32; float16 is scaled.
        cuda_graph: On a CUDA device, capture a step once and replay it, which takes most of the
            launches from the CPU: for networks whose Python code does the same in every step (it
            drops no layer at random, hooks need not run) and never waits for the GPU. Numbers are
            the same but for rounding. Elsewhere, and in float16, no step is captured.
        progress: Show a progress bar.

    Returns:
        One row a step: step (from 1), loss (the objective, nats) and, for each domain, a column of
        its name with its risk (mean cross-entropy of its images in this step, nats).

    Raises:
        ValueError: No domain, an empty domain, V-REx with one domain, an unknown algorithm, a
            setting out of range, images of different shapes, labels outside the network's classes,
            a network without trainable parameters, a precision that the device cannot compute in,
            or a loss that is NaN or infinite (on a CPU the weights are those of the step before).
        TypeError: Arguments, images or labels of another kind, or a network without logits.

    Source: V-REx: Krueger et al., "Out-of-distribution generalization via risk extrapolation", ICML
    2021, equation 8. A batch of every domain in a step: DomainBed.

    >>> from torch.utils.data import TensorDataset
    >>> images, labels = torch.rand(8, 3, 28, 28), torch.arange(8)
    >>> train = {name: TensorDataset(images, labels) for name in ("photo", "sketch")}
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 10))
    >>> history = fit(network, train, steps=3, batch_size=4)
    >>> list(history.columns), len(history)
    (['step', 'loss', 'photo', 'sketch'], 3)
    """
    check_model(model)
    train = source_domains(train)
    steps, batch_size = whole_number("steps", steps), whole_number("batch_size", batch_size, 1)
    max_shift, seed = whole_number("max_shift", max_shift), whole_number("seed", seed)
    check_numbers(lr=lr, vrex_lambda=vrex_lambda, weight_decay=weight_decay)
    check_algorithm(algorithm, train)
    ramp = int(WARM_UP * steps) if vrex_anneal_steps is None else vrex_anneal_steps
    whole_number("vrex_anneal_steps", ramp)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError(
            "the model has no trainable parameter; expected at least one with requires_grad=True "
            "(was it frozen?)"
        )
    device = move(model, device, precision)
    layout = layout_for(model, precision)
    shape, classes = check_domains(model, train, logits)

    # All the randomness of the run is drawn beforehand; only dropout is left for the loop.
    generator = torch.Generator().manual_seed(seed)
    orders = {
        name: _endless_order(count(dataset), steps * batch_size, generator).view(steps, batch_size)
        for name, dataset in train.items()
    }
    moves = (steps, len(train) * batch_size, 2)
    shifts = torch.randint(0, 2 * max_shift + 1, moves, generator=generator).to(device)
    losses = torch.zeros(steps, 1 + len(train), device=device)
    graphed = cuda_graph and steps > WARM_UP_STEPS and can_be_captured(model, device, precision)
    # A look at the losses makes a GPU wait for its queue to empty, and a CPU for nothing.
    every = 1 if device.type == "cpu" and not graphed else 50

    with _trained_as_found(model, layout, seed):
        model.train()
        optimizer = torch.optim.Adam(
            parameters,
            lr=lr,
            weight_decay=weight_decay,
            fused=device.type in ("cpu", "cuda"),
            capturable=graphed,
        )
        scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")

        def step(
            images: Tensor,
            shifts: Tensor,
            labels: Tensor,
            rate: float | Tensor,
            variance_weight: float | Tensor,
        ) -> Tensor:
            """Update the weights once; return the objective, then each risk: (1 + domains,)."""
            images = shift_images(images, shifts, max_shift).contiguous(memory_format=layout)
            # One pass for all domains: BatchNorm normalises over their mixture.
            found = logits_of(model, images, precision, logits)
            nats = F.cross_entropy(found, labels, reduction="none")
            risks = nats.view(len(train), batch_size).mean(1)  # (domains,)
            loss = risks.mean()
            if algorithm == "VREx":
                loss = loss + variance_weight * risks.var(correction=0)
            row = torch.cat([loss.detach().view(1), risks.detach()]).to(losses)
            if every == 1 and not bool(row.isfinite().all()):
                return row  # which is an error, and the weights stay as they are
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            scaler.scale(loss).backward()  # as it is, but in float16
            scaler.step(optimizer)
            scaler.update()
            return row

        mixed = mixed_batches(
            train, orders, shape, classes, workers=workers, seed=seed, device=device
        )
        shown = tqdm(mixed, total=steps, desc="fit", unit="step", disable=not progress)
        batches = (
            (
                in_dtype_of(model, images),
                shifts[number],
                labels,
                one_cycle(number, steps, lr),
                vrex_lambda * min(1.0, (number + 1) / max(1, ramp)),
            )
            for number, (images, labels) in enumerate(shown)
        )
        rows = replayed(step, batches, device) if graphed else starmap(step, batches)
        for number, row in enumerate(rows):
            losses[number] = row
            if (number + 1) % every == 0 or number + 1 == steps:
                check_losses(losses, range(number - number % every, number + 1), list(train))

    table = losses.cpu().double().numpy()
    import pandas as pd  # costs more to import than all of this package

    history = pd.DataFrame(table, columns=["loss", *train])
    history.insert(0, "step", range(1, steps + 1))
    return history


def one_cycle(step: int, steps: int, lr: float) -> float:
    """The rate of a step from 0: in 30 % of the steps from lr / 25 up to lr, then to zero."""
    # As PyTorch's OneCycleLR, but at the middle of a step, so that very short runs work, too.
    share = (step + 0.5) / steps
    if share < WARM_UP:
        start, end, part = lr / 25, lr, share / WARM_UP
    else:
        start, end, part = lr, 0.0, (share - WARM_UP) / (1 - WARM_UP)
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2


def shift_images(images: Tensor, shifts: Tensor, max_shift: int) -> Tensor:
    """Move every image up and left by ``shifts - max_shift``, (batch, 2), repeating the border."""
    if max_shift == 0:
        return images
    height, width = images.shape[2:]
    padded = F.pad(images, (max_shift,) * 4, mode="replicate")
    # Every window of the padded images, as a view: (batch, channels, rows, columns, height, width)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    each = torch.arange(len(images), device=images.device)
    return windows[each, :, shifts[:, 0], shifts[:, 1]]


def _endless_order(images: int, wanted: int, generator: torch.Generator) -> Tensor:
    """(wanted,) indices: all images in random order, then all again in another, and so on."""
    rounds = math.ceil(wanted / images)
    orders = [torch.randperm(images, generator=generator) for _ in range(rounds)]
    return torch.cat([*orders, torch.zeros(0, dtype=torch.long)])[:wanted]


@contextmanager
def _trained_as_found(model: nn.Module, layout: torch.memory_format, seed: int) -> Iterator[None]:
    """Seed dropout and lay out the weights for speed; put back all that is not a weight's value."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    # The memory of a weight may be shared: with other processes, or with a tensor of the caller.
    contiguous = [(p, p.data) for p in model.parameters() if p.ndim == 4 and p.is_contiguous()]
    gpus = gpus_of(model)
    with torch.random.fork_rng(devices=gpus), torch.enable_grad(), modes_as_found(model):
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        try:
            for parameter, _ in gradients:
                parameter.grad = None
            for parameter, values in contiguous:
                parameter.data = values.contiguous(memory_format=layout)
            yield
        finally:
            for parameter, values in contiguous:
                values.copy_(parameter.data)
                parameter.data = values
            for parameter, gradient in gradients:
                parameter.grad = gradient
