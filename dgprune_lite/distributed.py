"""Scoring on several GPUs or machines: each process measures its share, and the sums are added up.

All that a score needs of the data are sums over images (`DomainStatistics`), so that nothing else
has to be exchanged: no gradients, no images, one addition at the end. What this file is *not*:
training on several GPUs. On one machine with 4 GPUs, and on two::

    torchrun --nproc-per-node 4 score.py
    torchrun --nnodes 2 --node-rank 0 --master-addr HOST --nproc-per-node 4 score.py

with a ``score.py`` such as::

    dist.init_process_group()                                  # NCCL for GPUs, Gloo for CPUs
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    model, graph, split = ...                                  # the same in every process
    stats = distributed_statistics(model.cuda(), graph, split.train)
    if dist.get_rank() == 0:
        scores = dg.score("risk_variance", model, graph, stats)
    dist.destroy_process_group()
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from dgprune_lite.channels import ChannelGraph
from dgprune_lite.domains import count
from dgprune_lite.risks import DomainStatistics, Order, beside, domain_statistics
from dgprune_lite.running import device_of


def distributed_statistics(
    model: nn.Module,
    graph: ChannelGraph,
    data: Mapping[str, Dataset[Any]],
    *,
    order: Order = "fisher",
    group: dist.ProcessGroup | None = None,
    **options: Any,
) -> DomainStatistics:
    """Measure with all processes of a group what `domain_statistics` measures with one.

    Process r of W takes the images r, r + W, r + 2W, ... of every domain; all get the same result,
    which differs from that of one process by rounding only. Call it in every process, with the same
    model and data; the head of this file shows how to start them with ``torchrun``. Without
    processes (no ``init_process_group``) it is `domain_statistics`.

    Args:
        model: The network, on this process's device.
        graph: Its channels.
        data: Domain name to the *whole* data set, from which each process reads its images only.
        order: As in :func:`~dgprune_lite.risks.domain_statistics`.
        group: The processes; all by default.
        options: ``batch_size``, ``precision``, ``workers``, ``progress``, as there.

    Raises:
        ValueError: As :func:`~dgprune_lite.risks.domain_statistics`, in the process that finds it.
        RuntimeError: In all processes, if an error was raised in another one (which it names), or
            if they do not have the same weights, domains and numbers of images.

    >>> import torch, dgprune_lite as dg
    >>> model = dg.build_model("digits_cnn", width=4)
    >>> graph = dg.trace_channels(model, torch.zeros(1, 3, 28, 28))
    >>> data = torch.utils.data.TensorDataset(torch.rand(5, 3, 28, 28), torch.arange(5))
    >>> distributed_statistics(model, graph, {"photo": data}).images
    tensor([5])
    """
    if not dist.is_initialized():
        return domain_statistics(model, graph, data, order=order, **options)
    mine: DomainStatistics | None = None
    error: Exception | None = None
    task: Any = None
    try:
        task = (order, graph.num_filters, _checksum(model))
        task += tuple((name, count(dataset, name)) for name, dataset in data.items())
        mine = _share(model, graph, data, order, group, options)
    except Exception as found:  # told to the others, who would else wait for this process for ever
        error = found
    _agree(task, error, group)
    assert mine is not None
    return _sum(mine, model, group)


def _share(
    model: nn.Module,
    graph: ChannelGraph,
    data: Mapping[str, Dataset[Any]],
    order: Order,
    group: dist.ProcessGroup | None,
    options: dict[str, Any],
) -> DomainStatistics:
    """The statistics of this process's images; zeros for a domain of which it has none."""
    if not data:
        return domain_statistics(model, graph, data)  # which says what is missing
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    parts = []
    for name, dataset in data.items():
        images = count(dataset, name)
        if images and rank >= images:
            parts.append(_nothing(name, graph.num_filters, order))
            continue
        share = Subset(dataset, range(rank, images, world))
        parts.append(domain_statistics(model, graph, {name: share}, order=order, **options))
    return reduce(beside, parts)


def _nothing(domain: str, filters: int, order: Order) -> DomainStatistics:
    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64)

    return DomainStatistics(
        (domain,),
        torch.zeros(1, dtype=torch.int64),
        zeros(1),
        zeros(1, filters),
        None if order == "first" else zeros(1, filters),
        zeros(1, filters) if order == "exact" else None,
    )


def _agree(task: Any, error: Exception | None, group: dist.ProcessGroup | None) -> None:
    """Raise in every process if one failed, or if they were not given the same to do."""
    message = None if error is None else f"{type(error).__name__}: {error}"
    reports: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(reports, (task, message), group=group)
    if error is not None:
        raise error
    for rank, (other, told) in enumerate(reports):
        if told is not None:
            raise RuntimeError(f"scoring failed in process {rank}: {told}")
        if other != task:
            raise RuntimeError(
                f"process {rank} scores (order, filters, checksum of the weights, images of each "
                f"domain) {other}, process {dist.get_rank(group)} {task}; expected the same in all"
            )


def _checksum(model: nn.Module) -> int:
    """The sum of all bytes of the weights: whole numbers, the same on any kind of device."""
    return sum(
        int(tensor.detach().reshape(-1).view(torch.uint8).sum(dtype=torch.int64))
        for tensor in model.state_dict().values()
    )


def _sum(
    mine: DomainStatistics, model: nn.Module, group: dist.ProcessGroup | None
) -> DomainStatistics:
    """The sum over all processes, by one all-reduce of float64 numbers, which hold any count."""
    names = ("images", "risk_sum", "gradient_sum", "fisher_sum", "ablation_sum")
    found = {name: getattr(mine, name) for name in names if getattr(mine, name) is not None}
    # NCCL adds up what is on GPUs, and Gloo what is on CPUs.
    place = torch.device("cpu") if dist.get_backend(group) == "gloo" else device_of(model)
    total = torch.cat([value.double().flatten() for value in found.values()]).to(place)
    dist.all_reduce(total, group=group)
    parts = total.cpu().split([value.numel() for value in found.values()])
    sums = {
        name: part.view(value.shape).to(value.dtype)
        for (name, value), part in zip(found.items(), parts, strict=True)
    }
    return DomainStatistics(mine.domains, **sums)
