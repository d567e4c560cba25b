"""One function a criterion: weights and domain statistics in, one importance a filter out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dgprune_lite.channels.graph import ChannelGraph, filters_first
from dgprune_lite.checks import nearest_name
from dgprune_lite.scores.gates import check_graph
from dgprune_lite.scores.risks import DomainStatistics

Criterion = Callable[..., Tensor]
CRITERIA: dict[str, Criterion] = {}
NEEDS_STATISTICS: set[str] = set()


def criterion(name: str, *, statistics: bool = True) -> Callable[[Criterion], Criterion]:
    """Register a criterion: ``f(model, graph, stats, **options) -> Tensor (M,)``, high for keep.

    Args:
        name: What users pass to :func:`score` and :func:`~dgprune_lite.pruning.pruning.prune`.
        statistics: Whether it needs :class:`~dgprune_lite.scores.risks.DomainStatistics`.

    >>> @criterion("keep_late_filters", statistics=False)
    ... def keep_late_filters(model, graph, stats):
    ...     return torch.arange(graph.num_filters, dtype=torch.float64)
    >>> del CRITERIA["keep_late_filters"]
    """

    def register(function: Criterion) -> Criterion:
        CRITERIA[name] = function
        (NEEDS_STATISTICS.add if statistics else NEEDS_STATISTICS.discard)(name)
        return function

    return register


def score(
    criterion: str,
    model: nn.Module,
    graph: ChannelGraph,
    stats: DomainStatistics | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """Score every filter by a criterion.

    Args:
        criterion: random, l1, l2, bn_scale, fpgm, taylor, fisher, risk_variance, risk_gradient,
            risk_objective, worst_domain, bn_scale_and_risk, or one you registered.
        model: The network that ``graph`` was traced from; only read.
        graph: From :func:`~dgprune_lite.channels.graph.trace_channels`.
        stats: From :func:`~dgprune_lite.scores.risks.domain_statistics`, on source domains;
            random, l1, l2, bn_scale and fpgm need none.
        options: Passed to the criterion, such as ``order="exact"`` for risk_variance.

    Returns:
        Group name to float64 (filters,); high means keep.

    Raises:
        TypeError: ``model`` is no network, or ``graph`` no graph.
        ValueError: Unknown criterion, missing statistics, fewer than two domains where a
            variance needs them, statistics or graph of another model, a score that is not finite.

    >>> import dgprune_lite as dg
    >>> model = dg.build_model("digits_cnn", width=4)
    >>> graph = dg.trace_channels(model, torch.zeros(1, 3, 28, 28))
    >>> {group: len(values) for group, values in dg.score("l1", model, graph).items()}
    {'conv1': 4, 'conv2': 8, 'conv3': 8}
    """
    check_graph(model, graph)
    return importances(criterion, model, graph, stats, options)


def importances(
    criterion: str,
    model: nn.Module,
    graph: ChannelGraph,
    stats: DomainStatistics | None,
    options: Mapping[str, Any],
) -> dict[str, Tensor]:
    """What `score` returns, for a graph that is known to be the model's."""
    if criterion not in CRITERIA:
        raise ValueError(
            f"criterion={criterion!r} is unknown.{nearest_name(criterion, CRITERIA)} "
            f"Known: {', '.join(sorted(CRITERIA))}"
        )
    if criterion in NEEDS_STATISTICS:
        if stats is None:
            raise ValueError(
                f"criterion {criterion!r} needs statistics of the source domains: "
                "pass stats=domain_statistics(model, graph, split.train)"
            )
        if (found := stats.gradient_sum.shape[1]) != graph.num_filters:
            raise ValueError(
                f"the statistics hold {found} filters, the graph {graph.num_filters}: "
                "make them with this graph"
            )
    with torch.no_grad():
        values = CRITERIA[criterion](model, graph, stats, **options)
    if not isinstance(values, Tensor):
        raise TypeError(f"criterion {criterion!r} gave {values!r:.80}, expected a tensor (M,)")
    if values.shape != (graph.num_filters,) or not bool(values.isfinite().all()):
        raise ValueError(
            f"criterion {criterion!r} gave shape {tuple(values.shape)} with "
            f"{int((~values.isfinite()).sum())} values that are not finite, expected "
            f"({graph.num_filters},) finite importances"
        )
    return graph.split(values.double().cpu())


@criterion("random", statistics=False)
def random(
    model: nn.Module, graph: ChannelGraph, stats: DomainStatistics | None, *, seed: int = 0
) -> Tensor:
    """Uniform random importance: the floor that every criterion must beat."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(graph.num_filters, generator=generator, dtype=torch.float64)


def _filters(model: nn.Module, graph: ChannelGraph) -> Iterator[tuple[np.ndarray, Tensor]]:
    """For every layer with filters: their units and its weight as rows (channels, rest)."""
    for name, layer in graph.layers.items():
        if layer.kind in ("conv", "linear") and (layer.out_units >= 0).any():
            module = model.get_submodule(name)
            assert isinstance(module.weight, Tensor)
            yield layer.out_units, filters_first(module, module.weight.detach()).flatten(1)


def _power_sums(
    model: nn.Module, graph: ChannelGraph, power: int
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """For every layer with filters: their units and Σ |weight|^power, float64 (channels,)."""
    raised = {1: Tensor.abs_, 2: Tensor.square_}[power]
    for units, rows in _filters(model, graph):
        step = max(1, 2**16 // rows.shape[1])  # few: memory that is asked for anew is slow
        copies = (block.to(torch.float64, copy=True) for block in rows.split(step))
        yield units, torch.cat([raised(copy).sum(1) for copy in copies])


def _sum_over_layers(graph: ChannelGraph, parts: Iterator[tuple[np.ndarray, Tensor]]) -> Tensor:
    """Add values of channels (channels,) up to the filters they belong to."""
    total = torch.zeros(graph.num_filters, dtype=torch.float64)
    if graph.groups:
        units, values = (list(column) for column in zip(*parts, strict=True))
        unit = torch.from_numpy(np.concatenate(units))
        total.index_add_(0, unit[unit >= 0], torch.cat(values).cpu()[unit >= 0])
    return total


@criterion("l1", statistics=False)
def l1(model: nn.Module, graph: ChannelGraph, stats: DomainStatistics | None) -> Tensor:
    """Sum of absolute weights. Source: Li et al. 2017, "Pruning filters for efficient ConvNets"."""
    return _sum_over_layers(graph, _power_sums(model, graph, 1))


@criterion("l2", statistics=False)
def l2(model: nn.Module, graph: ChannelGraph, stats: DomainStatistics | None) -> Tensor:
    """Euclidean norm of the weights, over all layers of the filter."""
    return _sum_over_layers(graph, _power_sums(model, graph, 2)).sqrt()


@criterion("bn_scale", statistics=False)
def bn_scale(model: nn.Module, graph: ChannelGraph, stats: DomainStatistics | None) -> Tensor:
    """Sum of the BatchNorms' scales γ, in magnitude. Source: Liu et al. 2017 (network slimming)."""
    scales = [
        (layer.out_units, scale.detach().double().abs().cpu())
        for name, layer in graph.layers.items()
        if layer.kind == "norm"
        and isinstance(scale := model.get_submodule(name).weight, Tensor)
        and (layer.out_units >= 0).any()
    ]
    covered = {unit for units, _ in scales for unit in units.tolist()}
    for group in graph.groups.values():
        if group.start not in covered:
            raise ValueError(
                f"bn_scale needs a BatchNorm scale on every filter, group {group.name!r} has "
                "none: use another criterion, such as 'l1', or leave the layer out"
            )
    return _sum_over_layers(graph, iter(scales))


@criterion("fpgm", statistics=False)
def fpgm(model: nn.Module, graph: ChannelGraph, stats: DomainStatistics | None) -> Tensor:
    """Sum of distances to the layer's other filters. Source: He et al. 2019, eq. 4 (FPGM)."""
    rows = ((units, weight.double().cpu()) for units, weight in _filters(model, graph))
    return _sum_over_layers(graph, ((u, torch.cdist(w, w).sum(1)) for u, w in rows))


@criterion("taylor")
def taylor(model: nn.Module, graph: ChannelGraph, stats: DomainStatistics) -> Tensor:
    """(mean_d J_dm)²: squared gate gradient. Source: Molchanov et al. 2019, eq. 8."""
    return stats.gradient.mean(0) ** 2


@criterion("fisher")
def fisher(model: nn.Module, graph: ChannelGraph, stats: DomainStatistics) -> Tensor:
    """mean_d F_dm: mean squared gate gradient. Source: Theis et al. 2018, "Fisher pruning"."""
    return stats.fisher.mean(0)


def _check_variance(stats: DomainStatistics, name: str, **weights: float) -> None:
    """Raise a ValueError for a single domain, or a weight that is negative or not finite."""
    if len(stats.domains) < 2:
        raise ValueError(
            f"{name} needs at least two source domains to take a variance over, got "
            f"{len(stats.domains)}: {', '.join(stats.domains)}"
        )
    for weight, value in weights.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"{weight}={value!r} must be a number of at least 0")


@criterion("risk_variance")
def risk_variance(
    model: nn.Module,
    graph: ChannelGraph,
    stats: DomainStatistics,
    *,
    order: str = "fisher",
    mean_weight: float = 0.0,
    variance_weight: float = 1.0,
    normalize: bool = False,
    reverse: bool = False,
) -> Tensor:
    """√(a·(mean_d Δ_dm)² + b·Var_d Δ_dm), by default the spread over domains of the risk's change.

    Args:
        order: See :meth:`~dgprune_lite.scores.risks.DomainStatistics.risk_change`.
        mean_weight: a ≥ 0.
        variance_weight: b ≥ 0, σ²·D in the derivation.
        normalize: Whether to divide each domain's Δ by its mean magnitude over all filters first.
        reverse: Whether the spread counts *against* a filter: √a·abs(mean) − √b·std.

    Source: our reading of Cai, Li and Kot 2022; derivation in chapter 5, from the affine mixtures
    of Krueger et al. 2021 (V-REx). The variance is the population variance, as there.
    """
    weights = {"mean_weight": mean_weight, "variance_weight": variance_weight}
    _check_variance(stats, "risk_variance", **weights)
    change = stats.risk_change(order)  # (D, M)
    if normalize:
        scale = change.abs().mean(1, keepdim=True)  # (D, 1)
        change = change / torch.where(scale > 0, scale, 1)
    mean, variance = change.mean(0), change.var(0, unbiased=False)
    if reverse:
        return mean_weight**0.5 * mean.abs() - (variance_weight * variance).sqrt()
    return (mean_weight * mean**2 + variance_weight * variance).sqrt()


@criterion("risk_gradient")
def risk_gradient(model: nn.Module, graph: ChannelGraph, stats: DomainStatistics) -> Tensor:
    """(∂Var_d R_d/∂z_m)², with ∂Var_d R_d/∂z_m = 2·mean_d (R_d - mean R)·J_dm.

    Source: chapter 5, the variance term of V-REx (Krueger et al. 2021) expanded at z = 1.
    """
    _check_variance(stats, "risk_gradient")
    deviation = stats.risk - stats.risk.mean()
    return (2 * (deviation[:, None] * stats.gradient).mean(0)) ** 2


@criterion("risk_objective")
def risk_objective(
    model: nn.Module,
    graph: ChannelGraph,
    stats: DomainStatistics,
    *,
    order: str = "fisher",
    variance_weight: float = 1.0,
) -> Tensor:
    """Change of mean_d R_d + β·Var_d R_d when the filter goes; negative where that improves it.

    A filter that makes the domains' risks *differ* counts little. ``variance_weight`` is β ≥ 0;
    ``order`` as for :func:`risk_variance`. Source: chapter 5, the objective of
    V-REx (Krueger et al. 2021, eq. 8) with and without m.
    """
    _check_variance(stats, "risk_objective", variance_weight=variance_weight)
    change = stats.risk_change(order)  # (D, M)
    variance = (stats.risk[:, None] + change).var(0, unbiased=False)
    return change.mean(0) + variance_weight * (variance - stats.risk.var(unbiased=False))


@criterion("worst_domain")
def worst_domain(
    model: nn.Module, graph: ChannelGraph, stats: DomainStatistics, *, order: str = "fisher"
) -> Tensor:
    """Largest change of risk over the domains, in magnitude: max_d abs(Δ_dm). Source: chapter 5."""
    return stats.risk_change(order).abs().amax(0)


@criterion("bn_scale_and_risk")
def bn_scale_and_risk(
    model: nn.Module,
    graph: ChannelGraph,
    stats: DomainStatistics,
    *,
    mean_weight: float = 1.0,
    **options: Any,
) -> Tensor:
    """Mean of the ranks in the group by bn_scale and by :func:`risk_variance`; ours, chapter 8."""
    risk = risk_variance(model, graph, stats, mean_weight=mean_weight, **options)
    prior = bn_scale(model, graph, stats)
    return (_ranks(graph, prior) + _ranks(graph, risk)) / 2


def _ranks(graph: ChannelGraph, values: Tensor) -> Tensor:
    """Rank in the filter's group over the group's size; the most important has 1."""
    ranks = {
        name: (part.argsort(stable=True).argsort() + 1).double() / len(part)
        for name, part in graph.split(values).items()
    }
    return graph.join(ranks)


def normalize_groups(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each group's scores over their Euclidean length, to rank all groups together; zeros stay.

    Source: Molchanov et al. 2017, "Pruning convolutional neural networks for resource efficient
    inference", section 2.2.
    """
    lengths = {name: values.norm() for name, values in scores.items()}
    return {n: v / lengths[n] if lengths[n] > 0 else v for n, v in scores.items()}
