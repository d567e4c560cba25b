"""What a network is before and after a run: its state, what it returned, and where it failed."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


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
        parts = [part for part in own.values() if isinstance(part, (dict, list))]
        found.append((own, own.copy(), [(part, part.copy() if part else ()) for part in parts]))
    buffers = [(b, version_of(b), b.clone()) for b in model.buffers()]
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
                if version != version_of(buffer):
                    buffer.copy_(copy)


@contextmanager
def modes_asked_for(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Modules of whose mode code outside of PyTorch's layers asks within the ``with`` block.

    Without such code a network does the same in training as in evaluation.
    """
    asked = [m for m in model.modules() if type(m).train is not nn.Module.train]
    asked += [m for m in model.modules() if hasattr(type(m), "training")]

    def read(module: nn.Module) -> Any:
        if not sys._getframe(1).f_globals.get("__name__", "").startswith("torch.nn.modules."):
            asked.append(module)
        if "training" not in vars(module):
            raise AttributeError("training")
        return vars(module)["training"]

    def write(module: nn.Module, mode: bool) -> None:
        vars(module)["training"] = mode

    nn.Module.training = property(read, write)  # type: ignore[assignment]
    try:
        yield asked
    finally:
        del nn.Module.training


def version_of(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else int(tensor._version)


def view_of(tensor: Tensor) -> Any:
    return tensor.shape, tensor.stride(), tensor.storage_offset()


def place_of(error: BaseException) -> str:
    """Where in the network's code an error was raised."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = frame.filename.replace("\\", "/")
        if "/torch/" not in file and "dgprune_lite/channels/" not in file:
            return f" at {frame.name}(): `{frame.line}`"
    return ""
