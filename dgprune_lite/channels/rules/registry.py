"""Find the rule of an operation, and what to do where there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from dgprune_lite.channels.ids import Propagation, Size, Value, values_of

Rule = Callable[[Propagation, fx.Node, list[Value], Any], Any]
RULES: dict[Any, Rule] = {}  # module class, function, or method name
ALWAYS: set[Rule] = set()  # rules that also act where no input carries channels
SIZES: set[Rule] = set()  # rules that know what to do with a size that shrinks


def rule(*targets: Any, always: bool = False, sizes: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule for module classes, functions and method names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(targets, function))
        ALWAYS.update([function] if always else [])
        SIZES.update([function] if sizes else [])
        return function

    return register


def find_rule(flow: Propagation, node: fx.Node) -> Rule | None:
    if node.op == "call_module":
        kinds = type(flow.fetch_attr(str(node.target))).__mro__
        return next((RULES[kind] for kind in kinds if kind in RULES), None)
    if callable(node.target) and node.target not in RULES:  # a library's function, by its name
        library = "torchvision" in (node.target.__module__ or "")
        return RULES.get(node.target.__name__) if library else None
    return RULES.get(node.target)


def apply_rule(flow: Propagation, node: fx.Node, result: Any) -> Any:
    """The value of ``node``'s ``result``, by the rule of its operation."""
    given = [flow.values[n] for n in node.all_input_nodes]
    inputs, sizes = values_of(given, Value), values_of(given, Size)
    if node.op == "output":
        for value in inputs + sizes:
            flow.lock(value.ids, "its outputs are the network's outputs")
        return None
    if node.op in ("placeholder", "get_attr"):
        flow.known.read.add(id(result))
        return fixed(result)
    if isinstance(node.target, type) and issubclass(node.target, tuple):  # a named tuple
        return tuple(given)
    rule = find_rule(flow, node)
    if rule not in SIZES:
        for size in sizes:
            flow.lock(size.ids, f"{title(flow, node)} depends on how many they are")
    if rule is not None and (
        rule in ALWAYS or any(v.carries for v in inputs) or (sizes and rule in SIZES)
    ):
        return rule(flow, node, inputs, result)
    value = fixed(result)
    if value is not None:  # an operation without a rule that gives tensors
        for other in inputs:
            flow.lock(other.ids, f"{title(flow, node)} is an operation without a channel rule")
    return value


def fixed(result: Any) -> Any:
    """The value of something that holds no removable channel."""
    if isinstance(result, Tensor):
        return Value(torch.zeros((), dtype=torch.int64).expand(result.shape))
    if isinstance(result, (tuple, list)) and any(isinstance(part, Tensor) for part in result):
        return tuple(fixed(part) for part in result)
    return None


def title(flow: Propagation, node: fx.Node) -> str:
    """How a reason names an operation."""
    if node.op == "call_module":
        return f"{node.target} ({type(flow.fetch_attr(str(node.target))).__name__})"
    return getattr(node.target, "__name__", str(node.target))


def argument(node: fx.Node, place: int, name: str, default: Any = None) -> Any:
    """An argument of the call, given by place or by name."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def spread(ids: Tensor, result: Tensor, axis: int) -> Tensor:
    """ids of channels (channels,), expanded to the shape of ``result``."""
    if len(ids) != result.shape[axis]:
        raise ValueError(f"{len(ids)} channels along axis {axis} of shape {tuple(result.shape)}")
    strides = [0] * result.ndim
    strides[axis] = ids.stride(0)
    return ids.as_strided(result.shape, strides)


def on_ids(flow: Propagation, node: fx.Node) -> Any:
    """Run the node's own operation on the ids of its inputs."""

    def load(n: fx.Node) -> Any:
        value = flow.values[n]
        return value.ids if isinstance(value, Value) else flow.env[n]

    args, kwargs = fx.map_arg(node.args, load), fx.map_arg(node.kwargs, load)
    return getattr(flow, node.op)(node.target, args, kwargs)
