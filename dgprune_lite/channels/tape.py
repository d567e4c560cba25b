"""Follow the tensors of real runs: every call of PyTorch, whoever makes it, acts on channel ids.

A ``TorchFunctionMode`` sees all calls on tensors with their arguments, also those inside modules
and libraries, and knows parameters by their identity. So there is no symbolic trace, and the
network's own code decides what happens.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from dgprune_lite.channels.ids import INPUTS, OUTPUTS, Value, Width, fixed
from dgprune_lite.channels.parameters import LAYERS, NORMS, Parameters
from dgprune_lite.channels.rules.registry import Call, apply_rule
from dgprune_lite.running import device_of, evaluating, left_as_found, outputs_in, version_of

ASKING = frozenset(
    [".dtype", ".device", ".ndim", ".requires_grad", ".is_cuda", ".grad_fn", ".layout", ".grad",
     ".is_leaf", ".is_nested", ".is_sparse", ".is_quantized", ".is_meta", ".is_cpu", ".is_mps",
     "dim", "ndimension", "is_contiguous", "is_floating_point", "is_complex", "get_device",
     "set_grad_enabled", "stride", "storage_offset", "data_ptr", "element_size", "is_inference",
     ".names", "has_names", ".itemsize"]
)  # fmt: skip
"""Calls that say nothing of channels."""
ONE_AT_A_TIME = threading.RLock()
"""Held by the thread that follows a network, whose modes and attributes change meanwhile."""


def follow(model: nn.Module, inputs: tuple[Tensor, ...]) -> Tape:
    """Follow the network as it is in evaluation, and in training where that may be another.

    In training some networks have more in them, such as auxiliary heads; what these read must
    stay in step, too. The network is left as found, and gets copies of the inputs.

    Raises:
        ValueError: The network does not accept the inputs (names the place).
    """
    tape = Tape(model)
    modules = list(tape.modules.values())
    if any(is_lazy(tensor) for name in tape.modules for tensor in tape.own(name).values()):
        raise ValueError("a lazy module has no weights yet: run the network once first")
    with ONE_AT_A_TIME, left_as_found(modules), evaluating(model), torch.no_grad():
        tape.watch()
        try:
            with modes_asked_for(modules) as asked:
                tape.run(inputs)
        except Exception as error:
            shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
            raise ValueError(
                f"{type(model).__name__} does not run on example_inputs of shape {shapes}"
                f"{place_of(error)}: " + str(error).split("\n")[0]
            ) from error
        if asked:
            tape.run_in_training(inputs)
    tape.look_at_the_uncalled()
    tape.settle()
    return tape


class Tape(TorchFunctionMode, Parameters):
    """Acts on ids while a network runs inside of it."""

    def __init__(self, model: nn.Module):
        TorchFunctionMode.__init__(self)
        Parameters.__init__(self, model)
        self.called: set[str] = set()
        self.rebound: list[tuple[Tensor, Tensor]] = []  # aliases of what a call changed in place
        self.numbers: list[np.ndarray] = []  # ids at hand where the code asked for numbers

    def watch(self) -> None:
        """Let sizes that layers state be known as such."""
        for name, module in self.modules.items():
            own = module.__dict__
            if isinstance(module, LAYERS) or isinstance(own.get("channels"), int):
                depthwise = own.get("groups") == own.get("in_channels")
                for key in (*OUTPUTS, *INPUTS, *["groups"] * depthwise):
                    if type(own.get(key)) is int and own[key] > 1:
                        own[key] = Width(self, own[key], None, (name, key))

    def run(self, inputs: tuple[Tensor, ...]) -> Any:
        self.values, self.stack = {}, []
        place = device_of(self.model)
        batch = [value.detach().to(place, copy=True) for value in inputs]
        self.images = len(batch[0]) if batch[0].ndim else 1
        for image in batch:
            self.note(image, None)
        hooks = [
            nn.modules.module.register_module_forward_pre_hook(self.enter),
            nn.modules.module.register_module_forward_hook(self.leave),
        ]
        try:
            with self:
                output = self.model(*batch)
        finally:
            for hook in hooks:
                hook.remove()
        for tensor in outputs_in(output):
            self.lock(self.value(tensor).ids, "its outputs are the network's outputs")
        for reference, count in self.unseen:
            if reference() is None:  # no constant: it was made while the network ran
                self.lock(np.arange(count), "code that PyTorch compiled is not seen")
        self.unseen.clear()
        return output

    def run_in_training(self, inputs: tuple[Tensor, ...]) -> None:
        self.training = True
        self.model.train()
        for module in self.modules.values():
            if isinstance(module, nn.SyncBatchNorm):  # trains on GPUs only
                module.eval()
        try:
            self.run(inputs)
        except Exception as error:  # only its evaluation runs on this example
            for ids in self.ids_at_hand():
                self.lock(ids, f"in training the example does not run{place_of(error)}")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = Call(func, args, kwargs or {}, self)
        if call.name in ASKING:
            return func(*args, **call.kwargs)
        versions = [(tensor, version_of(tensor)) for tensor in call.tensors]
        if (
            self.training
            and call.name == "batch_norm"
            and call.argument(1, "running_mean") is not None
        ):
            call.kwargs["training"] = False  # its statistics stay, and one value is enough
        call.result = func(*args, **call.kwargs)
        self.rebound.clear()
        result = apply_rule(self, call)
        for tensor, version in versions:
            if version != version_of(tensor):
                self.changed_in_place(tensor)
        return result

    def enter(self, module: nn.Module, args: Any) -> None:
        if (name := self.names.get(id(module))) is not None:  # not made in forward
            self.stack.append(name)
            self.called.add(name)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if (name := self.names.get(id(module))) is not None:
            while self.stack.pop() != name:
                pass
            with torch._C.DisableTorchFunction():  # what is done here is not the network's
                self.put_gate(name, module, output)

    def changed_in_place(self, tensor: Tensor) -> None:
        """Tensors that show what was written have from here on its value, or must not be read."""
        if tensor.layout != torch.strided:
            return
        value, storage = self.value(tensor), tensor.untyped_storage()._cdata
        for reference, other in list(self.values.values()):
            alias = reference()
            if alias is None or alias is tensor or alias.layout != torch.strided:
                continue
            if alias.untyped_storage()._cdata != storage:
                continue
            if view_of(alias) == view_of(tensor):
                self.note(alias, value)
                self.rebound.append((alias, tensor))
            else:
                self.note(alias, Value((other or fixed(alias.ndim)).ids, written=value.ids))

    def ids_at_hand(self) -> list[np.ndarray]:
        """Those of all activations that still exist."""
        return [value.ids for _, value in self.values.values() if value is not None]

    def asked_for_numbers(self) -> None:
        """The code may go another way for other numbers, with what is at hand here."""
        self.numbers += self.ids_at_hand()

    def look_at_the_uncalled(self) -> None:
        """Layers that did not run may run in place of others, or on what was at hand."""
        for name, module in self.modules.items():
            if name in self.called or name in self.records or not module._parameters:
                continue
            alike = self.recorded_like(name)
            norm = isinstance(module, nn.modules.batchnorm._NormBase)
            parent = self.modules[name.rpartition(".")[0]]
            listed = isinstance(parent, (nn.ModuleList, nn.ModuleDict))
            if alike and norm and listed:  # one for each domain: all go alike
                self.records[name] = replace(self.records[alike[0]], positions=0)
                if alike[0] in self.used_gates:
                    self.used_gates[name] = None
            elif alike and (norm or listed):
                for other in alike:
                    for ids in self.records[other].sides:
                        self.lock(ids, f"{name} is not called, and may be in place of {other}")
            else:
                for ids in self.numbers:
                    self.lock(ids, f"{name} is not called, and may read it for other numbers")

    def recorded_like(self, name: str) -> list[str]:
        """Layers that ran, beside one and of its kind and shapes."""

        def looks(module: nn.Module) -> Any:
            return type(module), [parameter.shape for parameter in module.parameters()]

        parent, _, _ = name.rpartition(".")
        beside = {o: m for o, m in self.modules.items() if o.rpartition(".")[0] == parent}
        own = looks(beside.pop(name))
        return [o for o, module in beside.items() if o in self.records and looks(module) == own]


@contextmanager
def modes_asked_for(modules: list[nn.Module]) -> Iterator[list[nn.Module]]:
    """Those of whose mode code outside of PyTorch's layers asks within the ``with`` block.

    Without such code a network does the same in training as in evaluation. What normalisations ask
    for is which statistics they take; what has no weights, such as dropout, asks what to drop.
    """
    asked = [
        module
        for module in modules
        if type(module).train is not nn.Module.train or hasattr(type(module), "training")
    ]

    def read(module: nn.Module) -> Any:
        own, caller = vars(module), sys._getframe(1)
        plain = isinstance(module, NORMS) or not (own["_parameters"] or own["_modules"])
        itself = plain and caller.f_locals.get("self") is module
        if not (itself or caller.f_globals.get("__name__", "").startswith("torch.nn.modules.")):
            asked.append(module)
        if "training" not in own:
            raise AttributeError("training")
        return own["training"]

    def write(module: nn.Module, mode: bool) -> None:
        vars(module)["training"] = mode

    nn.Module.training = property(read, write)  # type: ignore[assignment]
    try:
        yield asked
    finally:
        del nn.Module.training


def view_of(tensor: Tensor) -> Any:
    return tensor.shape, tensor.stride(), tensor.storage_offset()


def place_of(error: BaseException) -> str:
    """Where in the network's code an error was raised."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = frame.filename.replace("\\", "/")
        if "/torch/" not in file and "dgprune_lite/channels/" not in file:
            return f" at {frame.name}(): `{frame.line}`"
    return ""
