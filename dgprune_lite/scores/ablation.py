"""The exact effect of removing each filter alone, without running the network M times.

The calls of one run are kept, with all activations. For each filter only what lies behind its gate
is computed again, and from the first layers that read it, which are linear, its contribution is
subtracted. Networks whose activations cannot be told apart so are run as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from dgprune_lite.channels.graph import ChannelGraph
from dgprune_lite.channels.ids import Value
from dgprune_lite.channels.rules.layers import CONVOLUTIONS, READING
from dgprune_lite.channels.rules.registry import Call, of_kind, rule_of
from dgprune_lite.channels.tape import ASKING, ONE_AT_A_TIME, Tape
from dgprune_lite.domains.loading import to_device
from dgprune_lite.exactness import full_float32
from dgprune_lite.running import Logits, find_logits, left_as_found, outputs_in
from dgprune_lite.scores.gates import gating


def ablated_losses(
    model: nn.Module,
    graph: ChannelGraph,
    images: Tensor,
    labels: Tensor,
    filters: Iterable[int] | None = None,
    logits: Logits | None = None,
) -> tuple[Tensor, Tensor]:
    """Sums of losses, float64: the whole network's (), and with each filter's gate at 0 (M,)."""
    # All in the same way and in full float32: rounding must not hide what one filter changes.
    with full_float32(), torch.no_grad():
        parts = _Ablation(model, graph, images)
        whole_run = partial(_whole_run, model, graph, images)
        output_without = whole_run if parts.whole else parts.output_without
        losses = []
        # -2 is the number of no filter; -1 stands for channels that are fixed.
        for unit in [-2, *(range(graph.num_filters) if filters is None else filters)]:
            found = find_logits(output_without(unit), logits)
            losses.append(F.cross_entropy(found, labels, reduction="none").double().sum())
    totals = torch.stack(losses).cpu()  # once for all: a GPU is kept waiting each time
    return totals[0], totals[1:]


@dataclass(frozen=True)
class _Place:
    """Stands in the arguments of a kept call for the tensor that was there at that time."""

    number: int


@dataclass
class _Step:
    """One call of the run that is kept."""

    call: Call  # its tensors are places, but for parameters
    inputs: list[int]
    outputs: list[int]
    layer: str | None  # whose every output depends on each channel that it reads
    in_place: bool

    @property
    def read(self) -> int:
        """Of a layer, where it reads channels."""
        return self.call.argument(0, "input").number


class _Ablation(Tape):
    """Keeps all activations of one batch and recomputes what a missing filter changes."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, images: Tensor):
        super().__init__(model)
        self.graph = graph
        self.steps: list[_Step] = []
        self.places: dict[int, int] = {}  # id of a tensor to its place
        self.env: list[Tensor] = []  # what was there
        self.noted: list[Value | None] = []
        self.alive: list[Tensor] = []  # so that no id is used again
        self.gate_of: dict[int, str] = {}
        self.whole = False  # whether steps cannot be told apart
        with ONE_AT_A_TIME, left_as_found(self.modules.values()):
            self.watch()
            output = self.run((images,))
        self.output = tree_map_only(Tensor, lambda t: _Place(self.place(t)), output)
        found = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        self.whole |= len(found) < len(list(outputs_in(output)))  # inside objects of its own
        self.whole |= self.through_views or bool(self.numbers)
        root, unit = self.roots(), np.full(self.count, -1)
        for name, record in self.records.items():
            if name in graph.layers:
                unit[root[record.out]] = graph.layers[name].out_units
        unit = unit[root]
        self.units = [None if v is None else torch.from_numpy(unit[v.ids]) for v in self.noted]
        self.carried = [
            frozenset() if u is None else frozenset(u.unique().tolist()) - {-1} for u in self.units
        ]

    # --- keeping -------------------------------------------------------------------------

    def place(self, tensor: Tensor) -> int:
        if id(tensor) not in self.places:
            self.add(tensor)
        return self.places[id(tensor)]

    def add(self, tensor: Tensor) -> int:
        self.places[id(tensor)] = len(self.env)
        self.env.append(tensor)
        entry = self.values.get(id(tensor))
        value = entry[1] if entry else None
        self.noted.append(value)
        if value is not None and value.gates and value.ids.ndim:
            self.whole |= len(value.ids) > 1
        return len(self.env) - 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = Call(func, args, kwargs or {})
        if call.name in ASKING or "measures" in rule_of(call)[1]:
            return super().__torch_function__(func, types, args, kwargs)
        own = [tensor for tensor in call.tensors if id(tensor) not in self.owners]
        inputs, in_place = [self.place(tensor) for tensor in own], _in_place(call)
        if in_place:  # what was there before is still read by steps before
            self.keep_memory_of(call.tensors[0])
        versions = [tensor._version for tensor in own]
        layer = None
        if call.name in READING:
            name = self.layer_name(*call.tensors[1:3])
            known = self.graph.layers.get(name or "")
            reads = known is not None and known.in_units is not None
            layer = name if reads and id(call.argument(0, "input")) not in self.owners else None
        places = {id(tensor): _Place(number) for tensor, number in zip(own, inputs, strict=True)}
        kept = call.swapped(lambda tensor: places.get(id(tensor), tensor))
        result = super().__torch_function__(func, types, args, kwargs)
        written = [t for t, version in zip(own, versions, strict=True) if t._version != version]
        self.whole |= bool(written) and not in_place
        made = list(of_kind([result], Tensor)) or written
        step = _Step(kept, inputs, [self.add(tensor) for tensor in made], layer, in_place)
        for alias, tensor in self.rebound:
            self.places[id(alias)] = self.places[id(tensor)]
        self.rebound.clear()
        self.steps.append(step)
        return result

    def keep_memory_of(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()._cdata
        for number, other in enumerate(self.env):
            if other.untyped_storage()._cdata == storage:
                self.env[number] = other.clone()
                self.alive.append(other)

    def put_gate(self, name: str, module: nn.Module, output: Any) -> None:
        super().put_gate(name, module, output)
        if name in self.graph.gates and isinstance(output, Tensor):
            place = self.place(output)
            self.gate_of[place] = name
            entry = self.values.get(id(output))
            self.noted[place] = entry[1] if entry else None

    # --- leaving out ---------------------------------------------------------------------

    def output_without(self, unit: int) -> Any:
        """The network's output with one filter's gate at 0."""
        # An activation that carries the filter's channels, and depends on it in no other way, is
        # the stored one with those channels at 0; it is only written out where it is needed.
        changed: dict[int, Tensor] = {}

        def load(number: int) -> Tensor:
            if number in changed:
                return changed[number]
            value = self.env[number]
            return self.masked(number, value, unit) if unit in self.carried[number] else value

        for step in self.steps:
            if not any(number in changed for number in step.inputs):
                if step.layer is None or unit not in self.carried[step.read]:
                    continue  # untouched, or the stored values with the filter's channels at 0
                changed[step.outputs[0]] = self.subtract(step, unit)
            else:
                for number, value in zip(step.outputs, self.again(step, load), strict=True):
                    changed[number] = value
            for number in step.outputs:
                if number in self.gate_of and unit in self.carried[number]:
                    changed[number] = self.masked(number, changed[number], unit)
        return tree_map_only(
            _Place, lambda p: changed.get(p.number, self.env[p.number]), self.output
        )

    def masked(self, number: int, value: Tensor, unit: int) -> Tensor:
        units = self.units[number]
        assert units is not None  # it carries channels
        if units.device != value.device:  # once, not for every filter: a GPU is kept waiting
            units = self.units[number] = units.to(value.device)
        return value.masked_fill(units == unit, 0)

    def subtract(self, step: _Step, unit: int) -> Tensor:
        """A layer's stored output less the contribution of one filter's channels."""
        assert step.layer is not None
        place, layer, call = step.read, self.graph.layers[step.layer], step.call
        before, value = self.env[place], self.env[step.outputs[0]]
        weight = call.argument(1, "weight")
        columns = to_device(torch.from_numpy(layer.in_units == unit).nonzero()[:, 0], value.device)
        if layer.kind == "linear":
            return value - before[..., columns] @ weight[:, columns].T
        if call.argument(6, "groups", 1) == 1 and call.name in CONVOLUTIONS:
            rest = {k: v for k, v in call.kwargs.items() if k not in ("input", "weight", "bias")}
            part = call.func(before[:, columns], weight[:, columns], None, *call.args[3:], **rest)
            return value - part
        gated = self.masked(place, before, unit)
        return self.again(step, lambda number: gated if number == place else self.env[number])[0]

    def again(self, step: _Step, load: Any) -> list[Tensor]:
        """Run one step on what ``load`` gives, which is not changed in place."""
        call = step.call.swapped(
            lambda p: load(p.number).clone() if step.in_place else load(p.number), _Place
        )
        result = call.func(*call.args, **call.kwargs)
        return list(of_kind([result], Tensor)) or [call.args[0]]


def _in_place(call: Call) -> bool:
    name = getattr(call.func, "__name__", "")
    return (
        (name.endswith("_") and not name.endswith("__"))
        or name.startswith("__i")
        or name == "__setitem__"
        or bool(call.kwargs.get("inplace"))
    )


def _whole_run(model: nn.Module, graph: ChannelGraph, images: Tensor, unit: int) -> Any:
    """The output of the whole network, run anew with one filter's gate at 0."""
    with gating(model, graph, (torch.arange(graph.num_filters) != unit).float()):
        return model(images.clone())
