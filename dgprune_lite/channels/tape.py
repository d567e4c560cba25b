"""Follow the tensors of real runs: every call of PyTorch, whoever makes it, acts on channel ids.

A ``TorchFunctionMode`` sees all calls on tensors with their arguments, also those inside modules
and libraries, and knows parameters by their identity. So there is no symbolic trace, and the
network's own code decides what happens. It is run once in evaluation and once in training mode,
since some networks have more in them while they train.

What this file is *not*: the rules (``rules``) or what is read off the ids (``graph.py``).
"""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from dgprune_lite.channels.ids import INPUTS, OUTPUTS, Value, Width
from dgprune_lite.channels.parameters import LAYERS, Parameters
from dgprune_lite.channels.rules.layers import CONVOLUTIONS, TRANSPOSED
from dgprune_lite.channels.rules.registry import Call, apply_rule, fixed
from dgprune_lite.channels.state import left_as_found, outputs_in, place_of, same_view, version_of
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

ONE_AT_A_TIME = threading.RLock()
"""Held by the thread that follows a network, whose modes and attributes change meanwhile."""


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
                f"{place_of(error)}: " + str(error).split("\n")[0]
            ) from error
        model.train()
        for module in model.modules():
            if isinstance(module, nn.SyncBatchNorm):  # trains on GPUs only
                module.eval()
        tape.training = True
        try:
            tape.run(inputs)
        except Exception as error:  # only its evaluation runs on this example
            tape.keep_alive_ones(f"in training the example does not run{place_of(error)}")
    tape.look_at_the_uncalled()
    tape.settle()
    return tape


class Tape(TorchFunctionMode, Parameters):
    """Acts on ids while a network runs inside of it."""

    def __init__(self, model: nn.Module):
        TorchFunctionMode.__init__(self)
        Parameters.__init__(self, model)
        self.called: set[str] = set()
        self.shapes: dict[Any, torch.Size] = {}  # of layers' outputs
        self.rebound: list[tuple[Tensor, Tensor]] = []  # aliases of what a call changed in place
        self.numbers: list[Tensor] = []  # ids at hand where the code asked for numbers

    # --- running -------------------------------------------------------------------------

    def watch(self) -> None:
        """Note which modules run, and let sizes that layers state be known as such."""
        for name, module in self.modules.items():
            module.register_forward_pre_hook(partial(self.enter, name))
            module.register_forward_hook(partial(self.leave, name), prepend=True)
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
        versions = [(tensor, version_of(tensor)) for tensor in call.tensors]
        call.result = self.compute(call)
        self.rebound.clear()
        result = apply_rule(self, call)
        for tensor, version in versions:
            if version != version_of(tensor):
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
        images, weight, *rest = call.args if call.name in COSTLY else (None, None)
        if images is None or id(weight) not in self.owners:  # the latter is made anew each time
            return call.func(*call.args, **call.kwargs)
        rest += [value for value in call.kwargs.values() if not isinstance(value, Tensor)]
        key = id(weight), images.shape, str([v for v in rest if not isinstance(v, Tensor)])
        if self.training and key in self.shapes:
            return images.new_zeros(self.shapes[key])
        result = call.func(*call.args, **call.kwargs)
        self.shapes[key] = result.shape
        return result

    # --- modules -------------------------------------------------------------------------

    def enter(self, name: str, module: nn.Module, args: Any) -> None:
        self.stack.append(name)
        self.called.add(name)

    def leave(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        while self.stack.pop() != name:
            pass
        with torch._C.DisableTorchFunction():  # what is done here is not the network's
            self.put_gate(name, module, output)

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
            if same_view(alias, tensor):
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
