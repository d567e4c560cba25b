"""Which filters stand and fall together.

The network runs on an example while every activation carries, element by element, the *id* of the
channel it belongs to. Convolutions and linear layers make fresh ids, shape operations move ids
about, additions unite them (``rules`` holds one short rule per function). Connected ids are one
*filter* that can only be kept or removed whole; filters that share the same producing layers form a
*filter group*. All that surgery needs (which rows of which weight go) is then read off the ids.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dgprune_lite.channels.ids import FIXED, Kind
from dgprune_lite.channels.tape import Tape, follow
from dgprune_lite.checks import weight_of
from dgprune_lite.running import check_unwrapped


@dataclass(frozen=True)
class Layer:
    """A module with parameters along channel axes, or a parameter of its own, by its name.

    ``out_units[i]`` is the filter that output channel i belongs to, -1 where it is fixed.
    ``in_units[j]`` is the same for entry j of the weight's input axis, see
    ``filters_first``; None for depthwise convolutions, normalisations and activations with a
    slope a channel, whose input goes with their output.
    """

    name: str
    kind: Kind
    out_units: np.ndarray
    in_units: np.ndarray | None
    weight_shape: tuple[int, ...]  # () for a normalisation without scale and shift
    has_bias: bool
    positions: int  # places where the kernel is applied to one image, over all calls
    counted: bool = True  # whether its weight and bias are parameters, and no buffers

    def widths(self, removed: np.ndarray | None = None) -> tuple[int, int]:
        """Entries left on the output and the weight's input axis; ``removed``: bool (filters,)."""

        def left(units: np.ndarray) -> int:
            return len(units) if removed is None else int(keep_mask(units, removed).sum())

        return left(self.out_units), 1 if self.in_units is None else left(self.in_units)

    def size(self, removed: np.ndarray | None = None) -> tuple[int, int]:
        """Parameters and multiply-accumulates per image that are left."""
        rows, columns = self.widths(removed)
        if not self.weight_shape:
            return 0, 0
        weights = rows * columns * math.prod(self.weight_shape[2:])
        return (weights + rows * self.has_bias) * self.counted, weights * self.positions


@dataclass(frozen=True)
class FilterGroup:
    """Filters produced by the same layers, which lose the same number of channels.

    The group's filters are numbers ``start`` to ``start + size`` of the graph's M filters.
    """

    name: str
    start: int
    size: int
    producers: tuple[str, ...]

    @property
    def span(self) -> slice:
        """Where the group's filters lie on an axis of all M filters."""
        return slice(self.start, self.start + self.size)


@dataclass(frozen=True)
class ChannelGraph:
    """What :func:`trace_channels` finds; plain data, no reference to the model.

    Attributes:
        groups: Name to :class:`FilterGroup`, in the network's order.
        skipped: Module name to the reason why none of its filters can be removed.
        layers: Name to :class:`Layer`, in the network's order.
        gates: Modules on whose output the filters' gates sit: the last BatchNorm (or another
            normalisation of single channels), or the convolution or linear layer where none
            follows, before the filters are used.
        parameters: Number of parameters of the whole model.
        partly: Module name to how many of its channels must stay, and why, where others can go.
        inputs: The example inputs, those of floating-point numbers without their values (on the
            meta device).
        other_macs: Multiply-accumulates for one image of convolutions and linear layers whose
            weights no layer holds; they stay.
    """

    groups: dict[str, FilterGroup]
    skipped: dict[str, str]
    layers: dict[str, Layer]
    gates: tuple[str, ...]
    parameters: int
    partly: dict[str, str] = field(default_factory=dict)
    inputs: tuple[Tensor, ...] = field(default=(), repr=False)
    other_macs: int = 0

    @property
    def num_filters(self) -> int:
        """M, the number of filters over all groups."""
        return sum(group.size for group in self.groups.values())

    def split(self, values: Tensor | np.ndarray) -> dict[str, Any]:
        """Cut the last axis (M filters) into one part a group."""
        return {name: values[..., group.span] for name, group in self.groups.items()}

    def join(self, parts: dict[str, Tensor]) -> Tensor:
        """The inverse of :meth:`split` for (filters,) tensors."""
        if parts.keys() != self.groups.keys():
            raise ValueError(
                f"groups {list(parts)} are not those of the graph, {list(self.groups)}"
            )
        return torch.cat([parts[name] for name in self.groups] or [torch.zeros(0)])

    def totals(self, removed: np.ndarray | None = None) -> tuple[int, int]:
        """Parameters and MACs per image of the network without the ``removed`` filters.

        Args:
            removed: bool (M,); None for the whole network.
        """
        whole = sum(layer.size()[0] for layer in self.layers.values())
        left = [layer.size(removed) for layer in self.layers.values()]
        return (
            self.parameters - whole + sum(parameters for parameters, _ in left),
            self.other_macs + sum(macs for _, macs in left),
        )


def keep_mask(units: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Which entries stay: those that are fixed (-1) or whose filter is not ``removed``."""
    return np.append(~removed, True)[units]  # -1 is the last entry


def trace_channels(model: nn.Module, example_inputs: Tensor | tuple[Tensor, ...]) -> ChannelGraph:
    """Find the filters of ``model`` that can be removed exactly, and what goes with each.

    Args:
        model: Any network that runs. It is run on the example in evaluation mode, without
            gradients, and left as found. Where its code asks for the mode, it is run in training
            mode, too: it may have more layers there, such as auxiliary heads. (Normalisations and
            modules without weights, such as dropout, may ask for their own.)
        example_inputs: One input batch, such as float32 (1, 3, 28, 28), or a tuple of several.

    Returns:
        The :class:`ChannelGraph`. Layers that cannot lose a filter exactly are in ``skipped``
        with the reason.

    Raises:
        TypeError: The example is no tensor or tuple of tensors.
        ValueError: The model does not run on the example (names the place), or is wrapped.

    Source: our construction (chapter 3); the idea of dependency groups is in Fang et al. 2023,
    "DepGraph", there found by rules on pairs of layers.

    >>> import torch
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 10))
    >>> graph = trace_channels(net, torch.zeros(1, 3, 4, 4))
    >>> graph.groups["0"].size, graph.skipped
    (4, {'3': "its outputs are the network's outputs"})
    """
    check_unwrapped(model)
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    if not all(isinstance(value, Tensor) for value in inputs):
        kinds = ", ".join(type(value).__name__ for value in inputs)
        raise TypeError(f"example_inputs must be a tensor or a tuple of tensors, got {kinds}")
    bare = [x.detach().to("meta" if x.is_floating_point() else "cpu", copy=True) for x in inputs]
    return replace(_read_off(follow(model, inputs)), inputs=tuple(bare))


def filters_first(module: nn.Module, tensor: Tensor) -> Tensor:
    """View a layer's weight as (outputs, inputs of a group, ...); a bias stays as it is."""
    if tensor.ndim > 1 and isinstance(module, nn.modules.conv._ConvTransposeNd):
        return tensor.unflatten(0, (module.groups, -1)).transpose(1, 2).flatten(0, 1)
    return tensor


def _read_off(tape: Tape) -> ChannelGraph:
    """Groups, gates and layers, as the ids say."""
    root = tape.roots()
    why: dict[int, str] = {}
    for i, reason in tape.reasons.items():
        why.setdefault(int(root[i]), reason)
    producers = {
        name: root[record.out]
        for name, record in tape.records.items()
        if record.kind in ("conv", "linear")
    }
    groups, unit_of_root = _groups(producers, why, len(root))
    unit = unit_of_root[root]  # id to filter, -1 where fixed
    layers = {}
    for name, r in tape.records.items():
        own, weight = tape.own(name), weight_of(tape.modules, name)
        out, into = unit[r.out], None if r.into is None else unit[r.into]
        shape = () if weight is None else tuple(weight.shape)
        buffers = tape.modules[name]._buffers.values()
        counted = weight is None or not any(weight is buffer for buffer in buffers)
        layers[name] = Layer(name, r.kind, out, into, shape, "bias" in own, r.positions, counted)
    for name, tensor, rows in tape.loose_rows():
        if (unit[rows] >= 0).any():
            shape, counted = tuple(tensor.shape), isinstance(tensor, nn.Parameter)
            layers[name] = Layer(name, "parameter", unit[rows], None, shape, False, 0, counted)
    skipped, partly = {}, {}
    for name, roots in producers.items():
        fixed = int((layers[name].out_units < 0).sum())
        if not fixed:
            continue
        reason = next((why[r] for r in roots.tolist() if r in why), _OF_THE_INPUT)
        if fixed == len(roots):
            skipped[name] = reason
        else:
            partly[name] = f"{fixed} of its {len(roots)} channels stay: {reason}"
    for name, module in tape.modules.items():
        names = {f"{name}.{k}".lstrip(".") for k, p in module._parameters.items() if p is not None}
        if names and not layers.keys() & {name, *names}:
            skipped[name] = _unknown(module, name in tape.called)
    return ChannelGraph(
        groups,
        skipped,
        layers,
        gates=tuple(name for name in tape.used_gates if (layers[name].out_units >= 0).any()),
        parameters=sum(parameter.numel() for parameter in tape.model.parameters()),
        partly=partly,
        other_macs=tape.other_macs,
    )


def _groups(
    producers: Mapping[str, np.ndarray], why: dict[int, str], ids: int
) -> tuple[dict[str, FilterGroup], np.ndarray]:
    """The free filters by the layers that make them, and each root's filter, -1 where fixed."""
    made_by = np.zeros(ids, dtype=np.int64)  # number of an entry of `makers`
    makers: list[tuple[str, ...]] = [()]
    for name, roots in producers.items():
        before = made_by[roots]
        for number in sorted(set(before.tolist())):
            made_by[roots[before == number]] = len(makers)
            makers.append((*makers[number], name))
    free = np.concatenate([*producers.values(), np.array([FIXED])])
    free = free[np.sort(np.unique(free, return_index=True)[1])]  # in the network's order
    free = free[~np.isin(free, [FIXED, *why])]
    groups, unit, start, seen = {}, np.full(ids, -1), 0, Counter[str]()
    for number in dict.fromkeys(made_by[free].tolist()):
        layers, filters = makers[number], free[made_by[free] == number]
        if len(filters) == 1:
            alone = f"the channels of {', '.join(layers)} go only all at once, and some must stay"
            why[int(filters[0])] = alone
            continue
        seen[layers[0]] += 1
        name = layers[0] if seen[layers[0]] == 1 else f"{layers[0]}#{seen[layers[0]]}"
        groups[name] = FilterGroup(name, start, len(filters), layers)
        unit[filters] = np.arange(start, start + len(filters))
        start += len(filters)
    return groups, unit


_OF_THE_INPUT = "it filters channels of the input, which stay"


def _unknown(module: nn.Module, called: bool) -> str:
    """Why a module with parameters is not among the layers."""
    kind = type(module).__name__
    if not called:
        return f"this {kind} is not called on the example, and stays as it is"
    costs = any(p is not None and p.ndim > 1 for p in module._parameters.values())
    left_out = "; its MACs are left out" if costs else ""
    return f"{kind} is a kind of module whose channels are not followed{left_out}"
