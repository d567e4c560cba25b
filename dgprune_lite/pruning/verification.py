"""Whether a pruned network computes what the whole one does with the same filters masked."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dgprune_lite.channels.graph import ChannelGraph, keep_mask
from dgprune_lite.exactness import full_float32
from dgprune_lite.running import check_unwrapped, device_of, evaluating, in_dtype_of, outputs_in
from dgprune_lite.scores.gates import check_graph, gating

if TYPE_CHECKING:
    from dgprune_lite.pruning.plans import PruningPlan

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
"""How far outputs may differ by rounding, as a share of the largest of them."""


def check_exact(
    model: nn.Module,
    small: nn.Module,
    plan: PruningPlan,
    graph: ChannelGraph,
    example_inputs: Tensor | tuple[Tensor, ...],
) -> float:
    """Compare a pruned network with the whole one whose filters are masked, on one batch.

    Both run in eval mode, in full float32 (on a GPU without TF32), and are left as found.

    Args:
        model: The whole network, from which ``graph`` was traced.
        small: What ``plan.apply(model)`` gave, before any fine-tuning.
        plan: The plan that was applied.
        graph: From :func:`~dgprune_lite.channels.graph.trace_channels`.
        example_inputs: A batch for the network, or a tuple of several inputs, where and as
            precise as the network is. Real images tell more than zeros.

    Returns:
        The largest difference of two outputs over the largest of these outputs, 0 for equal
        networks. Outputs are all tensors in what the network returns.

    Raises:
        TypeError: Something else than networks.
        ValueError: They differ by more than rounding (see ``TOLERANCE``; whole numbers must be
            equal), or in shape, or there are no outputs. Names the layers where it begins.

    >>> import dgprune_lite as dg
    >>> model, images = dg.build_model("digits_cnn", width=4), torch.rand(2, 3, 28, 28)
    >>> graph = dg.trace_channels(model, images)
    >>> plan = dg.plan_pruning(graph, dg.score("l1", model, graph), pruning_ratio=0.5)
    >>> dg.check_exact(model, plan.apply(model), plan, graph, images) < 1e-5
    True
    """
    for network in (model, small):
        check_unwrapped(network)
    check_graph(model, graph)
    batch = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    masked = _run(model, batch, graph, plan.kept_gates)
    return _compare(masked, model, small, plan, graph, batch)


def check_applied(model: nn.Module, small: nn.Module, plan: PruningPlan) -> None:
    """Raise a ValueError unless the two agree on random inputs of the traced shapes."""
    generator = torch.Generator().manual_seed(0)

    def other(value: Tensor) -> Tensor:
        if value.is_floating_point():  # of others, such as indices, not every value is allowed
            value = in_dtype_of(model, torch.randn(value.shape, generator=generator))
        return value.to(device_of(model))

    batch = tuple(other(value) for value in plan.graph.inputs)
    try:
        masked = _run(model, batch, plan.graph, plan.kept_gates)
    except Exception as error:
        raise ValueError(
            f"the plan cannot be checked on random inputs: {type(model).__name__} fails with "
            f"{error}. Use plan.apply(model, check=False), and compare both on your own inputs "
            "with check_exact"
        ) from error
    _compare(masked, model, small, plan, plan.graph, batch)


def _run(
    network: nn.Module,
    batch: tuple[Tensor, ...],
    graph: ChannelGraph,
    gates: dict[str, Tensor] | None = None,
) -> list[Tensor]:
    """The outputs of a network for a copy of the batch, with its filters gated if asked."""
    values = [value.clone() for value in batch]  # some change their input in place
    gate = nullcontext() if gates is None else gating(network, graph, graph.join(gates))
    with full_float32(), torch.no_grad(), evaluating(network), gate:
        return list(outputs_in(network(*values)))


def _compare(
    masked: list[Tensor],
    model: nn.Module,
    small: nn.Module,
    plan: PruningPlan,
    graph: ChannelGraph,
    batch: tuple[Tensor, ...],
) -> float:
    """The largest relative difference to the masked outputs, or a ValueError that says where."""
    try:
        return _largest_difference(masked, _run(small, batch, graph))
    except Exception as error:
        said = str(error).split("\n")[0]
        raise ValueError(
            f"the pruned network does not compute what the masked one does: {said}. "
            + _advice(model, small, plan, graph, batch)
        ) from error


def _largest_difference(masked: list[Tensor], pruned: list[Tensor]) -> float:
    """The largest difference over the largest output, or a ValueError where it is no rounding."""
    if not masked or len(masked) != len(pruned):
        raise ValueError(f"it returns {len(pruned)} tensors, the masked one {len(masked)}")
    worst = 0.0
    for one, other in zip(masked, pruned, strict=True):
        if one.shape != other.shape:
            raise ValueError(
                f"it gives shape {tuple(other.shape)}, the masked one {tuple(one.shape)}"
            )
        gap, scale = _gap(one, other)
        dtype = one.dtype.to_real() if one.is_complex() else one.dtype
        if not gap <= TOLERANCE.get(dtype, 0.0) * scale:
            raise ValueError(f"outputs differ by {gap:.3g}, the largest is {scale:.3g}")
        worst = max(worst, gap / scale if gap else 0.0)
    return worst


def _gap(one: Tensor, other: Tensor) -> tuple[float, float]:
    """The largest difference of two tensors, and the size of their largest finite entry."""
    differ = (one != other) & ~(one.isnan() & other.isnan())
    if not bool(differ.any()):
        return 0.0, 0.0
    if not (one.is_floating_point() or one.is_complex()):
        one, other = one.double(), other.double()
    sizes = torch.stack([one.abs(), other.abs()])
    largest = sizes[sizes.isfinite()].amax() if bool(sizes.isfinite().any()) else 0.0
    return float((one - other)[differ].abs().amax()), float(largest)


def _advice(
    model: nn.Module,
    small: nn.Module,
    plan: PruningPlan,
    graph: ChannelGraph,
    batch: tuple[Tensor, ...],
) -> str:
    """Where the two begin to differ, and which layers had better keep their filters."""
    removed = graph.join(plan.kept_gates).numpy() == 0
    masked = _layer_outputs(model, graph, batch, plan.kept_gates)
    pruned = _layer_outputs(small, graph, batch)
    where, units = "behind the last layer", np.arange(graph.num_filters)
    for name, whole in masked.items():
        layer = graph.layers[name]
        axis = whole.ndim - 1 if layer.kind == "linear" else 1
        if whole.ndim <= axis or whole.shape[axis] != len(layer.out_units):
            continue
        kept = np.flatnonzero(keep_mask(layer.out_units, removed))
        part = whole.index_select(axis, torch.from_numpy(kept).to(whole.device))
        try:
            _largest_difference([part], [pruned[name]])
        except (KeyError, ValueError):  # the pruned network did not get there, or differs
            where = f"at {name!r}"
            units = layer.out_units if layer.in_units is None else layer.in_units
            break
    gone = set(units[units >= 0].tolist()) & set(np.flatnonzero(removed).tolist())
    names = [
        producer
        for group in graph.groups.values()
        if not gone.isdisjoint(range(group.start, group.start + group.size))
        for producer in group.producers
    ]
    return (
        f"They first differ {where}. Some operation before uses channels in a way that "
        f"trace_channels does not follow: plan with ignored_layers={names}, and please report the "
        "network"
    )


def _layer_outputs(
    network: nn.Module,
    graph: ChannelGraph,
    batch: tuple[Tensor, ...],
    gates: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The first output of each layer, in the order of the calls, as far as the network runs."""
    found: dict[str, Tensor] = {}

    def note(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and name not in found:
            found[name] = output.clone()  # what follows may change it in place

    modules = dict(network.named_modules())
    handles = [
        modules[name].register_forward_hook(partial(note, name))
        for name in graph.layers
        if name in modules
    ]
    try:
        with suppress(Exception):
            _run(network, batch, graph, gates)
    finally:
        for handle in handles:
            handle.remove()
    return found
