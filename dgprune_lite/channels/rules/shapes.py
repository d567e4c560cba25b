"""Rules of operations that move elements about: what they do to the elements they do to the ids.

Exact is a move only if the network's code, run on fewer channels, makes the smaller result by
itself. So sizes in the code are followed, too: those read off channels (``x.size(1)``) shrink
with them, all others stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgprune_lite.channels.ids import FIXED, Value, Width, varies
from dgprune_lite.channels.rules.registry import Call, fixed, locked, of_kind, rule, spread, title

if TYPE_CHECKING:
    from dgprune_lite.channels.tape import Tape

# the same call on the ids says where the elements went
MOVING = (
    "permute", "transpose", "unsqueeze", "movedim", "moveaxis", "swapaxes", "swapdims",
    "t", ".T", ".mT", ".H", ".mH", "adjoint", "flip", "fliplr", "flipud", "repeat_interleave",
    "tile", "rot90", "atleast_3d",
)  # fmt: skip


def on_ids(tape: Tape, call: Call) -> Value:
    """The value after the call's own operation on the ids of its inputs."""
    values = [tape.value(tensor) for tensor in call.tensors]
    ids = iter([value.ids for value in values])
    moved = call.with_tensors(lambda tensor: next(ids))
    zero = all(value.zero for value in values)
    gates = frozenset[str]().union(*(value.gates for value in values))
    constant = all(value.constant for value in values)
    return Value(moved, zero, gates if zero else frozenset(), constant)


@rule(*MOVING)
def moving(tape: Tape, call: Call) -> Value:
    """Elements move, and their channels with them."""
    return on_ids(tape, call)


@rule("flatten", "ravel")
def flattening(tape: Tape, call: Call) -> Value:
    """All elements of a channel stay together."""
    value = tape.value(call.args[0])
    return value.moved(_reshaped(value.ids, call.result.shape))


@rule("roll")
def rolling(tape: Tape, call: Call) -> Value | None:
    """In space only: the order of channels is another one where some are missing."""
    value, axes = tape.value(call.args[0]), call.argument(2, "dims")
    axes = [axes] if isinstance(axes, int) else axes or range(value.ids.ndim)
    if any(varies(value.ids, axis) for axis in axes):
        return locked(tape, value, f"{title(tape, call)} along the channel axis")
    return value


@rule("squeeze")
def squeezing(tape: Tape, call: Call) -> Value:
    """Without an axis also a single channel's axis would go, where only one is left."""
    value = on_ids(tape, call)
    axes = [axis for axis in range(value.ids.ndim) if varies(value.ids, axis)]
    if call.argument(1, "dim") is None and axes:
        first = tape.channel_ids(value.ids, axes[0])[:1]
        tape.lock(first, "squeeze() would also drop the axis of one channel, so a second stays")
    return value


# --- Sizes -------------------------------------------------------------------------------


@rule("size", ".shape", measures=True)
def measuring(tape: Tape, call: Call) -> Any:
    """``x.size(1)``, ``x.shape``: a Width where channels lie along the axis."""
    tensor, dim = call.args[0], call.argument(1, "dim")
    sizes = list(tensor.shape)
    owner = tape.owners.get(id(tensor))
    if owner and tensor.ndim > 1 and tape.plain_weight(owner[0][0]):
        for axis, key in enumerate(("out_channels", "in_channels")):
            sizes[axis] = Width.of(tape, sizes[axis], None, (owner[0][0], key))
    elif (value := tape.known(tensor)) is not None and value.carries:
        axes = [axis for axis in range(tensor.ndim) if varies(value.ids, axis)]
        if len(axes) > 1:
            tape.lock(value.ids, f"{title(tape, call)} of several axes that channels lie along")
        elif axes:
            ids = tape.channel_ids(value.ids, axes[0])
            sizes[axes[0]] = Width.of(tape, sizes[axes[0]], ids)
    return torch.Size(sizes) if dim is None else sizes[dim]


@rule("numel", "nelement", "len", measures=True)
def counting(tape: Tape, call: Call) -> int:
    """How many elements there are, which changes."""
    value = tape.value(call.args[0])
    if call.name != "len" or varies(value.ids, 0):
        tape.lock(value.ids, f"{title(tape, call)} depends on how many they are")
    return call.result


@rule("new_zeros", "new_ones", "new_full", "new_empty", "zeros", "ones", "full", "empty", "rand",
      "randn", always=True, sizes=True)  # fmt: skip
def making(tape: Tape, call: Call) -> Value | None:
    """A constant with as many entries as there are channels."""
    sizes = _asked_sizes(call, 1 if call.name.startswith("new_") else 0)
    return _along_widths(tape, call, fixed(call.result).ids, sizes, call.name.endswith("zeros"))


def _along_widths(
    tape: Tape, call: Call, ids: Tensor, sizes: list[Any], zero: bool
) -> Value | None:
    """A value whose axes are as long as some widths; None where there is none."""
    widths = [(a, s) for a, s in enumerate(sizes) if isinstance(s, Width) and s.flow is tape]
    if not widths:
        return None
    if len(widths) == 1 and widths[0][1].ids is not None and widths[0][1].factor == 1:
        ids = spread(widths[0][1].ids, call.result, widths[0][0])
        return Value(ids, zero)
    for _, width in widths:
        tape.follow_later(None, width, f"{title(tape, call)} depends on how many they are")
    return None


def _asked_sizes(call: Call, first: int = 1) -> list[Any]:
    """The sizes that a call names: both ``f(x, 1, 2)`` and ``f(x, (1, 2))``."""
    sizes: Any = call.args[first:] or next(
        (call.kwargs[k] for k in ("size", "shape", "sizes") if k in call.kwargs), ()
    )
    if len(sizes) and isinstance(sizes[0], (tuple, list)):
        sizes = sizes[0]
    return list(sizes)


@rule("view", "reshape", "unflatten", sizes=True)
def reshaping(tape: Tape, call: Call) -> Value | None:
    """A size that does not shrink stays as it is, so channels along it go together."""
    value, sizes = tape.value(call.args[0]), _asked_sizes(call)
    if call.name == "view" and isinstance(call.argument(1, "dtype"), torch.dtype):
        return locked(tape, value, "view as another dtype")
    if call.name == "unflatten":
        axis = call.argument(1, "dim") % value.ids.ndim
        parts = list(call.argument(2, "sizes"))
        rest = value.ids.ndim - axis - 1
        sizes = [-1] * axis + parts + [-1] * rest
    ids = _reshaped(value.ids, call.result.shape)
    carrying = [axis for axis in range(ids.ndim) if varies(ids, axis)]
    shrinking = [a for a in carrying if isinstance(sizes[a], Width) or sizes[a] == -1]
    if len(shrinking) != min(1, len(carrying)):
        tape.lock(ids, f"{title(tape, call)} to a size that is fixed in the code")
    else:
        for axis in set(carrying) - set(shrinking):
            tape.unite_along(ids, axis, "it shares its channels with fixed values")
    for axis, size in enumerate(sizes):
        if isinstance(size, Width):
            why = f"{title(tape, call)} to a size that other channels have"
            tape.follow_later(tape.channel_ids(ids, axis), size, why)
    return value.moved(ids)


def _reshaped(ids: Tensor, shape: torch.Size) -> Tensor:
    """As ``ids.reshape(shape)``; images that stay apart are not written out one by one."""
    if ids.ndim and shape and len(ids) == shape[0] and ids.stride(0) == 0:
        return ids[:1].reshape(1, *shape[1:]).expand(shape)
    return ids.reshape(shape)


@rule("expand", "broadcast_to", "repeat", sizes=True)
def expanding(tape: Tape, call: Call) -> Value | None:
    """Repeated along other axes than that of the channels."""
    value, sizes = tape.value(call.args[0]), _asked_sizes(call)
    why = f"{title(tape, call)} to a size that is fixed elsewhere"
    if not value.carries:
        return _along_widths(tape, call, fixed(call.result).ids, sizes, False)
    if call.name == "repeat":
        for size in of_kind(sizes, Width):
            tape.follow_later(None, size, why)
        return on_ids(tape, call)
    ids = value.ids.expand(call.result.shape)
    for axis, size in enumerate(sizes):
        along = varies(ids, axis)
        if isinstance(size, Width):
            tape.follow_later(tape.channel_ids(ids, axis) if along else None, size, why)
            fits = along
        else:
            fits = not along or size == -1
        if not fits:
            tape.lock(ids, why)
    return value.moved(ids)


@rule("expand_as", "view_as", "reshape_as")
def like_another(tape: Tape, call: Call) -> Value:
    """``y.expand_as(x)``: where channels lie along the same axis they go together, as in a sum."""
    value, other = (tape.value(tensor) for tensor in call.tensors)
    why = f"{title(tape, call)} a tensor whose channels lie elsewhere"
    if call.name == "expand_as":
        ids = value.ids.expand(call.result.shape)
    else:
        ids = _reshaped(value.ids, call.result.shape)
    for axis in range(ids.ndim):
        here, there = varies(ids, axis), varies(other.ids, axis)
        if here and there:
            tape.unite(tape.channel_ids(ids, axis), tape.channel_ids(other.ids, axis), why)
        elif here or there:
            tape.lock(ids, why)
            tape.lock(other.ids, why)
    return value.moved(ids)


# --- Padding, shuffling ------------------------------------------------------------------


@rule("pad", "constant_pad_nd")
def padding(tape: Tape, call: Call) -> Value | None:
    """Margins in space belong to the channel; channels of zeros around the others are fixed."""
    pads = list(call.argument(1, "pad"))
    mode, number = call.argument(2, "mode", "constant"), call.argument(3, "value") or 0
    value = tape.value(call.args[0])
    ids = value.ids
    for place, (before, after) in enumerate(zip(pads[::2], pads[1::2], strict=True)):
        axis, shape = ids.ndim - 1 - place, list(ids.shape)
        if not varies(ids, axis):
            shape[axis] += before + after
            ids = ids.narrow(axis, 0, 1).expand(shape)
        elif before < 0 or after < 0 or mode != "constant" or number != 0:
            return locked(
                tape, value, f"{title(tape, call)} of the channel axis by more than zeros"
            )
        else:
            shape[axis] = before + after
            margins = ids.new_full((), FIXED).expand(shape).split([before, after], axis)
            ids = torch.cat([margins[0], ids, margins[1]], axis)
    constant = mode == "constant" and number != 0 and any(pads)
    return Value(ids, value.zero and not constant, frozenset() if constant else value.gates)


@rule("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle")
def shuffling(tape: Tape, call: Call) -> Value | None:
    """Of r² neighbouring channels one is made, or of one r²; groups are interleaved."""
    value, result = tape.value(call.args[0]), call.result
    if value.ids.ndim != 4:
        return locked(tape, value, f"{title(tape, call)} of images without a batch axis")
    ids = tape.channel_ids(value.ids, 1)
    if call.name == "pixel_shuffle":  # blocks go together
        blocks = ids.reshape(result.shape[1], -1)
        tape.unite_along(blocks, 1, f"{title(tape, call)} mixes it with fixed channels")
        ids = blocks[:, 0]
    elif call.name == "pixel_unshuffle":
        ids = ids.repeat_interleave(result.shape[1] // len(ids))
    else:  # the groups must stay equally wide
        ids = ids.reshape(call.argument(1, "groups"), -1)
        tape.unite_along(ids, 0, f"{title(tape, call)} keeps it beside fixed channels")
        ids = ids.T.reshape(-1)
    return value.moved(spread(ids, result, 1))
