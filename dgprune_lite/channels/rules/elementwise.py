"""Rules of operations that act on every element by itself, or reduce over space.

What counts is whether zeros stay zeros: only then can a channel go whose gate is 0. Of functions
of single elements that need not be known beforehand: they are asked, on a zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dgprune_lite.channels.ids import Value, axes_of, with_axes
from dgprune_lite.channels.rules.registry import Call, rule

if TYPE_CHECKING:
    from dgprune_lite.channels.tape import Tape

DIVIDING = ("div", "divide", "true_divide", "truediv", "itruediv", "floor_divide", "remainder",
            "fmod", "floordiv", "addcdiv")  # fmt: skip
INVERTING = ("rdiv", "rtruediv", "reciprocal", "rsqrt", "log", "log2", "log10")
RANDOM = ("empty_like", "rand_like", "randn_like", "bernoulli", "rrelu")
OVER_CHANNELS = "over the channel axis"
CONSTANT_AT_ZERO = ("logsumexp", "all", "argmax", "argmin")


@rule("""
    dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout
    contiguous clone detach float half double bfloat16 to type type_as cpu cuda .data .real
    requires_grad alias
""")
def identity(tape: Tape, call: Call) -> Value:
    """The same values, in evaluation at least."""
    return call.values[0]


@rule("""
    relu relu6 leaky_relu rrelu hardswish silu gelu elu selu celu mish tanh tanhshrink softsign
    hardshrink softshrink hardtanh threshold sigmoid hardsigmoid softplus logsigmoid log_sigmoid
    abs absolute sin cos tan asin acos atan sinh cosh asinh erf erfc square sqrt rsqrt exp exp2
    expm1 log log2 log10 log1p reciprocal neg negative positive sign round floor ceil trunc frac
    nan_to_num clamp clip clamp_min clamp_max pow rpow float_power add iadd radd sub subtract
    isub rsub maximum minimum max min fmax fmin hypot mul multiply imul rmul div divide
    true_divide rdiv truediv itruediv rtruediv floor_divide floordiv remainder fmod addcmul
    addcdiv lerp where masked_fill fill zero copy xlogy gt ge lt le eq ne isnan isfinite
    logical_and logical_or logical_not and or zeros_like ones_like full_like empty_like
    rand_like randn_like bernoulli
""")
def elementwise(tape: Tape, call: Call) -> Any:
    """Operands that lie along the same channels are united, as in sums and products."""
    values = call.values
    alone = call.name in ("max", "min") and len(values) == 1
    if alone or not isinstance(call.result, Tensor):  # max(x, dim=2) gives a pair
        return reducing(tape, call)
    wide = [v for t, v in call.pairs if any(_stretched(t, other.ids) for other in values)]
    call.lock("spreads it over other channels", *wide)
    aligned = [value for value in values if value not in wide]
    if not aligned:
        return None
    ids = with_axes(call.united(aligned), call.result.ndim)
    divisors = values[:1] if call.name in INVERTING else values[1:] * (call.name in DIVIDING)
    changing = [value for value in divisors if not value.constant]
    call.lock("by it, and zeros cannot divide", *changing)
    gates = _gates_left(call, ids)
    constant = all(value.constant or not value.carries for value in values)
    return Value(ids, gates is not None, gates or frozenset(), constant)


def _gates_left(call: Call, ids: np.ndarray) -> frozenset[str] | None:
    """The gates that make the result zero; None where none do."""
    zeros = tuple(v.carries and v.zero and not _stretched(t, ids) for t, v in call.pairs)
    if call.name == "zeros_like":
        return frozenset()
    if not any(zeros) or call.name in RANDOM:
        return None
    arguments = [*call.args, *call.kwargs, *call.kwargs.values()]
    key = call.func, zeros, str([a.dtype if isinstance(a, Tensor) else a for a in arguments])
    if key not in _ASKED:
        _ASKED[key] = _ask(call, zeros)
    which = _ASKED[key]
    return None if which is None else frozenset().union(*(call.values[i].gates for i in which))


_ASKED: dict[Any, tuple[int, ...] | None] = {}


def _ask(call: Call, zeros: tuple[bool, ...]) -> tuple[int, ...] | None:
    """Which operands' zeros make the result zero whatever the others are: one, or all; or None."""

    def result(which: tuple[int, ...], other: int) -> float:
        places = iter(range(len(call.tensors)))

        def element(tensor: Tensor) -> Tensor:
            number = 0 if next(places) in which else other
            number = max(0, number) if tensor.dtype == torch.bool else number
            return torch.full((1,), number, dtype=tensor.dtype)

        return float(call.with_tensors(element))

    together = tuple(i for i, zero in enumerate(zeros) if zero)
    tried = [*((i,) for i in together), together]
    return next((w for w in tried if result(w, 3) == 0 and result(w, -2) == 0), None)


def _stretched(tensor: Tensor, ids: np.ndarray) -> bool:
    """Whether broadcasting stretches a tensor over an axis along which ``ids`` vary."""
    sizes = tensor.shape
    return any(
        ids.shape[axis] > 1 and (-axis > len(sizes) or sizes[axis] == 1)
        for axis in range(-ids.ndim, 0)
    )


@rule("""
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d lp_pool1d lp_pool2d lp_pool3d interpolate upsample upsample_nearest
    upsample_bilinear grid_sample max_pool1d_with_indices max_pool2d_with_indices
    max_pool3d_with_indices adaptive_max_pool2d_with_indices
""")
def pooling(tape: Tape, call: Call) -> Value | None:
    """Channels are kept; places in space are pooled or resized."""
    value, *others = call.values
    call.lock("to places that it says", *others)
    several = not isinstance(call.result, Tensor)
    if several or axes_of(value.ids) not in ([], [1]):
        return call.lock("gives more than one tensor" if several else OVER_CHANNELS, value)
    return value


@rule("""
    mean sum amax amin prod std var std_mean var_mean norm vector_norm linalg_vector_norm
    logsumexp nanmean nansum median aminmax argmax argmin any all count_nonzero
""")
def reducing(tape: Tape, call: Call) -> Any:
    """Channels are kept, unless they are what is reduced."""
    value, place = call.values[0], 2 if call.name.endswith("norm") else 1
    axes: Any = call.kwargs.get("dim", call.kwargs.get("axis", call.argument(place, "dim")))
    if axes is None or isinstance(axes, bool) or axes == ():
        axes = range(value.ids.ndim)
    axes = {axis % value.ids.ndim for axis in ([axes] if isinstance(axes, int) else axes)}
    ids = _unite_reduced(tape, call, axes)
    if ids is None:
        return None
    zero, several = call.name not in CONSTANT_AT_ZERO, not isinstance(call.result, Tensor)
    if (call.result[0] if several else call.result).ndim < ids.ndim:
        ids = ids.squeeze(tuple(axes))
    indices = call.name in ("max", "min", "median")
    first = value.moved(ids, zero)
    return (first, value.moved(ids, zero and not indices)) if several else first


@rule("softmax log_softmax softmin normalize cumsum renorm")
def along_an_axis(tape: Tape, call: Call) -> Value | None:
    """Mixes what lies along one axis, and keeps the shape."""
    value = call.values[0]
    axis = call.argument(2, "dim", 1) if call.name == "normalize" else call.argument(1, "dim")
    if axis is None:
        return call.lock(OVER_CHANNELS, value)
    ids = _unite_reduced(tape, call, {axis % value.ids.ndim})
    return None if ids is None else value.moved(ids, call.name in ("normalize", "cumsum"))


def _unite_reduced(tape: Tape, call: Call, axes: set[int]) -> np.ndarray | None:
    """Ids where what is reduced together is one; None, locked, where those are all channels."""
    ids = call.values[0].ids
    along = axes_of(ids)
    if along and axes.issuperset(along):
        return call.lock(OVER_CHANNELS, call.values[0])
    for axis in axes.intersection(along):
        why = f"{call.title} with values that no filter makes"
        ids = tape.unite_along(ids, axis, why)
    return ids
