"""Chapter 6: two scores in one by their ranks, and which filters a plan keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dgprune_book.exercises.checking import Exercise, Mistake, Verdict, check
from dgprune_lite.pruning.selection import kept_filters

Scores = dict[str, Tensor]


def _ranks(values: Tensor) -> Tensor:
    """Place from low to high, 1 to n, float64 (n,)."""
    return (values.argsort().argsort() + 1).double()


def _average(first: Scores, second: Scores, ranks: Callable[[Tensor], Tensor]) -> Scores:
    return {name: (ranks(first[name]) + ranks(second[name])) / 2 for name in first}


def _rank_average(first: Scores, second: Scores) -> Scores:
    return _average(first, second, lambda values: _ranks(values) / len(values))


def _rank_average_argsort(first: Scores, second: Scores) -> Scores:
    return _average(first, second, lambda v: (v.argsort() + 1).double() / len(v))


def _rank_average_reversed(first: Scores, second: Scores) -> Scores:
    return _average(first, second, lambda values: _ranks(-values) / len(values))


def _rank_average_places(first: Scores, second: Scores) -> Scores:
    return _average(first, second, _ranks)


def _rank_average_from_zero(first: Scores, second: Scores) -> Scores:
    return _average(first, second, lambda values: (_ranks(values) - 1) / len(values))


def _rank_average_network(first: Scores, second: Scores) -> Scores:
    sizes = [len(values) for values in first.values()]

    def ranks(scores: Scores) -> Tensor:
        return _ranks(torch.cat(list(scores.values()))) / sum(sizes)

    parts = ((ranks(first) + ranks(second)) / 2).split(sizes)
    return dict(zip(first, parts, strict=True))


def _rank_average_late(first: Scores, second: Scores) -> Scores:
    return {name: _ranks(first[name] + second[name]) / len(first[name]) for name in first}


def _two_scores() -> list[tuple[Scores, Scores]]:
    generator = torch.Generator().manual_seed(7)

    def drawn(scale: float) -> Scores:
        sizes = {"conv1": 4, "conv2": 7, "conv3": 7}
        return {
            name: scale * place * torch.rand(size, generator=generator, dtype=torch.float64)
            for place, (name, size) in enumerate(sizes.items(), start=1)
        }

    few = torch.tensor([0.3, 0.1, 0.2], dtype=torch.float64)
    other = torch.tensor([10.0, 20.0, 40.0], dtype=torch.float64)
    return [({"conv1": few}, {"conv1": other}), (drawn(1.0), drawn(1e-3))]


RANK_AVERAGE = Exercise(
    reference=_rank_average,
    cases=_two_scores,
    mistakes=(
        Mistake(
            _rank_average_argsort,
            "`argsort` gives the filter that stands at each place. A rank is the place at which "
            "each filter stands: `argsort` of the `argsort`.",
        ),
        Mistake(
            _rank_average_reversed,
            "The order is turned round: high means keep, so the most important filter has 1.",
        ),
        Mistake(
            _rank_average_places,
            "The places are not divided by the number of filters of the group.",
        ),
        Mistake(_rank_average_from_zero, "The places start at 0 here. They run from 1 to n."),
        Mistake(
            _rank_average_network,
            "That ranks the filters of all layers together, so a layer with small scores has only "
            "low ranks. Rank within each group.",
        ),
        Mistake(
            _rank_average_late,
            "That adds the scores first, so the one with the larger numbers decides. Rank first, "
            "then average.",
        ),
    ),
    praise="The unit of either score no longer matters.",
)


def check_rank_average(function: Callable[..., Any]) -> Verdict:
    """Check ``rank_average(first, second)``, two scores in one, whatever their units.

    Args:
        function: Takes ``first`` and ``second``, each a dict of group name to scores, float64
            (filters,), with no two equal in a group. Gives a dict of the same groups to float64
            (filters,): the mean of the filter's two ranks within its group, where a rank is the
            place from low to high, 1 to n, over the number n of filters of the group.

    Returns:
        A :class:`~dgprune_book.exercises.checking.Verdict`.

    Source: ours; `bn_scale_and_risk` in `dgprune_lite.scores.criteria` is such a score.

    >>> check_rank_average(lambda first, second: first).passed
    False
    """
    return check(RANK_AVERAGE, function)


def _highest(values: Tensor, count: int) -> Tensor:
    keep = torch.zeros(len(values), dtype=torch.bool)
    keep[values.argsort(descending=True)[:count]] = True
    return keep


def _keep(scores: Scores, ratio: float) -> Scores:
    return {name: _highest(v, kept_filters(len(v), ratio)) for name, v in scores.items()}


def _keep_lowest(scores: Scores, ratio: float) -> Scores:
    return {name: _highest(-v, kept_filters(len(v), ratio)) for name, v in scores.items()}


def _keep_removed(scores: Scores, ratio: float) -> Scores:
    return {name: ~keep for name, keep in _keep(scores, ratio).items()}


def _keep_none(scores: Scores, ratio: float) -> Scores:
    return {name: _highest(v, round(len(v) * (1 - ratio))) for name, v in scores.items()}


def _keep_ratio(scores: Scores, ratio: float) -> Scores:
    return _keep(scores, 1 - ratio)


def _keep_down(scores: Scores, ratio: float) -> Scores:
    return {name: _highest(v, max(1, int(len(v) * (1 - ratio)))) for name, v in scores.items()}


def _keep_from(scores: Scores, ratio: float) -> Scores:
    return {name: v >= v.quantile(ratio) for name, v in scores.items()}


def _keep_above(scores: Scores, ratio: float) -> Scores:
    return {name: v > v.quantile(ratio) for name, v in scores.items()}


def _keep_network(scores: Scores, ratio: float) -> Scores:
    flat = torch.cat(list(scores.values()))
    keep = _highest(flat, kept_filters(len(flat), ratio))
    return dict(zip(scores, keep.split([len(v) for v in scores.values()]), strict=True))


def _plans() -> list[tuple[Scores, float]]:
    generator = torch.Generator().manual_seed(8)
    sizes = {"conv1": (6, 0.01), "conv2": (11, 1.0), "conv3": (7, 0.3), "small": (2, 0.1)}
    scores = {
        name: scale * torch.rand(size, generator=generator, dtype=torch.float64)
        for name, (size, scale) in sizes.items()
    }
    few = {"conv1": torch.tensor([0.4, 0.1, 0.3, 0.2], dtype=torch.float64)}
    return [(few, 0.25), (scores, 0.3), (scores, 0.8)]


_THRESHOLD = (
    "That keeps what lies above a quantile, and how many filters that are follows from how the "
    "quantile is rounded. Count the filters that stay, then take the highest."
)

KEEP_FILTERS = Exercise(
    reference=_keep,
    cases=_plans,
    mistakes=(
        Mistake(_keep_lowest, "The filters with the lowest scores stay. High means keep."),
        Mistake(_keep_removed, "That marks the filters that go. Mark those that stay."),
        Mistake(
            _keep_none,
            "A group keeps no filter here, and the network is cut in two: one has to stay.",
        ),
        Mistake(_keep_ratio, "The ratio is the share that goes, not the share that stays."),
        Mistake(_keep_from, _THRESHOLD),
        Mistake(_keep_above, _THRESHOLD),
        Mistake(_keep_down, "The number of filters is cut off (`int`), not rounded."),
        Mistake(
            _keep_network,
            "That ranks the filters of all layers together. Each group loses the same share of "
            "its own.",
        ),
    ),
    praise="It keeps what `dg.plan_pruning` keeps.",
)


def check_keep_filters(function: Callable[..., Any]) -> Verdict:
    """Check ``keep_filters(scores, ratio)``, the choice that a plan makes.

    Args:
        function: Takes ``scores``, group name to float64 (filters,), with no two equal in a
            group, and ``ratio``, the pruning ratio in [0, 1). Gives a dict of the same groups to
            bool (filters,): True for the filters that stay. A group of n filters keeps the
            round(n·(1 - ratio)) with the highest scores, and at least one.

    Returns:
        A :class:`~dgprune_book.exercises.checking.Verdict`.

    Source: :func:`dgprune_lite.pruning.pruning.plan_pruning`.

    >>> check_keep_filters(lambda scores, ratio: {n: v > 0 for n, v in scores.items()}).passed
    False
    """
    return check(KEEP_FILTERS, function)
