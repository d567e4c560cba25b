"""Channel ids: the bookkeeping behind ``graph.py``.

Every activation carries an int64 tensor of its own shape that says, element by element, which
channel the element belongs to. Ids that must stand and fall together are united; ids that cannot
be removed exactly are locked, with the reason. Along axes on which ids do not vary the tensor is
expanded (stride 0), so a feature map costs one number a channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
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

    ids: Tensor  # int64, the activation's shape; stride 0 along axes on which ids do not vary
    zero: bool = True  # whether its elements are exactly 0 once their filter's gates are 0
    gates: frozenset[str] = frozenset()  # the modules whose gates make it so
    constant: bool = False  # whether it is computed from parameters alone, which have no gates
    written: Tensor | None = None  # ids of what was written to its memory, as another tensor

    def __post_init__(self) -> None:
        if not self.zero:
            self.gates = frozenset()

    def moved(self, ids: Tensor, zero: bool = True) -> Value:
        """The same elements in other places; ``zero``: whether zeros among them stay zeros."""
        return Value(ids, self.zero and zero, self.gates, self.constant)

    @cached_property
    def carries(self) -> bool:
        """Whether any of its elements belong to a removable channel."""
        return bool(squeeze_constant(self.ids).any())


def fixed(tensor: Tensor) -> Value:
    """The value of something that holds no removable channel."""
    return Value(torch.zeros((), dtype=torch.int64).expand(tensor.shape))


def together(ids: Tensor, values: Sequence[Value]) -> Value:
    """A value made of all elements of several others."""
    gates = frozenset[str]().union(*(value.gates for value in values))
    return Value(ids, all(v.zero for v in values), gates, all(v.constant for v in values))


@dataclass
class Record:
    """What is known of one layer while the network is followed."""

    kind: Kind
    out: Tensor  # int64 (output channels,)
    into: Tensor | None  # int64 (entries of the weight's input axis,)
    positions: int  # see `graph.Layer`

    @property
    def sides(self) -> list[Tensor]:
        """The ids on both of its sides."""
        return [self.out] if self.into is None else [self.out, self.into]


ONE = Fraction(1)


class Width(int):
    """A number in the network's code that shrinks with channels: ``factor`` times their number.

    Products and whole quotients with plain numbers are such numbers again; after any other
    arithmetic the network would compute something else on fewer channels, so they are locked.
    """

    flow: Ids
    ids: Tensor | None  # int64 (channels,); None where `source` tells
    source: tuple[str, str]  # module and attribute that it was read from
    factor: Fraction

    def __new__(
        cls, flow: Ids, number: int, ids: Tensor | None, source: tuple[str, str] = ("", ""),
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


def squeeze_constant(ids: Tensor) -> Tensor:
    """View with one entry along every axis on which ``ids`` is expanded, to keep work small."""
    strides = ids.stride()
    sizes = [size if step else min(size, 1) for size, step in zip(ids.shape, strides, strict=True)]
    return ids.as_strided(sizes, strides)


def varies(ids: Tensor, axis: int) -> bool:
    """Whether ids differ along ``axis``."""
    if ids.shape[axis] <= 1 or ids.stride(axis) == 0:
        return False
    small = squeeze_constant(ids)
    return bool((small != small.narrow(axis, 0, 1)).any())


def axes_of(ids: Tensor) -> list[int]:
    """The axes along which ids differ."""
    return [axis for axis in range(ids.ndim) if varies(ids, axis)]


class Ids:
    """Which ids are one, which are locked and why, and which layers they belong to."""

    def __init__(self) -> None:
        self.count = 1  # ids made so far, with FIXED
        self.pairs: list[np.ndarray] = []  # ids that are one, int64 (2, pairs)
        self.reasons: dict[int, str] = {}  # locked id to why
        self.records: dict[str, Record] = {}  # by module name, see `layer`
        self.used_gates: dict[str, None] = {}
        self.later: list[tuple[Tensor | None, Width, str]] = []  # what `settle` looks at

    def fresh(self, count: int) -> Tensor:
        self.count += count
        return torch.arange(self.count - count, self.count)

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

    def unite(self, a: Tensor, b: Tensor, reason: str) -> None:
        """Unite ids pair by pair, as they broadcast; those paired with FIXED stay for a reason."""
        if a is b or (a.shape == b.shape and torch.equal(a, b)):
            return
        a, b = torch.broadcast_tensors(squeeze_constant(a), squeeze_constant(b))
        pairs = np.stack([a.reshape(-1).numpy(), b.reshape(-1).numpy()])
        pairs = pairs[:, pairs[0] != pairs[1]]
        fixed = (pairs == FIXED).any(0)
        if fixed.any():
            self.lock(torch.from_numpy(pairs[:, fixed]), reason)
            pairs = pairs[:, ~fixed]
        if pairs.size:
            self.pairs.append(pairs)

    def unite_along(self, ids: Tensor, axis: int, reason: str) -> Tensor:
        """Unite all ids that differ only in their position on ``axis``; gives the first there."""
        if varies(ids, axis):
            small = squeeze_constant(ids)
            self.unite(small.narrow(axis, 0, 1), small, reason)
        return ids.narrow(axis, 0, min(1, ids.shape[axis]))

    def lock(self, ids: Tensor | None, reason: str) -> None:
        """Have these ids, if any, stay."""
        if ids is not None:
            for i in set(squeeze_constant(ids).flatten().tolist()) - {FIXED}:
                self.reasons.setdefault(i, reason)

    def channel_ids(self, ids: Tensor, axis: int) -> Tensor:
        """The ids along ``axis``; channels that meet at one index of it are united."""
        for other in range(ids.ndim):
            if other != axis % ids.ndim and varies(ids, other):
                ids = self.unite_along(ids, other, ALONE)
        return ids.as_strided([ids.shape[axis]], [ids.stride(axis)])  # the first elsewhere

    def follow_later(self, ids: Tensor | None, width: Width, reason: str) -> None:
        """Have `settle` see that an axis with these ids is as long as ``width``; None: lock it."""
        if width.flow is self:  # not a number that some cache kept from another network
            self.later.append((ids, width, reason))

    def settle(self) -> None:
        """Unite what must be equally many, or lock it; once all layers are known."""
        for ids, width, reason in self.later:
            counted, record = width.ids, self.records.get(width.source[0])
            if counted is None and record is None:  # surgery leaves it as it is
                counted = torch.zeros(0, dtype=torch.int64)
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

    def _as_many(self, ids: Tensor, counted: Tensor, factor: Fraction) -> bool:
        root = torch.from_numpy(self.roots())
        have, want = (part.sort().values for part in (root[ids], root[counted]))
        return torch.equal(
            have.repeat_interleave(factor.denominator), want.repeat_interleave(factor.numerator)
        )
