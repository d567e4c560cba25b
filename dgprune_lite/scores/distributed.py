"""Scoring on several GPUs or machines: each process measures a share, and the sums are added up."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from hashlib import sha256
from operator import add
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import Dataset, Subset

from dgprune_lite.channels.graph import ChannelGraph
from dgprune_lite.checks import named_domains
from dgprune_lite.domains import count
from dgprune_lite.scores.gates import check_graph
from dgprune_lite.scores.risks import DomainStatistics, Order, concatenate, domain_statistics


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

    Process r of W takes the images r, r + W, ... of every domain; all get the same result, up to
    rounding that of one process. Call it in every process that ``torchrun`` starts, with the same
    model and data. Without ``init_process_group`` it is `domain_statistics`.

    Args:
        model: The network, on this process's device; ``graph`` its channels.
        data: Domain name to the *whole* data set, from which each process reads its images only.
        order: As in :func:`~dgprune_lite.scores.risks.domain_statistics`.
        group: The processes; all by default.
        options: ``batch_size``, ``precision``, ``workers``, ``logits``, ``progress``, as there.

    Returns:
        The statistics of all images, the same in every process.

    Raises:
        TypeError, ValueError: As `domain_statistics`, in the process that finds it.
        RuntimeError: In all processes, if an error was raised in another one (which it names), or
            if they do not have the same weights, domains and numbers of images.

    >>> import torch, dgprune_lite as dg
    >>> model = dg.build_model("digits_cnn", width=4)
    >>> graph = dg.trace_channels(model, torch.zeros(1, 3, 28, 28))
    >>> data = torch.utils.data.TensorDataset(torch.rand(5, 3, 28, 28), torch.arange(5))
    >>> distributed_statistics(model, graph, {"photo": data}).images
    tensor([5])
    """
    if not (dist.is_available() and dist.is_initialized()):
        return domain_statistics(model, graph, data, order=order, **options)
    mine: DomainStatistics | None = None
    error: Exception | None = None
    task: Any = None
    try:
        check_graph(model, graph)
        data = named_domains(data, "data")
        task = (order, graph.num_filters, checksum(model))
        task += tuple((name, count(dataset, name)) for name, dataset in data.items())
        mine = _share(model, graph, data, order, group, options)
    except Exception as found:  # told to the others, who would else wait for this process for ever
        error = found
    return reduce(add, _gathered(task, mine, error, group))  # in one order, so the same in all


def _share(
    model: nn.Module,
    graph: ChannelGraph,
    data: Mapping[str, Dataset[Any]],
    order: Order,
    group: dist.ProcessGroup | None,
    options: dict[str, Any],
) -> DomainStatistics:
    """The statistics of this process's images; zeros for a domain of which it has none."""
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    parts = []
    for name, dataset in data.items():
        images = count(dataset, name)
        if images and rank >= images:
            parts.append(_zeros(name, graph.num_filters, order))
            continue
        share = Subset(dataset, range(rank, images, world))
        parts.append(domain_statistics(model, graph, {name: share}, order=order, **options))
    return reduce(concatenate, parts)


def _zeros(domain: str, filters: int, order: Order) -> DomainStatistics:
    """The statistics of no images."""
    none, sums = torch.zeros(1, dtype=torch.int64), torch.zeros(1, filters, dtype=torch.float64)
    fisher, ablation = order != "first", order == "exact"
    return DomainStatistics(
        (domain,), none, none.double(), sums, sums if fisher else None, sums if ablation else None
    )


def _gathered(
    task: Any,
    mine: DomainStatistics | None,
    error: Exception | None,
    group: dist.ProcessGroup | None,
) -> list[DomainStatistics]:
    """The statistics of every process; an error in all if one failed, or was to do other things."""
    # They are few, and on CPUs. So they are sent as objects, which NCCL and Gloo both can.
    message = None if error is None else f"{type(error).__name__}: {error}"
    reports: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(reports, (task, message, mine), group=group)
    if error is not None:
        raise error
    for rank, (other, told, _) in enumerate(reports):
        if told is not None:
            raise RuntimeError(f"scoring failed in process {rank}: {told}")
        if other != task:
            raise RuntimeError(
                f"process {rank} scores (order, filters, checksum of the weights, images of each "
                f"domain) {other}, process {dist.get_rank(group)} {task}; expected the same in all"
            )
    return [found for *_, found in reports]


def checksum(model: nn.Module) -> str:
    """Sixteen digits that tell weights apart, the same on any kind of device."""
    digest = sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
