"""Channel ids: the bookkeeping behind ``channels.py``.

Every activation carries an int64 tensor of its own shape that says, element by element, which
channel the element belongs to. Ids that must stand and fall together are united (union-find);
ids that cannot be removed exactly are locked, with the reason. Along axes on which ids do not
vary the tensor is expanded (stride 0), so a feature map costs one number a channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

FIXED = 0  # the id of everything that is not a removable channel (images, constants)


@dataclass
class Value:
    """What an activation carries besides its numbers.

    ``zero``: whether its elements are exactly 0 once their filter's gates are 0.
    ``gates``: the modules whose gates make it so.
    """

    ids: Tensor  # int64, the activation's shape; stride 0 along axes on which ids do not vary
    zero: bool = True
    gates: frozenset[str] = frozenset()

    @property
    def carries(self) -> bool:
        return bool((squeeze_constant(self.ids) != FIXED).any())


def squeeze_constant(ids: Tensor) -> Tensor:
    """View with one entry along every axis on which ``ids`` is expanded, to keep work small."""
    for axis, stride in enumerate(ids.stride()):
        if stride == 0 and ids.shape[axis] > 1:
            ids = ids.narrow(axis, 0, 1)
    return ids


def varies(ids: Tensor, axis: int) -> bool:
    """Whether ids differ along ``axis``."""
    if ids.shape[axis] <= 1 or ids.stride(axis) == 0:
        return False
    small = squeeze_constant(ids)
    return bool((small != small.narrow(axis, 0, 1)).any())


class Propagation(fx.Interpreter):
    """Runs a traced network and keeps the ids of its activations; the rules act on this."""

    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.values: dict[fx.Node, Any] = {}  # Value, tuple of Values, or None (not a tensor)
        self.parent = [FIXED]  # union-find over ids
        self.reasons: dict[int, str] = {}  # locked id to why
        self.records: dict[str, dict[str, Any]] = {}  # one a layer, see `layer`
        self.used_gates: dict[str, None] = {}
        self.rebound: set[str] = set()  # names of nodes that change their input in place
        self.read: set[int] = set()  # parameters that the network's own code reads

    # --- ids -----------------------------------------------------------------------------

    def fresh(self, count: int) -> Tensor:
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def find(self, i: int) -> int:
        while self.parent[i] != i:
            self.parent[i] = self.parent[self.parent[i]]
            i = self.parent[i]
        return i

    def unite(self, a: Tensor, b: Tensor, reason: str) -> None:
        """Unite ids pair by pair; ``reason`` is why ids paired with FIXED cannot be removed."""
        pairs = torch.stack([a.reshape(-1), b.reshape(-1)], 1)
        for i, j in dict.fromkeys(map(tuple, pairs[pairs[:, 0] != pairs[:, 1]].tolist())):
            if FIXED in (i, j):
                self.reasons.setdefault(i or j, reason)
            else:
                low, high = sorted((self.find(i), self.find(j)))
                self.parent[high] = low

    def unite_along(self, ids: Tensor, axis: int, reason: str) -> None:
        """Unite all ids that differ only in their position on ``axis``."""
        if varies(ids, axis):
            small = squeeze_constant(ids)
            self.unite(small.narrow(axis, 0, 1).expand_as(small), small, reason)

    def lock(self, ids: Tensor, reason: str) -> None:
        for i in squeeze_constant(ids).unique().tolist():
            if i != FIXED:
                self.reasons.setdefault(i, reason)

    def channel_ids(self, ids: Tensor, axis: int) -> Tensor:
        """The ids along ``axis``; channels that meet at one index of it are united."""
        for other in range(ids.ndim):
            if other != axis % ids.ndim:
                self.unite_along(ids, other, "it shares its channels with fixed values")
                ids = ids.narrow(other, 0, 1)
        return ids.reshape(-1)

    # --- layers --------------------------------------------------------------------------

    def consume(self, name: str, value: Value, axis: int) -> Tensor:
        """Ids that a layer reads along ``axis``; they must be exactly zero once gated."""
        if not value.zero:
            self.lock(value.ids, f"removing it would leave a constant at the input of {name}")
        self.used_gates.update(dict.fromkeys(sorted(value.gates)))
        return self.channel_ids(value.ids, axis)

    def layer(
        self,
        name: str,
        kind: str,
        module: nn.Module,
        out_ids: Tensor,
        in_ids: Tensor | None,
        positions: int,
    ) -> Tensor:
        """Record a layer's ids; a module that is called again unites with its first call."""
        record = self.records.get(name)
        if record is None:
            weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
            shape = () if weight is None else tuple(weight.shape)
            self.records[name] = {
                "kind": kind,
                "out": out_ids,
                "into": in_ids,
                "positions": positions,
                "weight_shape": shape,
                "has_bias": bias is not None,
            }
            return out_ids
        shared = f"{name} is shared, and elsewhere these channels are fixed"
        self.unite(record["out"], out_ids, shared)
        if in_ids is not None:
            self.unite(record["into"], in_ids, shared)
        record["positions"] += positions
        return record["out"]
