"""Other ways to measure what a domain loses, and to average it, tried in the search for a score.

:func:`masked_statistics` measures in the absence of other filters, since pruning takes whole
shares of a layer and no filter goes alone. :func:`virtual_domains` makes more domains out of the
given ones, since three risks give a poor estimate of a variance. ``SCORES`` give every domain an
equal say, however large its risk.

What this file is *not*: what the package does by default. Chapter 8 says how both fare.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional

from dgprune_lite.channels.graph import ChannelGraph
from dgprune_lite.domains import count, fetch
from dgprune_lite.domains.tensors import MEAN, STD
from dgprune_lite.scores.gates import check_graph, gated
from dgprune_lite.scores.risks import DomainStatistics, Order, domain_statistics


def masked_statistics(
    model: nn.Module,
    graph: ChannelGraph,
    data: Mapping[str, Dataset[Any]],
    *,
    order: Order = "fisher",
    folds: int = 4,
    repeats: int = 2,
    seed: int = 0,
    **options: Any,
) -> DomainStatistics:
    """Average the statistics over networks from which a random share of every group is gone.

    Each repeat deals the filters of every group into ``folds`` and masks one fold after the other,
    so every filter is absent equally often. An absent filter adds nothing to its sums, which makes
    all of them smaller by the same factor. The remaining filters are scaled up by
    ``folds / (folds - 1)``, as in dropout, so that activations keep their size.

    Args:
        model: The network that ``graph`` was traced from; left as it is.
        graph: From :func:`~dgprune_lite.channels.graph.trace_channels`.
        data: Domain name to a data set of (image, label). Pass source domains only.
        order: "first" or "fisher", as in :func:`~dgprune_lite.scores.risks.domain_statistics`.
        folds: 1 / ``folds`` of every group is absent; at least 2.
        repeats: How often the filters are dealt.
        seed: Of the dealing.
        options: To :func:`~dgprune_lite.scores.risks.domain_statistics`: ``batch_size``,
            ``precision``, ``workers``, ``progress``.

    Raises:
        TypeError: Something else than a network, or than a graph.
        ValueError: A graph of another model, fewer than two folds, no repeat, or
            ``order="exact"``.

    Source: ours; chapter 8.

    >>> import dgprune_lite as dg
    >>> model = dg.build_model("digits_cnn", width=4)
    >>> graph = dg.trace_channels(model, torch.zeros(1, 3, 28, 28))
    >>> data = torch.utils.data.TensorDataset(torch.rand(5, 3, 28, 28), torch.arange(5))
    >>> masked_statistics(model, graph, {"a": data, "b": data}).fisher.shape
    torch.Size([2, 20])
    """
    check_graph(model, graph)
    if folds < 2 or repeats < 1:
        raise ValueError(f"folds={folds!r} must be at least 2 and repeats={repeats!r} at least 1")
    if order == "exact":
        raise ValueError("order='exact' has no masked form: take 'first' or 'fisher'")
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for _ in range(repeats):
        dealt = torch.cat(
            [
                torch.randperm(group.size, generator=generator) % folds
                for group in graph.groups.values()
            ]
        )
        for fold in range(folds):
            gates = (dealt != fold) * folds / (folds - 1)
            with gated(model, graph, gates):
                parts.append(domain_statistics(model, graph, data, order=order, **options))
    return reduce(add, parts)


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "inverted": lambda images: 1 - images,
    "blurred": lambda images: functional.gaussian_blur(images, [5, 5], [1.0, 1.0]),
    "pale": lambda images: 0.4 * images + 0.3,
    "recoloured": lambda images: images.roll(1, dims=1),
}
"""How each changed copy of a domain is made, from images (n, channels, height, width) in [0, 1]."""


class _Changed(Dataset):
    """A data set whose images are changed as they are read."""

    def __init__(
        self, dataset: Dataset[Any], change: Callable[[Tensor], Tensor], normalized: bool
    ) -> None:
        self.dataset, self.change, self.normalized = dataset, change, normalized

    def __len__(self) -> int:
        return count(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = fetch(self.dataset, [index])
        if not self.normalized:
            return self.change(images)[0], labels[0]
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        return functional.normalize(self.change(images * std + mean), MEAN, STD)[0], labels[0]


def virtual_domains(
    data: Mapping[str, Dataset[Any]], *, normalized: bool = False
) -> dict[str, Dataset[Any]]:
    """Give every domain changed copies of itself as further domains.

    The changes are inversion, blur, low contrast and a rotation of the colour channels. They were
    fixed before any unseen domain was measured with them.

    Args:
        data: Domain name to a data set of (image, label), images float in [0, 1].
        normalized: Whether the images are normalised with ImageNet's mean and standard deviation;
            the changes are then made in between.

    Returns:
        The domains and, named "domain, change", their copies; images are changed when read.

    Source: ours, after the domains that Volpi et al. 2018 ("Generalizing to unseen domains via
    adversarial data augmentation") make out of one.

    >>> data = torch.utils.data.TensorDataset(torch.rand(5, 3, 28, 28), torch.arange(5))
    >>> list(virtual_domains({"a": data}))
    ['a', 'a, inverted', 'a, blurred', 'a, pale', 'a, recoloured']
    """
    return {
        **data,
        **{
            f"{name}, {title}": _Changed(part, change, normalized)
            for name, part in data.items()
            for title, change in CHANGES.items()
        },
    }


def geometric_mean(model: nn.Module, graph: ChannelGraph, stats: DomainStatistics) -> Tensor:
    """mean_d log F_d, float64 (filters,): of equal means, what only some domains need goes first.

    Source: ours, after the averages of logarithms that do not care for a domain's scale.
    """
    return stats.fisher.clamp_min(torch.finfo(torch.float64).tiny).log().mean(0)


def mean_rank(model: nn.Module, graph: ChannelGraph, stats: DomainStatistics) -> Tensor:
    """Average over domains of the filter's rank in its group by F_d, float64 (filters,).

    Source: ours, after Borda's count: every domain votes.
    """
    parts = [
        values.argsort(dim=1, stable=True).argsort(dim=1).double().mean(0)
        for values in stats.fisher.split([group.size for group in graph.groups.values()], dim=1)
    ]
    return torch.cat(parts)


SCORES = {"geometric_mean": geometric_mean, "mean_rank": mean_rank}
"""Criteria of the search that are none of the package's; all need statistics."""
