"""Arithmetic in full float32, where networks are compared number by number.

On GPUs PyTorch rounds the inputs of float32 convolutions to TF32, with 10 bits after the leading
one, by default. That is harmless for training, but larger than what one filter changes, and than
what :func:`~dgprune_lite.pruning.verification.check_exact` lets pass as rounding.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 in float32 for a `with` block: no TF32, no bfloat16 inside of matmuls.

    PyTorch's switches are put back afterwards, error or not. They are global to the process, so
    other threads compute in full float32 meanwhile, too, and of several such blocks at a time the
    last to end puts them back.

    >>> with full_float32():
    ...     torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    (False, False)
    """
    switches = _switches()
    with _LOCK:
        _BLOCKS.append([switch.state() for switch in switches])
    try:
        with _LOCK:
            for switch in switches:
                if switch.state() not in (_MIXED, *switch.full):
                    switch.write(switch.full[0])
        yield
    finally:
        with _LOCK:
            found, *inner = _BLOCKS
            _BLOCKS[:] = [found] * len(inner)  # whichever block ends last, it is put back
            if not inner:  # in the same order: the older names change what the newer ones say
                for switch, value in zip(switches, found, strict=True):
                    if value not in (_MIXED, switch.state()):
                        switch.write(value)


_LOCK = threading.Lock()
_BLOCKS: list[list[Any]] = []  # what was found before each block that has not ended
_MIXED = "mixed"  # an older name that PyTorch refuses to read, as the program uses the newer ones


@dataclass(frozen=True)
class _Switch:
    read: Callable[[], Any]
    write: Callable[[Any], None]
    full: tuple[Any, ...]  # the values that mean full float32

    def state(self) -> Any:
        try:
            return self.read()
        except RuntimeError:
            return _MIXED


def _switches() -> list[_Switch]:
    """All that can make PyTorch compute float32 in less, older names first."""
    switches = [
        _Switch(
            torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, ("highest",)
        )
    ]
    module: Any
    for module in (torch.backends.cuda.matmul, torch.backends.cudnn):
        read, write = partial(getattr, module, "allow_tf32"), partial(setattr, module, "allow_tf32")
        switches.append(_Switch(read, write, (False,)))
    for backend, operation in (
        (torch.backends.cuda, "matmul"),
        (torch.backends.cudnn, "conv"),
        (torch.backends.cudnn, "rnn"),
        (torch.backends.mkldnn, "matmul"),
        (torch.backends.mkldnn, "conv"),
    ):
        module = getattr(backend, operation)
        read = partial(getattr, module, "fp32_precision")
        switches.append(_Switch(read, partial(_set_precision, module), ("ieee", "none")))
    return switches


def _set_precision(module: Any, value: str) -> None:
    """Set ``fp32_precision``, but leave it at "none" where the value for all backends is that."""
    module.fp32_precision = "none"
    if module.fp32_precision != value:
        module.fp32_precision = value
