"""Rules of functions with weights along channels: they make ids, read ids, or belong to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dgprune_lite.channels.ids import Kind, Value, Width, along, axes_of
from dgprune_lite.channels.rules.registry import Call, rule

if TYPE_CHECKING:
    from dgprune_lite.channels.tape import Tape

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
READING = (*CONVOLUTIONS, *TRANSPOSED, "linear")
"""Functions that read channels and make new ones."""


@rule(" ".join(READING), "always")
def layer(tape: Tape, call: Call) -> Value | None:
    """Reads channels and makes new ones; in a depthwise convolution output goes with input."""
    images, weight, bias = (call.argument(i, k) for i, k in enumerate(("input", "weight", "bias")))
    kind: Kind = "linear" if call.name == "linear" else "conv"
    axis = -1 if kind == "linear" else 1
    transposed, value = call.name in TRANSPOSED, tape.value(images)
    name, groups = tape.layer_name(weight, bias), call.argument(6, "groups", 1)
    if kind == "conv" and images.ndim != weight.ndim:
        return call.lock("is run on an image without a batch axis", value)
    inputs, outputs = images.shape[axis], call.result.shape[axis]
    counted = images if transposed else call.result
    positions = counted.numel() // (counted.shape[axis] * tape.images)
    if groups == inputs and groups > 1:  # depthwise: output c·m+k goes with input c
        ids = tape.channel_ids(value.ids, 1, inputs)
        if not isinstance(groups, Width):
            tape.lock(ids, f"{name} convolves in a number of groups that is fixed in the code")
        ids = ids.repeat(outputs // inputs)
        if bias is None and name not in tape.modules:  # a fixed kernel, such as one that blurs
            own = id(weight) in tape.owners
            kernel = tape.rows_of(weight, outputs) if own else tape.value(weight).ids
            kernel = tape.channel_ids(kernel, 0, outputs)
            tape.unite(ids, kernel, "a kernel for so many channels")
            tape.other_macs += weight.numel() * positions * (not tape.training)
            return value.moved(along(ids, call.result, 1))
        return tape.made(call, name, kind, ids, None, weight, bias, positions)
    into = tape.consume(name or call.name, value, axis, inputs)
    rows = tape.weight_rows(weight, outputs, transposed)
    if groups > 1:  # the groups lose channels at the same offsets
        why = f"{name} convolves in groups that must stay equally wide"
        tape.unite_along(rows.reshape(groups, -1), 0, why)
        into = tape.unite_along(into.reshape(groups, -1), 0, why)[0]
    return tape.made(call, name, kind, rows, into, weight, bias, positions)


@rule("batch_norm instance_norm", "always")
def norm(tape: Tape, call: Call) -> Value:
    """Each channel is normalised by itself, so a gate behind it does."""
    keys = ("running_mean", "running_var", "weight", "bias")
    mean, variance, weight, bias = (call.argument(i, key) for i, key in enumerate(keys, start=1))
    value, tensors = tape.value(call.args[0]), (weight, bias, mean, variance)
    ids = tape.channel_ids(value.ids, 1, call.result.shape[1])
    name = tape.layer_name(*tensors, norm=True)
    if name:
        return tape.made(call, name, "norm", ids, None, weight, bias, 0, mean, variance)
    for tensor in tensors:
        if tensor is not None:
            tape.unite(ids, tape.value(tensor).ids, "a fixed scale")
    return value.moved(along(ids, call.result, 1), bias is None and mean is None)


@rule("group_norm", "always")
def group_norm(tape: Tape, call: Call) -> Value:
    """Channels that are normalised together can only go together, group by group."""
    value, count = tape.value(call.args[0]), call.argument(1, "num_groups")
    weight, bias = call.argument(2, "weight"), call.argument(3, "bias")
    ids = tape.channel_ids(value.ids, 1, call.result.shape[1])
    name = tape.layer_name(weight, bias, norm=True)
    if count == 1:
        tape.lock(ids, f"{name} (GroupNorm) normalises all channels together")
    elif getattr(tape.modules.get(name), "num_groups", None) != count:
        tape.lock(ids, f"{name} normalises in a number of groups that is fixed in the code")
    why = f"{name} (GroupNorm) normalises it together with fixed channels"
    tape.unite_along(ids.reshape(count, -1), 1, why)
    return tape.made(call, name, "norm", ids, None, weight, bias, 0)


@rule("prelu", "always")
def prelu(tape: Tape, call: Call) -> Value:
    """Zero stays zero; slopes, where each channel has its own, go with the channels."""
    value, weight = tape.value(call.args[0]), call.argument(1, "weight")
    if weight.numel() == 1:
        return value
    ids, name = tape.channel_ids(value.ids, 1, weight.numel()), tape.layer_name(weight)
    if name in tape.modules:
        return value.moved(tape.made(call, name, "activation", ids, None, weight, None, 0).ids)
    tape.unite(ids, tape.value(weight).ids, "a fixed slope")
    return value.moved(along(ids, call.result, 1))


@rule("layer_norm rms_norm local_response_norm")
def layer_norm(tape: Tape, call: Call) -> Value | None:
    """Exact only where it normalises positions, such as height and width, and not channels."""
    value, local = call.values[0], call.name == "local_response_norm"
    axes = [1] if local else range(-len(call.argument(1, "normalized_shape")), 0)
    if {axis % value.ids.ndim for axis in axes}.intersection(axes_of(value.ids)):
        return call.lock("normalises channels together", value)
    return value.moved(value.ids, call.argument(3, "bias") is None)
