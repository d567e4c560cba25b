"""Gates: a factor z_m = 1 on every filter m, and what the losses gain from turning it.

With gates of 0 a filter is masked; the gradient with respect to a gate at 1 says what its filter
does for the loss, to first order. What this file is *not*: a statistic of a domain. It works on one
batch; ``risks.py`` adds up batches and domains.
"""

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

from dgprune_lite.channels.graph import ChannelGraph, misfit
from dgprune_lite.domains import to_device
from dgprune_lite.running import (
    HALF,
    check_model,
    check_precision,
    device_of,
    evaluating,
    logits_of,
)


def check_graph(model: nn.Module, graph: ChannelGraph) -> None:
    """Raise TypeError unless ``graph`` is one, ValueError unless it could come from ``model``."""
    if not isinstance(graph, ChannelGraph):
        raise TypeError(f"graph is {graph!r:.80}, expected what trace_channels(model, ...) gives")
    shapes = {name: layer.weight_shape for name, layer in graph.layers.items()}
    if problem := misfit(model, shapes):
        raise ValueError(
            f"the graph is of another model: {problem}. Trace this model with trace_channels"
        )


def losses_of(
    model: nn.Module, images: Tensor, labels: Tensor, where: str, precision: str = "float32"
) -> Tensor:
    """Cross-entropy of every image, in nats (n,), float32 at least."""
    logits = logits_of(model, images.clone(), precision)  # some normalise their input in place
    if not isinstance(logits, Tensor):
        raise TypeError(f"the model gives a {type(logits).__name__}, expected a tensor of logits")
    if logits.ndim != 2 or len(logits) != len(labels):
        raise ValueError(
            f"the model gives {tuple(logits.shape)} for {len(labels)} images, expected "
            f"({len(labels)}, classes)"
        )
    least, most = (int(value) for value in torch.stack(labels.aminmax()).tolist())
    if least < 0 or most >= logits.shape[1]:
        raise ValueError(
            f"label {least if least < 0 else most} in {where} is outside the model's "
            f"{logits.shape[1]} classes: check the data set's labels and the model's num_classes"
        )
    return F.cross_entropy(logits, labels, reduction="none")


def gate_gradients_per_image(
    model: nn.Module,
    graph: ChannelGraph,
    images: Tensor,
    labels: Tensor,
    *,
    where: str = "data",
    precision: str = "float32",
) -> tuple[Tensor, Tensor]:
    """Losses of images and their gradients with respect to the gates: ∂ℓ_n/∂z_m at z = 1.

    The model runs in eval mode and is left as it was: weights and statistics, modes, ``.grad``,
    flags, hooks and random state.

    Args:
        model: The network that ``graph`` was traced from; gives logits (n, classes).
        graph: From :func:`~dgprune_lite.channels.graph.trace_channels`; M filters.
        images: (n, channels, height, width), in the type of the weights and on their device.
        labels: int64 (n,), from 0 to classes - 1, on the same device.
        where: What error messages call these images.
        precision: "float32" runs the network as it is; "bfloat16", or on CUDA "float16", with
            autocast.

    Returns:
        The losses (cross-entropy, nats), float64 (n,), and the gradients, float64 (n, M), on the
        network's device.

    Raises:
        TypeError: Something else than a network, or a network that does not return logits.
        ValueError: A graph of another model, labels that do not fit, a loss that is not finite, a
            precision that the device cannot compute in, or a layer whose output does not have the
            images along its first axis.

    Source: Molchanov et al., "Pruning convolutional neural networks for resource efficient
    inference", ICLR 2017; chapter 5.

    >>> import torch, dgprune_lite as dg
    >>> model, images = dg.build_model("digits_cnn", width=4), torch.rand(2, 3, 28, 28)
    >>> graph = dg.trace_channels(model, images)
    >>> losses, gradients = dg.gate_gradients_per_image(model, graph, images, torch.tensor([3, 8]))
    >>> losses.shape, gradients.shape, model.training
    (torch.Size([2]), torch.Size([2, 20]), True)
    """
    check_model(model)
    check_graph(model, graph)
    check_precision(precision, device_of(model))
    with evaluating(model):
        return gate_gradients(model, graph, images, labels, where=where, precision=precision)


def gate_gradients(
    model: nn.Module,
    graph: ChannelGraph,
    images: Tensor,
    labels: Tensor,
    *,
    per_image: bool = True,
    where: str = "data",
    precision: str = "float32",
) -> tuple[Tensor, Tensor]:
    """Losses (n,) and their gate gradients (n, M), or the sum of those (M,), in eval mode."""
    sums: list[tuple[str, Tensor]] = []  # by gate: (n, channels) or (channels,)
    tap = images.new_empty((), requires_grad=True)

    def put_gate(name: str, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
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

        only_hook = len(layer._forward_hooks) == 1
        if type(layer) in BATCHNORMS and only_hook and len(inputs) == 1:
            return _Gate.apply(output, tap, note, inputs[0], layer.forward)
        return _Gate.apply(output, tap, note, None, None)

    # float16 ends at 6e-8: scaled up by a power of two, nothing is rounded, and less is lost.
    scale = 2.0**10 if precision == "float16" else 1.0
    with _frozen(model), gate_hooks(model, graph, put_gate), torch.enable_grad():
        losses = losses_of(model, images, labels, where, precision)
        torch.autograd.grad(losses, tap, torch.full_like(losses, scale), allow_unused=True)
    losses = losses.detach().double()
    if not isfinite(losses.sum()):
        bad = losses[~losses.isfinite()][0].item()
        raise ValueError(f"the loss is {bad} in {where}: check the images and the trained weights")
    shape = (len(images), graph.num_filters + 1) if per_image else (graph.num_filters + 1,)
    total = losses.new_zeros(shape)  # the last column is for channels that are fixed, -1
    if sums:
        units = np.concatenate([graph.layers[name].out_units for name, _ in sums])
        index = to_device(torch.from_numpy(units % shape[-1]), total.device)
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
    kind = torch.float32 if product.dtype in HALF.values() else product.dtype
    return product.sum(axes, dtype=kind) if axes else product.to(kind)


BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _Gate(torch.autograd.Function):
    """A gate at 1: hands an activation a on, and ``note(a, ∂ℓ/∂a)`` learns both on the way back.

    Behind a BatchNorm, a is made again from the layer's input, which autograd keeps anyway; to keep
    it, too, would make scoring need half as much memory again as training.
    """

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        tap: Tensor,  # makes autograd come by, also where no parameter before needs a gradient
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


def along_channels(gate: Tensor, output: Tensor, kind: str) -> Tensor:
    """View a gate (channels,) or (n, channels) so that it multiplies ``output``'s channels."""
    if kind == "linear":
        return gate if gate.ndim == 1 else gate.reshape(len(gate), *[1] * (output.ndim - 2), -1)
    return gate.reshape(*gate.shape, *[1] * (output.ndim - 2))


@contextmanager
def gate_hooks(model: nn.Module, graph: ChannelGraph, put_gate: Any) -> Iterator[None]:
    """Inside the block, ``put_gate(name, inputs, output)`` replaces a gated module's output."""
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: put_gate(name, args, output)
        )
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

    With gates of 0 and 1 this *masks* filters: the network computes what it would without them,
    at full cost. :func:`~dgprune_lite.pruning.pruning.plan_pruning` removes them for real.

    Args:
        model: The network that ``graph`` was traced from.
        graph: From :func:`~dgprune_lite.channels.graph.trace_channels`.
        gates: Floats (M,), or a dict of group name to (filters,).

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
    if values.shape != (graph.num_filters,):
        raise ValueError(f"gates have shape {tuple(values.shape)}, expected ({graph.num_filters},)")

    def put_gate(name: str, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        units = torch.from_numpy(graph.layers[name].out_units)
        gate = torch.ones(len(units), dtype=output.dtype)
        gate[units >= 0] = values.detach().cpu().to(output.dtype)[units[units >= 0]]
        gate = to_device(gate, output.device)
        return output * along_channels(gate, output, graph.layers[name].kind)

    with gate_hooks(model, graph, put_gate):
        yield
