"""Rules of operations that act on every element by itself, or pool over space.

What counts is whether zeros stay zeros: only then can a channel go whose gate is 0.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dgprune_lite.channels.ids import Propagation, Value, squeeze_constant, varies
from dgprune_lite.channels.rules.registry import argument, fixed, rule, spread, title

# f(0) = 0, element by element
ZERO_PRESERVING = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.Hardswish, nn.SiLU, nn.GELU, nn.ELU, nn.SELU,
    nn.CELU, nn.Mish, nn.Tanh, nn.Tanhshrink, nn.Softsign, nn.Hardshrink, nn.Softshrink,
    F.relu, F.relu_, F.relu6, F.leaky_relu, F.hardswish, F.silu, F.gelu, F.elu, F.selu, F.celu,
    F.mish, F.tanh, F.tanhshrink, F.softsign, F.hardshrink, F.softshrink,
    torch.relu, torch.relu_, torch.tanh, torch.abs, torch.sin, torch.square, torch.sqrt,
    operator.neg, "relu", "relu_", "tanh", "tanh_", "abs", "abs_", "sin", "square", "sqrt",
)  # fmt: skip
# element by element, but f(0) is not 0
NOT_ZERO_PRESERVING = (
    nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.LogSigmoid, F.sigmoid, F.hardsigmoid, F.softplus,
    F.logsigmoid, torch.sigmoid, torch.exp, torch.cos,
    "sigmoid", "sigmoid_", "exp", "exp_", "cos",
)  # fmt: skip
# the same values, in evaluation at least; often the very same tensor
IDENTITIES = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
    nn.FeatureAlphaDropout, F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout,
    "stochastic_depth", "contiguous", "clone", "detach", "float", "half", "double", "bfloat16",
    "to", "cpu", "cuda",
)  # fmt: skip
# channels kept, spatial axes pooled, resized or padded; zeros stay zeros
POOLING = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.LPPool1d, nn.LPPool2d, nn.Upsample,
    nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d,
    nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d,
    nn.ReflectionPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d,
    nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d,
    F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d,
    torch.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.adaptive_max_pool1d, F.adaptive_max_pool2d,
    F.adaptive_max_pool3d, F.interpolate,
)  # fmt: skip
# of two tensors, or a tensor and a number, element by element
ADDING = (
    operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub, torch.maximum,
    torch.minimum, "add", "add_", "sub", "sub_", "maximum", "minimum",
)  # fmt: skip
MULTIPLYING = (
    operator.imul, operator.truediv, operator.itruediv, torch.mul, torch.div,
    "mul", "mul_", "div", "div_",
)  # fmt: skip


@rule(*ZERO_PRESERVING, *IDENTITIES)
def zero_preserving(flow: Propagation, node: fx.Node, inputs: list[Value], result: Any) -> Value:
    return inputs[0]


@rule(nn.Hardtanh, F.hardtanh, torch.clamp, torch.clip, "clamp", "clamp_", "clip")
def clipping(flow: Propagation, node: fx.Node, inputs: list[Value], result: Tensor) -> Value:
    """Zero-preserving if 0 lies between the bounds."""
    if node.op == "call_module":
        module: Any = flow.fetch_attr(str(node.target))
        low, high = module.min_val, module.max_val
    else:
        names = ("min_val", "max_val") if node.target is F.hardtanh else ("min", "max")
        default = -1.0 if node.target is F.hardtanh else None
        low = argument(node, 1, names[0], default)
        high = argument(node, 2, names[1], None if default is None else 1.0)
    bounds = [bound for bound in (low, high) if bound is not None]
    if not all(isinstance(bound, (int, float)) for bound in bounds):
        for value in inputs:
            flow.lock(value.ids, f"{title(flow, node)} to bounds that are tensors")
    elif (low or 0) > 0 or (high or 0) < 0:
        return nonzero(flow, node, inputs, result)
    return inputs[0]


@rule(operator.pow, torch.pow, "pow")
def power(flow: Propagation, node: fx.Node, inputs: list[Value], result: Tensor) -> Value:
    exponent = argument(node, 1, "exponent")
    if not isinstance(exponent, (int, float)) or not isinstance(node.args[0], fx.Node):
        for value in inputs:
            flow.lock(value.ids, f"{title(flow, node)} with an exponent that is no number")
        return fixed(result)
    return Value(inputs[0].ids, inputs[0].zero and exponent > 0, inputs[0].gates)


@rule(*NOT_ZERO_PRESERVING)
def nonzero(flow: Propagation, node: fx.Node, inputs: list[Value], result: Any) -> Value:
    return Value(inputs[0].ids, zero=False)


@rule(*POOLING)
def pooling(flow: Propagation, node: fx.Node, inputs: list[Value], result: Any) -> Any:
    value = inputs[0]
    if not isinstance(result, Tensor):
        flow.lock(value.ids, f"{title(flow, node)} gives more than one tensor")
        return fixed(result)
    if any(varies(value.ids, axis) for axis in range(value.ids.ndim) if axis != 1):
        flow.lock(value.ids, f"{title(flow, node)} over the channel axis")
        return fixed(result)
    return Value(spread(flow.channel_ids(value.ids, 1), result, 1), value.zero, value.gates)


@rule("mean", torch.mean, "sum", torch.sum, "amax", torch.amax, "amin", torch.amin)
def reducing(flow: Propagation, node: fx.Node, inputs: list[Value], result: Tensor) -> Value:
    value = inputs[0]
    axes: Any = node.args[1] if len(node.args) > 1 else None
    axes = node.kwargs.get("dim", node.kwargs.get("axis", axes))
    axes = range(value.ids.ndim) if axes is None else axes
    ids = value.ids
    for axis in [axes] if isinstance(axes, int) else tuple(axes):
        if varies(value.ids, axis):
            flow.lock(value.ids, f"{title(flow, node)} over the channel axis")
            return fixed(result)
        ids = ids.narrow(axis, 0, 1)
    return Value(ids.reshape(result.shape), value.zero, value.gates)


@rule(*ADDING)
def adding(flow: Propagation, node: fx.Node, inputs: list[Value], result: Tensor) -> Value:
    """A sum is zero where all its terms are, so the filters of all terms go together."""
    numbers = _numbers(flow, node)
    ids = _join(flow, node, inputs, result)
    constant = any(not isinstance(number, (int, float)) or number != 0 for number in numbers)
    foreign = any(not value.carries for value in inputs)
    gates: frozenset[str] = frozenset().union(*(value.gates for value in inputs))
    return Value(ids, all(v.zero for v in inputs) and not constant and not foreign, gates)


@rule(*MULTIPLYING)
def multiplying(flow: Propagation, node: fx.Node, inputs: list[Value], result: Tensor) -> Value:
    """A product is zero where one factor is; that factor's gates are the ones that count."""
    ids = _join(flow, node, inputs, result)
    if any(isinstance(number, fx.Node) for number in _numbers(flow, node)):
        flow.lock(ids, f"{title(flow, node)} with a size that may change")
    factors = inputs
    if node.target in (
        operator.truediv,
        operator.itruediv,
        torch.div,
        "div",
        "div_",
    ):  # only the numerator's zeros count
        first = node.args[0] if node.args else node.kwargs.get("input")
        factors = [v for v in inputs if isinstance(first, fx.Node) and v is flow.values[first]]
        for value in inputs:
            if not any(value is factor for factor in factors):
                flow.lock(value.ids, f"{title(flow, node)} by it, and zeros cannot divide")
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
            flow.lock(value.ids, f"{title(flow, node)} spreads it over other channels")
        else:
            aligned.append(squeeze_constant(value.ids))
    if not aligned:
        return fixed(result).ids
    joined, *others = aligned
    for other in others:
        flow.unite(joined, other, f"{title(flow, node)} with values that no filter makes")
        joined = torch.maximum(joined, other)
    return joined.expand(result.shape)


def _stretched(ids: Tensor, target: Tensor) -> bool:
    """Whether broadcasting stretches ``ids`` over an axis along which ``target`` varies."""
    return any(
        (-axis > ids.ndim or ids.shape[axis] == 1) and varies(target, axis)
        for axis in range(-target.ndim, 0)
    )
