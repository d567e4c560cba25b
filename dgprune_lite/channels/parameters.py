"""Parameters, known by their identity: which layer they are of, and which channels their rows."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor, nn

from dgprune_lite.channels.ids import Ids, Kind, Record, Value, along, axes_of, fixed
from dgprune_lite.channels.rules.registry import Call

STANDARD = frozenset(["weight", "bias", "running_mean", "running_var"])
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm)
WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear, nn.PReLU)
LAYERS = (*NORMS, *WEIGHTED)
"""Modules whose attributes state sizes, so that surgery changes them."""


class Parameters(Ids):
    """The values of tensors, activations and parameters alike, and the layers they make."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.modules = dict(model.named_modules())
        self.names = {id(module): name for name, module in self.modules.items()}
        self.owners: dict[int, list[tuple[str, str]]] = defaultdict(list)  # tensor: module, key
        for name in self.modules:
            for key, tensor in self.own(name).items():
                self.owners[id(tensor)].append((name, key))
        self.rows: dict[int, np.ndarray] = {}  # id of a parameter or buffer to ids of its rows
        self.mixed: dict[str, bool] = {}  # layers whose weights the code reads; also their rows?
        self.values: dict[int, tuple[weakref.ref[Tensor], Value | None]] = {}  # of live tensors
        self.unseen: list[tuple[weakref.ref[Tensor], int]] = []  # who made these is not known
        self.through_views = False  # whether something is changed through a view of it
        self.stack: list[str] = []  # the modules that are running
        self.inside: dict[str, Tensor] = {}  # module to the result of its own layer, while it runs
        self.training = False
        self.images = 0  # in the batch
        self.other_macs = 0  # of convolutions and linear layers whose weights no layer holds

    def own(self, name: str) -> dict[str, Tensor]:
        """A module's own parameters and buffers."""
        module = self.modules[name]
        return {k: t for k, t in (module._parameters | module._buffers).items() if t is not None}

    def value(self, tensor: Tensor) -> Value:
        """What a tensor carries."""
        _, value = self.values.get(id(tensor), (None, None))
        if id(tensor) in self.owners:
            value = self.value_of_parameter(tensor)
        elif id(tensor) not in self.values:
            self.unseen.append((weakref.ref(tensor), self.count))
            self.note(tensor, None)
        if value is None:
            return fixed(tensor.ndim)
        if value.written is not None:
            self.through_views = True
            for ids in (value.ids, value.written):
                self.lock(ids, "it is changed in place through a view of it")
        return value

    def note(self, tensor: Tensor, value: Value | None) -> None:
        if id(tensor) in self.owners:  # written to in place
            if value is not None and value.carries:
                self.lock(value.ids, "it is written to a parameter or buffer")
            return
        key, values = id(tensor), self.values
        self.values[key] = (weakref.ref(tensor, lambda _: values.pop(key, None)), value)

    def value_of_parameter(self, tensor: Tensor) -> Value | None:
        """Of a parameter that the network's own code reads: its rows may go with channels."""
        (name, key), *others = self.owners[id(tensor)]
        axes = [axis for axis, size in enumerate(tensor.shape) if size > 1]
        if not axes or others or not tensor.is_floating_point():
            return None
        if len(axes) > 1:
            followed = key == "weight" and self.plain_weight(name)
            self.mixed[name] = self.mixed.get(name, False) or not followed
            if not followed:
                return None
        ids = self.rows_of(tensor, tensor.shape[axes[0]])
        return Value(along(ids, tensor, axes[0]), zero=False, constant=True)

    def plain_weight(self, name: str) -> bool:
        """Whether a module's weight is (outputs, inputs of a group, ...)."""
        module = self.modules[name]
        return isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) and not getattr(
            module, "transposed", False
        )

    def rows_of(self, tensor: Tensor, count: int) -> np.ndarray:
        if id(tensor) not in self.rows:
            self.rows[id(tensor)] = self.fresh(count)
        return self.rows[id(tensor)]

    def put_gate(self, name: str, module: nn.Module, output: Any) -> None:
        """See whether a gate on the module's output is one on the filters that it made."""
        made, record = self.inside.pop(name, None), self.records.get(name)
        _, value = self.values.get(id(output), (None, None))
        if made is None:
            if value is not None and not value.zero and not module._modules:
                self.gate_of_own_parameters(name, output, value)
        elif record is not None and made is not output and record.kind != "activation":
            if value is not None and value.zero and name not in value.gates:
                return  # another layer inside has made them anew
            axis = -1 if record.kind == "linear" else 1
            alone = value is not None and not value.gates - {name}
            if value is not None and alone and self.lies_along(output, value, record.out, axis):
                self.note(output, Value(value.ids, gates=frozenset([name])))
            else:
                kind = type(module).__name__
                self.lock(record.out, f"{name} ({kind}) gives more than what its filters make")

    def lies_along(self, output: Tensor, value: Value, channels: np.ndarray, axis: int) -> bool:
        """Whether these channels lie along ``axis`` of a tensor, and none along others."""
        ids, size = value.ids, len(channels)
        if not -ids.ndim <= axis < ids.ndim or output.shape[axis] != size:
            return False
        if set(axes_of(ids)) - {axis % ids.ndim}:
            return False
        found = self.channel_ids(ids, axis, size)
        if (found == channels).all():
            return True
        root = self.roots()
        return bool((root[found] == root[channels]).all())

    def gate_of_own_parameters(self, name: str, output: Tensor, value: Value) -> None:
        """A module that shifts channels by parameters of its own, such as a frozen BatchNorm."""
        own = {key: tensor for key, tensor in self.own(name).items() if id(tensor) in self.rows}
        if not own or axes_of(value.ids) != [1] or any(t.ndim != 1 for t in own.values()):
            return
        ids = self.channel_ids(value.ids, 1, output.shape[1])
        for tensor in own.values():
            self.unite(self.rows[id(tensor)], ids, "a fixed scale")
        self.layer(name, Record("norm", ids, None, 0))
        self.note(output, Value(value.ids, gates=frozenset([name])))

    def layer_name(self, *tensors: Tensor | None, norm: bool = False) -> str | None:
        """Whose weights these are: a module, or a parameter by another name; None: nobody's."""
        top = self.stack[-1] if self.stack else ""
        for tensor in tensors:
            owners = self.owners.get(id(tensor))
            if owners:
                name, key = next((o for o in owners if o[0] == top), owners[0])
                if key in STANDARD:
                    return name
                return None if norm else f"{name}.{key}"
        return top if isinstance(self.modules[top], NORMS if norm else WEIGHTED) else None

    def weight_rows(self, weight: Tensor, outputs: int, transposed: bool = False) -> np.ndarray:
        """Ids of the filters that a weight holds."""
        if id(weight) in self.owners:
            return self.rows_of(weight, outputs)
        ids = self.value(weight).ids
        along_rows = not transposed and axes_of(ids) == [0]
        return self.channel_ids(ids, 0, outputs) if along_rows else self.fresh(outputs)

    def made(
        self, call: Call, name: str | None, kind: Kind, out: np.ndarray, into: np.ndarray | None,
        weight: Tensor | None, bias: Tensor | None, positions: int, *others: Tensor | None,
    ) -> Value:  # fmt: skip
        """Record the layer that made a call's result, and put its gate there."""
        axis, positions = -1 if kind == "linear" else 1, positions * (not self.training)
        module = None if name is None else self.modules.get(name)
        what, tensors = name or call.name, (weight, bias, *others)
        reason = self.belong_together(what, module, out, into, tensors)
        if module is None and reason is None:
            reason = f"{what}: its weight is not one that a layer holds"
        if reason is not None:
            self.lock(out, reason)
            self.lock(into, reason)
        if name is None or module is None:
            self.other_macs += 0 if weight is None else weight.numel() * positions
            return Value(along(out, call.result, axis), zero=False)
        out = self.layer(name, Record(kind, out, into, positions))
        ids = along(out, call.result, axis)
        if name in self.stack:
            self.inside[name] = call.result
            return Value(ids, gates=frozenset([name]))
        if kind != "activation":
            self.lock(ids, f"{name} is not called itself, so that no gate can follow its filters")
        return Value(ids, zero=False)

    def belong_together(
        self, name: str, module: nn.Module | None, out: np.ndarray, into: np.ndarray | None,
        tensors: tuple[Tensor | None, ...],
    ) -> str | None:  # fmt: skip
        """Unite rows of a layer's tensors with the channels made; why that cannot be, if so."""
        reason = None
        for key, tensor in zip(("weight", "bias", "mean", "variance"), tensors, strict=False):
            if tensor is None:
                continue
            owners = self.owners.get(id(tensor), [])
            if len(owners) > 1:
                reason = f"{name}: its {key} belongs to another module, too"
            elif owners:
                self.unite(self.rows.setdefault(id(tensor), out), out, "a fixed weight")
            elif key != "weight":
                self.unite(self.value(tensor).ids, out, "a fixed bias")
            else:
                own = self.rows.get(id(module and module._parameters.get("weight")))
                if own is None or not np.array_equal(own, out):
                    reason = COMPUTED.format(name)
                else:  # such as weights less their mean over the inputs
                    self.lock(into, f"{name}: each weight is computed from all of its inputs")
        return reason

    def consume(self, name: str, value: Value, axis: int, inputs: int) -> np.ndarray:
        """Ids (inputs,) that a layer reads along ``axis``; they must be exactly zero once gated."""
        if value.gates & self.inside.keys():
            self.lock(value.ids, f"{name} reads it before a gate can be put there")
        if not value.zero:
            self.lock(value.ids, f"removing it would leave a constant at the input of {name}")
        self.used_gates.update(dict.fromkeys(sorted(value.gates)))
        return self.channel_ids(value.ids, axis, inputs)

    def layer(self, name: str, record: Record) -> np.ndarray:
        """Record a layer's ids; a module that is called again unites with its first call."""
        known = self.records.setdefault(name, record)
        if known is not record:
            shared = f"{name} is shared, and elsewhere these channels are fixed"
            for first, again in zip(known.sides, record.sides, strict=False):
                self.unite(first, again, shared)
            known.positions += record.positions
        return known.out

    def loose_rows(self) -> Iterator[tuple[str, Tensor, np.ndarray]]:
        """Name, tensor and ids of parameters and buffers that are of no layer."""
        for name in self.modules:
            for key, tensor in self.own(name).items():
                if id(tensor) in self.rows and not (name in self.records and key in STANDARD):
                    yield f"{name}.{key}".lstrip("."), tensor, self.rows[id(tensor)]

    def settle(self) -> None:
        for name, rows_too in self.mixed.items():
            if record := self.records.get(name):
                for ids in (record.into, record.out if rows_too else None):
                    self.lock(ids, f"{name}: its weight is read outside of the layer, too")
        for key, rows in self.rows.items():
            name, _ = self.owners[key][0]
            if name in self.mixed and name not in self.records:
                self.lock(rows, f"{name}: its weight is read, and it is not called")
        super().settle()


COMPUTED = (
    "{}: its weight is computed from other tensors (a parametrization?): remove that first, as "
    "with torch.nn.utils.parametrize.remove_parametrizations"
)
