"""Gates: a factor of 1 on the output of every filter, and the gradient of the losses by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dgprune_lite.channels.graph import ChannelGraph
from dgprune_lite.checks import misfit
from dgprune_lite.domains import check_labels, to_device
from dgprune_lite.running import (
    HALF,
    Logits,
    check_model,
    check_precision,
    device_of,
    evaluating,
    logits_of,
)


def check_graph(model: nn.Module, graph: ChannelGraph) -> None:
    """Raise TypeError unless both are what they should be, ValueError unless they fit."""
    check_model(model)
    if not isinstance(graph, ChannelGraph):
        raise TypeError(f"graph is {graph!r:.80}, expected what trace_channels(model, ...) gives")
    shapes = {name: layer.weight_shape for name, layer in graph.layers.items()}
    if problem := misfit(model, shapes):
        raise ValueError(
            f"the graph is of another model: {problem}. Trace this model with trace_channels"
        )


def gate_gradients_per_image(
    model: nn.Module,
    graph: ChannelGraph,
    images: Tensor,
    labels: Tensor,
    *,
    where: str = "data",
    precision: str = "float32",
    logits: Logits | None = None,
) -> tuple[Tensor, Tensor]:
    """Measure losses of images and their gradients with respect to the gates: ∂ℓ_n/∂z_m at z = 1.

    The model runs in evaluation mode and is left as found.

    Args:
        model: The network that ``graph`` was traced from.
        graph: From :func:`~dgprune_lite.channels.graph.trace_channels`; M filters.
        images: (n, channels, height, width), in the type of the weights and on their device.
        labels: int64 (n,), on the same device.
        where: What error messages call these images.
        precision: As for :func:`~dgprune_lite.scores.risks.domain_statistics`, also ``logits``.

    Returns:
        The losses (cross-entropy, nats), float64 (n,), and the gradients, float64 (n, M), on the
        network's device.

    Raises:
        TypeError: Something else than a network, or a network that does not return logits.
        ValueError: As there, or a layer whose output does not have the images along its first axis.

    Source: Molchanov et al., "Pruning convolutional neural networks for resource efficient
    inference", ICLR 2017; chapter 5.

    >>> import torch, dgprune_lite as dg
    >>> model, images = dg.build_model("digits_cnn", width=4), torch.rand(2, 3, 28, 28)
    >>> graph = dg.trace_channels(model, images)
    >>> losses, gradients = dg.gate_gradients_per_image(model, graph, images, torch.tensor([3, 8]))
    >>> losses.shape, gradients.shape, model.training
    (torch.Size([2]), torch.Size([2, 20]), True)
    """
    check_graph(model, graph)
    check_precision(precision, device_of(model))
    with evaluating(model):
        return gate_gradients(model, graph, images, labels, where, precision, logits)


def gate_gradients(
    model: nn.Module,
    graph: ChannelGraph,
    images: Tensor,
    labels: Tensor,
    where: str = "data",
    precision: str = "float32",
    logits: Logits | None = None,
    per_image: bool = True,
) -> tuple[Tensor, Tensor]:
    """Losses (n,) and their gate gradients (n, M), or the sum of those (M,), in evaluation mode."""
    sums: list[tuple[str, Tensor]] = []  # gate, its gradients (n, channels) or (channels,)
    source = images.new_empty((), requires_grad=True)
    # float16 ends at 6e-8: scaled up by a power of two, nothing is rounded, and less is lost.
    scale = 2.0**10 if precision == "float16" else 1.0

    def put_gate(name: str, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            raise ValueError(
                f"{name} runs without gradients, which its filters' scores need: take "
                "torch.no_grad() out of forward, and checkpoint with use_reentrant=False"
            )
        if per_image and len(output) != len(images):
            raise ValueError(
                f"{name} gives {len(output)} rows for {len(images)} images: order 'fisher' needs "
                "the images along the first axis; use order='first'"
            )
        layer, kind = model.get_submodule(name), graph.layers[name].kind
        channels = output.ndim - 1 if kind == "linear" else 1
        axes = tuple(axis for axis in range(per_image, output.ndim) if axis != channels)

        def note(activation: Tensor, gradient: Tensor) -> None:
            sums.append((name, sum_of_products(activation, gradient, axes)))

        if type(layer) in BATCHNORMS and len(layer._forward_hooks) == len(inputs) == 1:
            return _Gate.apply(output, source, note, inputs[0], layer.forward)
        return _Gate.apply(output, source, note, None, None)

    def run() -> Tensor:
        sums.clear()
        # A copy, since some networks change their input in place.
        found = logits_of(model, images.clone(), precision, logits)
        check_labels(labels, found.shape[1], where)
        losses = F.cross_entropy(found, labels, reduction="none")  # nats (n,), float32 at least
        torch.autograd.grad(losses, source, torch.full_like(losses, scale), allow_unused=True)
        return losses.detach().double()

    with _frozen(model), gate_hooks(model, graph, put_gate), torch.enable_grad():
        try:
            losses = run()
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            with torch.autograd.graph.allow_mutation_on_saved_tensors():  # copies: if need be
                losses = run()
    if not isfinite(losses.sum()):
        bad = losses[~losses.isfinite()][0].item()
        raise ValueError(f"the loss is {bad} in {where}: check the images and the trained weights")
    columns = graph.num_filters + 1  # the last one for channels that are fixed
    total = losses.new_zeros(*[len(images)] * per_image, columns)
    if sums:
        units = np.concatenate([graph.layers[name].out_units for name, _ in sums])
        index = to_device(torch.from_numpy(units % columns), total.device)  # -1 becomes the last
        total.index_add_(-1, index, torch.cat([part for _, part in sums], -1).double())
    if scale != 1:
        total /= scale
        if not total.isfinite().all():
            raise ValueError(
                f"a gate gradient overflows float16 in {where}: use precision='bfloat16'"
            )
    return losses, total[..., :-1]


def sum_of_products(activation: Tensor, gradient: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Σ a·∂ℓ/∂a over some axes, float32 at least."""
    # In bfloat16 the products are rounded, as their factors were, and the sum is not: so no
    # float32 copy of an activation is written. In float16 they could overflow.
    if gradient.dtype == torch.float16:
        gradient = gradient.float()
    product = activation * gradient
    dtype = torch.float32 if product.dtype in HALF.values() else product.dtype
    return product.sum(axes, dtype=dtype) if axes else product.to(dtype)


BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _Gate(torch.autograd.Function):
    """A gate at 1: hands an activation a on, and ``note(a, ∂ℓ/∂a)`` learns both on the way back."""

    # Behind a BatchNorm, a is made again from the layer's input, which autograd keeps anyway: to
    # keep a as well, scoring would need half as much memory again as training.

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        source: Tensor,  # needs a gradient, whatever the layers before need
        note: Callable[[Tensor, Tensor], None],
        inputs: Tensor | None,
        again: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        ctx.note, ctx.again = note, again
        if inputs is None:
            ctx.save_for_backward(output)
            return output.clone()  # which the network may change in place
        ctx.save_for_backward(inputs)
        ctx.mark_dirty(output)  # handed on as it is, so that a ReLU in place may follow
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        (kept,) = ctx.saved_tensors
        with torch.no_grad():
            ctx.note(kept if ctx.again is None else ctx.again(kept), gradient)
        return gradient, None, None, None, None


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Keep autograd from computing gradients of parameters; flags as found afterwards."""
    found = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in found:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in found:
            parameter.requires_grad_(flag)


@contextmanager
def gate_hooks(model: nn.Module, graph: ChannelGraph, put_gate: Any) -> Iterator[None]:
    """Inside the block, ``put_gate(name, inputs, output)`` replaces a gated module's output."""
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: put_gate(name, args, output), prepend=True
        )  # so that the network's own hooks see gated activations, too
        for name in graph.gates
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def gated(
    model: nn.Module, graph: ChannelGraph, gates: Tensor | dict[str, Tensor]
) -> Iterator[None]:
    """Multiply every filter's output by its gate while inside the block.

    Gates of 0 and 1 *mask* filters: the network computes what it would without them, at full cost.

    Args:
        model: The network that ``graph`` was traced from.
        graph: From :func:`~dgprune_lite.channels.graph.trace_channels`; M filters.
        gates: Floats (M,), or a dict of group name to (filters,).

    Raises:
        TypeError: Something else than a network, its graph and gates.
        ValueError: A graph of another model, or another number of gates.

    >>> import torch, dgprune_lite as dg
    >>> model = dg.build_model("digits_cnn", width=4).eval()
    >>> images = torch.rand(2, 3, 28, 28)
    >>> graph = dg.trace_channels(model, images)
    >>> with dg.gated(model, graph, torch.zeros(graph.num_filters)):
    ...     bool((model(images) == model.fc.bias).all())
    True
    """
    check_graph(model, graph)
    values = graph.join(gates) if isinstance(gates, dict) else gates
    if not isinstance(values, Tensor):
        raise TypeError(f"gates is {gates!r:.80}, expected a tensor (filters,), or one a group")
    if values.shape != (graph.num_filters,):
        raise ValueError(f"gates have shape {tuple(values.shape)}, expected ({graph.num_filters},)")

    with gating(model, graph, values):
        yield


@contextmanager
def gating(model: nn.Module, graph: ChannelGraph, values: Tensor) -> Iterator[None]:
    """What `gated` does, for gates (M,) and a graph that are known to fit."""

    def put_gate(name: str, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        units = torch.from_numpy(graph.layers[name].out_units)
        gate = torch.ones(len(units), dtype=output.dtype)
        gate[units >= 0] = values.detach().cpu().to(output.dtype)[units[units >= 0]]
        gate = to_device(gate, output.device)
        if graph.layers[name].kind != "linear":
            gate = gate.reshape(-1, *[1] * (output.ndim - 2))
        return output * gate

    with gate_hooks(model, graph, put_gate):
        yield
