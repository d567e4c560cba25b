"""Parameters, known by their identity: which layer they are of, and which channels their rows.

What this file is *not*: a run. ``tape.py`` watches that and asks here.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dgprune_lite.channels.ids import Ids, Kind, Record, Value, varies
from dgprune_lite.channels.rules.registry import Call, fixed, spread

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
        self.owners: dict[int, list[tuple[str, str]]] = defaultdict(list)  # tensor: module, key
        for name, module in self.modules.items():
            for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None:
                    self.owners[id(tensor)].append((name, key))
        self.rows: dict[int, Tensor] = {}  # id of a parameter or buffer to ids of its rows
        self.mixed: dict[str, bool] = {}  # layers whose weights the code reads; also their rows?
        self.values: dict[int, tuple[weakref.ref[Tensor], Value | None]] = {}  # of live tensors
        self.unseen: list[tuple[weakref.ref[Tensor], int]] = []  # who made these is not known
        self.through_views = False  # whether something is changed through a view of it
        self.stack: list[str] = []  # the modules that are running
        self.inside: dict[str, Tensor] = {}  # module to the result of its own layer, while it runs
        self.training = False
        self.images = 0  # in the batch
        self.other_macs = 0  # of convolutions and linear layers whose weights no layer holds

    # --- values of tensors ---------------------------------------------------------------

    def known(self, tensor: Tensor) -> Value | None:
        """The value of a tensor that carries channels, or None."""
        entry = self.values.get(id(tensor))
        if entry is not None:
            value = entry[1]
            if value is not None and value.written is not None:
                self.through_views = True
                for ids in (value.ids, value.written):
                    self.lock(ids, "it is changed in place through a view of it")
            return value
        if id(tensor) in self.owners:
            return self.value_of_parameter(tensor)
        self.unseen.append((weakref.ref(tensor), self.count))
        self.note(tensor, None)
        return None

    def value(self, tensor: Tensor) -> Value:
        value = self.known(tensor)
        return fixed(tensor) if value is None else value

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
        strides = [0] * tensor.ndim
        strides[axes[0]] = ids.stride(0)
        return Value(ids.as_strided(tensor.shape, strides), zero=False, constant=True)

    def plain_weight(self, name: str) -> bool:
        """Whether a module's weight is (outputs, inputs of a group, ...)."""
        module = self.modules[name]
        return isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) and not getattr(
            module, "transposed", False
        )

    def rows_of(self, tensor: Tensor, count: int) -> Tensor:
        if id(tensor) not in self.rows:
            self.rows[id(tensor)] = self.fresh(count)
        return self.rows[id(tensor)]

    # --- gates ---------------------------------------------------------------------------

    def put_gate(self, name: str, module: nn.Module, output: Any) -> None:
        """See whether a gate on the module's output is one on the filters that it made."""
        made, record = self.inside.pop(name, None), self.records.get(name)
        entry = self.values.get(id(output))
        value = entry[1] if entry else None
        if made is None:
            if value is not None and not value.zero and not module._modules:
                self.gate_of_own_parameters(name, module, output, value)
        elif record is not None and made is not output and record.kind != "activation":
            axis = -1 if record.kind == "linear" else 1
            if value is not None and value.zero and name not in value.gates:
                return  # another layer inside has made them anew
            if value is None or value.gates - {name} or not self.along(value, record.out, axis):
                kind = type(module).__name__
                self.lock(record.out, f"{name} ({kind}) gives more than what its filters make")
            else:
                self.note(output, Value(value.ids, gates=frozenset([name])))

    def along(self, value: Value, channels: Tensor, axis: int) -> bool:
        """Whether a value's channels are these along ``axis``, and the same along all others."""
        ids = value.ids
        if not -ids.ndim <= axis < ids.ndim or ids.shape[axis] != len(channels):
            return False
        if any(varies(ids, other) for other in range(ids.ndim) if other != axis % ids.ndim):
            return False
        found = self.channel_ids(ids, axis)
        root = None if torch.equal(found, channels) else self.roots()
        return root is None or bool((root[found] == root[channels]).all())

    def gate_of_own_parameters(
        self, name: str, module: nn.Module, output: Tensor, value: Value
    ) -> None:
        """A module that shifts channels by parameters of its own, such as a frozen BatchNorm."""
        tensors = [*module._parameters.items(), *module._buffers.items()]
        own = {key: t for key, t in tensors if t is not None and id(t) in self.rows}
        axes = [axis for axis in range(output.ndim) if varies(value.ids, axis)]
        if not own or axes != [1] or any(t.ndim != 1 for t in own.values()):
            return
        ids = self.channel_ids(value.ids, 1)
        for tensor in own.values():
            self.unite(self.rows[id(tensor)], ids, "a fixed scale")
        weight = own.get("weight")
        shape = () if weight is None else tuple(weight.shape)
        counted = isinstance(weight, nn.Parameter)
        ids = self.layer(name, Record("norm", ids, None, shape, "bias" in own, 0, counted))
        self.note(output, Value(value.ids, gates=frozenset([name])))

    # --- layers, as the rules see them ---------------------------------------------------

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

    def weight_rows(self, weight: Tensor, outputs: int, transposed: bool = False) -> Tensor:
        """Ids of the filters that a weight holds."""
        if id(weight) in self.owners:
            return self.rows_of(weight, outputs)
        value = self.value(weight)
        mixed = any(varies(value.ids, axis) for axis in range(1, weight.ndim))
        if transposed or mixed or not value.carries:
            return self.fresh(outputs)
        return self.channel_ids(value.ids, 0)

    def made(
        self, call: Call, name: str | None, kind: Kind, out: Tensor, into: Tensor | None,
        weight: Tensor | None, bias: Tensor | None, positions: int, axis: int,
        *others: Tensor | None,
    ) -> Value:  # fmt: skip
        """Record the layer that made a call's result, and put its gate there."""
        module = self.modules.get(name) if name is not None else None
        if self.training:
            positions = 0  # costs are those of evaluation
        reason = None
        keys = ("weight", "bias", "mean", "variance")
        for key, tensor in zip(keys, (weight, bias, *others), strict=False):
            if tensor is None:
                continue
            owners = self.owners.get(id(tensor), [])
            if len(owners) > 1:
                reason = f"{name}: its {key} belongs to another module, too"
            elif owners:
                self.unite(self.rows.setdefault(id(tensor), out), out, "a fixed weight")
            elif tensor is not weight:
                self.unite(self.channel_ids(self.value(tensor).ids, 0), out, "a fixed bias")
            else:
                own = self.rows.get(id(module and module._parameters.get("weight")))
                if own is None or not torch.equal(own, out):
                    reason = COMPUTED.format(name or call.name)
                elif into is not None:  # such as weights less their mean over the inputs
                    self.lock(into, f"{name}: each weight is computed from all of its inputs")
        if name is None or module is None:
            if weight is not None:
                self.other_macs += weight.numel() * positions
            reason = reason or f"{name or call.name}: its weight is not one that a layer holds"
        if reason:
            self.lock(out, reason)
            if into is not None:
                self.lock(into, reason)
        if name is None or module is None:
            return Value(spread(out, call.result, axis), zero=False)
        shape = () if weight is None else tuple(weight.shape)
        counted = weight is None or not any(weight is b for b in module._buffers.values())
        record = Record(kind, out, into, shape, bias is not None, positions, counted)
        out = self.layer(name, record)
        if name in self.stack:
            self.inside[name] = call.result
            return Value(spread(out, call.result, axis), gates=frozenset([name]))
        if kind != "activation":
            self.lock(out, f"{name} is not called itself, so that no gate can follow its filters")
        return Value(spread(out, call.result, axis), zero=False)

    def consume(self, name: str, value: Value, axis: int) -> Tensor:
        if value.gates & self.inside.keys():
            self.lock(value.ids, f"{name} reads it before a gate can be put there")
        return super().consume(name, value, axis)

    def loose_rows(self) -> Iterator[tuple[str, str, Tensor, Tensor]]:
        """Module, key, tensor and ids of parameters and buffers that are of no layer."""
        for name, module in self.modules.items():
            for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if id(tensor) in self.rows and not (name in self.records and key in STANDARD):
                    yield name, key, tensor, self.rows[id(tensor)]

    def settle(self) -> None:
        for name, rows_too in self.mixed.items():
            record = self.records.get(name)
            for ids in () if record is None else (record.into, record.out if rows_too else None):
                if ids is not None:
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
