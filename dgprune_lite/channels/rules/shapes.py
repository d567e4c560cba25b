"""Rules of operations that move elements about: what they do to the elements they do to the ids.

Exact is a move only if the network's code, run on fewer channels, makes the smaller result by
itself. So sizes in the code are followed, too: those read off channels (``x.size(1)``) shrink
with them, all others stay.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from dgprune_lite.channels.ids import (
    FIXED,
    Propagation,
    Size,
    Value,
    squeeze_constant,
    values_of,
    varies,
)
from dgprune_lite.channels.rules.elementwise import multiplying
from dgprune_lite.channels.rules.registry import argument, fixed, on_ids, rule, spread, title

# the same call on the ids says where the elements went
MOVING = (
    torch.flatten, torch.permute, torch.transpose, torch.unsqueeze, torch.movedim, torch.t,
    torch.swapaxes, nn.Flatten,
    "flatten", "permute", "transpose", "unsqueeze", "movedim", "swapaxes", "t",
)  # fmt: skip
CONCATENATING = (torch.cat, torch.concat, torch.concatenate)


@rule(*MOVING)
def moving(flow: Propagation, node: fx.Node, inputs: list[Value], result: Tensor) -> Value:
    return Value(on_ids(flow, node), inputs[0].zero, inputs[0].gates)


@rule(torch.squeeze, "squeeze")
def squeezing(flow: Propagation, node: fx.Node, inputs: list[Value], result: Tensor) -> Value:
    if argument(node, 1, "dim") is None:
        flow.lock(inputs[0].ids, "squeeze without an axis would also drop a single channel's axis")
    return moving(flow, node, inputs, result)


# --- Sizes -------------------------------------------------------------------------------


@rule("size", getattr)
def measuring(flow: Propagation, node: fx.Node, inputs: list[Value], result: Any) -> Any:
    """``x.size(1)``, ``x.shape``: a Size where channels lie along the axis, else None (fixed)."""
    ids = inputs[0].ids
    if node.target is getattr and node.args[1] != "shape":
        if fixed(result) is not None:  # such as x.data, x.T
            flow.lock(ids, f".{node.args[1]} is an attribute without a channel rule")
        return fixed(result)
    axes = [axis for axis in range(ids.ndim) if varies(ids, axis)]
    if len(axes) > 1:
        flow.lock(ids, f"{title(flow, node)} of several axes that channels lie along")
        axes = []
    sizes = tuple(
        Size(flow.channel_ids(ids, axis)) if axis in axes else None for axis in range(ids.ndim)
    )
    dim = argument(node, 1, "dim") if node.target == "size" else None
    return sizes if dim is None else sizes[dim]


@rule("numel", torch.numel, len)
def counting(flow: Propagation, node: fx.Node, inputs: list[Value], result: Any) -> None:
    flow.lock(inputs[0].ids, f"{title(flow, node)} depends on how many they are")


@rule("dim", "ndimension", "is_floating_point", "get_device")
def asking(flow: Propagation, node: fx.Node, inputs: list[Value], result: Any) -> None:
    return None


@rule(operator.mul, operator.floordiv, sizes=True)
def arithmetic(flow: Propagation, node: fx.Node, inputs: list[Value], result: Any) -> Any:
    """A size times or over a number, such as ``x.size(1) // 2``; of tensors, their product."""
    values = [flow.values[a] if isinstance(a, fx.Node) else None for a in node.args]
    numbers = [flow.env[a] if isinstance(a, fx.Node) else a for a in node.args]
    sizes = [value for value in values if isinstance(value, Size)]
    if len(sizes) == 1 and not inputs:
        (size,), place = sizes, 0 if isinstance(values[0], Size) else 1
        by, divides = numbers[1 - place], node.target is operator.floordiv
        if isinstance(by, int) and by > 0 and not (divides and place == 1):
            factor = size.factor / by if divides else size.factor * by
            if (len(size.ids) * factor).denominator == 1:
                return Size(size.ids, factor)
    for size in sizes:
        flow.lock(size.ids, f"{title(flow, node)} depends on how many they are")
    if inputs and node.target is operator.mul:
        return multiplying(flow, node, inputs, result)
    for value in inputs:
        flow.lock(value.ids, f"{title(flow, node)} is an operation without a channel rule")
    return fixed(result)


def _asked_sizes(flow: Propagation, node: fx.Node, first: int = 1) -> list[Any]:
    """The sizes that a call names: numbers, or Sizes; both ``f(x, 1, 2)`` and ``f(x, (1, 2))``."""
    sizes: Any = node.args[first:] or tuple(node.kwargs.values())[:1]
    if len(sizes) == 1 and not isinstance(sizes[0], int):
        only = sizes[0]
        if isinstance(only, fx.Node) and not isinstance(flow.env[only], int):
            known = flow.values[only] or (None,) * len(flow.env[only])
            return [
                number if size is None else size
                for size, number in zip(known, flow.env[only], strict=True)
            ]
        if not isinstance(only, fx.Node):
            sizes = tuple(only)
    return [
        (flow.values[size] or flow.env[size]) if isinstance(size, fx.Node) else size
        for size in sizes
    ]


@rule("view", "reshape", torch.reshape, sizes=True)
def reshaping(flow: Propagation, node: fx.Node, inputs: list[Value], result: Tensor) -> Value:
    """A size that does not shrink stays as it is, so channels along it go together."""
    value = inputs[0]
    if len(node.args) == 2 and isinstance(node.args[1], torch.dtype):
        flow.lock(value.ids, "view as another dtype")
        return fixed(result)
    ids = value.ids.reshape(result.shape)
    sizes = _asked_sizes(flow, node)
    carrying = [axis for axis in range(ids.ndim) if varies(ids, axis)]
    shrinking = [a for a in carrying if isinstance(sizes[a], Size) or sizes[a] == -1]
    if len(shrinking) != min(1, len(carrying)):
        flow.lock(ids, f"{title(flow, node)} to a size that is fixed in the code")
    else:
        for axis in set(carrying) - set(shrinking):
            flow.unite_along(ids, axis, "it shares its channels with fixed values")
    for axis, size in enumerate(sizes):
        if isinstance(size, Size):
            along = flow.channel_ids(ids, axis)
            if not flow.follows(along, size, title(flow, node)):
                why = f"{title(flow, node)} to a size that other channels have"
                flow.lock(ids, why)
                flow.lock(size.ids, why)
    return Value(ids, value.zero, value.gates)


@rule("expand", torch.broadcast_to, "broadcast_to", sizes=True)
def expanding(flow: Propagation, node: fx.Node, inputs: list[Value], result: Tensor) -> Value:
    value = inputs[0]
    ids = value.ids.expand(result.shape)
    why = f"{title(flow, node)} to a size that is fixed elsewhere"
    for axis, size in enumerate(_asked_sizes(flow, node)):
        along = varies(ids, axis)
        if isinstance(size, Size):
            fits = along and flow.follows(flow.channel_ids(ids, axis), size, title(flow, node))
            if not fits:
                flow.lock(size.ids, why)
        else:
            fits = not along or size == -1
        if not fits:
            flow.lock(ids, why)
    return Value(ids, value.zero, value.gates)


@rule("expand_as", "view_as", "reshape_as")
def like_another(flow: Propagation, node: fx.Node, inputs: list[Value], result: Tensor) -> Value:
    """``y.expand_as(x)``: where channels lie along the same axis they go together, as in a sum."""
    value, other = inputs[0], inputs[-1]
    why = f"{title(flow, node)} a tensor whose channels lie elsewhere"
    expanding = node.target == "expand_as"
    ids = value.ids.expand(result.shape) if expanding else value.ids.reshape(result.shape)
    for axis in range(ids.ndim):
        here, there = varies(ids, axis), varies(other.ids, axis)
        if here and there:
            flow.unite(flow.channel_ids(ids, axis), flow.channel_ids(other.ids, axis), why)
        elif here or there:
            flow.lock(ids, why)
            flow.lock(other.ids, why)
    return Value(ids, value.zero, value.gates)


# --- Joining and parting -----------------------------------------------------------------


@rule(*CONCATENATING)
def concatenating(flow: Propagation, node: fx.Node, inputs: list[Value], result: Tensor) -> Value:
    given: Any = argument(node, 0, "tensors")
    loaded = flow.values[given] if isinstance(given, fx.Node) else [flow.values[n] for n in given]
    parts = [value.ids for value in loaded]
    axis = int(argument(node, 1, "dim", node.kwargs.get("axis", 0))) % result.ndim
    for other in set(range(result.ndim)) - {axis}:
        if all(part.stride(other) == 0 or part.shape[other] == 1 for part in parts):
            parts = [part.narrow(other, 0, 1) for part in parts]  # keeps work small
    gates: frozenset[str] = frozenset().union(*(v.gates for v in inputs))
    ids = torch.cat(parts, axis).expand(result.shape)
    return Value(ids, all(value.zero for value in inputs), gates)


@rule(torch.stack)
def stacking(flow: Propagation, node: fx.Node, inputs: list[Value], result: Tensor) -> Value:
    gates: frozenset[str] = frozenset().union(*(v.gates for v in inputs))
    return Value(on_ids(flow, node), all(value.zero for value in inputs), gates)


@rule(torch.chunk, "chunk", torch.tensor_split, "tensor_split", torch.split, "split", sizes=True)
def splitting(flow: Propagation, node: fx.Node, inputs: list[Value], result: Any) -> Any:
    """Equal parts of the channel axis must stay equally wide; other splits are locked."""
    value = inputs[0]
    asked: Any = node.args[1] if len(node.args) > 1 else next(iter(node.kwargs.values()))
    axis = int(argument(node, 2, "dim", 0))
    widths = [part.shape[axis] for part in result]
    parts = value.ids.split(widths, axis)
    sizes = values_of((flow.values[n] for n in node.all_input_nodes), Size)
    if node.target in (torch.split, "split"):  # widths are given, not the number of parts
        even = isinstance(asked, fx.Node) and len(sizes) == 1
    else:
        even = isinstance(asked, int)
    even = even and len(set(widths)) == 1
    if varies(value.ids, axis) and even:
        for part in parts[1:]:
            flow.unite(squeeze_constant(parts[0]), squeeze_constant(part), "a fixed part")
        for size in sizes:
            along = flow.channel_ids(parts[0], axis)
            even = even and flow.follows(along, size, title(flow, node))
    if not even:
        why = f"{title(flow, node)} into parts of a size fixed in the code"
        for locked in sizes + [value] * varies(value.ids, axis):
            flow.lock(locked.ids, why)
    return tuple(Value(part, value.zero, value.gates) for part in parts)


@rule(operator.getitem, always=True, sizes=True)
def indexing(flow: Propagation, node: fx.Node, inputs: list[Value], result: Any) -> Any:
    index: Any = node.args[1]
    source: Any = node.args[0]
    value = flow.values[source]
    if isinstance(value, tuple) and not isinstance(index, fx.Node):
        return value[index]
    if not isinstance(value, Value):
        return fixed(result)
    for other in node.all_input_nodes:
        if isinstance(size := flow.values[other], Size):
            flow.lock(size.ids, "an index depends on how many they are")
    if not value.carries:
        return fixed(result)
    index = fx.map_arg(index, lambda n: flow.env[n])
    if any(part.is_meta for part in values_of([index], Tensor)):
        raise ValueError("an index that is made of numbers")  # follow again, with numbers
    ids = value.ids[tree_map_only(Tensor, Tensor.cpu, index)]  # ids are always there
    if any(isinstance(part, Tensor) and part.ndim > 1 for part in values_of([index], Tensor)):
        flow.lock(value.ids, "indexing by a mask of several axes")
    touched = list(index) if isinstance(index, tuple) else [index]
    touched = [part for part in touched if part is not None]  # None makes an axis, reads none
    if any(part is Ellipsis for part in touched):
        place = next(i for i, part in enumerate(touched) if part is Ellipsis)
        touched[place : place + 1] = [slice(None)] * (value.ids.ndim - len(touched) + 1)
    for axis, part in enumerate(touched):
        whole = isinstance(part, slice) and part == slice(None)
        if not whole and varies(value.ids, axis):
            flow.lock(value.ids, "indexing the channel axis")
    return Value(ids, value.zero, value.gates)


# --- Padding, shuffling ------------------------------------------------------------------


@rule(F.pad)
def padding(flow: Propagation, node: fx.Node, inputs: list[Value], result: Tensor) -> Value:
    """Margins in space belong to the channel; channels of zeros around the others are fixed."""
    pads: Any = argument(node, 1, "pad")
    mode, number = argument(node, 2, "mode", "constant"), argument(node, 3, "value") or 0
    value = inputs[0]
    if any(isinstance(part, fx.Node) for part in pads):
        pads = fx.map_arg(pads, lambda n: flow.env[n])
    ids = value.ids
    for place, (before, after) in enumerate(zip(pads[::2], pads[1::2], strict=True)):
        axis, shape = ids.ndim - 1 - place, list(ids.shape)
        if not varies(ids, axis):
            shape[axis] += before + after
            ids = ids.narrow(axis, 0, 1).expand(shape)
        elif before < 0 or after < 0 or mode != "constant" or number != 0:
            flow.lock(value.ids, f"{title(flow, node)} of the channel axis by more than zeros")
            return fixed(result)
        else:
            shape[axis] = before + after
            margins = ids.new_full((), FIXED).expand(shape).split([before, after], axis)
            ids = torch.cat([margins[0], ids, margins[1]], axis)
    constant = mode == "constant" and number != 0 and any(pads)
    return Value(ids, value.zero and not constant, value.gates)


@rule(nn.PixelShuffle, F.pixel_shuffle)
def pixel_shuffle(flow: Propagation, node: fx.Node, inputs: list[Value], result: Tensor) -> Value:
    """r² neighbouring channels become one, so they go together."""
    ids = _batched_channels(flow, node, inputs[0])
    if ids is None:
        return fixed(result)
    blocks = ids.reshape(result.shape[1], -1)
    flow.unite_along(blocks, 1, f"{title(flow, node)} mixes it with fixed channels")
    return Value(spread(blocks[:, 0], result, 1), inputs[0].zero, inputs[0].gates)


@rule(nn.PixelUnshuffle, F.pixel_unshuffle)
def pixel_unshuffle(flow: Propagation, node: fx.Node, inputs: list[Value], result: Tensor) -> Value:
    ids = _batched_channels(flow, node, inputs[0])
    if ids is None:
        return fixed(result)
    ids = ids.repeat_interleave(result.shape[1] // len(ids))
    return Value(spread(ids, result, 1), inputs[0].zero, inputs[0].gates)


@rule(nn.ChannelShuffle, torch.channel_shuffle)
def channel_shuffle(flow: Propagation, node: fx.Node, inputs: list[Value], result: Tensor) -> Value:
    """The groups are interleaved, so they must stay equally wide."""
    ids = _batched_channels(flow, node, inputs[0])
    if node.op == "call_module":
        groups: Any = flow.fetch_attr(str(node.target)).groups
    else:
        groups = argument(node, 1, "groups")
    if ids is None or not isinstance(groups, int):
        flow.lock(inputs[0].ids, f"{title(flow, node)} in a number of groups that may change")
        return fixed(result)
    ids = ids.reshape(groups, -1)
    flow.unite_along(ids, 0, f"{title(flow, node)} keeps it beside fixed channels")
    return Value(spread(ids.T.reshape(-1), result, 1), inputs[0].zero, inputs[0].gates)


def _batched_channels(flow: Propagation, node: fx.Node, value: Value) -> Tensor | None:
    """ids along axis 1 of images (batch, channels, height, width); None, locked, for others."""
    if value.ids.ndim != 4:
        flow.lock(value.ids, f"{title(flow, node)} of images without a batch axis")
        return None
    return flow.channel_ids(value.ids, 1)
