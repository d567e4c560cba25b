"""What a plan is asked for, and what bounds it: checked once, before anything is computed."""

from __future__ import annotations

import fnmatch
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from dgprune_lite.channels.graph import ChannelGraph, FilterGroup
from dgprune_lite.checks import nearest_name, whole_number
from dgprune_lite.pruning.timing import check_inputs

Ratio = float | Mapping[str, float]
Layers = Sequence[str | nn.Module | type[nn.Module]]
Inputs = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Limits:
    """What a plan is asked for, and what bounds it."""

    ratio: float | dict[str, float] = 0.5  # share of filters that should go, maybe by pattern
    target: tuple[str, float] | None = None  # in its place, a measure and the share to be left
    timed: tuple[nn.Module, tuple[Tensor, ...]] | None = None  # for latency: a network, its inputs
    scopes: tuple[tuple[str, list[FilterGroup]], ...] = ()  # pattern, the groups ranked together
    notes: dict[str, str] = field(default_factory=dict)  # group name to why not as the ratio says
    round_to: int = 1  # kept widths are multiples of it
    max_pruning_ratio: float = 1.0  # no group loses a larger share

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


def make_limits(
    graph: ChannelGraph,
    pruning_ratio: Ratio | None,
    targets: Mapping[str, float | None],
    global_pruning: bool,
    ignored_layers: Layers,
    round_to: int,
    max_pruning_ratio: float,
    model: nn.Module | None,
    example_inputs: Inputs | None,
) -> Limits:
    """The limits of a plan, checked; ``targets`` are those by measure, None where not given."""
    if not isinstance(graph, ChannelGraph):
        raise TypeError(f"graph is {graph!r:.80}, expected what trace_channels returned")
    target = _check_targets(pruning_ratio, targets)
    ratio = _check_ratio(0.5 if pruning_ratio is None else pruning_ratio)
    round_to = whole_number("round_to", round_to, 1)
    what = "the largest share that any group may lose"
    bound = _share("max_pruning_ratio", max_pruning_ratio, "[0, 1]", what)
    _check_reach(graph)
    notes: dict[str, str] = {}
    for title, patterns in _ignored(ignored_layers, model):
        closed = _groups_in(graph, patterns, f"ignored_layers={title}")
        notes.update(dict.fromkeys(closed, f"ignored_layers={title}"))
    scopes = _scopes(graph, ratio, notes)
    if not global_pruning:
        scopes = [(pattern, [group]) for pattern, groups in scopes for group in groups]
    timed = None
    if target and target[0] == "latency":
        if model is None or example_inputs is None:
            raise ValueError(
                f"target_latency={target[1]!r} needs model=... and example_inputs=..., to measure "
                "with"
            )
        timed = model, check_inputs(model, example_inputs)
    return Limits(ratio, target, timed, tuple(scopes), notes, round_to, bound)


def _scopes(
    graph: ChannelGraph, ratio: float | dict[str, float], notes: dict[str, str]
) -> list[tuple[str, list[FilterGroup]]]:
    """Each pattern and the groups it is for, but for those with a note; notes on the others."""
    free = [name for name in graph.groups if name not in notes]
    if not isinstance(ratio, dict):
        return [("", [graph.groups[name] for name in free])] if free else []
    chosen: dict[str, str] = {}
    said = {}
    for pattern in ratio:
        for name in _groups_in(graph, [pattern], f"{pattern!r} in pruning_ratio"):
            before = chosen.get(name, pattern)
            if ratio[before] != ratio[pattern]:
                said[name] = f"{before!r} fits it, too, but {pattern!r} comes last and counts"
            chosen[name] = pattern
    said |= {name: "no pattern of pruning_ratio fits it" for name in free if name not in chosen}
    notes.update(said | notes)
    by_pattern = {p: [graph.groups[n] for n in free if chosen.get(n) == p] for p in ratio}
    return [(pattern, groups) for pattern, groups in by_pattern.items() if groups]


def _check_ratio(pruning_ratio: Any) -> float | dict[str, float]:
    """The ratio as a float in [0, 1), or a dict of such by pattern; else an error."""
    what = "the share of filters to remove, such as 0.5 for half of them"
    if not isinstance(pruning_ratio, Mapping):
        return _share("pruning_ratio", pruning_ratio, "[0, 1)", what)
    if not pruning_ratio:
        raise ValueError("pruning_ratio={} is empty: give ratios by layer, as {'layer1.*': 0.3}")
    for key in pruning_ratio:
        if not isinstance(key, str):
            raise TypeError(f"pruning_ratio has the key {key!r}, expected names such as 'layer4.*'")
    return {
        key: _share(f"pruning_ratio[{key!r}]", value, "[0, 1)", what)
        for key, value in pruning_ratio.items()
    }


def _check_targets(
    pruning_ratio: Any, targets: Mapping[str, float | None]
) -> tuple[str, float] | None:
    """The one target given, checked, or None."""
    given = {name: value for name, value in targets.items() if value is not None}
    if not given:
        return None
    titles = ", ".join(f"target_{name}={value!r}" for name, value in given.items())
    if len(given) > 1:
        raise ValueError(f"{titles}: give one target")
    if pruning_ratio is not None:
        raise ValueError(
            f"pruning_ratio={pruning_ratio!r} and {titles}: give one of them, a target finds the "
            "ratio itself"
        )
    ((name, value),) = given.items()
    what = f"the share of {name} that is left, such as 0.5 for half"
    return name, _share(f"target_{name}", value, "(0, 1]", what)


def _share(name: str, value: Any, interval: str, what: str) -> float:
    """The number as a float within "[0, 1)" or the like; else a ValueError."""
    try:
        share = float(value)
    except (TypeError, ValueError, RuntimeError):  # a tensor of several numbers raises the last
        share = math.nan
    ends = {0.0: interval[0] == "[", 1.0: interval[-1] == "]"}
    if not ends.get(share, 0 < share < 1):
        raise ValueError(f"{name}={value!r} must be a number in {interval}: {what}")
    return share


def by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Reason to the layers that it is given for."""
    layers: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        layers.setdefault(reason, []).append(name)
    return layers


def _check_reach(graph: ChannelGraph) -> None:
    """Raise a ValueError where no filter can go, warn where fewer than half of them can."""
    why = "".join(
        f"\n  {', '.join(names[:5])}{', ...' * (len(names) > 5)}: {reason}"
        for reason, names in by_reason(graph.skipped | graph.partly).items()
    )
    if not graph.num_filters:
        raise ValueError(
            f"no filter of this network can be removed exactly:{why or ' it has none'}"
        )
    counts = [
        (len(layer.out_units), int((layer.out_units >= 0).sum()))
        for layer in graph.layers.values()
        if layer.kind == "conv"
    ]
    total, free = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    if 2 * free < total:
        warnings.warn(
            f"only {free} of the {total} filters of this network's convolutions can be removed, "
            f"so that the plan reaches less than half of what it is asked for:{why}",
            stacklevel=4,
        )


def _ignored(ignored: Any, model: nn.Module | None) -> Iterator[tuple[str, list[str]]]:
    """Each entry of ``ignored_layers`` as (what to call it, patterns of layer names)."""
    entries: Any = [ignored] if isinstance(ignored, str | nn.Module | type) else ignored
    if not isinstance(entries, Iterable):
        raise TypeError(
            f"ignored_layers={ignored!r} must be a list of names such as 'layer4.*', of modules "
            "or of module types"
        )
    for entry in entries:
        is_type = isinstance(entry, type) and issubclass(entry, nn.Module)
        if isinstance(entry, str):
            yield repr(entry), [entry]
            continue
        if not (is_type or isinstance(entry, nn.Module)):
            raise TypeError(
                f"ignored_layers holds {entry!r}, expected names, modules or module types"
            )
        title = entry.__name__ if is_type else f"a {type(entry).__name__} module"
        if model is None:
            raise ValueError(
                f"ignored_layers holds {title}: pass model=..., too, to find its name, or give "
                "its name"
            )
        patterns = [
            name or "*"
            for name, module in model.named_modules()
            if (isinstance(module, entry) if is_type else module is entry)
        ]
        if not patterns:
            raise ValueError(f"ignored_layers holds {title} that {type(model).__name__} has not")
        yield title if is_type else repr(patterns[0]), patterns


def _groups_in(graph: ChannelGraph, patterns: list[str], what: str) -> list[str]:
    """The groups with a filter in a layer, or block of layers, that fits; a layer must."""
    layers = [
        name
        for pattern in patterns
        for name in graph.layers
        if fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")
    ]
    if not layers:
        names = ", ".join([*list(graph.layers)[:12], *(["..."] if len(graph.layers) > 12 else [])])
        near = nearest_name(patterns[0], graph.layers)
        raise ValueError(f"{what} fits none of the layers {names}.{near}")
    units = {unit for name in layers for unit in graph.layers[name].out_units.tolist()}
    return [
        name
        for name, group in graph.groups.items()
        if not units.isdisjoint(range(group.start, group.start + group.size))
    ]
