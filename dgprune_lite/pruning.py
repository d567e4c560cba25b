"""Plan, then apply: scores and a ratio in, a physically smaller network out.

A :class:`PruningPlan` is plain data: for every module the indices it loses on its output and on
its input axis. It can be read, explained, saved and applied to any copy of the model.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from dgprune_lite.channels import ChannelGraph, keep_mask, trace_channels
from dgprune_lite.risks import Order, domain_statistics
from dgprune_lite.scores import NEEDS_STATISTICS, score
from dgprune_lite.surgery import Cut, smaller_copy

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PruningPlan:
    """Which filters go, and from where.

    Attributes:
        pruning_ratio: The ratio asked for.
        cuts: Module name to :class:`Cut`, for every module that loses something.
        widths: Group name to (filters before, filters after).
        skipped: Module name to the reason why none of its filters can be removed.
        parameters: Of the whole network, (before, after).
        macs: Multiply-accumulates for one image, (before, after).
        layers: One dict a module: channels, parameters and MACs before and after.
        kept_gates: Group name to float (filters,): 1 where the filter stays, 0 where it goes.
    """

    pruning_ratio: float
    cuts: dict[str, Cut]
    widths: dict[str, tuple[int, int]]
    skipped: dict[str, str]
    parameters: tuple[int, int]
    macs: tuple[int, int]
    layers: tuple[dict[str, Any], ...] = field(repr=False)
    kept_gates: dict[str, Tensor] = field(repr=False)

    @property
    def removed(self) -> dict[str, tuple[int, ...]]:
        """Module name to the indices it loses on its output axis."""
        return {name: cut.out for name, cut in self.cuts.items() if cut.out}

    def to_frame(self) -> pd.DataFrame:
        """One row a module: channels, parameters and MACs before and after."""
        import pandas as pd

        return pd.DataFrame(self.layers)

    def explain(self) -> str:
        """What goes, where, why not elsewhere, and what it saves, as text."""
        lines = [f"Pruning plan at ratio {self.pruning_ratio:g}: the lowest scores of a group go"]
        width = max([len(name) for name in self.widths] or [0])
        for name, (before, after) in self.widths.items():
            gone = (self.kept_gates[name] == 0).nonzero()[:, 0].tolist()
            shown = ", ".join(map(str, gone[:8])) + (", ..." if len(gone) > 8 else "")
            without = f", without {shown}" if gone else ""
            lines.append(f"  {name:<{width}}  {before:>5} -> {after:>5} filters{without}")
        for name, reason in self.skipped.items():
            lines.append(f"  {name} keeps all its filters: {reason}")
        for title, (before, after) in (("parameters", self.parameters), ("MACs", self.macs)):
            lines.append(f"{title}: {before:,} -> {after:,} ({after / before - 1:+.1%})")
        return "\n".join(lines)

    def apply(self, model: nn.Module) -> nn.Module:
        """Make the smaller network; ``model`` is untouched.

        Args:
            model: The network the plan was made for, or another with the same layers.

        Returns:
            A copy of ``model`` without the filters of the plan. In eval mode it computes what
            ``model`` computes with those filters' gates at 0.

        Raises:
            ValueError: A layer of the plan is missing or has another shape.
        """
        return smaller_copy(model, self.cuts)


def plan_pruning(
    graph: ChannelGraph,
    scores: Mapping[str, Tensor],
    pruning_ratio: float = 0.5,
    *,
    global_pruning: bool = False,
    ignored_layers: Sequence[str] = (),
) -> PruningPlan:
    """Decide which filters go: in each group those with the lowest scores.

    Args:
        graph: From :func:`~dgprune_lite.channels.trace_channels`.
        scores: Group name to (filters,), from :func:`~dgprune_lite.scores.score`. High: keep.
        pruning_ratio: Share of filters to remove, in [0, 1). Each group of n filters keeps
            round(n·(1 - ratio)), and at least one.
        global_pruning: Rank all filters of the network together, so that groups may lose
            unequal shares. Scores must then be comparable between groups.
        ignored_layers: Names of modules, of blocks that hold them, or patterns such as
            ``"layer?.0.*"``; they keep all their channels.

    Returns:
        The :class:`PruningPlan`. Equal scores go in order of the filters' numbers.

    Raises:
        ValueError: A ratio outside [0, 1), scores that do not fit the graph, a pattern that
            fits no layer.

    >>> import dgprune_lite as dg
    >>> model = dg.build_model("digits_cnn", width=4)
    >>> graph = dg.trace_channels(model, torch.zeros(1, 3, 28, 28))
    >>> plan = dg.plan_pruning(graph, dg.score("l1", model, graph), pruning_ratio=0.5)
    >>> plan.widths
    {'conv1': (4, 2), 'conv2': (8, 4), 'conv3': (8, 4)}
    """
    ratio = check_ratio(pruning_ratio)
    _check_scores(graph, scores)
    open_groups = _open_groups(graph, ignored_layers)
    flat = graph.join(dict(scores)).double()
    removed = np.zeros(graph.num_filters, dtype=bool)
    if global_pruning:
        spans = [np.arange(g.start, g.start + g.size) for g in open_groups]
        safe = [span[int(flat[span].argmax())] for span in spans]  # every group keeps one
        pool = np.setdiff1d(np.concatenate(spans), safe) if spans else np.array([], dtype=int)
        target = sum(len(span) for span in spans)
        removed[_lowest(flat, pool, target - kept_filters(target, ratio))] = True
    else:
        for group in open_groups:
            span = np.arange(group.start, group.start + group.size)
            removed[_lowest(flat, span, group.size - kept_filters(group.size, ratio))] = True
    return make_plan(graph, removed, ratio)


def check_ratio(pruning_ratio: float) -> float:
    """The ratio as a float in [0, 1), or a ValueError."""
    try:
        ratio = float(pruning_ratio)
    except (TypeError, ValueError):
        ratio = float("nan")
    if not 0 <= ratio < 1:
        raise ValueError(
            f"pruning_ratio={pruning_ratio!r} must be a number in [0, 1): the share of filters "
            "to remove, such as 0.5 for half of them"
        )
    return ratio


def kept_filters(size: int, ratio: float) -> int:
    """round(size·(1 - ratio)), and at least one."""
    return max(1, round(size * (1 - ratio)))


def _lowest(scores: Tensor, candidates: np.ndarray, count: int) -> np.ndarray:
    order = np.argsort(scores[candidates].numpy(), kind="stable")
    return candidates[order[: max(0, count)]]


def _check_scores(graph: ChannelGraph, scores: Mapping[str, Tensor]) -> None:
    expected = {name: group.size for name, group in graph.groups.items()}
    given = {name: tuple(value.shape) for name, value in scores.items()}
    if given != {name: (size,) for name, size in expected.items()}:
        wrong = sorted(n for n in expected.keys() | given if given.get(n) != (expected.get(n),))
        name = wrong[0]
        raise ValueError(
            f"scores do not fit the graph: group {name!r} has {expected.get(name, 'no')} filters "
            f"in the graph and shape {given.get(name, 'none')} in the scores. "
            "Score with the same graph that you plan with"
        )
    for name, value in scores.items():
        if not bool(value.isfinite().all()):
            raise ValueError(f"scores of group {name!r} are not all finite: {value.tolist()}")


def _open_groups(graph: ChannelGraph, ignored: Sequence[str]) -> list[Any]:
    closed: set[int] = set()
    for pattern in [ignored] if isinstance(ignored, str) else ignored:
        if not isinstance(pattern, str):
            raise TypeError(f"ignored_layers holds {pattern!r}, expected names such as 'layer4.*'")
        fitting = [
            layer
            for name, layer in graph.layers.items()
            if fnmatch.fnmatch(name, pattern) or name.startswith(f"{pattern}.")
        ]
        if not fitting:
            raise ValueError(
                f"ignored_layers={pattern!r} fits none of the layers {', '.join(graph.layers)}"
            )
        closed.update(unit for layer in fitting for unit in layer.out_units.tolist())
    return [
        group
        for group in graph.groups.values()
        if closed.isdisjoint(range(group.start, group.start + group.size))
    ]


def make_plan(graph: ChannelGraph, removed: np.ndarray, pruning_ratio: float) -> PruningPlan:
    """The plan that removes exactly the filters marked in ``removed``, bool (M,)."""
    nothing = np.zeros_like(removed)
    cuts, rows = {}, []
    for name, layer in graph.layers.items():
        out = np.flatnonzero(~keep_mask(layer.out_units, removed))
        empty = np.array([], dtype=int)
        into = empty if layer.in_units is None else ~keep_mask(layer.in_units, removed)
        into = np.flatnonzero(into)
        if len(out) or len(into):
            cuts[name] = Cut(tuple(out.tolist()), tuple(into.tolist()), layer.weight_shape)
        before, after = layer.size(nothing), layer.size(removed)
        rows.append(
            {
                "module": name,
                "kind": layer.kind,
                "channels_before": len(layer.out_units),
                "channels_after": layer.widths(removed)[0],
                "parameters_before": before[0],
                "parameters_after": after[0],
                "macs_before": before[1],
                "macs_after": after[1],
            }
        )
    parameters, macs = zip(graph.totals(nothing), graph.totals(removed), strict=True)
    kept = torch.from_numpy(~removed).float()
    return PruningPlan(
        pruning_ratio=pruning_ratio,
        cuts=cuts,
        widths={n: (g.size, int((~removed[g.span]).sum())) for n, g in graph.groups.items()},
        skipped=dict(graph.skipped),
        parameters=parameters,
        macs=macs,
        layers=tuple(rows),
        kept_gates=graph.split(kept),
    )


def prune(
    model: nn.Module,
    data: Mapping[str, Dataset[Any]],
    criterion: str = "risk_variance",
    pruning_ratio: float = 0.5,
    *,
    example_inputs: Tensor | None = None,
    global_pruning: bool = False,
    ignored_layers: Sequence[str] = (),
    batch_size: int = 256,
    progress: bool = False,
    **options: Any,
) -> tuple[nn.Module, PruningPlan]:
    """Trace, score, plan, apply and check in one call.

    The smaller network still needs
    :func:`~dgprune_lite.training.recalibrate_batchnorm` and fine-tuning with
    :func:`~dgprune_lite.training.fit`.

    Args:
        model: The trained network; untouched.
        data: Source domain name to data set, such as ``split.train``.
        criterion: See :func:`~dgprune_lite.scores.score`; ``options`` go to it. The default is the
            plain score of the book. In its study no criterion loses clearly less on an unseen
            domain at the same ratio (chapter 7), nor does any variant (chapter 8); where domains
            differ by a misleading cue, "risk_objective" removes it and the default does not.
        pruning_ratio: See :func:`plan_pruning`, also for ``global_pruning``, ``ignored_layers``.
        example_inputs: One input batch; by default the first image of ``data``.
        batch_size: Images a pass while scoring.
        progress: Whether to show a progress bar while scoring.

    Returns:
        The smaller network and the :class:`PruningPlan`.

    Raises:
        ValueError: Bad input as in the functions that it calls, or a smaller network that does
            not compute what the masked one does
            (:func:`~dgprune_lite.verification.check_exact`, on ``example_inputs``).
    """
    from dgprune_lite.verification import check_exact  # which needs the plans of this file

    check_ratio(pruning_ratio)
    if example_inputs is None:
        if not data:
            raise ValueError("data={} holds no domain: pass a dict of domain name to data set")
        first: Any = next(iter(data.values()))
        like = next(model.parameters())
        example_inputs = first[0][0][None].to(like.device, like.dtype)
    graph = trace_channels(model, example_inputs)
    stats = None
    if criterion in NEEDS_STATISTICS:
        stats = domain_statistics(
            model,
            graph,
            data,
            order=statistics_order(criterion, options.get("order")),
            batch_size=batch_size,
            progress=progress,
        )
    scores = score(criterion, model, graph, stats, **options)
    plan = plan_pruning(
        graph, scores, pruning_ratio, global_pruning=global_pruning, ignored_layers=ignored_layers
    )
    small = plan.apply(model)
    check_exact(model, small, plan, graph, example_inputs)
    return small, plan


def statistics_order(criterion: str, order: str | None = None) -> Order:
    """The cheapest order of :func:`domain_statistics` that a criterion can do with."""
    if order == "exact":
        return "exact"
    if criterion in ("taylor", "risk_gradient") or order == "first":
        return "first"
    return "fisher"
