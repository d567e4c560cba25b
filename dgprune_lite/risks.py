"""What each domain loses when a filter goes: estimated from gate gradients, or exactly.

Put a gate z_m = 1 on every filter m, after its BatchNorm (or on its output where there is none).
Removing the filter is z_m = 0, and changes the risk R_d of domain d by

    Δ_dm = R_d(z_m = 0) - R_d(1)          exactly (ablation, ``ablation.py``)
         ≈ -J_dm                          to first order,  J_dm = ∂R_d/∂z_m
         ≈ -J_dm + ½ F_dm                 to second order, F_dm = E_n[(∂ℓ_n/∂z_m)²]

with F the diagonal of the Fisher information of the gates. Chapter 5 derives this.

What this module does not do: it makes no scores (``scores.py``) and changes no network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from dgprune_lite.ablation import ablated_losses
from dgprune_lite.channels import ChannelGraph, filters_first, misfit
from dgprune_lite.domains import batches
from dgprune_lite.running import evaluating, layout_for

Order = Literal["first", "fisher", "exact"]
ORDERS: tuple[Order, ...] = ("first", "fisher", "exact")


@dataclass(frozen=True)
class DomainStatistics:
    """Sums over images, per domain (D) and filter (M): all that a score ever sees of the data.

    Statistics of parts of a data set, from batches, shards or machines, add up with ``+``.

    Attributes:
        domains: The D domain names.
        images: int64 (D,), images seen.
        risk_sum: float64 (D,), sum of losses in nats.
        gradient_sum: float64 (D, M), sum over images of ∂ℓ_n/∂z_m.
        fisher_sum: float64 (D, M), sum of (∂ℓ_n/∂z_m)²; None for ``order="first"``.
        ablation_sum: float64 (D, M), sum of ℓ_n(z_m = 0) - ℓ_n(1); only for ``order="exact"``.
    """

    domains: tuple[str, ...]
    images: Tensor
    risk_sum: Tensor
    gradient_sum: Tensor
    fisher_sum: Tensor | None = None
    ablation_sum: Tensor | None = None

    @property
    def risk(self) -> Tensor:
        """R_d, mean loss in nats, float64 (D,)."""
        return self.risk_sum / self.images

    @property
    def gradient(self) -> Tensor:
        """J_dm, gate gradients of the risk, float64 (D, M)."""
        return self.gradient_sum / self.images[:, None]

    @property
    def fisher(self) -> Tensor:
        """F_dm, mean squared gate gradients, float64 (D, M)."""
        return self._mean("fisher", self.fisher_sum)

    @property
    def ablation(self) -> Tensor:
        """Δ_dm, the exact change of the risk when the filter goes, float64 (D, M)."""
        return self._mean("exact", self.ablation_sum)

    def _mean(self, order: str, total: Tensor | None) -> Tensor:
        if total is None:
            raise ValueError(
                f"these statistics hold no {order!r} terms: "
                f"make them with domain_statistics(..., order={order!r})"
            )
        return total / self.images[:, None]

    def risk_change(self, order: str = "fisher") -> Tensor:
        """Δ_dm estimated to an order, in nats, float64 (D, M).

        Args:
            order: "first": -J; "second": -J + ½F; "fisher": ½F, which is what remains at a
                minimum of the risk (Theis et al. 2018); "exact": the measured ablation.
        """
        if order == "first":
            return -self.gradient
        if order == "second":
            return -self.gradient + self.fisher / 2
        if order == "fisher":
            return self.fisher / 2
        if order == "exact":
            return self.ablation
        raise ValueError(f"order={order!r} is not one of 'first', 'second', 'fisher', 'exact'")

    def __add__(self, other: DomainStatistics) -> DomainStatistics:
        if self.domains != other.domains or self.gradient_sum.shape != other.gradient_sum.shape:
            raise ValueError(
                f"statistics of other domains or filters do not add up: {self.domains} with "
                f"{self.gradient_sum.shape[1]} filters and {other.domains} with "
                f"{other.gradient_sum.shape[1]}"
            )

        def both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
            return None if a is None or b is None else a + b

        return DomainStatistics(
            self.domains,
            self.images + other.images,
            self.risk_sum + other.risk_sum,
            self.gradient_sum + other.gradient_sum,
            both(self.fisher_sum, other.fisher_sum),
            both(self.ablation_sum, other.ablation_sum),
        )


def domain_statistics(
    model: nn.Module,
    graph: ChannelGraph,
    data: Mapping[str, Dataset[Any]],
    *,
    order: Order = "fisher",
    batch_size: int = 256,
    progress: bool = False,
) -> DomainStatistics:
    """Measure, for every domain and filter, what the scores need to know.

    The model runs in eval mode and is left as it was: weights, modes, ``.grad``, hooks and
    random state, also when an error is raised. Frozen parameters are scored like any other.

    Args:
        model: The network that ``graph`` was traced from; gives logits (n, classes).
        graph: From :func:`~dgprune_lite.channels.trace_channels`.
        data: Domain name to a data set of (image, label). Pass source domains only.
        order: "first": gate gradients, from one backward pass to the parameters. "fisher": also
            their squares image by image, from one backward pass to explicit gates. "exact":
            also removes every filter in turn.
        batch_size: Images a pass.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: No or empty domains, images or labels that do not fit, a loss that is not
            finite (names domain and batch), a graph of another model.

    Source: gates as in Molchanov et al. 2017 (first order) and Theis et al. 2018 (Fisher), here
    kept apart by domain; chapter 5.

    >>> import torch, dgprune_lite as dg
    >>> model = dg.build_model("digits_cnn", width=4)
    >>> graph = dg.trace_channels(model, torch.zeros(1, 3, 28, 28))
    >>> split = dg.leave_one_domain_out(dg.DigitsLite(), test_env="syn", seed=0)
    >>> few = {name: torch.utils.data.Subset(part, range(8)) for name, part in split.val.items()}
    >>> dg.domain_statistics(model, graph, few).fisher.shape
    torch.Size([3, 20])
    """
    if order not in ORDERS:
        raise ValueError(f"order={order!r} is not one of {', '.join(map(repr, ORDERS))}")
    if not data:
        raise ValueError("data={} holds no domain: pass a dict of domain name to data set")
    check_graph(model, graph)
    if not graph.num_filters:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in graph.skipped.items())
        raise ValueError(f"no filter of this network can be removed exactly ({reasons})")
    like = next(model.parameters())
    parts, layout = [], layout_for(model)
    with evaluating(model):
        for name, dataset in data.items():
            total = None
            loop = batches(dataset, batch_size, domain=name, device=like.device)
            for number, (images, labels) in enumerate(
                tqdm(loop, desc=f"{order} statistics, {name}", disable=not progress)
            ):
                where = f"domain {name!r}, batch {number}"
                images = images.to(like.dtype, memory_format=layout)
                one = _batch_statistics(model, graph, images, labels, name, order, where)
                total = one if total is None else total + one
            assert total is not None  # `batches` refuses an empty domain
            parts.append(total)
    return reduce(_beside, parts)


def check_graph(model: nn.Module, graph: ChannelGraph) -> None:
    """Raise ValueError unless ``graph`` could come from ``model``."""
    shapes = {name: layer.weight_shape for name, layer in graph.layers.items()}
    if problem := misfit(model, shapes):
        raise ValueError(
            f"the graph is of another model: {problem}. Trace this model with trace_channels"
        )


def _beside(a: DomainStatistics, b: DomainStatistics) -> DomainStatistics:
    """The statistics of two sets of domains as one."""

    def cat(x: Tensor | None, y: Tensor | None) -> Tensor | None:
        return None if x is None or y is None else torch.cat([x, y])

    return DomainStatistics(
        a.domains + b.domains,
        torch.cat([a.images, b.images]),
        torch.cat([a.risk_sum, b.risk_sum]),
        torch.cat([a.gradient_sum, b.gradient_sum]),
        cat(a.fisher_sum, b.fisher_sum),
        cat(a.ablation_sum, b.ablation_sum),
    )


def _batch_statistics(
    model: nn.Module,
    graph: ChannelGraph,
    images: Tensor,
    labels: Tensor,
    domain: str,
    order: Order,
    where: str,
) -> DomainStatistics:
    if order == "first":
        losses, gradient = _gate_gradient(model, graph, images, labels, where)
        fisher = None
    else:
        losses, per_image = gate_gradients_per_image(model, graph, images, labels, where=where)
        gradient, fisher = per_image.sum(0), (per_image**2).sum(0)
    ablation = None
    if order == "exact":
        ablated = ablated_losses(model, graph, images, labels)  # (M,)
        ablation = (ablated - losses.sum().cpu())[None]
    return DomainStatistics(
        (domain,),
        torch.tensor([len(labels)]),
        losses.sum().cpu()[None],
        gradient.cpu()[None],
        None if fisher is None else fisher.cpu()[None],
        ablation,
    )


def _losses(model: nn.Module, images: Tensor, labels: Tensor, where: str) -> Tensor:
    """Cross-entropy of every image, in nats (n,)."""
    logits = model(images.clone())  # some networks normalise their input in place
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
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    losses = F.cross_entropy(logits, labels, reduction="none")
    if not bool(losses.isfinite().all()):
        bad = losses[~losses.isfinite()][0].item()
        raise ValueError(f"the loss is {bad} in {where}: check the images and the trained weights")
    return losses


def _gate_gradient(
    model: nn.Module, graph: ChannelGraph, images: Tensor, labels: Tensor, where: str
) -> tuple[Tensor, Tensor]:
    """Losses (n,) and their sum's gate gradient (M,), from parameter gradients alone.

    A gate multiplies a layer's output, as does a common factor on its weight and bias, so
    ∂R/∂z_m = Σ γ·∂R/∂γ + β·∂R/∂β over the filter's channels (w and b for a bare layer).
    """
    sources: list[tuple[Tensor, nn.Module, Tensor]] = []  # units of its channels, parameter
    for name in graph.gates:
        units, module = torch.from_numpy(graph.layers[name].out_units), model.get_submodule(name)
        found = list(module.parameters(recurse=False))
        if not found:  # a BatchNorm without scale and shift: only real gates will do
            losses, per_image = gate_gradients_per_image(model, graph, images, labels, where=where)
            return losses, per_image.sum(0)
        sources += [(units, module, parameter) for parameter in found]
    with _gradients_for(model, [parameter for *_, parameter in sources]), torch.enable_grad():
        losses = _losses(model, images, labels, where)
        gradients = torch.autograd.grad(losses.sum(), [t for *_, t in sources], allow_unused=True)
    total = torch.zeros(graph.num_filters, dtype=torch.float64)
    for (units, module, tensor), gradient in zip(sources, gradients, strict=True):
        if gradient is not None:
            product = filters_first(module, tensor.detach().double() * gradient)
            per_channel = product.reshape(len(units), -1).sum(1)
            total.index_add_(0, units[units >= 0], per_channel.cpu()[units >= 0])
    return losses.detach().double(), total


def gate_gradients_per_image(
    model: nn.Module, graph: ChannelGraph, images: Tensor, labels: Tensor, *, where: str = "data"
) -> tuple[Tensor, Tensor]:
    """Losses (n,) and ∂ℓ_n/∂z_m (n, M), float64, by autograd through explicit gates."""
    gates: list[tuple[Tensor, Tensor]] = []

    def put_gate(name: str, output: Tensor) -> Tensor:
        units = torch.from_numpy(graph.layers[name].out_units)
        if len(output) != len(images):
            raise ValueError(
                f"{name} gives {len(output)} rows for {len(images)} images: order 'fisher' needs "
                "the images along the first axis; use order='first'"
            )
        gate = output.new_ones(len(output), len(units)).requires_grad_()
        gates.append((units, gate))
        return output * along_channels(gate, output, graph.layers[name].kind)

    with _gradients_for(model, []), gate_hooks(model, graph, put_gate), torch.enable_grad():
        losses = _losses(model, images, labels, where)
        gradients = torch.autograd.grad(losses.sum(), [g for _, g in gates], allow_unused=True)
    total = losses.new_zeros(len(images), graph.num_filters, dtype=torch.float64)
    for (units, _), gradient in zip(gates, gradients, strict=True):
        if gradient is not None:
            index = units[units >= 0]
            total.index_add_(1, index.to(total.device), gradient[:, units >= 0].double())
    return losses.detach().double(), total


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
    """``put_gate(name, output)`` replaces the output of every gated module, inside the block."""
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: put_gate(name, output)
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
    at full cost. :func:`~dgprune_lite.pruning.plan_pruning` removes them for real.

    Args:
        model: The network that ``graph`` was traced from.
        graph: From :func:`~dgprune_lite.channels.trace_channels`.
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

    def put_gate(name: str, output: Tensor) -> Tensor:
        units = torch.from_numpy(graph.layers[name].out_units)
        gate = torch.ones(len(units), dtype=output.dtype)
        gate[units >= 0] = values.detach().cpu().to(output.dtype)[units[units >= 0]]
        return output * along_channels(gate.to(output.device), output, graph.layers[name].kind)

    with gate_hooks(model, graph, put_gate):
        yield
