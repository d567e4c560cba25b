"""What each domain loses when a filter goes: estimated from gate gradients, or exactly.

Put a gate z_m = 1 on every filter m, after its BatchNorm (or on its output where there is none).
Removing the filter is z_m = 0, and changes the risk R_d of domain d by

    Δ_dm = R_d(z_m = 0) - R_d(1)          exactly (ablation, ``ablation.py``)
         ≈ -J_dm                          to first order,  J_dm = ∂R_d/∂z_m
         ≈ -J_dm + ½ F_dm                 to second order, F_dm = E_n[(∂ℓ_n/∂z_m)²]

with F the diagonal of the Fisher information of the gates. Chapter 5 derives this.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial, reduce
from operator import add
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from dgprune_lite.channels.graph import ChannelGraph
from dgprune_lite.checks import named_domains
from dgprune_lite.domains import batches
from dgprune_lite.running import (
    Logits,
    check_precision,
    device_of,
    evaluating,
    in_dtype_of,
    layout_for,
)
from dgprune_lite.scores.ablation import ablated_losses
from dgprune_lite.scores.gates import check_graph, gate_gradients

Order = Literal["first", "fisher", "exact"]
ORDERS: tuple[Order, ...] = ("first", "fisher", "exact")


@dataclass(frozen=True)
class Reading:
    """How images are read and passed through a network, see :func:`domain_statistics`."""

    batch_size: int | None = None
    precision: str = "float32"
    workers: int = 0
    logits: Logits | None = None
    progress: bool = False


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
        """Estimate Δ_dm to an order, in nats, float64 (D, M).

        Args:
            order: "first": -J; "second": -J + ½F; "fisher": ½F, which is what remains where the
                domain's own slope J is 0 (Theis et al. 2018); "exact": the measured ablation.
        """
        if order == "exact":
            return self.ablation
        if order == "first":
            return -self.gradient
        if order == "second":
            return -self.gradient + self.fisher / 2
        if order == "fisher":
            return self.fisher / 2
        raise ValueError(f"order={order!r} is not one of 'first', 'second', 'fisher', 'exact'")

    def __add__(self, other: DomainStatistics) -> DomainStatistics:
        if self.domains != other.domains or self.gradient_sum.shape != other.gradient_sum.shape:
            raise ValueError(
                f"statistics of other domains or filters do not add up: {self.domains} with "
                f"{self.gradient_sum.shape[1]} filters and {other.domains} with "
                f"{other.gradient_sum.shape[1]}"
            )
        return DomainStatistics(self.domains, *_pairwise(torch.add, self, other))


def concatenate(a: DomainStatistics, b: DomainStatistics) -> DomainStatistics:
    """The statistics of two sets of domains as one."""
    return DomainStatistics(a.domains + b.domains, *_pairwise(lambda *two: torch.cat(two), a, b))


def _pairwise(
    join: Callable[[Tensor, Tensor], Tensor], a: DomainStatistics, b: DomainStatistics
) -> Iterator[Any]:
    """What two statistics hold, joined tensor by tensor; None where one lacks it."""
    for field in fields(DomainStatistics)[1:]:
        x, y = getattr(a, field.name), getattr(b, field.name)
        yield None if x is None or y is None else join(x, y)


def domain_statistics(
    model: nn.Module,
    graph: ChannelGraph,
    data: Mapping[str, Dataset[Any]],
    *,
    order: Order = "fisher",
    batch_size: int | None = None,
    precision: str = "float32",
    workers: int = 0,
    logits: Logits | None = None,
    progress: bool = False,
) -> DomainStatistics:
    """Measure, for every domain and filter, what the scores need to know.

    The model runs in evaluation mode and is left as found, also after an error. Frozen parameters
    are scored like any other.

    Args:
        model: The network that ``graph`` was traced from.
        graph: From :func:`~dgprune_lite.channels.graph.trace_channels`.
        data: Domain name to a data set of (image, label). Pass source domains only.
        order: "first": gate gradients. "fisher": also their squares image by image; both take one
            backward pass. "exact": also removes every filter in turn.
        batch_size: Images a pass, by default 256, on a GPU 1024; no influence on the result but
            rounding. Where they do not fit into a GPU's memory, half as many are taken, and so on,
            with a warning if this size was asked for.
        precision: "float32" runs the network as it is; "bfloat16", or on CUDA "float16", with
            autocast. Losses and sums are float32 or float64 in any case.
        workers: As for :func:`~dgprune_lite.networks.evaluation.evaluate`, also ``logits``.
        progress: Whether to show a progress bar.

    Returns:
        The :class:`DomainStatistics`, on the CPU.

    Raises:
        TypeError: Arguments of another kind, or a network without logits.
        ValueError: No or empty domains, images or labels that do not fit, a loss that is not
            finite (names domain and batch), a graph of another model, a layer that runs under
            ``torch.no_grad()``, a precision that the device cannot compute in, or order "exact" in
            half precision (which rounds away what it measures).

    Source: gates as in Molchanov et al. 2017 (first order) and Theis et al. 2018 (Fisher), here
    kept apart by domain; chapter 5.

    >>> import dgprune_lite as dg
    >>> split = dg.leave_one_domain_out(dg.DigitsLite(), test_env="syn", seed=0)
    >>> model = dg.build_model("digits_cnn", width=4)
    >>> graph = dg.trace_channels(model, split.example_inputs)
    >>> dg.domain_statistics(model, graph, split.val).fisher.shape
    torch.Size([3, 20])
    """
    check_graph(model, graph)
    reading = Reading(batch_size, precision, workers, logits, progress)
    return measure(model, graph, named_domains(data, "data"), order, reading)


def measure(
    model: nn.Module,
    graph: ChannelGraph,
    data: Mapping[str, Dataset[Any]],
    order: Order,
    reading: Reading,
) -> DomainStatistics:
    """What `domain_statistics` returns, for domains and a graph that are known to fit."""
    precision, size = reading.precision, reading.batch_size
    if order not in ORDERS:
        raise ValueError(f"order={order!r} is not one of {', '.join(map(repr, ORDERS))}")
    if not graph.num_filters:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in graph.skipped.items())
        raise ValueError(f"no filter of this network can be removed exactly ({reasons})")
    check_precision(precision, device_of(model))
    if order == "exact" and precision != "float32":
        raise ValueError(
            f"precision={precision!r} with order='exact': removing one filter changes the risk by "
            "less than its rounding; use precision='float32'"
        )
    device, layout = device_of(model), layout_for(model, precision)
    if size is None:
        size = 1024 if device.type == "cuda" else 256
    chunk, parts = size, dict[str, DomainStatistics]()

    def of_batch(domain: str, number: int, images: Tensor, labels: Tensor) -> DomainStatistics:
        where, per_image = f"domain {domain!r}, batch {number}", order != "first"
        losses, gradient = gate_gradients(
            model, graph, images, labels, where, precision, reading.logits, per_image
        )
        fisher = ablation = None
        if per_image:
            gradient, fisher = gradient.sum(0), (gradient**2).sum(0)[None].cpu()
        if order == "exact":
            whole, without = ablated_losses(model, graph, images, labels, logits=reading.logits)
            ablation = (without - whole)[None]  # (1, M)
        seen, risk = torch.tensor([len(labels)]), losses.sum()[None].cpu()
        return DomainStatistics((domain,), seen, risk, gradient[None].cpu(), fisher, ablation)

    with evaluating(model):
        for name, dataset in data.items():
            loop = batches(dataset, size, domain=name, device=device, workers=reading.workers)
            shown = tqdm(loop, desc=f"{order} statistics, {name}", disable=not reading.progress)
            for number, (images, labels) in enumerate(shown):
                images = in_dtype_of(model, images).contiguous(memory_format=layout)
                one, fits = _chunked(partial(of_batch, name, number), images, labels, chunk)
                if fits < chunk and reading.batch_size is not None:
                    warnings.warn(
                        f"batches of {chunk} images do not fit into memory: going on with {fits} "
                        f"at a time; pass batch_size={fits}",
                        stacklevel=3,
                    )
                chunk = fits
                parts[name] = parts[name] + one if name in parts else one
    return reduce(concatenate, parts.values())


def _chunked(
    measure: Callable[[Tensor, Tensor], DomainStatistics],
    images: Tensor,
    labels: Tensor,
    size: int,
) -> tuple[DomainStatistics, int]:
    """The statistics of a batch, and in how large chunks it fits a GPU's memory."""
    while True:
        try:
            pairs = zip(images.split(size), labels.split(size), strict=True)
            return reduce(add, (measure(x, y) for x, y in pairs)), size
        except torch.cuda.OutOfMemoryError:
            if size == 1 or len(images) == 1:
                raise
        size = min(size, len(images)) // 2  # here, where what the error held is free again
