"""Rules of operations that move, join and part elements: what they do to these they do to the ids.

Exact is a move only if the network's code, run on fewer channels, makes the smaller result by
itself. So sizes in the code are followed, too: those read off channels (``x.size(1)``) shrink
with them, all others stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dgprune_lite.channels.ids import (
    ALONE,
    FIXED,
    Value,
    Width,
    along,
    axes_of,
    first_along,
    in_short,
    together,
    with_axes,
    written_out,
)
from dgprune_lite.channels.rules.registry import COUNTED, Call, of_kind, rule

if TYPE_CHECKING:
    from dgprune_lite.channels.tape import Tape


@rule("""
    permute transpose unsqueeze movedim moveaxis swapaxes swapdims t .T .mT .H .mH adjoint flip
    fliplr flipud repeat_interleave tile rot90 atleast_3d
""")
def moving(tape: Tape, call: Call) -> Value:
    """Elements move, and their channels with them."""
    return together(call.done_to_ids(), call.values)


@rule("flatten ravel")
def flattening(tape: Tape, call: Call) -> Value:
    """All elements of a channel stay together."""
    return call.values[0].moved(_reshaped(call))


@rule("squeeze")
def squeezing(tape: Tape, call: Call) -> Value:
    """Without an axis also a single channel's axis would go, where only one is left."""
    value = moving(tape, call)
    axes = axes_of(value.ids) if call.argument(1, "dim") is None else []
    for axis in axes[:1]:
        first = tape.channel_ids(value.ids, axis, value.ids.shape[axis])[:1]
        tape.lock(first, "squeeze() would also drop the axis of one channel, so a second stays")
    return value


@rule("size .shape", "measures")
def measuring(tape: Tape, call: Call) -> Any:
    """``x.size(1)``, ``x.shape``: a number that shrinks where channels lie along the axis."""
    tensor, dim = call.args[0], call.argument(1, "dim")
    sizes, owner = list(tensor.shape), tape.owners.get(id(tensor))
    if owner and tensor.ndim > 1 and tape.plain_weight(owner[0][0]):
        for axis, key in enumerate(("out_channels", "in_channels")):
            sizes[axis] = Width(tape, sizes[axis], None, (owner[0][0], key))
    elif len(axes := axes_of(call.values[0].ids)) > 1:
        call.lock("of several axes that channels lie along", call.values[0])
    elif axes:
        ids = tape.channel_ids(call.values[0].ids, axes[0], tensor.shape[axes[0]])
        sizes[axes[0]] = Width(tape, sizes[axes[0]], ids)
    return torch.Size(sizes) if dim is None else sizes[dim]


@rule("numel nelement len", "measures")
def counting(tape: Tape, call: Call) -> int:
    """How many elements there are, which changes."""
    if call.name != "len" or call.values[0].ids.shape[0] > 1:
        call.lock(COUNTED, call.values[0])
    return call.result


@rule("new_zeros new_ones new_full new_empty zeros ones full empty rand randn", "always", "sizes")
def making(tape: Tape, call: Call) -> Value | None:
    """A constant with as many entries as there are channels."""
    sizes = _asked_sizes(call)
    widths = [(a, s) for a, s in enumerate(sizes) if isinstance(s, Width) and s.flow is tape]
    if len(widths) == 1 and widths[0][1].ids is not None and widths[0][1].factor == 1:
        ids = along(widths[0][1].ids, call.result, widths[0][0])
        return Value(ids, call.name.endswith("zeros"))
    return call.lock_sizes(sizes, f"{call.title} {COUNTED}")


def _asked_sizes(call: Call) -> list[Any]:
    """The sizes that a call names: both ``f(x, 1, 2)`` and ``f(x, (1, 2))``."""
    named = [call.kwargs[key] for key in ("size", "shape", "sizes") if key in call.kwargs]
    sizes: Any = [arg for arg in call.args if not isinstance(arg, Tensor)] or [*named, ()][0]
    return list(sizes[0] if len(sizes) and isinstance(sizes[0], (tuple, list)) else sizes)


@rule("view reshape unflatten", "sizes")
def reshaping(tape: Tape, call: Call) -> Value | None:
    """A size that does not shrink stays as it is, so channels along it go together."""
    value, sizes = call.values[0], _asked_sizes(call)
    if call.name == "view" and isinstance(call.argument(1, "dtype"), torch.dtype):
        return call.lock("as another dtype", value)
    if call.name == "unflatten":
        axis = call.argument(1, "dim") % value.ids.ndim
        rest = value.ids.ndim - axis - 1
        sizes = [-1] * axis + list(call.argument(2, "sizes")) + [-1] * rest
    ids = _reshaped(call)
    carrying = axes_of(ids)
    shrinking = [a for a in carrying if isinstance(sizes[a], Width) or sizes[a] == -1]
    if len(shrinking) != min(1, len(carrying)):
        call.lock("to a size that is fixed in the code", value)
    else:
        for axis in set(carrying) - set(shrinking):
            tape.unite_along(ids, axis, ALONE)
    for axis, size in enumerate(sizes):
        if isinstance(size, Width):
            why = f"{call.title} to a size that other channels have"
            tape.follow_later(tape.channel_ids(ids, axis, call.result.shape[axis]), size, why)
    return value.moved(ids)


def _reshaped(call: Call) -> np.ndarray:
    """Ids in the result's shape; images that stay apart are not written out one by one."""
    ids, before, after = call.values[0].ids, list(call.tensors[0].shape), list(call.result.shape)
    if before and after and before[0] == after[0] and len(ids) == 1:
        before[0] = after[0] = 1
    return in_short(written_out(ids, before).reshape(after))


@rule("expand broadcast_to repeat", "sizes")
def expanding(tape: Tape, call: Call) -> Value | None:
    """Repeated along other axes than that of the channels."""
    value, sizes = call.values[0], _asked_sizes(call)
    why = f"{call.title} to a size that is fixed elsewhere"
    if not value.carries:
        return making(tape, call)
    if call.name == "repeat":
        call.lock_sizes(sizes, why)
        return moving(tape, call)
    ids = with_axes(value.ids, call.result.ndim)
    for axis, size in enumerate(sizes):
        varies = ids.shape[axis] > 1
        if isinstance(size, Width):
            channels = tape.channel_ids(ids, axis, ids.shape[axis]) if varies else None
            tape.follow_later(channels, size, why)
        if varies != isinstance(size, Width) and size != -1:
            tape.lock(ids, why)
    return value.moved(ids)


@rule("expand_as view_as reshape_as")
def like_another(tape: Tape, call: Call) -> Value | None:
    """As ``expand`` or ``view`` to the sizes of another tensor, which shrink with its channels."""
    sizes, ids = list(call.tensors[1].shape), call.values[1].ids
    for axis in axes_of(ids):
        sizes[axis] = Width(tape, sizes[axis], tape.channel_ids(ids, axis, sizes[axis]))
    sized = Call(call.func, (call.tensors[0], sizes), {}, tape)
    sized.result = call.result
    return expanding(tape, sized) if call.name == "expand_as" else reshaping(tape, sized)


@rule("pad constant_pad_nd")
def padding(tape: Tape, call: Call) -> Value | None:
    """Margins in space belong to the channel; channels of zeros around the others are fixed."""
    pads = list(call.argument(1, "pad"))
    mode, number = call.argument(2, "mode", "constant"), call.argument(3, "value") or 0
    value, ids = call.values[0], call.values[0].ids
    own = [n if ids.shape[-1 - i // 2] > 1 else 0 for i, n in enumerate(pads)]
    if min(own, default=0) < 0 or (any(own) and (mode != "constant" or number != 0)):
        return call.lock("of the channel axis by more than zeros", value)
    if any(own):
        pairs = [(0, 0)] * (ids.ndim - len(own) // 2) + [*zip(own[::2], own[1::2], strict=True)][
            ::-1
        ]
        ids = np.pad(ids, pairs, constant_values=FIXED)
    return value.moved(ids, mode != "constant" or number == 0 or not any(pads))


@rule("pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle")
def shuffling(tape: Tape, call: Call) -> Value | None:
    """Of r² neighbouring channels one is made, or of one r²; groups are interleaved."""
    value, result = call.values[0], call.result
    if value.ids.ndim != 4:
        return call.lock("of images without a batch axis", value)
    ids = tape.channel_ids(value.ids, 1, call.tensors[0].shape[1])
    if call.name == "pixel_shuffle":  # blocks go together
        why = f"{call.title} mixes it with fixed channels"
        ids = tape.unite_along(ids.reshape(result.shape[1], -1), 1, why)[:, 0]
    elif call.name == "pixel_unshuffle":
        ids = ids.repeat(result.shape[1] // len(ids))
    else:  # the groups must stay equally wide
        ids = ids.reshape(call.argument(1, "groups"), -1)
        tape.unite_along(ids, 0, f"{call.title} keeps it beside fixed channels")
        ids = ids.T.reshape(-1)
    return value.moved(along(ids, result, 1))


@rule("cat concat concatenate")
def concatenating(tape: Tape, call: Call) -> Value:
    """The channels of all parts, one after another."""
    axis = call.argument(1, "dim", call.kwargs.get("axis", 0)) % call.result.ndim
    parts = [(tensor, value.ids) for tensor, value in call.pairs if tensor.numel()]
    shape = list(np.broadcast_shapes(*(first_along(ids, axis).shape for _, ids in parts)))
    full = []
    for tensor, ids in parts:
        shape[axis] = tensor.shape[axis]
        full.append(np.broadcast_to(ids, shape))
    return together(in_short(np.concatenate(full, axis)), call.values)


@rule("stack")
def stacking(tape: Tape, call: Call) -> Value:
    """What is stacked must stay equally wide, so channels at one place go together, as in a sum."""
    ids, axis = call.united(call.values), call.argument(1, "dim", 0) % call.result.ndim
    return together(np.expand_dims(ids, axis), call.values)


@rule("glu")
def gating(tape: Tape, call: Call) -> Value:
    """The first half times the sigmoid of the second, whose channels go together."""
    value, axis = call.values[0], call.argument(1, "dim", -1)
    if value.ids.shape[axis] == 1:
        return value
    one, two = np.split(value.ids, 2, axis)
    tape.unite(one, two, "a fixed part")
    return value.moved(one)


@rule("chunk tensor_split split split_with_sizes unsafe_chunk", "sizes")
def splitting(tape: Tape, call: Call) -> Any:
    """Equal parts of the channel axis must stay equally wide; other splits are locked."""
    value, axis = call.values[0], call.argument(2, "dim", 0)
    named = [number for key, number in call.kwargs.items() if key != "dim"]
    asked = [*call.args[1:2], *named][:1]  # how many parts, or how wide they are
    widths, sizes = [part.shape[axis] for part in call.result], of_kind(asked, Width)
    if call.name.startswith("split"):
        even = 0 < len(sizes) == len(of_kind(asked, int))
    else:
        even = isinstance(asked[0], int) and not sizes
    parts, varies = [value.ids] * len(widths), value.ids.shape[axis] > 1
    if varies:
        parts = np.split(value.ids, np.cumsum(widths)[:-1], axis)
    why = f"{call.title} into parts of a size fixed in the code"
    if not even or len(set(widths)) > 1:
        call.lock_sizes(sizes, why)
        tape.lock(value.ids if varies else None, why)
    elif varies:
        for part in parts[1:]:
            tape.unite(parts[0], part, "a fixed part")
        for size in sizes:
            tape.follow_later(tape.channel_ids(parts[0], axis, widths[0]), size, why)
    return tuple(value.moved(part) for part in parts)


@rule("select narrow index_select take_along_dim unbind roll", "sizes")
def in_space(tape: Tape, call: Call) -> Any:
    """Parts in space are taken or moved; of the channel axis they would be others."""
    value, place = call.values[0], 2 if call.name in ("take_along_dim", "roll") else 1
    axes = call.argument(place, "dims" if call.name == "roll" else "dim")
    axes = 0 if call.name == "unbind" and axes is None else axes
    axes = [axes] if isinstance(axes, int) else axes or range(value.ids.ndim)
    if any(value.ids.shape[axis] > 1 for axis in axes):
        call.lock("along the channel axis", value)
    return _taken(tape, call)


@rule("getitem", "sizes")
def indexing(tape: Tape, call: Call) -> Any:
    """Parts in space, or all channels; a part of them is fixed in the code."""
    value, *indices = call.values
    if _cuts(value.ids, call.args[1]):
        tape.lock(value.ids, "indexing the channel axis")
    elif any(index.ids.ndim > 1 for index in indices):
        tape.lock(value.ids, "indexing by a mask of several axes")
    return _taken(tape, call)


def _taken(tape: Tape, call: Call) -> Any:
    """The same parts of the ids; what an index depends on stays."""
    value, *indices = call.values
    call.lock_sizes(call.args[1:], f"an index {COUNTED}")
    for index in indices:
        tape.lock(index.ids, "an index depends on it")
    ids = written_out(value.ids, call.args[0].shape)
    ids = call.with_tensors(lambda t: ids if t is call.args[0] else t.cpu())
    if isinstance(ids, tuple):
        return tuple(value.moved(in_short(part)) for part in ids)
    return value.moved(in_short(ids))


def _cuts(ids: np.ndarray, index: Any) -> bool:
    """Whether an index takes not all along an axis on which ids differ, also of fewer channels."""
    touched = list(index) if isinstance(index, tuple) else [index]
    touched = [part for part in touched if part is not None]  # None makes an axis, reads none
    place = next((i for i, part in enumerate(touched) if part is Ellipsis), None)
    if place is not None:
        touched[place : place + 1] = [slice(None)] * (ids.ndim - len(touched) + 1)

    def whole(part: Any, size: int) -> bool:
        plain = isinstance(part, slice) and part.start in (None, 0) and part.step in (None, 1)
        return plain and (part.stop is None or part.stop >= size)

    carrying = [axis for axis in axes_of(ids) if axis < len(touched)]
    return any(not whole(touched[axis], ids.shape[axis]) for axis in carrying)


@rule("setitem", "sizes")
def assigning(tape: Tape, call: Call) -> None:
    """``x[..., :4] = 0``: zeros written in space belong to the channels there."""
    target, index, written = call.args
    value, given = call.values[0], isinstance(written, Tensor)
    values = [value, tape.value(written)] if given else [value]
    call.lock_sizes([index], f"an index {COUNTED}")
    place = None
    if not of_kind([index], Tensor):
        place = in_short(written_out(value.ids, target.shape)[index])
    if place is None or _cuts(value.ids, index) or (given and written.ndim != place.ndim):
        for lost in values:
            tape.lock(lost.ids, "a part of it is written to")
    elif given:
        tape.unite(place, values[1].ids, "written beside fixed values")
        tape.note(target, together(value.ids, values))
    elif written != 0 and value.carries:
        tape.note(target, Value(value.ids, zero=False))
