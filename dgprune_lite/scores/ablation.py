"""The exact effect of removing each filter alone, without running the network M times.

Activations are computed once. For each filter only what lies behind its gate is computed again,
and the first layers that read it are not even run: they are linear, so leaving out a channel
subtracts that channel's contribution from the output already known. Networks whose activations
cannot be told apart so (changed through views, channels on the batch axis) are run as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dgprune_lite.channels.graph import ChannelGraph
from dgprune_lite.channels.tracing import symbolic_graph
from dgprune_lite.domains import to_device
from dgprune_lite.exactness import full_float32
from dgprune_lite.running import Logits, find_logits


def ablated_losses(
    model: nn.Module,
    graph: ChannelGraph,
    images: Tensor,
    labels: Tensor,
    filters: Iterable[int] | None = None,
    logits: Logits | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum of the losses over the images, of the whole network and without each filter in turn.

    Both are computed in the same way and in full float32, so that rounding does not hide what one
    filter changes.

    Args:
        model: In eval mode; gives logits (n, classes). Left as found, also after an error.
        graph: Traced from ``model``.
        images: float (n, channels, height, width).
        labels: int64 (n,).
        filters: Numbers of the filters to leave out in turn; all M by default.
        logits: How to get logits from what the network returns.

    Returns:
        The whole network's, float64 (), and those with a filter's gate at 0, float64 (filters,),
        on the CPU.
    """
    attributes = set(vars(model))
    try:
        with full_float32(), torch.no_grad():
            kind = _Ablation if graph.node_units else _WholeRuns
            ablation = kind(model, symbolic_graph(model), graph)
            ablation.run(images.clone())  # some networks normalise their input in place
            losses = []
            for unit in [NO_FILTER, *(range(graph.num_filters) if filters is None else filters)]:
                found = find_logits(ablation.output_without(unit), logits)
                losses.append(F.cross_entropy(found, labels, reduction="none").double().sum())
    finally:
        for name in set(vars(model)) - attributes:  # constants of the code that torch.fx stored
            delattr(model, name)
    totals = torch.stack(losses).cpu()  # once for all: a GPU is kept waiting each time
    return totals[0], totals[1:]


NO_FILTER = -2
"""The number of no filter; -1 stands for channels that are fixed."""


class _Ablation(fx.Interpreter):
    """Keeps all activations of one batch and recomputes what a missing filter changes."""

    def __init__(self, model: nn.Module, code: fx.Graph, graph: ChannelGraph):
        _rebind(code, graph.rebound)
        super().__init__(model, garbage_collect_values=False, graph=code)
        self.channels = graph
        self.units: dict[str, Tensor] = {}  # node_units, where the activations are
        self.order = list(code.nodes)
        self.carried = {
            node: set(units.unique().tolist()) - {-1}
            for node in self.order
            if (units := graph.node_units.get(node.name)) is not None
        }

    def run_node(self, n: fx.Node) -> Any:
        return self._compute(n, self.env)

    def output_without(self, unit: int) -> Tensor:
        """The network's output with one filter's gate at 0.

        An activation that carries the filter's channels and depends on it in no other way is
        the stored one with those channels at 0; it is only written out where it is needed.
        """
        changed: dict[fx.Node, Any] = {}
        for node in self.order:
            reads_changed = any(parent in changed for parent in node.all_input_nodes)
            reads_filter = any(unit in self.carried.get(p, ()) for p in node.all_input_nodes)
            if not reads_changed:
                if not reads_filter or not self._mixes_channels(node):
                    continue  # untouched, or the stored values with the filter's channels at 0
                changed[node] = self._subtract(node, unit)
            else:
                known = {parent: self.env[parent] for parent in node.all_input_nodes}
                for parent in node.all_input_nodes:
                    if parent in changed:
                        known[parent] = changed[parent]
                    elif unit in self.carried.get(parent, ()):
                        known[parent] = self._masked(parent, self.env[parent], unit)
                changed[node] = self._compute(node, known)
            if str(node.target) in self.channels.gates and unit in self.carried.get(node, ()):
                changed[node] = self._masked(node, changed[node], unit)
        output = self.order[-1]
        return changed.get(output, self.env[output])

    def _mixes_channels(self, node: fx.Node) -> bool:
        """Whether the node is a layer whose every output depends on each channel it reads."""
        if node.op == "output":
            return False
        layer = self.channels.layers.get(str(node.target)) if node.op == "call_module" else None
        return layer is not None and layer.in_units is not None

    def _masked(self, node: fx.Node, value: Tensor, unit: int) -> Tensor:
        if node.name not in self.units:  # once, not for every filter: a GPU is kept waiting
            self.units[node.name] = self.channels.node_units[node.name].to(value.device)
        return value.masked_fill(self.units[node.name] == unit, 0)

    def _subtract(self, node: fx.Node, unit: int) -> Tensor:
        """A layer's stored output less the contribution of one filter's channels."""
        module, (source,) = self.fetch_attr(str(node.target)), node.all_input_nodes
        layer = self.channels.layers[str(node.target)]
        before, value = self.env[source], self.env[node]
        columns = torch.from_numpy(layer.in_units == unit).nonzero()[:, 0]
        columns = to_device(columns, value.device)
        if layer.kind == "linear":
            part = before[..., columns] @ module.weight[:, columns].T
        elif module.groups == 1 and not module.transposed:
            part = module._conv_forward(before[:, columns], module.weight[:, columns], None)
        else:
            return self._compute(node, {source: self._masked(source, before, unit)})
        return value - part

    def _compute(self, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
        """Run one node on ``known`` inputs, none of which is changed in place."""
        if node.op in ("placeholder", "get_attr"):
            return super().run_node(node)

        def load(parent: fx.Node) -> Any:
            value = known[parent]
            return value.clone() if isinstance(value, Tensor) and self._in_place(node) else value

        args, kwargs = fx.map_arg(node.args, load), fx.map_arg(node.kwargs, load)
        return getattr(self, node.op)(node.target, args, kwargs)

    def _in_place(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return bool(getattr(self.fetch_attr(str(node.target)), "inplace", False))
        name = getattr(node.target, "__name__", str(node.target))
        return name.startswith("i") or name.endswith("_") or bool(node.kwargs.get("inplace"))


class _WholeRuns(fx.Interpreter):
    """Runs the whole network for each missing filter, its gates at 0."""

    def __init__(self, model: nn.Module, code: fx.Graph, graph: ChannelGraph):
        super().__init__(model, graph=code)
        self.channels = graph
        self.unit = NO_FILTER  # which is missing
        self.units: dict[str, Tensor] = {}  # of each gated layer's channels, on its device

    def run(self, *args: Any, **kwargs: Any) -> Any:
        (self.images,) = args
        return None

    def output_without(self, unit: int) -> Tensor:
        """The network's output with one filter's gate at 0."""
        self.unit = unit
        return super().run(self.images.clone())

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        result = super().call_module(target, args, kwargs)
        if target in self.channels.gates:
            layer = self.channels.layers[target]
            if target not in self.units:
                self.units[target] = torch.from_numpy(layer.out_units).to(result.device)
            missing = self.units[target] == self.unit
            axes = 0 if layer.kind == "linear" else result.ndim - 2
            result = result.masked_fill(missing.reshape(-1, *[1] * axes), 0)
        return result


def _rebind(graph: fx.Graph, names: frozenset[str]) -> None:
    """Let later nodes read the result of an operation in place, not its input from before."""
    place = {node: number for number, node in enumerate(graph.nodes)}

    def later_than(node: fx.Node) -> Callable[[fx.Node], bool]:
        return lambda user: place[user] > place[node]

    for node in list(graph.nodes):
        if node.name in names:
            node.all_input_nodes[0].replace_all_uses_with(node, delete_user_cb=later_than(node))
