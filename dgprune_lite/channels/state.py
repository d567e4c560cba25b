"""What a network is before and after a run: its state, what it returned, and where it failed."""

from __future__ import annotations

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
        inner = [(part, part.copy()) for part in own.values() if isinstance(part, (dict, list))]
        found.append((own, own.copy(), inner))
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


def version_of(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else int(tensor._version)


def same_view(tensor: Tensor, other: Tensor) -> bool:
    return (
        tensor.shape == other.shape
        and tensor.stride() == other.stride()
        and int(tensor.storage_offset()) == other.storage_offset()
    )


_NOT_THE_NETWORK = ("/torch/", "dgprune_lite/channels/")


def place_of(error: BaseException) -> str:
    """Where in the network's code an error was raised."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not any(part in frame.filename.replace("\\", "/") for part in _NOT_THE_NETWORK)
    ]
    return f" at {frames[-1].name}(): `{frames[-1].line}`" if frames else ""
