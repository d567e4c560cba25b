"""Gates: a factor z_m = 1 on every filter m, and what the losses gain from turning it.

With gates of 0 a filter is masked; the gradient with respect to a gate at 1 says what its filter
does for the loss, to first order. What this file is *not*: a statistic of a domain. It works on one
batch; ``risks.py`` adds up batches and domains.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dgprune_lite.channels.graph import ChannelGraph, filters_first, misfit
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
    wrong = labels[(labels < 0) | (labels >= logits.shape[1])]
    if len(wrong):
        raise ValueError(
            f"label {int(wrong[0])} in {where} is outside the model's {logits.shape[1]} "
            "classes: check the data set's labels and the model's num_classes"
        )
    losses = F.cross_entropy(logits, labels, reduction="none")
    if not bool(losses.isfinite().all()):
        bad = losses[~losses.isfinite()][0].item()
        raise ValueError(f"the loss is {bad} in {where}: check the images and the trained weights")
    return losses


def gate_gradient(
    model: nn.Module,
    graph: ChannelGraph,
    images: Tensor,
    labels: Tensor,
    *,
    where: str = "data",
    precision: str = "float32",
) -> tuple[Tensor, Tensor]:
    """Losses (n,) and their sum's gate gradient (M,), float64, from parameter gradients alone.

    A gate multiplies a layer's output, as does a common factor on its weight and bias, so
    ∂R/∂z_m = Σ γ·∂R/∂γ + β·∂R/∂β over the filter's channels (w and b for a bare layer).
    """
    sources: list[tuple[Tensor, nn.Module, Tensor]] = []  # units of its channels, parameter
    for name in graph.gates:
        units, module = torch.from_numpy(graph.layers[name].out_units), model.get_submodule(name)
        found = list(module.parameters(recurse=False))
        if not found:  # a BatchNorm without scale and shift: only real gates will do
            losses, per_image = image_gate_gradients(
                model, graph, images, labels, where=where, precision=precision
            )
            return losses, per_image.sum(0)
        sources += [(units, module, parameter) for parameter in found]
    parameters = [parameter for *_, parameter in sources]
    with _gradients_for(model, parameters), torch.enable_grad():
        losses = losses_of(model, images, labels, where, precision)
        gradients = _gradients(losses, parameters, where, precision)
    products = [
        _products(*(filters_first(module, t).reshape(len(units), -1) for t in (tensor, gradient)))
        for (units, module, tensor), gradient in zip(sources, gradients, strict=True)
    ]
    units = torch.cat([units for units, *_ in sources])
    per_channel = torch.cat(products).cpu()  # once for all layers: a GPU is kept waiting each time
    total = torch.zeros(graph.num_filters, dtype=torch.float64)
    total.index_add_(0, units[units >= 0], per_channel[units >= 0])
    return losses.detach().double(), total


def _products(weights: Tensor, gradients: Tensor) -> Tensor:
    """Row by row the scalar product of two matrices, float64; not all rows at once are float64."""
    step = max(1, 2**20 // weights.shape[1])
    pairs = zip(weights.detach().split(step), gradients.split(step), strict=True)
    return torch.cat([(one.double() * other).sum(1) for one, other in pairs])


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
        return image_gate_gradients(model, graph, images, labels, where=where, precision=precision)


def image_gate_gradients(
    model: nn.Module,
    graph: ChannelGraph,
    images: Tensor,
    labels: Tensor,
    *,
    where: str = "data",
    precision: str = "float32",
) -> tuple[Tensor, Tensor]:
    """What `gate_gradients_per_image` returns, of a network in eval mode that fits the graph."""
    gates: list[tuple[Tensor, Tensor]] = []

    def put_gate(name: str, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        units = torch.from_numpy(graph.layers[name].out_units)
        if len(output) != len(images):
            raise ValueError(
                f"{name} gives {len(output)} rows for {len(images)} images: order 'fisher' needs "
                "the images along the first axis; use order='first'"
            )
        # In half precision the gates stay in float32, and so their gradients are summed in it.
        kind = torch.float32 if output.dtype in HALF.values() else output.dtype
        gate = output.new_ones(len(output), len(units), dtype=kind).requires_grad_()
        gates.append((units, gate))
        layer = model.get_submodule(name)
        only_hook = len(layer._forward_hooks) == 1
        if type(layer) in BATCHNORMS and only_hook and len(inputs) == 1:
            return _UnitGate.apply(output, gate, layer, *inputs)
        view = along_channels(gate, output, graph.layers[name].kind)
        return (output * view).to(output.dtype)

    with _gradients_for(model, []), gate_hooks(model, graph, put_gate), torch.enable_grad():
        losses = losses_of(model, images, labels, where, precision)
        gradients = _gradients(losses, [gate for _, gate in gates], where, precision)
    total = losses.new_zeros(len(images), graph.num_filters, dtype=torch.float64)
    units = torch.cat([units for units, _ in gates])
    per_channel = torch.cat(gradients, 1).double()  # (n, channels of all gates)
    kept = (units >= 0).nonzero()[:, 0]
    total.index_add_(1, units[kept].to(total.device), per_channel[:, kept.to(total.device)])
    return losses.detach().double(), total


def _gradients(losses: Tensor, by: list[Tensor], where: str, precision: str) -> list[Tensor]:
    """The gradients of the sum of the losses; zeros for what the losses do not depend on."""
    # float16 ends at 6e-8: scaled up by a power of two, nothing is rounded, and less is lost.
    scale = 2.0**10 if precision == "float16" else 1.0
    found = torch.autograd.grad(losses.sum() * scale, by, allow_unused=True)
    gradients = [
        torch.zeros_like(of) if gradient is None else gradient
        for of, gradient in zip(by, found, strict=True)
    ]
    if precision != "float16":
        return gradients
    if not all(bool(gradient.isfinite().all()) for gradient in gradients):
        raise ValueError(f"a gate gradient overflows float16 in {where}: use precision='bfloat16'")
    return [gradient / scale for gradient in gradients]


BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _UnitGate(torch.autograd.Function):
    """A gate at 1 behind a BatchNorm, which hands the activation a on without keeping it.

    ∂ℓ/∂z = Σ a·∂ℓ/∂a needs the activation once more. It is made again from the layer's input, which
    autograd keeps anyway; a product with the gate would keep one more tensor a layer, so that
    scoring would need half as much memory again as training.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, gate: Tensor, layer: nn.Module, inputs: Tensor) -> Tensor:
        ctx.layer, ctx.dtype = layer, gate.dtype
        ctx.save_for_backward(inputs)
        ctx.mark_dirty(output)  # handed on as it is, so that a ReLU in place may follow
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        with torch.no_grad():
            output = ctx.layer.forward(*ctx.saved_tensors)  # past the hooks
            # In bfloat16 the products are rounded, as their factors were, and the sum is not: so
            # no float32 copy of an activation is written. In float16 they could overflow.
            factor = gradient.to(ctx.dtype) if gradient.dtype == torch.float16 else gradient
            product = output * factor  # (n, channels, ...)
            places = tuple(range(2, product.ndim))
            total = product.sum(places, dtype=ctx.dtype) if places else product.to(ctx.dtype)
        return gradient, total, None, None


@contextmanager
def _gradients_for(model: nn.Module, wanted: list[Tensor]) -> Iterator[None]:
    """Let autograd follow the ``wanted`` parameters and no others; flags as found afterwards."""
    found = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    ids = {id(parameter) for parameter in wanted}
    try:
        for parameter, _ in found:
            parameter.requires_grad_(id(parameter) in ids)
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
