"""Checks for chapter 8: how rankings are compared, and how a score is chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dgprune_book.exercises.checking import Exercise, Mistake, Verdict, check
from dgprune_book.study import agreement, choice

Sizes = dict[str, int]


def _ranks(values: Tensor) -> Tensor:
    return values.argsort().argsort().double()


def _pearson(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.double(), other.double()]))[0, 1])


def _layers(values: Tensor, sizes: Sizes) -> Iterator[Tensor]:
    yield from values.split(list(sizes.values()))


def _layer_agreement(one: Tensor, other: Tensor, sizes: Sizes) -> float:
    network = {"sizes": sizes}
    return agreement.rank_correlation(network, one.numpy(), other.numpy())


def _mean_over_layers(
    one: Tensor, other: Tensor, sizes: Sizes, measure: Callable[[Tensor, Tensor], float]
) -> float:
    pairs = zip(_layers(one, sizes), _layers(other, sizes), strict=True)
    return float(np.mean([measure(a, b) for a, b in pairs]))


def _pooled(one: Tensor, other: Tensor, sizes: Sizes) -> float:
    return _pearson(_ranks(one), _ranks(other))


def _without_ranks(one: Tensor, other: Tensor, sizes: Sizes) -> float:
    return _mean_over_layers(one, other, sizes, _pearson)


def _places_for_ranks(one: Tensor, other: Tensor, sizes: Sizes) -> float:
    def measure(a: Tensor, b: Tensor) -> float:
        return _pearson(a.argsort(), b.argsort())

    return _mean_over_layers(one, other, sizes, measure)


def _ranks_of_the_network(one: Tensor, other: Tensor, sizes: Sizes) -> float:
    return _mean_over_layers(_ranks(one), _ranks(other), sizes, _pearson)


def _by_size(one: Tensor, other: Tensor, sizes: Sizes) -> float:
    pairs = zip(_layers(one, sizes), _layers(other, sizes), strict=True)
    found = [_pearson(_ranks(a), _ranks(b)) for a, b in pairs]
    return float(np.average(found, weights=list(sizes.values())))


def _scores() -> list[tuple[Any, ...]]:
    """Two scores whose scale grows from layer to layer, as scores of real networks do."""
    cases = []
    layouts: list[Sizes] = [{"conv1": 8, "conv2": 16, "conv3": 24}, {"conv1": 5, "conv2": 30}]
    for seed, sizes in enumerate(layouts):
        generator = torch.Generator().manual_seed(seed)
        parts = []
        for level, size in enumerate(sizes.values()):
            first, second = torch.randn(2, size, generator=generator, dtype=torch.float64)
            parts.append(torch.stack([first, 0.4 * first + second]).exp() * 5**level)
        one, other = torch.cat(parts, dim=1)
        cases.append((one, other, sizes))
    return cases


LAYER_AGREEMENT = Exercise(
    reference=_layer_agreement,
    cases=_scores,
    mistakes=(
        Mistake(
            _pooled,
            "All filters are ranked in one pool. Layers differ in scale, so the pool mostly asks "
            "whether the two scores rank the *layers* alike: correlate within each layer.",
        ),
        Mistake(
            _without_ranks,
            "The values themselves are correlated (Pearson). One filter with a large score then "
            "decides: correlate their ranks.",
        ),
        Mistake(
            _places_for_ranks,
            "`argsort` gives the places of the sorted values, not the rank of each value: "
            "`argsort` of the `argsort` does.",
        ),
        Mistake(
            _ranks_of_the_network,
            "The ranks are those among all filters of the network: rank anew within each layer.",
        ),
        Mistake(
            _by_size,
            "Large layers count more here. The mean is over layers, each counts once.",
        ),
    ),
    praise="Ranks, within each layer, and the layers count alike.",
)


def check_layer_agreement(function: Callable[..., Any]) -> Verdict:
    """Check ``layer_agreement(one, other, sizes)``, how alike two scores rank filters.

    Args:
        function: Takes ``one`` and ``other``, scores of all filters, float64 tensors (M,) without
            ties, and ``sizes``, layer name to its number of filters, in the network's order. Gives
            the mean over layers of Spearman's rank correlation, a float.

    Returns:
        A :class:`~dgprune_book.exercises.checking.Verdict`.

    Source: chapter 8, "Does the score know what a filter is worth?".

    >>> check_layer_agreement(_pooled).message[:37]
    'All filters are ranked in one pool. L'
    """
    return check(LAYER_AGREEMENT, function)


def _best(rows: pd.DataFrame) -> str:
    return str(rows.groupby("method")["loss_unseen"].mean().idxmin())


def _choose_score(nested: pd.DataFrame, target: str) -> str:
    table = choice.choose_on_sources(nested, list(nested["method"].unique()))
    return str(table[target].idxmin())


def _by_the_target(nested: pd.DataFrame, target: str) -> str:
    return _best(nested[nested["test_env"] == target])


def _by_the_median(nested: pd.DataFrame, target: str) -> str:
    rows = nested[nested["without"] == target]
    return str(rows.groupby("method")["loss_unseen"].median().idxmin())


def _by_the_worst(nested: pd.DataFrame, target: str) -> str:
    rows = nested[nested["without"] == target]
    return str(rows.groupby("method")["loss_unseen"].max().idxmin())


def _by_everything(nested: pd.DataFrame, target: str) -> str:
    return _best(nested)


def _trained_on_the_target(nested: pd.DataFrame, target: str) -> str:
    return _best(nested[nested["test_env"] != target])


def _luckiest(nested: pd.DataFrame, target: str) -> str:
    rows = nested[nested["without"] == target]
    return str(rows.loc[rows["loss_unseen"].idxmin(), "method"])


def _largest_loss(nested: pd.DataFrame, target: str) -> str:
    rows = nested[nested["without"] == target]
    return _best(rows.assign(loss_unseen=-rows["loss_unseen"]))


# Made so that every mistake chooses another score. Points lost where the target is kept out, where
# it is the unseen domain, and where the network is trained on it.
_LOSSES = {
    "spread": (3.0, 4.0, 3.5),
    "mean": (4.0, 1.0, 4.5),
    "worst": (4.5, 5.0, 0.2),
    "steady": (4.0, 1.5, 1.2),
    "lucky": (5.0, 6.0, 5.0),
    "poor": (9.0, 7.0, 6.0),
    "uneven": (4.0, 6.0, 6.0),
    "safe": (3.8, 6.0, 6.0),
}
# By how much the losses on the three other domains differ where the target is kept out.
_UNEVEN = {"spread": (-0.5, -0.5, 1.0), "lucky": (-4.0, 2.0, 2.0), "uneven": (-2.0, -2.0, 4.0)}


def _nested() -> list[tuple[Any, ...]]:
    cases = []
    for target in ("syn", "mnist"):
        rows = []
        domains = ["mnist", "mnist_m", "optdigits", "syn"]
        others = [name for name in domains if name != target]
        for unseen, without in permutations(domains, 2):
            kind = 0 if without == target else 1 if unseen == target else 2
            for name, losses in _LOSSES.items():
                uneven = _UNEVEN.get(name) if kind == 0 else None
                loss = losses[kind] + (uneven[others.index(unseen)] if uneven else 0.0)
                rows.append((name, unseen, without, loss))
        columns = ["method", "test_env", "without", "loss_unseen"]
        cases.append((pd.DataFrame(rows, columns=columns), target))
    return cases


CHOOSE_SCORE = Exercise(
    reference=_choose_score,
    cases=_nested,
    mistakes=(
        Mistake(
            _by_the_target,
            "This looks at losses on the target itself. After that choice it is no longer unseen.",
        ),
        Mistake(
            _by_everything,
            "This averages over all networks, also those that were trained or tested on the "
            "target: keep the rows that the target takes no part in.",
        ),
        Mistake(
            _trained_on_the_target,
            "The rows measured on the target are gone, but networks *trained* on it are still "
            "there. Only where `without` is the target does it take no part.",
        ),
        Mistake(
            _luckiest,
            "The smallest single loss picks the luckiest network: average each score's losses "
            "first.",
        ),
        Mistake(
            _by_the_median,
            "That is the score with the smallest median loss. Asked for is the smallest mean, in "
            "which a domain that loses much counts, too.",
        ),
        Mistake(
            _by_the_worst,
            "That is the score whose largest loss is smallest. Asked for is the smallest mean.",
        ),
        Mistake(_largest_loss, "The largest loss is chosen: losses are points lost."),
    ),
    praise="The target takes no part in the choice.",
)


def check_choose_score(function: Callable[..., Any]) -> Verdict:
    """Check ``choose_score(nested, target)``, a choice that leaves the unseen domain out.

    Args:
        function: Takes ``nested``, a table with one row a pruned network: ``method`` (the score's
            name), ``test_env`` (the domain that it is measured on), ``without`` (a domain that it
            was neither trained nor measured on; it was trained on all others but ``test_env``)
            and ``loss_unseen`` (points lost on ``test_env``); and ``target``, the domain that must
            stay unseen. Gives the method with the smallest mean loss over the rows in which the
            target takes no part, a str.

    Returns:
        A :class:`~dgprune_book.exercises.checking.Verdict`.

    Source: chapter 8, "Choose without looking".

    >>> check_choose_score(_by_the_target).message[:45]
    'This looks at losses on the target itself. Af'
    """
    return check(CHOOSE_SCORE, function)
