"""Rules of operations that act on every element by itself, or reduce over space.

What counts is whether zeros stay zeros: only then can a channel go whose gate is 0. Of functions
of single elements that need not be known beforehand: they are asked, on a zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgprune_lite.channels.ids import Value, squeeze_constant, varies
from dgprune_lite.channels.rules.registry import Call, rule, spread, title

if TYPE_CHECKING:
    from dgprune_lite.channels.tape import Tape

# of one or more tensors and numbers, element by element
ELEMENTWISE = (
    "relu", "relu6", "leaky_relu", "rrelu", "hardswish", "silu", "gelu", "elu", "selu", "celu",
    "mish", "tanh", "tanhshrink", "softsign", "hardshrink", "softshrink", "hardtanh", "threshold",
    "sigmoid", "hardsigmoid", "softplus", "logsigmoid", "log_sigmoid", "abs", "absolute", "sin",
    "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "erf", "erfc", "square", "sqrt",
    "rsqrt", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "reciprocal", "neg",
    "negative", "positive", "sign", "round", "floor", "ceil", "trunc", "frac", "nan_to_num",
    "clamp", "clip", "clamp_min", "clamp_max", "pow", "rpow", "float_power",
    "add", "iadd", "radd", "sub", "subtract", "isub", "rsub", "maximum", "minimum", "max", "min",
    "fmax", "fmin", "hypot", "mul", "multiply", "imul", "rmul", "div", "divide", "true_divide",
    "rdiv", "truediv", "itruediv", "rtruediv", "floor_divide", "floordiv", "remainder", "fmod",
    "addcmul", "addcdiv", "lerp", "where", "masked_fill", "fill", "zero", "copy", "xlogy",
    "gt", "ge", "lt", "le", "eq", "ne", "isnan", "isfinite", "logical_and", "logical_or",
    "logical_not", "and", "or", "zeros_like", "ones_like", "full_like", "empty_like", "rand_like",
    "randn_like", "bernoulli",
)  # fmt: skip
DIVIDING = ("div", "divide", "true_divide", "truediv", "itruediv", "floor_divide", "remainder",
            "fmod", "floordiv", "addcdiv")  # fmt: skip
INVERTING = ("rdiv", "rtruediv", "reciprocal", "rsqrt", "log", "log2", "log10")
RANDOM = ("empty_like", "rand_like", "randn_like", "bernoulli", "rrelu")
# the same values, in evaluation at least; often the very same tensor
IDENTITIES = (
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout",
    "feature_alpha_dropout", "contiguous", "clone", "detach", "float", "half", "double",
    "bfloat16", "to", "type", "type_as", "cpu", "cuda", ".data", ".real", "requires_grad",
    "alias",
)  # fmt: skip
# channels kept, spatial axes pooled or resized; zeros stay zeros
POOLING = (
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d",
    "adaptive_max_pool2d", "adaptive_max_pool3d", "lp_pool1d", "lp_pool2d", "lp_pool3d",
    "interpolate", "upsample", "upsample_nearest", "upsample_bilinear", "grid_sample",
    "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices",
    "adaptive_max_pool2d_with_indices",
)  # fmt: skip
REDUCING = (
    "mean", "sum", "amax", "amin", "prod", "std", "var", "std_mean", "var_mean", "norm",
    "vector_norm", "linalg_vector_norm", "logsumexp", "nanmean", "nansum", "median", "aminmax",
    "argmax", "argmin", "any", "all", "count_nonzero",
)  # fmt: skip
CONSTANT_AT_ZERO = ("logsumexp", "all", "argmax", "argmin")


@rule(*IDENTITIES)
def identity(tape: Tape, call: Call) -> Value:
    """The same values, in evaluation at least."""
    return tape.value(call.tensors[0])


@rule(*ELEMENTWISE)
def elementwise(tape: Tape, call: Call) -> Any:
    """Operands that lie along the same channels are united, as in sums and products."""
    if not isinstance(call.result, Tensor):  # max(x, dim=2) gives a pair
        return reducing(tape, call)
    if call.name in ("max", "min") and len(call.tensors) == 1:
        return reducing(tape, call)
    values = [tape.value(tensor) for tensor in call.tensors]
    aligned = []
    for value in values:
        if any(_stretched(value.ids, other.ids) for other in values):
            tape.lock(value.ids, f"{title(tape, call)} spreads it over other channels")
        else:
            aligned.append(squeeze_constant(value.ids))
    if not aligned:
        return None
    ids, *others = aligned
    for other in others:
        tape.unite(ids, other, f"{title(tape, call)} with values that no filter makes")
        ids = torch.maximum(ids, other)
    ids = ids.expand(call.result.shape)
    divisors = values[:1] if call.name in INVERTING else values[1:] * (call.name in DIVIDING)
    for divisor in divisors:
        if not divisor.constant:
            tape.lock(divisor.ids, f"{title(tape, call)} by it, and zeros cannot divide")
    zero, gates = _zero_by(call, values, ids)
    return Value(ids, zero, gates, all(value.constant or not value.carries for value in values))


def _zero_by(call: Call, values: list[Value], ids: Tensor) -> tuple[bool, frozenset[str]]:
    """Whether the result is zero where gates are, and which gates it takes."""
    zeros = tuple(v.carries and v.zero and not _stretched(v.ids, ids) for v in values)
    if call.name == "zeros_like":
        return True, frozenset()
    if not any(zeros) or call.name in RANDOM:
        return False, frozenset()
    arguments = [*call.args, *call.kwargs.items()]
    key = (call.func, zeros, *(a.dtype if isinstance(a, Tensor) else a for a in arguments))
    try:
        if key not in _ASKED:
            _ASKED[key] = _ask(call, zeros)
        which = _ASKED[key]
    except TypeError:  # numbers in a list
        which = _ask(call, zeros)
    if which is None:
        return False, frozenset()
    return True, frozenset().union(*(values[i].gates for i in which))


_ASKED: dict[Any, tuple[int, ...] | None] = {}


def _ask(call: Call, zeros: tuple[bool, ...]) -> tuple[int, ...] | None:
    """Which operands' zeros make the result zero whatever the others are: one, or all; or None."""
    together = tuple(i for i, zero in enumerate(zeros) if zero)
    for which in [*((i,) for i in together), together]:
        if all(_probe(call, which, other) == 0 for other in (3, -2)):
            return which
    return None


def _probe(call: Call, which: tuple[int, ...], other: int) -> float:
    """The function of single elements: 0 for the operands ``which``, ``other`` for all others."""
    places = iter(range(len(call.tensors)))

    def element(tensor: Tensor) -> Tensor:
        number = 0 if next(places) in which else other
        return torch.full(
            (1,), number > 0 if tensor.dtype == torch.bool else number, dtype=tensor.dtype
        )

    return float(call.with_tensors(element))


def _stretched(ids: Tensor, target: Tensor) -> bool:
    """Whether broadcasting stretches ``ids`` over an axis along which ``target`` varies."""
    return any(
        (-axis > ids.ndim or ids.shape[axis] == 1) and varies(target, axis)
        for axis in range(-target.ndim, 0)
    )


@rule(*POOLING)
def pooling(tape: Tape, call: Call) -> Value | None:
    """Channels are kept; places in space are pooled or resized."""
    value, *others = (tape.value(tensor) for tensor in call.tensors)
    reason = None
    if not isinstance(call.result, Tensor):
        reason = "gives more than one tensor"
    elif any(varies(value.ids, axis) for axis in range(value.ids.ndim) if axis != 1):
        reason = "over the channel axis"
    for lost in [*others, *([value] if reason else [])]:
        tape.lock(lost.ids, f"{title(tape, call)} {reason or 'to places that it says'}")
    if reason:
        return None
    ids = spread(tape.channel_ids(value.ids, 1), call.result, 1)
    return Value(ids, value.zero, value.gates)


@rule(*REDUCING)
def reducing(tape: Tape, call: Call) -> Any:
    """Channels are kept, unless they are what is reduced."""
    value = tape.value(call.args[0])
    place = 2 if call.name.endswith("norm") else 1
    axes: Any = call.kwargs.get("dim", call.kwargs.get("axis", call.argument(place, "dim")))
    if axes is None or isinstance(axes, bool) or axes == ():
        axes = range(value.ids.ndim)
    axes = {axis % value.ids.ndim for axis in ([axes] if isinstance(axes, int) else axes)}
    ids = _unite_reduced(tape, call, value, axes)
    if ids is None:
        return None
    for axis in axes:
        ids = ids.narrow(axis, 0, 1)
    zero = value.zero and call.name not in CONSTANT_AT_ZERO
    if isinstance(call.result, Tensor):
        return Value(ids.reshape(call.result.shape), zero, value.gates if zero else frozenset())
    ids = ids.reshape(call.result[0].shape)
    gates = value.gates if zero else frozenset()
    second = zero and call.name not in ("max", "min", "median")  # not indices
    return Value(ids, zero, gates), Value(ids, second, gates if second else frozenset())


@rule("softmax", "log_softmax", "softmin", "normalize", "cumsum", "renorm")
def along_an_axis(tape: Tape, call: Call) -> Value | None:
    """Mixes what lies along one axis, and keeps the shape."""
    value = tape.value(call.args[0])
    place, default = (2, 1) if call.name == "normalize" else (1, None)
    axis = call.argument(place, "dim", default)
    ids = _unite_reduced(tape, call, value, {axis % value.ids.ndim}) if axis is not None else None
    if ids is None:
        tape.lock(value.ids, f"{title(tape, call)} over the channel axis")
        return None
    zero = value.zero and call.name in ("normalize", "cumsum")
    return Value(ids, zero, value.gates if zero else frozenset())


def _unite_reduced(tape: Tape, call: Call, value: Value, axes: set[int]) -> Tensor | None:
    """Ids where what is reduced together is one; None, locked, where those are all channels."""
    ids = value.ids
    kept = [axis for axis in range(ids.ndim) if axis not in axes]
    for axis in axes:
        if varies(ids, axis):
            if not any(varies(ids, other) for other in kept):
                tape.lock(value.ids, f"{title(tape, call)} over the channel axis")
                return None
            tape.unite_along(ids, axis, f"{title(tape, call)} with values that no filter makes")
            ids = ids.narrow(axis, 0, 1).expand(ids.shape)
    return ids
