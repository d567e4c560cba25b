"""Which filters go: scores, a ratio and limits in, a mask over the graph's filters out.

Filters are ranked within a *scope*: each group is one, or with ``global_pruning`` all groups that
share a ratio. A scope loses the lowest of its scores, within the limits of every group; where a
group then keeps more or less than its share, the reason is noted. What is *not* here: how a mask
becomes a plan (``plans.py``), and the search for a target (``targets.py``).
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from dgprune_lite.channels.graph import ChannelGraph, FilterGroup
from dgprune_lite.checks import nearest_name

Ratio = float | Mapping[str, float]


@dataclass(frozen=True)
class Limits:
    """What bounds a selection, apart from how many filters should go.

    Attributes:
        closed: Group name to the reason why it keeps all its filters.
        global_pruning: Whether groups that share a ratio are ranked together.
        round_to: Kept widths are multiples of this.
        max_pruning_ratio: No group loses a larger share.
    """

    closed: dict[str, str] = field(default_factory=dict)
    global_pruning: bool = False
    round_to: int = 1
    max_pruning_ratio: float = 1.0

    def least(self, size: int) -> int:
        """The fewest filters that a group of ``size`` may keep."""
        return max(1, math.ceil(size * (1 - self.max_pruning_ratio) - 1e-9))

    def rounded(self, width: int, size: int) -> int:
        """The multiple of ``round_to`` nearest to ``width`` within bounds; ``size`` if none is."""
        if width == size:
            return size
        step = self.round_to
        lowest, highest = -(-self.least(size) // step) * step, size // step * step
        if lowest > highest:
            return size
        return min(max(lowest, (width + step // 2) // step * step), highest)


@dataclass(frozen=True)
class Selection:
    """The filters that go, bool (M,), and what a reader should know about the choice."""

    removed: np.ndarray
    notes: dict[str, str]  # group name to why it keeps another number than asked
    remarks: tuple[str, ...]


def select(graph: ChannelGraph, scores: Tensor, ratio: Ratio, limits: Limits) -> Selection:
    """Choose the filters with the lowest scores; equal scores go in order of their numbers.

    Args:
        graph: From :func:`~dgprune_lite.channels.graph.trace_channels`.
        scores: float64 (M,). -inf marks filters that are gone already.
        ratio: As :func:`check_ratio` returns it.
        limits: From :func:`make_limits`.
    """
    removed = np.zeros(graph.num_filters, dtype=bool)
    values, remarks = scores.numpy(), []
    scopes, notes = _scopes(graph, ratio, limits)
    notes.update(limits.closed)
    for share, groups in scopes:
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


def _scopes(
    graph: ChannelGraph, ratio: Ratio, limits: Limits
) -> tuple[list[tuple[float, list[FilterGroup]]], dict[str, str]]:
    """Groups to rank together, each with its ratio; notes for the groups that are in none."""
    names = [name for name in graph.groups if name not in limits.closed]
    notes: dict[str, str] = {}
    if isinstance(ratio, Mapping):
        chosen: dict[str, str] = {}
        for pattern in ratio:
            layers = _fitting(graph, pattern)
            _some(layers, graph, f"{pattern!r} in pruning_ratio", pattern)
            for name in _groups_of(graph, layers):
                before = chosen.get(name, pattern)
                if ratio[before] != ratio[pattern]:
                    notes[name] = f"{before!r} fits it, too, but {pattern!r} comes last and counts"
                chosen[name] = pattern
        notes |= {n: "no pattern of pruning_ratio fits it" for n in names if n not in chosen}
        names = [name for name in names if name in chosen]
        scopes = {p: [graph.groups[n] for n in names if chosen[n] == p] for p in ratio}
        shares = {pattern: float(value) for pattern, value in ratio.items()}
    else:
        scopes, shares = {"": [graph.groups[name] for name in names]}, {"": float(ratio)}
    if limits.global_pruning:
        return [(shares[key], groups) for key, groups in scopes.items() if groups], notes
    return [(shares[key], [group]) for key, groups in scopes.items() for group in groups], notes


def kept_filters(size: int, ratio: float) -> int:
    """round(size·(1 - ratio)), and at least one."""
    return max(1, round(size * (1 - ratio)))


def check_share(name: str, value: Any, *, one: bool = False, what: str) -> float:
    """The number as a float in [0, 1), or [0, 1] with ``one``; else a ValueError."""
    try:
        share = float(value)
    except (TypeError, ValueError, RuntimeError):  # a tensor of several numbers raises the last
        share = math.nan
    if not (0 <= share < 1 or (one and share == 1)):
        interval = "[0, 1]" if one else "[0, 1)"
        raise ValueError(f"{name}={value!r} must be a number in {interval}: {what}")
    return share


def check_ratio(pruning_ratio: Any) -> float | dict[str, float]:
    """The ratio as a float in [0, 1), or a dict of such by pattern; else an error."""
    what = "the share of filters to remove, such as 0.5 for half of them"
    if not isinstance(pruning_ratio, Mapping):
        return check_share("pruning_ratio", pruning_ratio, what=what)
    if not pruning_ratio:
        raise ValueError("pruning_ratio={} is empty: give ratios by layer, as {'layer1.*': 0.3}")
    for key in pruning_ratio:
        if not isinstance(key, str):
            raise TypeError(f"pruning_ratio has the key {key!r}, expected names such as 'layer4.*'")
    return {
        key: check_share(f"pruning_ratio[{key!r}]", value, what=what)
        for key, value in pruning_ratio.items()
    }


def check_scores(graph: ChannelGraph, scores: Mapping[str, Tensor]) -> Tensor:
    """All scores as float64 (M,) on the CPU, or an error that names the group that is wrong."""
    if not isinstance(graph, ChannelGraph):
        raise TypeError(f"graph is {graph!r:.80}, expected what trace_channels returned")
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


def make_limits(
    graph: ChannelGraph,
    *,
    global_pruning: bool = False,
    ignored_layers: Any = (),
    round_to: int = 1,
    max_pruning_ratio: float = 1.0,
    model: nn.Module | None = None,
) -> Limits:
    """The limits of a plan, checked; see :func:`~dgprune_lite.pruning.pruning.plan_pruning`."""
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise ValueError(f"round_to={round_to!r} must be a whole number of at least 1, such as 8")
    what = "the largest share that any group may lose"
    bound = check_share("max_pruning_ratio", max_pruning_ratio, one=True, what=what)
    closed: dict[str, str] = {}
    for title, patterns in _ignored(ignored_layers, model):
        layers = [name for pattern in patterns for name in _fitting(graph, pattern)]
        _some(layers, graph, f"ignored_layers={title}", patterns[0])
        closed.update(dict.fromkeys(_groups_of(graph, layers), f"ignored_layers={title}"))
    return Limits(closed, bool(global_pruning), round_to, bound)


def _ignored(ignored: Any, model: nn.Module | None) -> list[tuple[str, list[str]]]:
    """Each entry of ``ignored_layers`` as (what to call it, patterns of layer names)."""
    if isinstance(ignored, str | nn.Module | type):
        ignored = [ignored]
    if not isinstance(ignored, Iterable):
        raise TypeError(
            f"ignored_layers={ignored!r} must be a list of names such as 'layer4.*', of modules "
            "or of module types"
        )
    found = []
    for entry in ignored:
        is_type = isinstance(entry, type) and issubclass(entry, nn.Module)
        if isinstance(entry, str):
            found.append((repr(entry), [entry]))
            continue
        if not (is_type or isinstance(entry, nn.Module)):
            raise TypeError(
                f"ignored_layers holds {entry!r}, expected names such as 'layer4.*', modules or "
                "module types"
            )
        title = entry.__name__ if is_type else f"a {type(entry).__name__} module"
        if model is None:
            raise ValueError(
                f"ignored_layers holds {title}: pass model=..., too, to find its name, or give "
                "its name"
            )
        names = [
            name
            for name, module in model.named_modules()
            if (isinstance(module, entry) if is_type else module is entry)
        ]
        if not names:
            raise ValueError(f"ignored_layers holds {title} that {type(model).__name__} has not")
        patterns = ["*" if name == "" else name for name in names]
        found.append((title if is_type else repr(patterns[0]), patterns))
    return found


def _fitting(graph: ChannelGraph, pattern: str) -> list[str]:
    """The layers of that name, within a block of that name, or that fit the pattern."""
    return [
        name
        for name in graph.layers
        if fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")
    ]


def _some(layers: list[str], graph: ChannelGraph, what: str, pattern: str) -> None:
    if not layers:
        names = ", ".join([*list(graph.layers)[:12], *(["..."] if len(graph.layers) > 12 else [])])
        near = nearest_name(pattern, graph.layers)
        raise ValueError(f"{what} fits none of the layers {names}.{near}")


def _groups_of(graph: ChannelGraph, layers: Iterable[str]) -> list[str]:
    """The groups with a filter in one of the layers."""
    units = {unit for name in layers for unit in graph.layers[name].out_units.tolist()}
    return [
        name
        for name, group in graph.groups.items()
        if not units.isdisjoint(range(group.start, group.start + group.size))
    ]
