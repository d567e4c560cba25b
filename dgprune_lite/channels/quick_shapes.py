"""Results on the meta device whose shape one line can tell, so that nothing is run for them.

There PyTorch works out shapes in Python, which takes up to a millisecond an operation. These are
most of what convolutional networks consist of; all others are run.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, nn

from dgprune_lite.channels.rules.elementwise import (
    ADDING,
    MULTIPLYING,
    NOT_ZERO_PRESERVING,
    ZERO_PRESERVING,
)
from dgprune_lite.channels.rules.layers import CONVOLUTIONS, PER_CHANNEL_NORMS
from dgprune_lite.channels.rules.shapes import CONCATENATING

SAME_SHAPE = frozenset([*ZERO_PRESERVING, *NOT_ZERO_PRESERVING])
ELEMENTWISE = frozenset([*ADDING, *MULTIPLYING])
SAME_SHAPE_MODULES = (
    *PER_CHANNEL_NORMS, nn.GroupNorm, nn.LayerNorm, nn.PReLU,
    *(kind for kind in SAME_SHAPE if isinstance(kind, type)),
)  # fmt: skip
IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


def quick_result(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """What a module, function or method (by its name) gives, or None where it has to be run.

    Args:
        call: The module, function or name.
        args: Of the call; tensors are on the meta device.
        kwargs: Of the call.
    """
    first = args[0] if args else None
    if isinstance(call, nn.Module):
        if len(args) != 1 or not isinstance(first, Tensor) or kwargs:
            return None
        if isinstance(call, CONVOLUTIONS):
            return _convolved(call, first)
        if isinstance(call, SAME_SHAPE_MODULES):
            return _like(first, getattr(call, "inplace", False))
        if isinstance(call, nn.Linear) and first.shape[-1] == call.in_features:
            return _of_shape(first, (*first.shape[:-1], call.out_features))
    elif call in SAME_SHAPE and isinstance(first, Tensor):
        named = call if isinstance(call, str) else call.__name__
        flagged = any(value is True for value in args[1:])  # not 1.0, which may be a threshold
        return _like(first, kwargs.get("inplace", named.endswith("_")) or flagged)
    elif call in ELEMENTWISE:
        return _combined(call, *args) if len(args) == 2 and not kwargs else None
    elif call in CONCATENATING and args and not kwargs.keys() - {"dim"}:
        return _concatenated(*args, **kwargs)
    return None


def _of_shape(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device="meta")


def _like(tensor: Tensor, in_place: bool) -> Tensor:
    return tensor.zero_() if in_place else tensor.clone()


def _convolved(layer: Any, images: Tensor) -> Tensor | None:
    if (
        images.ndim != layer.weight.ndim
        or images.shape[1] != layer.in_channels
        or layer.padding_mode != "zeros"
        or isinstance(layer.padding, str)
    ):
        return None
    parts = (images.shape[2:], layer.padding, layer.dilation, layer.kernel_size, layer.stride)
    sizes = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in zip(*parts, strict=True)]
    if min(sizes) < 1:
        return None
    return _of_shape(images, (len(images), layer.out_channels, *sizes))


def _combined(call: Any, first: Any, second: Any) -> Tensor | None:
    """Of an operation on two tensors, or a tensor and a number, element by element."""
    if not isinstance(first, Tensor) or not first.is_floating_point():
        return None
    shape = first.shape
    if isinstance(second, Tensor):
        if second.dtype != first.dtype:
            return None
        if second.shape != shape:
            shape = torch.broadcast_shapes(shape, second.shape)
    elif not isinstance(second, (int, float)):
        return None
    if call in IN_PLACE or (isinstance(call, str) and call.endswith("_")):
        return first.zero_() if shape == first.shape else None
    return _of_shape(first, shape)


def _concatenated(tensors: Any, dim: int = 0) -> Tensor | None:
    if not all(isinstance(tensor, Tensor) and tensor.ndim for tensor in tensors):
        return None
    first, axis = tensors[0], dim % tensors[0].ndim
    others = {(t.dtype, *t.shape[:axis], None, *t.shape[axis + 1 :]) for t in tensors}
    if len(others) > 1:
        return None
    width = sum(tensor.shape[axis] for tensor in tensors)
    return _of_shape(first, (*first.shape[:axis], width, *first.shape[axis + 1 :]))
