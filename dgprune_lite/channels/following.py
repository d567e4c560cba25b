"""Follow a network's channels on shapes alone: a copy without weights, run on the meta device.

Ids need shapes only, so nothing is computed: the copy's tensors have no storage, and operations
that keep their input's shape are not even run. Only where the code needs numbers (an index made
of values, a constant on another device) is a copy with its real weights run instead.

What this file is *not*: the rules (``channel_rules``) or what is read off the ids
(``channels.py``).
"""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from dgprune_lite.channels.ids import Propagation, Value, values_of
from dgprune_lite.channels.quick_shapes import quick_result
from dgprune_lite.channels.rules import apply_rule
from dgprune_lite.channels.tracing import (
    ONE_AT_A_TIME,
    asking_modes,
    symbolic_graph,
    training_graph,
)
from dgprune_lite.running import device_of, gpus_of


def follow(model: nn.Module, inputs: tuple[Tensor, ...]) -> Following:
    """Run the rules over the network as it is in evaluation, and then as it is in training.

    In training some networks have more in them, such as auxiliary heads; what these read must
    stay in step, too.

    Args:
        model: Any network that ``torch.fx`` can follow; only a copy is run.
        inputs: One input batch.

    Raises:
        ValueError: The model cannot be traced (names the place), does not accept the inputs, or
            cannot be copied.
    """
    with ONE_AT_A_TIME, torch.random.fork_rng(devices=gpus_of(model)), torch.no_grad():
        try:
            return _follow_copy(model, inputs, meta=True)
        except Exception:  # the code may need numbers: see whether it runs with them
            return _follow_copy(model, inputs, meta=False)


def _follow_copy(model: nn.Module, inputs: tuple[Tensor, ...], meta: bool) -> Following:
    network = bare_copy(model, meta).eval()
    with asking_modes() as asked:
        graph = symbolic_graph(network)
    flow = Following(network, graph, meta)
    place = "meta" if meta else device_of(model)
    values = [value.detach().to(place, copy=True) for value in inputs]
    try:
        flow.run(*values)
    except Exception as error:
        shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
        raise ValueError(
            f"{type(model).__name__} does not run on example_inputs of shape {shapes}: "
            + str(error).split("\n")[0]
        ) from error
    if (other := training_graph(network, graph, asked)) is not None:
        FollowingTraining(network, other, meta, flow).run(*values)  # in eval mode: no statistics
    return flow


def bare_copy(model: nn.Module, meta: bool) -> nn.Module:
    """A copy to be run once: without hooks, and on the meta device without weights."""
    memo: dict[int, Any] = {}  # what the copy has in place of the model's own
    hooks = [name for name in vars(nn.Module()) if name.endswith("_hooks")]
    for module in model.modules():
        attributes = vars(module)
        groups = (attributes, module._parameters, module._buffers)
        for tensor in (own for group in groups for own in group.values()):
            if isinstance(tensor, Tensor) and id(tensor) not in memo:
                memo[id(tensor)] = _stand_in(tensor, meta)
        memo |= {id(attributes[name]): OrderedDict() for name in hooks if attributes.get(name)}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise ValueError(f"{type(model).__name__} cannot be copied: {error}") from error


def _stand_in(tensor: Tensor, meta: bool) -> Tensor:
    if is_lazy(tensor):
        raise ValueError("a lazy module has no weights yet: run the network once first")
    data = torch.empty_like(tensor, device="meta") if meta else tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(data, requires_grad=tensor.requires_grad)
    return data


class Following(Propagation):
    """Runs the network on tensors whose shapes count and, beside it, the rules on ids."""

    def __init__(
        self, module: nn.Module, graph: fx.Graph, meta: bool, first: Following | None = None
    ):
        super().__init__(module, graph, first)
        self.meta = meta
        self.images: int = first.images if first else 0  # in the batch; set by the first input
        self.rebound: set[str] = set()  # names of nodes that change their input in place
        self.through_views = False  # whether something is changed through a view of it
        self.aliases: dict[int, list[fx.Node]] = defaultdict(list)  # storage to who shows it
        self.versions: dict[int, int] = {}  # storage to how often it was written

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().placeholder(target, args, kwargs)
        if not self.images and isinstance(value, Tensor):
            self.images = len(value) if value.ndim else 1
        return value

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        return value.to("meta") if self.meta and isinstance(value, Tensor) else value

    def fetch_attr(self, target: str) -> Any:
        module = self.submodules.get(target)
        return super().fetch_attr(target) if module is None else module

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        result = quick_result(self.fetch_attr(target), args, kwargs) if self.meta else None
        return super().call_module(target, args, kwargs) if result is None else result

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        result = quick_result(target, args, kwargs) if self.meta else None
        return super().call_function(target, args, kwargs) if result is None else result

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        result = quick_result(target, args, kwargs) if self.meta else None
        return super().call_method(target, args, kwargs) if result is None else result

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        result = getattr(self, n.op)(n.target, args, kwargs)
        self.values[n] = apply_rule(self, n, result)
        self._note_changes_in_place(n, result)
        return result

    def _note_changes_in_place(self, node: fx.Node, result: Any) -> None:
        """Tensors that share what ``node`` wrote to are from here on its result, or locked."""
        for source in node.all_input_nodes:
            tensor = self.env[source]
            if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
                continue
            storage = tensor.untyped_storage()._cdata
            if tensor._version == self.versions.get(storage, tensor._version):
                continue
            self.versions[storage] = tensor._version
            for alias in self.aliases[storage]:
                if alias not in self.env:  # nobody reads it any more
                    continue
                if _same_view(self.env[alias], result):
                    self.values[alias] = self.values[node]
                    self.rebound.add(node.name)
                else:
                    self.through_views = True
                    for value in values_of([self.values[alias], self.values[node]], Value):
                        self.lock(value.ids, "it is changed in place through a view of it")
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                storage = tensor.untyped_storage()._cdata
                live = [alias for alias in self.aliases[storage] if alias in self.env]
                if not live:  # new memory, perhaps where other memory was
                    self.versions[storage] = tensor._version
                self.aliases[storage] = [*live, node]


def _same_view(tensor: Any, other: Any) -> bool:
    return bool(
        isinstance(tensor, Tensor)
        and isinstance(other, Tensor)
        and tensor.untyped_storage()._cdata == other.untyped_storage()._cdata
        and tensor.shape == other.shape
        and tensor.stride() == other.stride()
        and tensor.storage_offset() == other.storage_offset()
    )


class FollowingTraining(Following):
    """The graph of training: what does not run on the example locks what it reads."""

    def run_node(self, n: fx.Node) -> Any:
        lost = [parent for parent in n.all_input_nodes if parent in self.unknown]
        try:
            if lost:
                raise RuntimeError("it reads what is not known")
            return super().run_node(n)
        except Exception:
            self.unknown.add(n)
            self.values[n] = None
            for value in values_of((self.values[parent] for parent in n.all_input_nodes), Value):
                self.lock(value.ids, f"in training {n.target} reads it, which cannot be followed")
            return None

    unknown: set[fx.Node]

    def run(self, *args: Any, **kwargs: Any) -> Any:
        self.unknown = set()
        return super().run(*args, **kwargs)
