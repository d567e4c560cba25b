"""How each operation acts on channel ids: one short rule per kind of operation.

A rule gets the running propagation, the fx node, the values of the node's tensor inputs (in
order) and the real result, and returns the result's :class:`~dgprune_lite.channels.Value`. An
operation without a rule locks the channels it touches, so that they are kept and reported.
To support an operation, add it to a list below or write a rule for it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dgprune_lite.channel_ids import Propagation, Value, squeeze_constant, varies

Rule = Callable[[Propagation, fx.Node, list[Value], Any], Any]
RULES: dict[Any, Rule] = {}  # module class, function, or method name

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# f(0) = 0, element by element, shape kept
ZERO_PRESERVING = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardswish, nn.SiLU, nn.GELU, nn.ELU, nn.SELU, nn.CELU,
    nn.Mish, nn.Tanh, nn.Softsign, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d,
    nn.Dropout3d, nn.AlphaDropout,
    F.relu, F.relu_, F.relu6, F.leaky_relu, F.hardswish, F.silu, F.gelu, F.elu, F.selu, F.mish,
    F.tanh, F.softsign, F.dropout, F.dropout2d, torch.relu, torch.relu_, torch.tanh, torch.abs,
    operator.neg, "stochastic_depth",
    "relu", "relu_", "tanh", "contiguous", "clone", "abs", "float", "half", "double", "detach",
)  # fmt: skip
# element by element, but f(0) is not 0
NOT_ZERO_PRESERVING = (
    nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.LogSigmoid, F.sigmoid, F.hardsigmoid, F.softplus,
    torch.sigmoid, torch.exp, "sigmoid", "exp",
)  # fmt: skip
# channels kept, spatial axes pooled or resized; zeros stay zeros
POOLING = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.LPPool2d, nn.Upsample, nn.ZeroPad2d,
    F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool2d, F.avg_pool1d, F.avg_pool2d,
    F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
    F.adaptive_max_pool2d, F.interpolate,
)  # fmt: skip
# moves elements without changing them: the same call on the ids says where they went
MOVING = (
    torch.flatten, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze, torch.movedim,
    torch.swapaxes, nn.Flatten,
    "flatten", "permute", "transpose", "squeeze", "unsqueeze", "movedim", "swapaxes",
)  # fmt: skip


def apply_rule(flow: Propagation, node: fx.Node, result: Any) -> Any:
    """The value of ``node``'s ``result``, by the rule of its operation."""
    if node.op == "output":
        for value in _inputs(flow, node):
            flow.lock(value.ids, "its outputs are the network's outputs")
        return None
    if node.op in ("placeholder", "get_attr"):
        flow.read.add(id(result))
        return _fixed(result)
    rule = _find_rule(flow, node)
    inputs = _inputs(flow, node)
    if not any(value.carries for value in inputs) and rule is not learned:
        return _fixed(result)
    if rule is not None:
        return rule(flow, node, inputs, result)
    if _fixed(result) is not None:  # an unknown operation that gives tensors
        for value in inputs:
            flow.lock(value.ids, f"{_title(flow, node)} is an operation without a channel rule")
    return _fixed(result)


def _find_rule(flow: Propagation, node: fx.Node) -> Rule | None:
    if node.op == "call_module":
        kinds = type(flow.fetch_attr(str(node.target))).__mro__
        return next((RULES[kind] for kind in kinds if kind in RULES), None)
    if callable(node.target) and node.target not in RULES:  # a library's function, by its name
        return RULES.get(node.target.__name__) if "torchvision" in node.target.__module__ else None
    return RULES.get(node.target)


def _inputs(flow: Propagation, node: fx.Node) -> list[Value]:
    values = (flow.values[n] for n in node.all_input_nodes)
    flat = [v for value in values for v in (value if isinstance(value, tuple) else (value,))]
    return [value for value in flat if isinstance(value, Value)]


def _fixed(result: Any) -> Any:
    """The value of something that holds no removable channel."""
    if isinstance(result, Tensor):
        return Value(torch.zeros((), dtype=torch.int64).expand(result.shape))
    if isinstance(result, (tuple, list)) and any(isinstance(part, Tensor) for part in result):
        return tuple(_fixed(part) for part in result)
    return None


def _title(flow: Propagation, node: fx.Node) -> str:
    if node.op == "call_module":
        return f"{node.target} ({type(flow.fetch_attr(str(node.target))).__name__})"
    return getattr(node.target, "__name__", str(node.target))


def _on_ids(flow: Propagation, node: fx.Node) -> Any:
    """Run the node's own operation on the ids of its inputs."""

    def load(n: fx.Node) -> Any:
        value = flow.values[n]
        return value.ids if isinstance(value, Value) else flow.env[n]

    args, kwargs = fx.map_arg(node.args, load), fx.map_arg(node.kwargs, load)
    return getattr(flow, node.op)(node.target, args, kwargs)


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Register a rule for module classes, functions and method names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(targets, function))
        return function

    return register


@rule(*CONVOLUTIONS, nn.Linear, *BATCH_NORMS)
def learned(flow: Propagation, node: fx.Node, inputs: list[Value], result: Tensor) -> Value:
    """Layers with parameters make ids, read ids, or hold parameters for them."""
    name, (value,) = str(node.target), inputs
    module = flow.fetch_attr(name)
    if isinstance(module, BATCH_NORMS):
        ids = flow.channel_ids(value.ids, 1)
        ids = flow.layer(name, "norm", module, ids, None, 0)
        return Value(_spread(ids, result, 1), gates=frozenset([name]))
    if isinstance(module, nn.Linear):
        into = flow.consume(name, value, -1)
        positions = result[0, ..., 0].numel()
        ids = flow.layer(name, "linear", module, flow.fresh(module.out_features), into, positions)
        return Value(_spread(ids, result, -1), gates=frozenset([name]))

    positions, groups = result[0, 0].numel(), module.groups
    if groups == module.in_channels and groups > 1:  # depthwise: output c·m+k goes with input c
        ids = flow.channel_ids(value.ids, 1).repeat_interleave(module.out_channels // groups)
        ids = flow.layer(name, "conv", module, ids, None, positions)
        return Value(_spread(ids, result, 1), gates=frozenset([name]))
    into = flow.consume(name, value, 1)
    fresh = flow.fresh(module.out_channels)
    why = f"{name} convolves in groups that must stay equally wide"
    for ids in (into, fresh):  # the groups lose channels at the same offsets
        flow.unite_along(ids.reshape(groups, -1), 0, why)
    ids = flow.layer(name, "conv", module, fresh, into.reshape(groups, -1)[0], positions)
    return Value(_spread(ids, result, 1), gates=frozenset([name]))


def _spread(ids: Tensor, result: Tensor, axis: int) -> Tensor:
    """ids of channels, expanded to the shape of ``result``."""
    shape = [1] * result.ndim
    shape[axis] = len(ids)
    return ids.reshape(shape).expand(result.shape)


@rule(*ZERO_PRESERVING)
def zero_preserving(flow: Propagation, node: fx.Node, inputs: list[Value], result: Any) -> Value:
    return inputs[0]


@rule(nn.Hardtanh, nn.PReLU, F.hardtanh, torch.clamp, "clamp")
def clipping(flow: Propagation, node: fx.Node, inputs: list[Value], result: Tensor) -> Value:
    """Zero-preserving if the operation, tried on zeros, gives zeros."""
    if node.op == "call_module":
        module = flow.fetch_attr(str(node.target))
        if isinstance(module, nn.PReLU) and module.num_parameters > 1:
            flow.lock(inputs[0].ids, f"{node.target} (PReLU) has one slope a channel")
        return inputs[0] if _maps_zero(module, result) else nonzero(flow, node, inputs, result)
    args, kwargs = flow.fetch_args_kwargs_from_env(node)
    call = getattr(flow, node.op)
    same = _maps_zero(lambda x: call(node.target, (x, *args[1:]), kwargs), result)
    return inputs[0] if same else nonzero(flow, node, inputs, result)


def _maps_zero(function: Callable[[Tensor], Tensor], like: Tensor) -> bool:
    return bool((function(torch.zeros_like(like)) == 0).all())


@rule(*NOT_ZERO_PRESERVING)
def nonzero(flow: Propagation, node: fx.Node, inputs: list[Value], result: Any) -> Value:
    return Value(inputs[0].ids, zero=False)


@rule(*POOLING)
def pooling(flow: Propagation, node: fx.Node, inputs: list[Value], result: Tensor) -> Value:
    value = inputs[0]
    if not isinstance(result, Tensor):
        flow.lock(value.ids, f"{_title(flow, node)} gives more than one tensor")
        return _fixed(result)
    ids = flow.channel_ids(value.ids, 1)
    return Value(_spread(ids, result, 1), value.zero, value.gates)


@rule(*MOVING)
def moving(flow: Propagation, node: fx.Node, inputs: list[Value], result: Tensor) -> Value:
    return Value(_on_ids(flow, node), inputs[0].zero, inputs[0].gates)


@rule("view", "reshape", torch.reshape)
def reshaping(flow: Propagation, node: fx.Node, inputs: list[Value], result: Tensor) -> Value:
    """A size written as a number stays as it is, so channels along it go together."""
    value = inputs[0]
    ids = value.ids.reshape(result.shape)
    sizes = node.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = tuple(sizes[0])
    carrying = [axis for axis in range(ids.ndim) if varies(ids, axis)]
    if len(sizes) == ids.ndim:
        literal = [a for a in carrying if isinstance(sizes[a], int) and sizes[a] != -1]
    else:
        literal = carrying  # the sizes are one object that the graph cannot see into
    if len(carrying) - len(literal) > 1 or (carrying and len(literal) == len(carrying)):
        flow.lock(ids, f"{_title(flow, node)} to a size that is fixed in the code")
    else:
        for axis in literal:
            flow.unite_along(ids, axis, "it shares its channels with fixed values")
    return Value(ids, value.zero, value.gates)


@rule("mean", torch.mean, "sum", torch.sum)
def reducing(flow: Propagation, node: fx.Node, inputs: list[Value], result: Tensor) -> Value:
    value = inputs[0]
    axes: Any = node.args[1] if len(node.args) > 1 else None
    axes = node.kwargs.get("dim", node.kwargs.get("axis", axes))
    axes = range(value.ids.ndim) if axes is None else axes
    ids = value.ids
    for axis in [axes] if isinstance(axes, int) else tuple(axes):
        if varies(value.ids, axis):
            flow.lock(value.ids, f"{_title(flow, node)} over the channel axis")
            return _fixed(result)
        ids = ids.narrow(axis, 0, 1)
    return Value(ids.reshape(result.shape), value.zero, value.gates)


@rule(torch.cat, torch.concat)
def concatenating(flow: Propagation, node: fx.Node, inputs: list[Value], result: Tensor) -> Value:
    zero = all(value.zero for value in inputs)
    return Value(_on_ids(flow, node), zero, frozenset().union(*(v.gates for v in inputs)))


@rule(torch.chunk, "chunk", torch.tensor_split, "tensor_split", torch.split, "split")
def splitting(flow: Propagation, node: fx.Node, inputs: list[Value], result: Any) -> Any:
    """Equal parts of the channel axis must stay equally wide; other splits are locked."""
    value = inputs[0]
    parts = _on_ids(flow, node)
    axis: Any = node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else 0)
    if varies(value.ids, axis):
        equal = len({part.shape[axis] for part in parts}) == 1
        sized = node.target in (torch.split, "split") and not isinstance(node.args[1], fx.Node)
        sized = sized or isinstance(node.args[1], (tuple, list))
        if equal and not sized:
            for part in parts[1:]:
                flow.unite(squeeze_constant(parts[0]), squeeze_constant(part), "a fixed part")
        else:
            flow.lock(value.ids, f"{_title(flow, node)} into parts of a size fixed in the code")
    return tuple(Value(part, value.zero, value.gates) for part in parts)


@rule(operator.getitem)
def indexing(flow: Propagation, node: fx.Node, inputs: list[Value], result: Any) -> Any:
    index: Any = node.args[1]
    value = flow.values[node.all_input_nodes[0]]
    if isinstance(value, tuple):
        return value[index]
    index = fx.map_arg(index, lambda n: flow.env[n])
    ids = value.ids[index]
    touched = list(index) if isinstance(index, tuple) else [index]
    touched = [part for part in touched if part is not None]  # None makes an axis, reads none
    if any(part is Ellipsis for part in touched):
        place = next(i for i, part in enumerate(touched) if part is Ellipsis)
        touched[place : place + 1] = [slice(None)] * (value.ids.ndim - len(touched) + 1)
    for axis, part in enumerate(touched):
        whole = isinstance(part, slice) and part == slice(None)
        if not whole and varies(value.ids, axis):
            flow.lock(value.ids, "indexing the channel axis")
    return Value(ids, value.zero, value.gates)


@rule(operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub, "add", "add_")
def adding(flow: Propagation, node: fx.Node, inputs: list[Value], result: Tensor) -> Value:
    """A sum is zero where all its terms are, so the filters of all terms go together."""
    numbers = _numbers(flow, node)
    ids = _join(flow, node, inputs, result)
    constant = any(not isinstance(number, (int, float)) or number != 0 for number in numbers)
    foreign = any(not value.carries for value in inputs)
    gates: frozenset[str] = frozenset().union(*(value.gates for value in inputs))
    return Value(ids, all(v.zero for v in inputs) and not constant and not foreign, gates)


@rule(operator.mul, operator.imul, operator.truediv, torch.mul, torch.div, "mul", "mul_", "div")
def multiplying(flow: Propagation, node: fx.Node, inputs: list[Value], result: Tensor) -> Value:
    """A product is zero where one factor is; that factor's gates are the ones that count."""
    ids = _join(flow, node, inputs, result)
    if any(isinstance(number, fx.Node) for number in _numbers(flow, node)):
        flow.lock(ids, f"{_title(flow, node)} with a size that may change")
    factors = inputs
    if node.target in (operator.truediv, torch.div, "div"):  # only the numerator's zeros count
        first = node.args[0] if node.args else node.kwargs.get("input")
        factors = [v for v in inputs if isinstance(first, fx.Node) and v is flow.values[first]]
        for value in inputs:
            if not any(value is factor for factor in factors):
                flow.lock(value.ids, f"{_title(flow, node)} by it, and zeros cannot divide")
    zeros = [v for v in factors if v.carries and v.zero and not _stretched(v.ids, ids)]
    return Value(ids, bool(zeros), zeros[0].gates if zeros else frozenset())


def _numbers(flow: Propagation, node: fx.Node) -> list[Any]:
    """The operands of an element-wise operation that are no tensors: numbers, or nodes of such."""
    operands = [*node.args[:2], node.kwargs.get("input"), node.kwargs.get("other")]
    return [
        operand
        for operand in operands
        if operand is not None
        and not (isinstance(operand, fx.Node) and isinstance(flow.values[operand], Value))
    ]


def _join(flow: Propagation, node: fx.Node, inputs: list[Value], result: Tensor) -> Tensor:
    """Ids of an element-wise result; operands that lie along the same channels are united."""
    aligned = []
    for value in inputs:
        if any(_stretched(value.ids, other.ids) for other in inputs):
            flow.lock(value.ids, f"{_title(flow, node)} spreads it over other channels")
        else:
            aligned.append(squeeze_constant(value.ids))
    if not aligned:
        return _fixed(result).ids
    joined, *others = torch.broadcast_tensors(*aligned)
    for other in others:
        flow.unite(joined, other, f"{_title(flow, node)} with values that no filter makes")
        joined = torch.maximum(joined, other)
    return joined.expand(result.shape)


def _stretched(ids: Tensor, target: Tensor) -> bool:
    """Whether broadcasting stretches ``ids`` over an axis along which ``target`` varies."""
    return any(
        varies(target, axis) and (-axis > ids.ndim or ids.shape[axis] == 1)
        for axis in range(-target.ndim, 0)
    )
