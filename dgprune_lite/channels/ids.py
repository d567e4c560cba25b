"""Channel ids: the bookkeeping behind ``graph.py``.

Every activation carries an int64 array that says, element by element, which channel the element
belongs to. Ids that must stand and fall together are united; ids that cannot be removed exactly are
locked, with the reason. The array has one entry along axes on which ids do not vary, so a feature
map costs one number a channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

FIXED = 0  # the id of everything that is not a removable channel (images, constants)

Kind = Literal["conv", "linear", "norm", "activation", "parameter"]

OUTPUTS = (
    "out_channels", "out_features", "num_features", "num_channels", "num_parameters", "channels",
)  # fmt: skip
INPUTS = ("in_channels", "in_features")
"""Attributes in which layers state how many channels they make and read; surgery changes them."""
ALONE = "it shares its channels with fixed values"


@dataclass(eq=False)
class Value:
    """What an activation carries besides its numbers."""

    ids: np.ndarray  # int64, the activation's axes; one entry along those on which ids do not vary
    zero: bool = True  # whether its elements are exactly 0 once their filter's gates are 0
    gates: frozenset[str] = frozenset()  # the modules whose gates make it so
    constant: bool = False  # whether it is computed from parameters alone, which have no gates
    written: np.ndarray | None = None  # ids of what was written to its memory, as another tensor

    def __post_init__(self) -> None:
        if not self.zero:
            self.gates = frozenset()

    def moved(self, ids: np.ndarray, zero: bool = True) -> Value:
        """The same elements in other places; ``zero``: whether zeros among them stay zeros."""
        return Value(ids, self.zero and zero, self.gates, self.constant)

    @cached_property
    def carries(self) -> bool:
        """Whether any of its elements belong to a removable channel."""
        return bool(self.ids.any())


@cache
def fixed(axes: int) -> Value:
    """The value of something with so many axes that holds no removable channel."""
    return Value(np.zeros([1] * axes, dtype=np.int64))


def together(ids: np.ndarray, values: Sequence[Value]) -> Value:
    """A value made of all elements of several others."""
    gates = frozenset[str]().union(*(value.gates for value in values))
    return Value(ids, all(v.zero for v in values), gates, all(v.constant for v in values))


@dataclass
class Record:
    """What is known of one layer while the network is followed."""

    kind: Kind
    out: np.ndarray  # int64 (output channels,)
    into: np.ndarray | None  # int64 (entries of the weight's input axis,)
    positions: int  # see `graph.Layer`

    @property
    def sides(self) -> list[np.ndarray]:
        """The ids on both of its sides."""
        return [self.out] if self.into is None else [self.out, self.into]


ONE = Fraction(1)


class Width(int):
    """A number in the network's code that shrinks with channels: ``factor`` times their number.

    Products and whole quotients with plain numbers are such numbers again; after any other
    arithmetic the network would compute something else on fewer channels, so they are locked.
    """

    flow: Ids
    ids: np.ndarray | None  # int64 (channels,); None where `source` tells
    source: tuple[str, str]  # module and attribute that it was read from
    factor: Fraction

    def __new__(
        cls, flow: Ids, number: int, ids: np.ndarray | None, source: tuple[str, str] = ("", ""),
        factor: Fraction = ONE,
    ) -> Width:  # fmt: skip
        self = super().__new__(cls, number)
        self.flow, self.ids, self.source, self.factor = flow, ids, source, factor
        return self

    def times(self, factor: Fraction) -> int:
        number = Fraction(int.__int__(self)) * factor
        if number.denominator > 1 or factor <= 0:
            return self.spoilt(int(number))
        return Width(self.flow, int(number), self.ids, self.source, self.factor * factor)

    def spoilt(self, result: Any) -> Any:
        self.flow.follow_later(None, self, "the code computes with how many they are")
        return result


def _arithmetic(name: str) -> Any:
    def method(self: Width, *others: Any) -> Any:
        if any(isinstance(other, Tensor) for other in others):  # whose rule locks it
            return NotImplemented
        if name in ("__mul__", "__rmul__") and type(others[0]) is int:
            return self.times(Fraction(others[0]))
        if name == "__floordiv__" and type(others[0]) is int and others[0] > 0:
            return self.times(Fraction(1, others[0]))
        result = getattr(int, name)(self, *others)
        divides = name == "__mod__" and result == 0  # is asked before it is divided
        return result if divides else self.spoilt(result)

    return method


for _name in (
    "mul", "rmul", "floordiv", "mod", "add", "radd", "sub", "rsub", "truediv", "rtruediv",
    "rfloordiv", "rmod", "divmod", "rdivmod", "pow", "rpow", "neg", "float", "int", "round",
    "trunc", "floor", "ceil", "lshift", "rshift",
):  # fmt: skip
    setattr(Width, f"__{_name}__", _arithmetic(f"__{_name}__"))


def axes_of(ids: np.ndarray) -> list[int]:
    """The axes along which ids differ."""
    return [axis for axis, size in enumerate(ids.shape) if size > 1]


def with_axes(ids: np.ndarray, axes: int) -> np.ndarray:
    """Ids with so many axes, as broadcasting adds them."""
    return ids.reshape([1] * (axes - ids.ndim) + list(ids.shape))


def first_along(ids: np.ndarray, axis: int) -> np.ndarray:
    """The first entries along an axis, which stays."""
    return ids.swapaxes(0, axis)[:1].swapaxes(0, axis)


def written_out(ids: np.ndarray, shape: Sequence[int]) -> Tensor:
    """A tensor of ids of an activation's shape, without memory of its own."""
    return torch.from_numpy(ids).expand(shape)


def in_short(ids: np.ndarray | Tensor) -> np.ndarray:
    """The inverse: one entry along axes on which ids do not vary."""
    short = np.asarray(ids)
    for axis in axes_of(short):
        first = first_along(short, axis)
        short = first if short.strides[axis] == 0 or (first == short).all() else short
    return short


def along(ids: np.ndarray, result: Tensor, axis: int) -> np.ndarray:
    """Ids of channels (channels,) as those of a result in which they lie along ``axis``."""
    if len(ids) != result.shape[axis]:
        raise ValueError(f"{len(ids)} channels along axis {axis} of shape {tuple(result.shape)}")
    shape = [1] * result.ndim
    shape[axis] = -1
    return in_short(ids.reshape(shape))


class Ids:
    """Which ids are one, which are locked and why, and which layers they belong to."""

    def __init__(self) -> None:
        self.count = 1  # ids made so far, with FIXED
        self.pairs: list[np.ndarray] = []  # ids that are one, int64 (2, pairs)
        self.reasons: dict[int, str] = {}  # locked id to why
        self.records: dict[str, Record] = {}  # by module name, see `layer`
        self.used_gates: dict[str, None] = {}
        self.later: list[tuple[np.ndarray | None, Width, str]] = []  # what `settle` looks at

    def fresh(self, count: int) -> np.ndarray:
        self.count += count
        return np.arange(self.count - count, self.count)

    def roots(self) -> np.ndarray:
        """For every id the lowest of those united with it, int64 (ids,)."""
        root = np.arange(self.count)
        if not self.pairs:
            return root
        a, b = np.concatenate(self.pairs, axis=1)
        while True:
            low = np.minimum(root[a], root[b])
            if (low == root[a]).all() and (low == root[b]).all():
                return root
            np.minimum.at(root, root[a], low)
            np.minimum.at(root, root[b], low)
            while (root[root] != root).any():
                root = root[root]

    def unite(self, a: np.ndarray, b: np.ndarray, reason: str) -> None:
        """Unite ids pair by pair, as they broadcast; those paired with FIXED stay for a reason."""
        if a is b or not (differ := a != b).any():
            return
        pairs = np.stack([np.broadcast_to(ids, differ.shape)[differ] for ids in (a, b)])
        fixed = (pairs == FIXED).any(0)
        if fixed.any():
            self.lock(pairs[:, fixed], reason)
            pairs = pairs[:, ~fixed]
        self.pairs.append(pairs)

    def unite_along(self, ids: np.ndarray, axis: int, reason: str) -> np.ndarray:
        """Unite all ids that differ only in their position on ``axis``; gives the first there."""
        first = first_along(ids, axis)
        self.unite(first, ids, reason)
        return first

    def lock(self, ids: np.ndarray | None, reason: str) -> None:
        """Have these ids, if any, stay."""
        if ids is not None:
            for i in set(ids.ravel().tolist()) - {FIXED}:
                self.reasons.setdefault(i, reason)

    def channel_ids(self, ids: np.ndarray, axis: int, count: int) -> np.ndarray:
        """The ids (count,) along ``axis``; channels that meet at one index of it are united."""
        for other in axes_of(ids):
            if other != axis % ids.ndim:
                ids = self.unite_along(ids, other, ALONE)
        flat = ids.reshape(-1)
        return flat if len(flat) == count else flat.repeat(count)

    def follow_later(self, ids: np.ndarray | None, width: Width, reason: str) -> None:
        """Have `settle` see that an axis with these ids is as long as ``width``; None: lock it."""
        if width.flow is self:  # not a number that some cache kept from another network
            self.later.append((ids, width, reason))

    def settle(self) -> None:
        """Unite what must be equally many, or lock it; once all layers are known."""
        for ids, width, reason in self.later:
            counted, record = width.ids, self.records.get(width.source[0])
            if counted is None and record is None:  # surgery leaves it as it is
                counted = np.zeros(0, dtype=np.int64)
            elif counted is None and record is not None:
                counted = record.sides[-1] if width.source[1] in INPUTS else record.out
            assert counted is not None
            if ids is not None and self._as_many(ids, counted, width.factor):
                continue
            if ids is not None and width.factor == 1 and len(ids) == len(counted):
                self.unite(ids, counted, reason)
            else:
                self.lock(counted, reason)
                self.lock(ids, reason)
        self.later.clear()

    def _as_many(self, ids: np.ndarray, counted: np.ndarray, factor: Fraction) -> bool:
        root = self.roots()
        have, want = (np.sort(root[part]) for part in (ids, counted))
        return np.array_equal(have.repeat(factor.denominator), want.repeat(factor.numerator))
