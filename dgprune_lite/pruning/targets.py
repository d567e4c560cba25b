"""The ratio for a target: what share of MACs, parameters or time should be left.

All groups keep the same share of filters (or compete in one ranking); the share is found by
bisection, as costs can only fall when the ratio rises. Many groups become narrower at the same
ratio: the first of them take that step, in the network's order, as many as the target needs.
Where the nearest plan is still off the target, the plan says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from dgprune_lite.channels.graph import ChannelGraph
from dgprune_lite.pruning.plans import PruningPlan, make_plan
from dgprune_lite.pruning.selection import Limits, Ratio, Selection, check_share, select
from dgprune_lite.pruning.timing import median_latency

TOLERANCE = 0.01
"""How far from a target counts as reached, as a share of the whole network's cost."""

NOISE = 0.05
"""The same for measured times, which vary from run to run."""

_TITLES = {"macs": "MACs", "parameters": "parameters", "latency": "the time"}
_ALL = 1 - 1e-9  # the ratio at which every group is at its bound

Target = tuple[str, float]  # "macs", "parameters" or "latency", and the share to be left


def check_targets(pruning_ratio: Any, **targets: Any) -> Target | None:
    """The one target given, checked, or None."""
    given = {name: value for name, value in targets.items() if value is not None}
    if not given:
        return None
    titles = ", ".join(f"target_{name}={value!r}" for name, value in given.items())
    if len(given) > 1:
        raise ValueError(f"{titles}: give one target")
    if pruning_ratio != 0.5:
        raise ValueError(
            f"pruning_ratio={pruning_ratio!r} and {titles}: give one of them, a target finds the "
            "ratio itself"
        )
    (name, value) = next(iter(given.items()))
    what = f"the share of {name} that is left, such as 0.5 for half"
    share = check_share(f"target_{name}", value, one=True, what=what)
    if share == 0:
        raise ValueError(f"target_{name}={value!r} must be above 0: {what}")
    return name, share


def plan_for(
    graph: ChannelGraph,
    scores: Tensor,
    ratio: Ratio,
    limits: Limits,
    target: Target | None = None,
    timed: Callable[[PruningPlan], float] | None = None,
) -> PruningPlan:
    """The plan for a ratio, or for a target.

    Args:
        graph: From :func:`~dgprune_lite.channels.graph.trace_channels`.
        scores: float64 (M,), see :func:`~dgprune_lite.pruning.selection.select`.
        ratio: Not read when there is a target.
        limits: From :func:`~dgprune_lite.pruning.selection.make_limits`.
        target: From :func:`check_targets`.
        timed: The share of time that is left by a plan; for a latency target.
    """
    if target is None:
        return _plan(graph, select(graph, scores, ratio, limits), ratio)
    name, share = target
    whole = dict(zip(("parameters", "macs"), graph.totals(), strict=True))
    tried: list[tuple[float, float, Selection]] = []  # share left, ratio, what goes

    def enough(ratio: float, selection: Selection) -> bool:
        if timed is not None:
            left = timed(_plan(graph, selection, ratio))
        else:
            cost = dict(zip(whole, graph.totals(selection.removed), strict=True))
            left = cost[name] / max(1, whole[name])
        tried.append((left, ratio, selection))
        return left <= share

    low, high = 0.0, _ALL  # too little, too much removed
    for _ in range(7 if timed else 24):
        middle = (low + high) / 2
        less = enough(middle, select(graph, scores, middle, limits))
        low, high = (low, middle) if less else (middle, high)
    steps = _between(graph, *(select(graph, scores, end, limits) for end in (low, high)))
    first, last = 0, len(steps) - 1
    while last - first > 1 and timed is None:
        step = (first + last) // 2
        first, last = (first, step) if enough(low, steps[step]) else (step, last)
    enough(low, steps[first])
    enough(high, steps[last])
    left, found, selection = min(tried, key=lambda trial: abs(trial[0] - share))
    remark = f"target_{name}={share:g}: {left:.1%} of {_TITLES[name]} left, at ratio {found:.4g}"
    if abs(left - share) > (NOISE if timed else TOLERANCE):
        most = select(graph, scores, _ALL, limits).removed
        bound = left > share and np.array_equal(selection.removed, most)
        why = "every group is at its bound" if bound else "the steps between widths are large"
        remark += f", the nearest that was found: {why}"
    plan = _plan(graph, selection, found)
    return replace(plan, remarks=(remark, *plan.remarks))


def _between(graph: ChannelGraph, less: Selection, more: Selection) -> list[Selection]:
    """Selections from ``less`` to ``more``, group by group in the network's order."""
    steps = [less]
    for name, group in graph.groups.items():
        if not np.array_equal(less.removed[group.span], more.removed[group.span]):
            removed, notes = steps[-1].removed.copy(), dict(steps[-1].notes)
            removed[group.span] = more.removed[group.span]
            further = "one step further than the ratio, to meet the target"
            notes[name] = "; ".join(filter(None, [more.notes.get(name), further]))
            steps.append(replace(steps[-1], removed=removed, notes=notes))
    return steps


def _plan(graph: ChannelGraph, selection: Selection, ratio: Ratio) -> PruningPlan:
    return make_plan(
        graph, selection.removed, ratio, notes=selection.notes, remarks=selection.remarks
    )


def latency_left(
    model: nn.Module, inputs: tuple[Tensor, ...], rounds: int = 7
) -> Callable[[PruningPlan], float]:
    """Make the function that measures which share of ``model``'s time a plan leaves."""

    def timed(plan: PruningPlan) -> float:
        before, after = median_latency([model, plan.apply(model)], inputs, rounds)
        return after / before

    return timed
