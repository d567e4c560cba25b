"""Follow the tensors of real runs: every call of PyTorch, whoever makes it, acts on channel ids.

A ``TorchFunctionMode`` sees all calls on tensors with their arguments, also those inside modules
and libraries, and knows parameters by their identity. So there is no symbolic trace, and the
network's own code decides what happens. It is run once in evaluation and once in training mode,
since some networks have more in them while they train.

What this file is *not*: the rules (``rules``) or what is read off the ids (``graph.py``).
"""

from __future__ import annotations

import threading
import traceback
import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from dgprune_lite.channels.ids import INPUTS, OUTPUTS, Ids, Kind, Record, Value, Width, varies
from dgprune_lite.channels.rules.layers import CONVOLUTIONS, TRANSPOSED
from dgprune_lite.channels.rules.registry import Call, apply_rule, fixed, spread
from dgprune_lite.running import device_of, evaluating

ASKING = frozenset(
    [".dtype", ".device", ".ndim", ".requires_grad", ".is_cuda", ".grad_fn", ".layout", ".grad",
     ".is_leaf", ".is_nested", ".is_sparse", ".is_quantized", ".is_meta", ".is_cpu", ".is_mps",
     "dim", "ndimension", "is_contiguous", "is_floating_point", "is_complex", "get_device",
     "set_grad_enabled", "stride", "storage_offset", "data_ptr", "element_size", "is_inference",
     ".names", "has_names", ".itemsize"]
)  # fmt: skip
"""Calls that say nothing of channels."""
COSTLY = frozenset([*CONVOLUTIONS, *TRANSPOSED, "linear"])
STANDARD = frozenset(["weight", "bias", "running_mean", "running_var"])

ONE_AT_A_TIME = threading.RLock()
"""Held by the thread that follows a network, whose modes and attributes change meanwhile."""

LAYERS = (
    nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.PReLU,
)  # fmt: skip
"""Modules whose attributes state sizes, so that surgery changes them."""


def follow(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tape:
    """Follow the network as it is in evaluation, and then as it is in training.

    In training some networks have more in them, such as auxiliary heads; what these read must
    stay in step, too.

    Args:
        model: Any network that runs; left as found, also after an error.
        inputs: One input batch; only copies are handed to the network.

    Raises:
        ValueError: The network does not accept the inputs (names the place).
    """
    if any(is_lazy(tensor) for tensor in [*model.parameters(), *model.buffers()]):
        raise ValueError("a lazy module has no weights yet: run the network once first")
    tape = Tape(model)
    with ONE_AT_A_TIME, left_as_found(model), evaluating(model), torch.no_grad():
        tape.watch()
        try:
            tape.run(inputs)
        except Exception as error:
            shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
            raise ValueError(
                f"{type(model).__name__} does not run on example_inputs of shape {shapes}"
                f"{_place(error)}: " + str(error).split("\n")[0]
            ) from error
        model.train()
        for module in model.modules():
            if isinstance(module, nn.SyncBatchNorm):  # trains on GPUs only
                module.eval()
        tape.training = True
        try:
            tape.run(inputs)
        except Exception as error:  # only its evaluation runs on this example
            tape.keep_alive_ones(f"in training the example does not run{_place(error)}")
    tape.look_at_the_uncalled()
    tape.settle()
    return tape


class Tape(TorchFunctionMode, Ids):
    """Acts on ids while a network runs inside of it."""

    def __init__(self, model: nn.Module):
        TorchFunctionMode.__init__(self)
        Ids.__init__(self)
        self.model = model
        self.modules = dict(model.named_modules())
        self.owners: dict[int, list[tuple[str, str]]] = defaultdict(list)  # tensor: module, key
        for name, module in self.modules.items():
            for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None:
                    self.owners[id(tensor)].append((name, key))
        self.training = False
        self.values: dict[int, tuple[weakref.ref[Tensor], Value | None]] = {}  # of live tensors
        self.stack: list[str] = []  # the modules that are running
        self.called: set[str] = set()
        self.images = 0  # in the batch
        self.shapes: dict[Any, torch.Size] = {}  # of layers' outputs
        self.inside: dict[str, Tensor] = {}  # module to the result of its own layer, while it runs
        self.mixed: dict[str, bool] = {}  # layers whose weights the code reads; also their rows?
        self.rebound: list[tuple[Tensor, Tensor]] = []  # aliases of what a call changed in place
        self.through_views = False  # whether something is changed through a view of it
        self.other_macs = 0  # of convolutions and linear layers whose weights no layer holds
        self.numbers: list[Tensor] = []  # ids at hand where the code asked for numbers
        self.unseen: list[tuple[weakref.ref[Tensor], int]] = []  # who made these is not known

    # --- running -------------------------------------------------------------------------

    def watch(self) -> None:
        """Note which modules run, and let sizes that layers state be known as such."""
        for name, module in self.modules.items():
            module.register_forward_pre_hook(partial(self.enter, name))
            module.register_forward_hook(partial(self.leave, name))
            if isinstance(module, LAYERS) or isinstance(getattr(module, "channels", None), int):
                own = module.__dict__
                depthwise = own.get("groups") == own.get("in_channels")
                for key in (*OUTPUTS, *INPUTS, *["groups"] * depthwise):
                    if type(own.get(key)) is int and own[key] > 1:
                        own[key] = Width.of(self, own[key], None, (name, key))

    def run(self, inputs: tuple[Tensor, ...]) -> Any:
        self.values, self.stack = {}, []
        place = device_of(self.model)
        batch = [value.detach().to(place, copy=True) for value in inputs]
        self.images = len(batch[0]) if batch[0].ndim else 1
        for image in batch:
            self.note(image, None)
        with self:
            output = self.model(*batch)
        for tensor in outputs_in(output):
            if (value := self.known(tensor)) is not None:
                self.lock(value.ids, "its outputs are the network's outputs")
        for reference, count in self.unseen:
            if reference() is None:  # no constant: it was made while the network ran
                self.lock(torch.arange(count), "code that PyTorch compiled is not seen")
        self.unseen.clear()
        return output

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = Call(func, args, kwargs or {})
        if call.name in ASKING:
            return func(*args, **call.kwargs)
        versions = [(tensor, _version(tensor)) for tensor in call.tensors]
        call.result = self.compute(call)
        self.rebound.clear()
        result = apply_rule(self, call)
        for tensor, version in versions:
            if version != _version(tensor):
                self.changed_in_place(tensor)
        return result

    def compute(self, call: Call) -> Any:
        """Run the call; in training the shapes of layers' outputs are enough, and known."""
        if (
            self.training
            and call.name == "batch_norm"
            and call.argument(1, "running_mean") is not None
        ):
            call.kwargs["training"] = False  # its statistics stay, and one value is enough
        if call.name not in COSTLY:
            return call.func(*call.args, **call.kwargs)
        images, weight, *rest = call.args
        rest += [value for value in call.kwargs.values() if not isinstance(value, Tensor)]
        key = id(weight), images.shape, str([v for v in rest if not isinstance(v, Tensor)])
        if self.training and key in self.shapes:
            return images.new_zeros(self.shapes[key])
        result = call.func(*call.args, **call.kwargs)
        self.shapes[key] = result.shape
        return result

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
        return Value(ids.as_strided(tensor.shape, strides), zero=False)

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

    # --- modules -------------------------------------------------------------------------

    def enter(self, name: str, module: nn.Module, args: Any) -> None:
        self.stack.append(name)
        self.called.add(name)

    def leave(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        while self.stack.pop() != name:
            pass
        with torch._C.DisableTorchFunction():  # what is done here is not the network's
            self.put_gate(name, module, output)

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
            if value is None or value.gates - {name} or not lie_along(value.ids, record.out, axis):
                kind = type(module).__name__
                self.lock(record.out, f"{name} ({kind}) gives more than what its filters make")
            else:
                self.note(output, Value(value.ids, gates=frozenset([name])))

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
        return top if isinstance(self.modules[top], LAYERS) else None

    def weight_rows(self, weight: Tensor, outputs: int, transposed: bool = False) -> Tensor:
        """Ids of the filters that a weight holds."""
        if id(weight) in self.owners:
            return self.rows_of(weight, outputs)
        value = self.known(weight)
        if value is None or transposed or not lie_along(value.ids, value.ids[:, 0], 0):
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
        counted = weight is None or isinstance(weight, nn.Parameter) or reason is not None
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

    # --- what one run does not tell ------------------------------------------------------

    def changed_in_place(self, tensor: Tensor) -> None:
        """Tensors that show what was written have from here on its value, or must not be read."""
        if tensor.layout != torch.strided:
            return
        value, storage = self.known(tensor), tensor.untyped_storage()._cdata
        for reference, other in list(self.values.values()):
            alias = reference()
            if (
                alias is None or alias is tensor or alias.layout != torch.strided
                or alias.untyped_storage()._cdata != storage
            ):  # fmt: skip
                continue
            if _same_view(alias, tensor):
                self.note(alias, value)
                self.rebound.append((alias, tensor))
                continue
            ids = fixed(alias).ids if other is None else other.ids
            self.note(alias, Value(ids, written=fixed(tensor).ids if value is None else value.ids))

    def asked_for_numbers(self) -> None:
        """The code may go another way for other numbers, with what is at hand here."""
        self.numbers += [value.ids for _, value in self.values.values() if value is not None]

    def keep_alive_ones(self, reason: str) -> None:
        for _, value in self.values.values():
            if value is not None:
                self.lock(value.ids, reason)

    def look_at_the_uncalled(self) -> None:
        """Layers that did not run may run in place of others, or on what was at hand."""
        for name, module in self.modules.items():
            if name in self.called or name in self.records or not module._parameters:
                continue
            parent, _, _ = name.rpartition(".")
            beside = [
                other for other, child in self.modules.items()
                if other in self.records and other.rpartition(".")[0] == parent
                and type(child) is type(module) and self.same_shapes(module, child)
            ]  # fmt: skip
            among = isinstance(self.modules[parent], (nn.ModuleList, nn.ModuleDict))
            norm = isinstance(module, nn.modules.batchnorm._NormBase)
            if beside and norm and among:  # one for each domain: all go alike
                self.records[name] = replace(self.records[beside[0]], positions=0)
                if beside[0] in self.used_gates:
                    self.used_gates[name] = None
            elif beside and (norm or among):
                for other in beside:
                    record = self.records[other]
                    for ids in (record.out, record.into):
                        if ids is not None:
                            self.lock(ids, f"{name} is not called, and may be in place of {other}")
            else:
                for ids in self.numbers:
                    self.lock(ids, f"{name} is not called, and may read it for other numbers")

    def same_shapes(self, one: nn.Module, other: nn.Module) -> bool:
        return [p.shape for p in one.parameters()] == [p.shape for p in other.parameters()]

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


def lie_along(ids: Tensor, channels: Tensor, axis: int) -> bool:
    """Whether ids are those of ``channels`` along ``axis``, and the same along all others."""
    if not -ids.ndim <= axis < ids.ndim or ids.shape[axis] != len(channels):
        return False
    if any(varies(ids, other) for other in range(ids.ndim) if other != axis % ids.ndim):
        return False
    return torch.equal(ids.as_strided([ids.shape[axis]], [ids.stride(axis)]), channels)


def outputs_in(output: Any) -> Iterator[Tensor]:
    """All tensors that a network returns, in whatever objects they are."""
    seen: set[int] = set()

    def search(value: Any) -> Iterator[Tensor]:
        if isinstance(value, Tensor):
            yield value
        elif id(value) not in seen and not isinstance(value, (nn.Module, type, str, bytes)):
            seen.add(id(value))
            parts = [part for part in tree_leaves(value) if part is not value]
            parts += getattr(value, "__dict__", {}).values()
            for kind in type(value).__mro__:
                slots = getattr(kind, "__slots__", ())
                names = [slots] if isinstance(slots, str) else slots
                parts += [getattr(value, name, None) for name in names]
            for part in parts:
                yield from search(part)

    return search(output)


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Give every module its attributes, hooks and buffers back afterwards, error or not."""
    found = []
    for module in model.modules():
        own = vars(module)
        inner = [(part, part.copy()) for part in own.values() if isinstance(part, (dict, list))]
        found.append((own, own.copy(), inner))
    buffers = [(b, _version(b), b.clone()) for b in model.buffers()]
    try:
        yield
    finally:
        for own, before, inner in found:
            for part, entries in inner:
                if part or entries:
                    part.clear()
                    part.update(entries) if isinstance(part, dict) else part.extend(entries)
            own.clear()
            own.update(before)
        with torch.no_grad():
            for buffer, version, copy in buffers:
                if version != _version(buffer):
                    buffer.copy_(copy)


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else int(tensor._version)


def _same_view(tensor: Tensor, other: Tensor) -> bool:
    return (
        tensor.shape == other.shape
        and tensor.stride() == other.stride()
        and int(tensor.storage_offset()) == other.storage_offset()
    )


_NOT_THE_NETWORK = ("/torch/", "dgprune_lite/channels/")


def _place(error: BaseException) -> str:
    """Where in the network's code an error was raised."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not any(part in frame.filename.replace("\\", "/") for part in _NOT_THE_NETWORK)
    ]
    return f" at {frames[-1].name}(): `{frames[-1].line}`" if frames else ""
