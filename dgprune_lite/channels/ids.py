"""Channel ids: the bookkeeping behind ``graph.py``.

Every activation carries an int64 tensor of its own shape that says, element by element, which
channel the element belongs to. Ids that must stand and fall together are united; ids that cannot
be removed exactly are locked, with the reason. Along axes on which ids do not vary the tensor is
expanded (stride 0), so a feature map costs one number a channel.
"""

from __future__ import annotations

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


@dataclass
class Value:
    """What an activation carries besides its numbers.

    ``zero``: whether its elements are exactly 0 once their filter's gates are 0.
    ``gates``: the modules whose gates make it so.
    """

    ids: Tensor  # int64, the activation's shape; stride 0 along axes on which ids do not vary
    zero: bool = True
    gates: frozenset[str] = frozenset()
    constant: bool = False  # whether it is computed from parameters alone, which have no gates
    written: Tensor | None = None  # ids of what was written to its memory, as another tensor

    def moved(self, ids: Tensor) -> Value:
        """The same elements in other places."""
        return Value(ids, self.zero, self.gates, self.constant)

    @cached_property
    def carries(self) -> bool:
        """Whether any of its elements belong to a removable channel."""
        return bool(squeeze_constant(self.ids).numpy().any())


@dataclass
class Record:
    """What is known of one layer while the network is followed; see ``graph.Layer``."""

    kind: Kind
    out: Tensor  # int64 (output channels,)
    into: Tensor | None  # int64 (entries of the weight's input axis,)
    weight_shape: tuple[int, ...]
    has_bias: bool
    positions: int
    counted: bool = True


class Width(int):
    """A number in the network's code that shrinks with channels: ``factor`` times their number.

    Products and whole quotients with plain numbers are such numbers again; after any other
    arithmetic the network would compute something else on fewer channels, so they are locked.
    """

    flow: Ids
    ids: Tensor | None  # int64 (channels,); None where `source` tells
    source: tuple[str, str]  # module and attribute that it was read from
    factor: Fraction

    @classmethod
    def of(
        cls, flow: Ids, number: int, ids: Tensor | None, source: tuple[str, str] = ("", ""),
        factor: Fraction | int = 1,
    ) -> Width:  # fmt: skip
        self = cls(number)
        self.flow, self.ids, self.source, self.factor = flow, ids, source, Fraction(factor)
        return self

    def times(self, factor: Fraction) -> int:
        number = Fraction(int.__int__(self)) * factor
        if number.denominator > 1 or factor <= 0:
            return self.spoilt(int(number))
        return Width.of(self.flow, int(number), self.ids, self.source, self.factor * factor)

    def spoilt(self, result: Any) -> Any:
        self.flow.follow_later(None, self, "the code computes with how many they are")
        return result

    def __mul__(self, by: Any) -> Any:
        if type(by) is int:
            return self.times(Fraction(by))
        return self.spoilt(
            NotImplemented if not isinstance(by, (int, float)) else int.__int__(self) * by
        )

    __rmul__ = __mul__

    def __floordiv__(self, by: Any) -> Any:
        if type(by) is int and by > 0 and int.__int__(self) % by == 0:
            return self.times(Fraction(1, by))
        return self.spoilt(int.__floordiv__(self, by))

    def __mod__(self, by: Any) -> Any:  # that it can be divided is asked before it is
        rest = int.__mod__(self, by)
        return rest if rest == 0 else self.spoilt(rest)


def _spoils(name: str) -> Any:
    def method(self: Width, *others: Any) -> Any:
        if any(isinstance(other, Tensor) for other in others):  # whose rule locks it
            return NotImplemented
        return self.spoilt(getattr(int, name)(self, *others))

    return method


for _name in (
    "add", "radd", "sub", "rsub", "truediv", "rtruediv", "rfloordiv", "rmod", "divmod", "rdivmod",
    "pow", "rpow", "neg", "float", "int", "round", "trunc", "floor", "ceil", "lshift", "rshift",
):  # fmt: skip
    setattr(Width, f"__{_name}__", _spoils(f"__{_name}__"))


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
        """Unite ids pair by pair, as they broadcast.

        ``reason`` is why those paired with FIXED cannot be removed.
        """
        if a is b or (a.shape == b.shape and torch.equal(a, b)):
            return
        if a.shape != b.shape:
            a, b = torch.broadcast_tensors(a, b)
        pairs = np.stack([a.reshape(-1).numpy(), b.reshape(-1).numpy()])
        pairs = pairs[:, pairs[0] != pairs[1]]
        fixed = (pairs == FIXED).any(0)
        if fixed.any():
            self.lock(torch.from_numpy(pairs[:, fixed]), reason)
            pairs = pairs[:, ~fixed]
        if pairs.size:
            self.pairs.append(pairs)

    def unite_along(self, ids: Tensor, axis: int, reason: str) -> None:
        """Unite all ids that differ only in their position on ``axis``."""
        if varies(ids, axis):
            small = squeeze_constant(ids)
            self.unite(small.narrow(axis, 0, 1).expand_as(small), small, reason)

    def lock(self, ids: Tensor, reason: str) -> None:
        for i in np.unique(squeeze_constant(ids).numpy()).tolist():
            if i != FIXED:
                self.reasons.setdefault(i, reason)

    def channel_ids(self, ids: Tensor, axis: int) -> Tensor:
        """The ids along ``axis``; channels that meet at one index of it are united."""
        for other in range(ids.ndim):
            if other != axis % ids.ndim and varies(ids, other):
                self.unite_along(ids, other, "it shares its channels with fixed values")
                ids = ids.narrow(other, 0, 1)
        return ids.as_strided([ids.shape[axis]], [ids.stride(axis)])  # the first elsewhere

    # --- sizes that shrink ---------------------------------------------------------------

    def follow_later(self, ids: Tensor | None, width: Width, reason: str) -> None:
        """Have `settle` see that an axis with these ids is as long as ``width``; None: lock it."""
        if width.flow is self:  # not a number that some cache kept from another network
            self.later.append((ids, width, reason))

    def settle(self) -> None:
        """Unite what must be equally many, or lock it; once all layers are known."""
        for ids, width, reason in self.later:
            counted = width.ids
            if counted is None:
                record = self.records.get(width.source[0])
                if record is None:  # surgery leaves it as it is
                    counted = torch.zeros(0, dtype=torch.int64)
                elif width.source[1] in INPUTS and record.into is not None:
                    counted = record.into
                else:
                    counted = record.out
            if ids is None or not self._as_many(ids, counted, width, reason):
                self.lock(counted, reason)
                if ids is not None:
                    self.lock(ids, reason)
        self.later.clear()

    def _as_many(self, ids: Tensor, counted: Tensor, width: Width, reason: str) -> bool:
        root = torch.from_numpy(self.roots())
        have, want = (part.sort().values for part in (root[ids], root[counted]))
        have = have.repeat_interleave(width.factor.denominator)
        want = want.repeat_interleave(width.factor.numerator)
        if torch.equal(have, want):
            return True
        if width.factor == 1 and len(ids) == len(counted):
            self.unite(ids, counted, reason)
            return True
        return False

    # --- layers --------------------------------------------------------------------------

    def consume(self, name: str, value: Value, axis: int) -> Tensor:
        """Ids that a layer reads along ``axis``; they must be exactly zero once gated."""
        if not value.zero:
            self.lock(value.ids, f"removing it would leave a constant at the input of {name}")
        self.used_gates.update(dict.fromkeys(sorted(value.gates)))
        return self.channel_ids(value.ids, axis)

    def layer(self, name: str, record: Record) -> Tensor:
        """Record a layer's ids; a module that is called again unites with its first call."""
        known = self.records.setdefault(name, record)
        if known is not record:
            shared = f"{name} is shared, and elsewhere these channels are fixed"
            self.unite(known.out, record.out, shared)
            if known.into is not None and record.into is not None:
                self.unite(known.into, record.into, shared)
            known.positions += record.positions
        return known.out
