"""Which filters go: scores, a ratio and limits in, a mask over the graph's filters out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dgprune_lite.channels.graph import ChannelGraph
from dgprune_lite.pruning.limits import Limits, Ratio


@dataclass(frozen=True)
class Selection:
    """The filters that go, bool (M,), and what a reader should know about the choice."""

    removed: np.ndarray
    notes: dict[str, str]  # group name to why it keeps another number than asked
    remarks: tuple[str, ...]


def select(graph: ChannelGraph, scores: Tensor, ratio: Ratio, limits: Limits) -> Selection:
    """Choose the filters of each scope with the lowest scores, (M,), -inf for what is gone already.

    ``limits.ratio`` is not read: a search for a target tries others.
    """
    removed = np.zeros(graph.num_filters, dtype=bool)
    values, remarks, notes = scores.numpy(), [], dict(limits.notes)
    for pattern, groups in limits.scopes:
        share = float(ratio[pattern] if isinstance(ratio, Mapping) else ratio)
        spans = [np.arange(group.start, group.start + group.size) for group in groups]
        ranked = [span[np.argsort(values[span], kind="stable")] for span in spans]
        everything = np.concatenate(spans)
        wanted = len(everything) - round(len(everything) * (1 - share))
        free = [r[: len(r) - limits.least(len(r))] for r in ranked]  # the others are safe
        going = np.zeros(graph.num_filters, dtype=bool)
        going[_lowest(values, np.sort(np.concatenate(free)), wanted)] = True
        unbounded = np.zeros(graph.num_filters, dtype=bool)
        unbounded[_lowest(values, everything, wanted)] = True
        for group, order in zip(groups, ranked, strict=True):
            bounded = group.size - int(going[group.span].sum())
            width = limits.rounded(bounded, group.size)
            removed[order[: group.size - width]] = True
            asked = group.size - int(unbounded[group.span].sum())
            if reason := _reason(asked, bounded, width, group.size, limits):
                notes[group.name] = "; ".join(filter(None, [notes.get(group.name), reason]))
        gone = int(removed[everything].sum())
        if len(groups) > 1 and gone != wanted:
            remarks.append(
                f"{gone} of {len(everything)} filters go, the ratio {share:g} asked for {wanted}: "
                "see the bounds of the groups"
            )
    return Selection(removed, notes, tuple(remarks))


def _lowest(values: np.ndarray, candidates: np.ndarray, count: int) -> np.ndarray:
    return candidates[np.argsort(values[candidates], kind="stable")[:count]]


def _reason(asked: int, bounded: int, width: int, size: int, limits: Limits) -> str | None:
    """Why a group keeps ``width`` filters where the ratio alone asks for ``asked``."""
    reasons = []
    if bounded > asked:
        least = limits.least(size)
        if least > 1 or limits.max_pruning_ratio < 1:
            reasons.append(
                f"max_pruning_ratio={limits.max_pruning_ratio:g} leaves at least {least}"
            )
        else:
            reasons.append("one filter always stays")
    elif bounded < asked:
        reasons.append("it makes up for groups at their bound")
    if width != bounded:
        fits = width % limits.round_to == 0
        why = "nearest multiple of" if fits else "no smaller width within bounds is a multiple of"
        reasons.append(f"{why} round_to={limits.round_to}")
    return f"the ratio asked for {asked}; " + ", ".join(reasons) if reasons else None


def kept_filters(size: int, ratio: float) -> int:
    """round(size·(1 - ratio)), and at least one."""
    return max(1, round(size * (1 - ratio)))


def check_scores(graph: ChannelGraph, scores: Mapping[str, Tensor]) -> Tensor:
    """All scores as float64 (M,) on the CPU, or an error that names the group that is wrong."""
    if not isinstance(scores, Mapping):
        raise TypeError(f"scores is {scores!r:.80}, expected what score returned: group to tensor")
    for name, value in scores.items():
        if not isinstance(value, Tensor) or value.is_complex():
            raise TypeError(f"scores[{name!r}] is {value!r:.80}, expected a tensor of real numbers")
    expected = {name: (group.size,) for name, group in graph.groups.items()}
    given = {name: tuple(value.shape) for name, value in scores.items()}
    for name in [*expected, *given]:
        if given.get(name) != expected.get(name):
            size = expected[name][0] if name in expected else "no"
            raise ValueError(
                f"scores do not fit the graph: group {name!r} has {size} filters "
                f"in the graph and shape {given.get(name, 'none')} in the scores. "
                "Score with the same graph that you plan with"
            )
    for name, value in scores.items():
        if not bool(value.isfinite().all()):
            raise ValueError(f"scores of group {name!r} are not all finite: {value.tolist()}")
    plain = {name: value.detach().cpu().to_dense().double() for name, value in scores.items()}
    return graph.join(plain).double()
