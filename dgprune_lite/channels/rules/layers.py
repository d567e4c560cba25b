"""Rules of functions with weights along channels: they make ids, read ids, or belong to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dgprune_lite.channels.ids import Value, Width, varies
from dgprune_lite.channels.rules.registry import Call, locked, rule, spread, title

if TYPE_CHECKING:
    from dgprune_lite.channels.tape import Tape

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


@rule(*CONVOLUTIONS, *TRANSPOSED, always=True)
def convolution(tape: Tape, call: Call) -> Value | None:
    """Reads channels and makes new ones; depthwise, output goes with input."""
    images, weight, bias = (call.argument(i, k) for i, k in enumerate(("input", "weight", "bias")))
    transposed, result, value = call.name in TRANSPOSED, call.result, tape.value(images)
    name = tape.layer_name(weight, bias)
    groups = call.argument(6, "groups", 1)
    if transposed and len(call.args) <= 6:
        groups = call.kwargs.get("groups", 1)
    counted = images if transposed else result
    if result.ndim != weight.ndim:
        return locked(tape, value, f"{name} is run on an image without a batch axis")
    positions = counted.numel() // (counted.shape[1] * tape.images)
    inputs, outputs = images.shape[1], result.shape[1]
    if groups == inputs and groups > 1:  # depthwise: output c·m+k goes with input c
        ids = tape.channel_ids(value.ids, 1)
        if not isinstance(groups, Width):
            tape.lock(ids, f"{name} convolves in a number of groups that is fixed in the code")
        ids = ids.repeat_interleave(outputs // inputs)
        if bias is None and name not in tape.modules:  # a fixed kernel, such as one that blurs
            kernel = tape.rows_of(weight, outputs) if id(weight) in tape.owners else None
            kernel = tape.value(weight).ids[:, 0] if kernel is None else kernel
            tape.unite(ids, tape.channel_ids(kernel, 0), "a kernel for so many channels")
            tape.other_macs += weight.numel() * positions * (not tape.training)
            return Value(spread(ids, result, 1), value.zero, value.gates)
        return tape.made(call, name, "conv", ids, None, weight, bias, positions, 1)
    into = tape.consume(name or call.name, value, 1)
    rows = tape.weight_rows(weight, outputs, transposed)
    if groups > 1:
        why = f"{name} convolves in groups that must stay equally wide"
        for ids in (into, rows):  # the groups lose channels at the same offsets
            tape.unite_along(ids.reshape(groups, -1), 0, why)
        into = into.reshape(groups, -1)[0]
    return tape.made(call, name, "conv", rows, into, weight, bias, positions, 1)


@rule("linear", always=True)
def linear(tape: Tape, call: Call) -> Value:
    """Reads channels and makes new ones."""
    images, weight, bias = (call.argument(i, k) for i, k in enumerate(("input", "weight", "bias")))
    name = tape.layer_name(weight, bias)
    into = tape.consume(name or call.name, tape.value(images), -1)
    positions = call.result.numel() // (weight.shape[0] * tape.images)
    rows = tape.weight_rows(weight, weight.shape[0])
    return tape.made(call, name, "linear", rows, into, weight, bias, positions, -1)


@rule("batch_norm", "instance_norm", always=True)
def norm(tape: Tape, call: Call) -> Value:
    """Each channel is normalised by itself, so a gate behind it does."""
    value, (_, mean, variance, weight, bias) = (
        tape.value(call.args[0]),
        [
            call.argument(i, k)
            for i, k in enumerate(("input", "running_mean", "running_var", "weight", "bias"))
        ],
    )
    ids = tape.channel_ids(value.ids, 1)
    name = tape.layer_name(weight, bias, mean, variance, norm=True)
    if name:
        return tape.made(call, name, "norm", ids, None, weight, bias, 0, 1, mean, variance)
    for tensor in (weight, bias, mean, variance):
        if tensor is not None:
            tape.unite(ids, tape.channel_ids(tape.value(tensor).ids, 0), "a fixed scale")
    zero = value.zero and bias is None and mean is None
    return Value(spread(ids, call.result, 1), zero, value.gates if zero else frozenset())


@rule("group_norm", always=True)
def group_norm(tape: Tape, call: Call) -> Value:
    """Channels that are normalised together can only go together, group by group."""
    value, count = tape.value(call.args[0]), call.argument(1, "num_groups")
    weight, bias = call.argument(2, "weight"), call.argument(3, "bias")
    ids, name = tape.channel_ids(value.ids, 1), tape.layer_name(weight, bias, norm=True)
    if count == 1:
        tape.lock(ids, f"{name} (GroupNorm) normalises all channels together")
    elif getattr(tape.modules.get(name), "num_groups", None) != count:
        tape.lock(ids, f"{name} normalises in a number of groups that is fixed in the code")
    why = f"{name} (GroupNorm) normalises it together with fixed channels"
    tape.unite_along(ids.reshape(count, -1), 1, why)
    return tape.made(call, name, "norm", ids, None, weight, bias, 0, 1)


@rule("prelu", always=True)
def prelu(tape: Tape, call: Call) -> Value:
    """Zero stays zero; slopes, where each channel has its own, go with the channels."""
    value, weight = tape.value(call.args[0]), call.argument(1, "weight")
    if weight.numel() == 1:
        return value
    ids, name = tape.channel_ids(value.ids, 1), tape.layer_name(weight)
    if name in tape.modules:
        ids = tape.made(call, name, "activation", ids, None, weight, None, 0, 1).ids
    else:
        tape.unite(ids, tape.value(weight).ids, "a fixed slope")
        ids = spread(ids, call.result, 1)
    return Value(ids, value.zero, value.gates)


@rule("layer_norm", "rms_norm", "local_response_norm")
def layer_norm(tape: Tape, call: Call) -> Value | None:
    """Exact only where it normalises positions, such as height and width, and not channels."""
    value = tape.value(call.args[0])
    local = call.name == "local_response_norm"
    axes = [1] if local else range(-len(call.argument(1, "normalized_shape")), 0)
    if any(varies(value.ids, axis) for axis in axes):
        tape.lock(value.ids, f"{title(tape, call)} normalises channels together")
        return None
    zero = value.zero and call.argument(3, "bias") is None
    return Value(value.ids, zero, value.gates if zero else frozenset())
