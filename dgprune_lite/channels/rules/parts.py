"""Rules of operations that join tensors, part them, or read and write parts of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgprune_lite.channels.ids import Value, Width, squeeze_constant, varies
from dgprune_lite.channels.rules.registry import Call, of_kind, rule, title

if TYPE_CHECKING:
    from dgprune_lite.channels.tape import Tape


@rule("cat", "concat", "concatenate")
def concatenating(tape: Tape, call: Call) -> Value:
    """The channels of all parts, one after another."""
    values = [tape.value(tensor) for tensor in call.tensors]
    parts = [value.ids for value in values if value.ids.numel()]
    axis = call.argument(1, "dim", call.kwargs.get("axis", 0)) % call.result.ndim
    for other in set(range(call.result.ndim)) - {axis}:
        if all(part.stride(other) == 0 or part.shape[other] == 1 for part in parts):
            parts = [part.narrow(other, 0, 1) for part in parts]  # keeps work small
    zero = all(value.zero for value in values)
    gates = frozenset[str]().union(*(value.gates for value in values))
    return Value(torch.cat(parts, axis).expand(call.result.shape), zero, gates)


@rule("stack")
def stacking(tape: Tape, call: Call) -> Value:
    """What is stacked must stay equally wide, so channels at one place go together, as in a sum."""
    values = [tape.value(tensor) for tensor in call.tensors]
    ids = squeeze_constant(values[0].ids)
    for value in values[1:]:
        other = squeeze_constant(value.ids)
        tape.unite(ids, other, f"{title(tape, call)} with values that no filter makes")
        ids = torch.maximum(ids, other)
    axis = call.argument(1, "dim", 0) % call.result.ndim
    zero = all(value.zero for value in values)
    gates = frozenset[str]().union(*(value.gates for value in values)) if zero else frozenset()
    ids = ids.expand(values[0].ids.shape).unsqueeze(axis).expand(call.result.shape)
    return Value(ids, zero, gates)


@rule("chunk", "tensor_split", "split", "split_with_sizes", "unbind", "unsafe_chunk", "glu",
      sizes=True)  # fmt: skip
def splitting(tape: Tape, call: Call) -> Any:
    """Equal parts of the channel axis must stay equally wide; other splits are locked."""
    value, glu = tape.value(call.args[0]), call.name == "glu"
    place = 1 if call.name in ("unbind", "glu") else 2
    axis = call.argument(place, "dim", -1 if glu else 0) % value.ids.ndim
    if call.name == "unbind":
        if varies(value.ids, axis):
            tape.lock(value.ids, f"{title(tape, call)} of the channel axis")
        parts = value.ids.unbind(axis)
        return tuple(value.moved(part) for part in parts)
    asked: Any = 2 if glu else call.args[1] if len(call.args) > 1 else next(
        v for k, v in call.kwargs.items() if k != "dim"
    )  # fmt: skip
    widths = [value.ids.shape[axis] // 2] * 2 if glu else [p.shape[axis] for p in call.result]
    parts = value.ids.split(widths, axis)
    sizes = list(of_kind([asked], Width))
    if call.name.startswith("split"):  # widths are given, not the number of parts
        even = bool(sizes) and len(sizes) == len(list(of_kind([asked], int)))
    else:
        even = isinstance(asked, int) and not sizes
    even = even and len(set(widths)) == 1
    why = f"{title(tape, call)} into parts of a size fixed in the code"
    if varies(value.ids, axis) and even:
        for part in parts[1:]:
            tape.unite(squeeze_constant(parts[0]), squeeze_constant(part), "a fixed part")
        for size in sizes:
            tape.follow_later(tape.channel_ids(parts[0], axis), size, why)
    elif not even:
        for size in sizes:
            tape.follow_later(None, size, why)
        if varies(value.ids, axis):
            tape.lock(value.ids, why)
    if glu:  # the first half times the sigmoid of the second
        return value.moved(parts[0])
    return tuple(value.moved(part) for part in parts)


@rule("getitem", "select", "narrow", "index_select", "take_along_dim", sizes=True)
def indexing(tape: Tape, call: Call) -> Value | None:
    """Parts in space, or all channels; a part of them is fixed in the code."""
    value, index = tape.value(call.args[0]), call.args[1:]
    for size in of_kind([index], Width):
        tape.follow_later(None, size, "an index depends on how many they are")
    for tensor in call.tensors[1:]:
        tape.lock(tape.value(tensor).ids, "an index depends on it")
    if not value.carries:
        return None
    if call.name != "getitem":
        axis = call.argument(2 if call.name == "take_along_dim" else 1, "dim")
        if axis is None or varies(value.ids, axis):
            tape.lock(value.ids, f"{title(tape, call)} of the channel axis")
        ids = call.with_tensors(lambda t: value.ids if t is call.args[0] else t.cpu())
        return value.moved(ids)
    ids = call.with_tensors(lambda t: value.ids if t is call.args[0] else t.cpu())
    for axis, size in _touched(value.ids, index[0]):
        if varies(value.ids, axis) and not _whole(size, value.ids.shape[axis]):
            tape.lock(value.ids, "indexing the channel axis")
    if any(tensor.ndim > 1 for tensor in call.tensors[1:]):
        tape.lock(value.ids, "indexing by a mask of several axes")
    return value.moved(ids)


def _touched(ids: Tensor, index: Any) -> list[tuple[int, Any]]:
    """Axes and what an index asks of each."""
    touched = list(index) if isinstance(index, tuple) else [index]
    touched = [part for part in touched if part is not None]  # None makes an axis, reads none
    place = next((i for i, part in enumerate(touched) if part is Ellipsis), None)
    if place is not None:
        touched[place : place + 1] = [slice(None)] * (ids.ndim - len(touched) + 1)
    return list(enumerate(touched))


def _whole(part: Any, size: int) -> bool:
    """Whether a slice takes all, also of fewer channels."""
    return (
        isinstance(part, slice)
        and part.start in (None, 0)
        and part.step in (None, 1)
        and (part.stop is None or part.stop >= size)
    )


@rule("setitem", sizes=True)
def assigning(tape: Tape, call: Call) -> None:
    """``x[..., :4] = 0``: zeros written in space belong to the channels there."""
    target, index, written = call.args
    value = tape.value(target)
    for size in of_kind([index], Width):
        tape.follow_later(None, size, "an index depends on how many they are")
    place = value.ids[index] if not list(of_kind([index], Tensor)) else None
    other = tape.value(written) if isinstance(written, Tensor) else None
    touched = _touched(value.ids, index)
    along = [a for a in range(value.ids.ndim) if varies(value.ids, a)]
    cut = any(a in along and not _whole(part, value.ids.shape[a]) for a, part in touched)
    if cut or place is None or (other is not None and other.ids.ndim != place.ndim):
        for lost in (value, *([other] if other else [])):
            tape.lock(lost.ids, "a part of it is written to")
        return
    if other is None:
        if written != 0 and value.carries:
            tape.note(target, Value(value.ids, zero=False))
        return
    tape.unite(squeeze_constant(place), squeeze_constant(other.ids), "written beside fixed values")
    zero = value.zero and other.zero
    tape.note(target, Value(value.ids, zero, value.gates | other.gates if zero else frozenset()))
