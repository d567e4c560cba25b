"""The ratio for a target, by bisection: what share of MACs, parameters or time should be left.

Many groups become narrower at the same ratio: the first of them take that step, in the network's
order, as many as the target needs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor

from dgprune_lite.channels.graph import ChannelGraph
from dgprune_lite.pruning.limits import Limits, Ratio
from dgprune_lite.pruning.plans import PruningPlan, make_plan
from dgprune_lite.pruning.selection import Selection, select
from dgprune_lite.pruning.timing import median_latency

TOLERANCE = 0.01
"""How far from a target counts as reached, as a share of the whole network's cost."""

NOISE = 0.05
"""The same for measured times, which vary from run to run."""

_TITLES = {"macs": "MACs", "parameters": "parameters", "latency": "the time"}
_ALL = 1 - 1e-9  # the ratio at which every group is at its bound


def plan_within(graph: ChannelGraph, scores: Tensor, limits: Limits) -> PruningPlan:
    """The plan for scores, float64 (M,), and for the ratio or the target of the limits."""
    if limits.target is None:
        return _plan(graph, select(graph, scores, limits.ratio, limits), limits.ratio)
    measure, share = limits.target
    whole = dict(zip(("parameters", "macs"), graph.totals(), strict=True))
    trials: list[tuple[float, float, Selection]] = []  # share left, ratio, what goes

    def try_out(ratio: float, selection: Selection) -> bool:
        """Note what a selection leaves; whether that is no more than it should be."""
        if limits.timed is not None:
            model, inputs = limits.timed
            small = _plan(graph, selection, ratio).apply(model, check=False)
            before, after = median_latency([model, small], inputs, rounds=7)
            left = after / before
        else:
            cost = dict(zip(whole, graph.totals(selection.removed), strict=True))
            left = cost[measure] / max(1, whole[measure])
        trials.append((left, ratio, selection))
        return left <= share

    low, high = 0.0, _ALL  # too little, too much removed
    for _ in range(7 if limits.timed else 24):
        middle = (low + high) / 2
        less = try_out(middle, select(graph, scores, middle, limits))
        low, high = (low, middle) if less else (middle, high)
    steps = _between(graph, *(select(graph, scores, end, limits) for end in (low, high)))
    first, last = 0, len(steps) - 1
    while last - first > 1 and limits.timed is None:
        step = (first + last) // 2
        first, last = (first, step) if try_out(low, steps[step]) else (step, last)
    try_out(low, steps[first])
    try_out(high, steps[last])
    left, found, selection = min(trials, key=lambda trial: abs(trial[0] - share))
    remark = (
        f"target_{measure}={share:g}: {left:.1%} of {_TITLES[measure]} left, at ratio {found:.4g}"
    )
    if abs(left - share) > (NOISE if limits.timed else TOLERANCE):
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
