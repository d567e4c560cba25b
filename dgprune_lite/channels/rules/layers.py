"""Rules of modules with parameters along channels: they make ids, read ids, or belong to them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from dgprune_lite.channels.ids import Propagation, Value, varies
from dgprune_lite.channels.rules.registry import fixed, rule, spread, title

PER_CHANNEL_NORMS = (  # each channel is normalised by itself, so a gate behind it does
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear, *PER_CHANNEL_NORMS, nn.GroupNorm, nn.PReLU)


def _check_width(name: str, found: int, expected: int) -> None:
    if found != expected:
        raise ValueError(f"{name} expects {expected} channels and gets {found}")


@rule(*CONVOLUTIONS, *TRANSPOSED, always=True)
def convolution(flow: Any, node: fx.Node, inputs: list[Value], result: Tensor) -> Value:
    name, value = str(node.target), inputs[0]
    module: Any = flow.fetch_attr(name)
    if len(inputs) > 1 or result.ndim != module.weight.ndim:
        for other in inputs:
            flow.lock(other.ids, f"{name} is run on an image without a batch axis, or on several")
        return fixed(result)
    groups = module.groups
    counted = value.ids if isinstance(module, TRANSPOSED) else result
    positions = counted.numel() // (counted.shape[1] * flow.images)
    if groups == module.in_channels and groups > 1:  # depthwise: output c·m+k goes with input c
        ids = flow.channel_ids(value.ids, 1).repeat_interleave(module.out_channels // groups)
        ids = flow.layer(name, "conv", ids, None, positions)
        return Value(spread(ids, result, 1), gates=frozenset([name]))
    into = flow.consume(name, value, 1)
    fresh = flow.fresh(module.out_channels)
    if groups > 1:
        why = f"{name} convolves in groups that must stay equally wide"
        for ids in (into, fresh):  # the groups lose channels at the same offsets
            flow.unite_along(ids.reshape(groups, -1), 0, why)
        into = into.reshape(groups, -1)[0]
    ids = flow.layer(name, "conv", fresh, into, positions)
    return Value(spread(ids, result, 1), gates=frozenset([name]))


@rule(nn.Linear, always=True)
def linear(flow: Any, node: fx.Node, inputs: list[Value], result: Tensor) -> Value:
    name = str(node.target)
    into = flow.consume(name, inputs[0], -1)
    module: Any = flow.fetch_attr(name)
    _check_width(name, len(into), module.in_features)
    positions = result.numel() // (module.out_features * flow.images)
    ids = flow.layer(name, "linear", flow.fresh(module.out_features), into, positions)
    return Value(spread(ids, result, -1), gates=frozenset([name]))


@rule(*PER_CHANNEL_NORMS, always=True)
def norm(flow: Propagation, node: fx.Node, inputs: list[Value], result: Tensor) -> Value:
    name, value = str(node.target), inputs[0]
    module: Any = flow.fetch_attr(name)
    if isinstance(module, nn.modules.instancenorm._InstanceNorm) and (
        result.ndim == module._get_no_batch_dim()
    ):
        flow.lock(value.ids, f"{name} is run on an image without a batch axis")
        return fixed(result)
    ids = flow.channel_ids(value.ids, 1)
    _check_width(name, len(ids), module.num_features)
    return Value(spread(flow.layer(name, "norm", ids), result, 1), gates=frozenset([name]))


@rule(nn.GroupNorm, always=True)
def group_norm(flow: Propagation, node: fx.Node, inputs: list[Value], result: Tensor) -> Value:
    """Channels that are normalised together can only go together, group by group."""
    name, value = str(node.target), inputs[0]
    module: Any = flow.fetch_attr(name)
    ids = flow.channel_ids(value.ids, 1)
    _check_width(name, len(ids), module.num_channels)
    if module.num_groups == 1:
        flow.lock(ids, f"{name} (GroupNorm) normalises all channels together")
    why = f"{name} (GroupNorm) normalises it together with fixed channels"
    flow.unite_along(ids.reshape(module.num_groups, -1), 1, why)
    return Value(spread(flow.layer(name, "norm", ids), result, 1), gates=frozenset([name]))


@rule(nn.PReLU, always=True)
def prelu(flow: Propagation, node: fx.Node, inputs: list[Value], result: Tensor) -> Value:
    """Zero stays zero; slopes, where each channel has its own, go with the channels."""
    name, value = str(node.target), inputs[0]
    module: Any = flow.fetch_attr(name)
    if module.num_parameters == 1:
        return value
    ids = flow.channel_ids(value.ids, 1)
    _check_width(name, len(ids), module.num_parameters)
    return Value(spread(flow.layer(name, "activation", ids), result, 1), value.zero, value.gates)


@rule(nn.LayerNorm)
def layer_norm(flow: Propagation, node: fx.Node, inputs: list[Value], result: Tensor) -> Any:
    """Exact only where it normalises positions, such as height and width, and not channels."""
    value: Value = inputs[0]
    module: Any = flow.fetch_attr(str(node.target))
    axes = range(-len(module.normalized_shape), 0)
    if any(varies(value.ids, axis) for axis in axes):
        flow.lock(value.ids, f"{title(flow, node)} normalises channels together")
        return fixed(result)
    return Value(value.ids, value.zero and module.bias is None, value.gates)
