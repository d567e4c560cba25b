"""Channel ids: the bookkeeping behind ``channels.py``.

Every activation carries an int64 tensor of its own shape that says, element by element, which
channel the element belongs to. Ids that must stand and fall together are united; ids that cannot
be removed exactly are locked, with the reason. Along axes on which ids do not vary the tensor is
expanded (stride 0), so a feature map costs one number a channel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx, nn

FIXED = 0  # the id of everything that is not a removable channel (images, constants)

Kind = Literal["conv", "linear", "norm", "activation"]


@dataclass
class Value:
    """What an activation carries besides its numbers.

    ``zero``: whether its elements are exactly 0 once their filter's gates are 0.
    ``gates``: the modules whose gates make it so.
    """

    ids: Tensor  # int64, the activation's shape; stride 0 along axes on which ids do not vary
    zero: bool = True
    gates: frozenset[str] = frozenset()

    @cached_property
    def carries(self) -> bool:
        """Whether any of its elements belong to a removable channel."""
        return bool(squeeze_constant(self.ids).numpy().any())


@dataclass
class Size:
    """A number in the network's code that shrinks with channels: ``factor`` times their number."""

    ids: Tensor  # int64 (channels,)
    factor: Fraction = Fraction(1)


@dataclass
class Record:
    """What is known of one layer while the network is followed; see ``channels.Layer``."""

    kind: Kind
    out: Tensor  # int64 (output channels,)
    into: Tensor | None  # int64 (entries of the weight's input axis,)
    weight_shape: tuple[int, ...]
    has_bias: bool
    positions: int


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


class Propagation(fx.Interpreter):
    """Runs a traced network and keeps the ids of its activations; the rules act on this.

    A second graph of the same network (``first`` given) goes on with the ids and layers of the
    first, as if all its modules were called again.
    """

    def __init__(self, module: nn.Module, graph: fx.Graph, first: Propagation | None = None):
        super().__init__(module, graph=graph)
        self.values: dict[fx.Node, Any] = {}  # Value, Size, tuple of these, or None
        self.known: Propagation = first or self  # whose ids and layers these are
        if first is None:
            self.count = 1  # ids made so far, with FIXED
            self.pairs: list[np.ndarray] = []  # ids that are one, int64 (2, pairs)
            self.reasons: dict[int, str] = {}  # locked id to why
            self.records: dict[str, Record] = {}  # by module name, see `layer`
            self.used_gates: dict[str, None] = {}
            self.read: set[int] = set()  # parameters that the network's own code reads

    # --- ids -----------------------------------------------------------------------------

    def fresh(self, count: int) -> Tensor:
        known = self.known
        known.count += count
        return torch.arange(known.count - count, known.count)

    def roots(self) -> np.ndarray:
        """For every id the lowest of those united with it, int64 (ids,)."""
        root = np.arange(self.known.count)
        if not self.known.pairs:
            return root
        a, b = np.concatenate(self.known.pairs, axis=1)
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
        if a.shape != b.shape:
            a, b = torch.broadcast_tensors(a, b)
        pairs = np.stack([a.reshape(-1).numpy(), b.reshape(-1).numpy()])
        pairs = pairs[:, pairs[0] != pairs[1]]
        fixed = (pairs == FIXED).any(0)
        if fixed.any():
            self.lock(torch.from_numpy(pairs[:, fixed]), reason)
            pairs = pairs[:, ~fixed]
        if pairs.size:
            self.known.pairs.append(pairs)

    def unite_along(self, ids: Tensor, axis: int, reason: str) -> None:
        """Unite all ids that differ only in their position on ``axis``."""
        if varies(ids, axis):
            small = squeeze_constant(ids)
            self.unite(small.narrow(axis, 0, 1).expand_as(small), small, reason)

    def lock(self, ids: Tensor, reason: str) -> None:
        for i in squeeze_constant(ids).unique().tolist():
            if i != FIXED:
                self.known.reasons.setdefault(i, reason)

    def channel_ids(self, ids: Tensor, axis: int) -> Tensor:
        """The ids along ``axis``; channels that meet at one index of it are united."""
        for other in range(ids.ndim):
            if other != axis % ids.ndim and varies(ids, other):
                self.unite_along(ids, other, "it shares its channels with fixed values")
                ids = ids.narrow(other, 0, 1)
        return ids.as_strided([ids.shape[axis]], [ids.stride(axis)])  # the first elsewhere

    def follows(self, ids: Tensor, size: Size, title: str) -> bool:
        """Whether an axis with these ids always is as long as ``size`` says; unites if it helps."""
        root = torch.from_numpy(self.roots())
        have, want = (part.sort().values for part in (root[ids], root[size.ids]))
        have = have.repeat_interleave(size.factor.denominator)
        want = want.repeat_interleave(size.factor.numerator)
        if torch.equal(have, want):
            return True
        if size.factor == 1 and len(ids) == len(size.ids):
            self.unite(ids, size.ids, f"{title} to a size that is fixed elsewhere")
            return True
        return False

    # --- layers --------------------------------------------------------------------------

    def consume(self, name: str, value: Value, axis: int) -> Tensor:
        """Ids that a layer reads along ``axis``; they must be exactly zero once gated."""
        if not value.zero:
            self.lock(value.ids, f"removing it would leave a constant at the input of {name}")
        self.known.used_gates.update(dict.fromkeys(sorted(value.gates)))
        return self.channel_ids(value.ids, axis)

    def layer(
        self, name: str, kind: Kind, out: Tensor, into: Tensor | None = None, positions: int = 0
    ) -> Tensor:
        """Record a layer's ids; a module that is called again unites with its first call."""
        if self is not self.known:
            positions = 0  # costs are those of the first graph
        record = self.known.records.get(name)
        if record is None:
            module = self.fetch_attr(name)
            weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
            shape = () if weight is None else tuple(weight.shape)
            has_bias = bias is not None
            self.known.records[name] = Record(kind, out, into, shape, has_bias, positions)
            return out
        shared = f"{name} is shared, and elsewhere these channels are fixed"
        self.unite(record.out, out, shared)
        if into is not None and record.into is not None:
            self.unite(record.into, into, shared)
        record.positions += positions
        return record.out


def values_of(items: Iterable[Any], kind: type) -> list[Any]:
    """All entries of one kind (Value or Size), also those inside tuples."""
    found = []
    for item in items:
        if isinstance(item, kind):
            found.append(item)
        elif isinstance(item, (tuple, list)):
            found += values_of(item, kind)
        elif isinstance(item, dict):
            found += values_of(item.values(), kind)
    return found
