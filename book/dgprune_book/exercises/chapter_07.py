"""Checks for chapter 7: an interval over networks, and several tests at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dgprune_book.exercises.checking import Exercise, Mistake, Verdict, check
from dgprune_book.study import analysis

RESAMPLES = 2000
TOLERANCE = 0.06  # of the interval's width: resampling again moves an end by 2 % or so

Interval = tuple[float, float]


def _ends(means: np.ndarray, level: float = 0.95) -> Interval:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled(
    values: np.ndarray, generator: np.random.Generator, resamples: int = RESAMPLES
) -> np.ndarray:
    return values[generator.integers(len(values), size=(resamples, len(values)))].mean(1)


def _paired_interval(
    ours: np.ndarray, baseline: np.ndarray, generator: np.random.Generator
) -> Interval:
    return _ends(_resampled((baseline - ours).mean(1), generator))


def _ninety_percent(
    ours: np.ndarray, baseline: np.ndarray, generator: np.random.Generator
) -> Interval:
    return _ends(_resampled((baseline - ours).mean(1), generator), 0.9)


def _unpaired(ours: np.ndarray, baseline: np.ndarray, generator: np.random.Generator) -> Interval:
    first = _resampled(baseline.mean(1), generator)
    return _ends(first - _resampled(ours.mean(1), generator))


def _cells(ours: np.ndarray, baseline: np.ndarray, generator: np.random.Generator) -> Interval:
    return _ends(_resampled((baseline - ours).ravel(), generator))


def _wrong_sign(ours: np.ndarray, baseline: np.ndarray, generator: np.random.Generator) -> Interval:
    return _paired_interval(baseline, ours, generator)


def _of_networks(
    ours: np.ndarray, baseline: np.ndarray, generator: np.random.Generator
) -> Interval:
    return _ends((baseline - ours).mean(1))


def _standard_deviation(
    ours: np.ndarray, baseline: np.ndarray, generator: np.random.Generator
) -> Interval:
    difference = (baseline - ours).mean(1)
    reach = 1.96 * difference.std(ddof=1)
    return float(difference.mean() - reach), float(difference.mean() + reach)


_INTERVALS = (
    Mistake(
        _unpaired,
        "The two criteria are resampled apart, as if other networks had been pruned: take the "
        "difference within each network first, and resample that.",
    ),
    Mistake(
        _cells,
        "Every cell is resampled by itself, but ratios of one network rise and fall together: "
        "average over the ratios first, so that there is one number per network.",
    ),
    Mistake(
        _wrong_sign,
        "The sign is turned around: losses are points lost, so ours is better where the "
        "baseline's loss minus ours is positive.",
    ),
    Mistake(
        _ninety_percent,
        "That is the 90 % interval: 2.5 % lie on either side of the 95 % one, not 5 %.",
    ),
    Mistake(
        _of_networks,
        "These are quantiles over networks, where single networks lie; the interval is about "
        "their mean: take the mean of every resample, and quantiles of these means.",
    ),
    Mistake(
        _standard_deviation,
        "The standard deviation says how far networks lie from each other; how well their mean "
        "is known is the standard error, √n times smaller.",
    ),
)


def _tables() -> list[tuple[Any, ...]]:
    """Losses as in the study: networks differ much, ratios of one network go together."""
    cases = []
    for seed, (networks, ratios) in enumerate([(20, 4), (12, 6)]):
        rng = np.random.default_rng(seed)
        network = rng.normal(8, 4, size=(networks, 1))
        effect = rng.normal(1, 2, size=(networks, 1))
        noise = rng.normal(0, 0.3, size=(2, networks, ratios))
        ours, baseline = network + noise[0], network + effect + noise[1]
        cases.append((ours, baseline, np.random.default_rng(seed + 10)))
    return cases


def _judge_interval(
    value: Any, ours: np.ndarray, baseline: np.ndarray, generator: np.random.Generator
) -> str | None:
    """Say what is wrong with an interval; resampling may move its ends a little."""
    try:
        low, high = map(float, value)
    except (TypeError, ValueError):
        return "it does not give two numbers, the lower and the upper end"
    expected = _ends(_resampled((baseline - ours).mean(1), generator, 10 * RESAMPLES))
    allowed = TOLERANCE * (expected[1] - expected[0])
    if max(abs(low - expected[0]), abs(high - expected[1])) <= allowed:
        return None
    return (
        f"it gives {low:.2f} to {high:.2f}, expected about {expected[0]:.2f} to {expected[1]:.2f}"
    )


PAIRED_INTERVAL = Exercise(
    reference=_paired_interval,
    cases=_tables,
    mistakes=_INTERVALS,
    judge=_judge_interval,
    praise="One number per network, resampled over networks, within pairs.",
)


def check_paired_interval(function: Callable[..., Any]) -> Verdict:
    """Check ``paired_interval(ours, baseline, generator)``, an interval over networks.

    Args:
        function: Takes ``ours`` and ``baseline``, float64 arrays (networks, ratios) of points
            lost, and ``generator``, a ``numpy.random.Generator``. Gives the ends of the 95 %
            percentile interval of the mean over networks of baseline minus ours (each network's
            mean over ratios), from 2000 resamples or more.

    Returns:
        A :class:`~dgprune_book.exercises.checking.Verdict`.

    Source: chapter 7, "Method in brief"; Efron and Tibshirani 1993, chapter 13.

    >>> check_paired_interval(_unpaired).message[:40]
    'The two criteria are resampled apart, as'
    """
    return check(PAIRED_INTERVAL, function)


def _bonferroni(p_values: list[float]) -> list[float]:
    return [min(1.0, len(p_values) * p) for p in p_values]


def _not_monotone(p_values: list[float]) -> list[float]:
    ranks = np.argsort(np.argsort(p_values))
    return [min(1.0, (len(p_values) - int(r)) * p) for r, p in zip(ranks, p_values, strict=True)]


def _uncapped(p_values: list[float]) -> list[float]:
    order = np.argsort(p_values)
    steps = [(len(p_values) - rank) * p_values[i] for rank, i in enumerate(order)]
    largest = np.maximum.accumulate(steps)
    return [float(largest[rank]) for rank in np.argsort(order)]


def _in_sorted_order(p_values: list[float]) -> list[float]:
    return sorted(analysis.holm(p_values))


def _sorted_twice(p_values: list[float]) -> list[float]:
    order, found = np.argsort(p_values), sorted(analysis.holm(p_values))
    return [found[place] for place in order]


def _false_discovery(p_values: list[float]) -> list[float]:
    order = np.argsort(p_values)[::-1]
    n = len(p_values)
    steps = [n / (n - place) * p_values[i] for place, i in enumerate(order)]
    smallest = np.minimum.accumulate(steps)
    return [float(min(1.0, smallest[rank])) for rank in np.argsort(order)]


def _from_the_largest(p_values: list[float]) -> list[float]:
    order = np.argsort(p_values)[::-1]
    steps = [(rank + 1) * p_values[i] for rank, i in enumerate(order)]
    smallest = np.minimum.accumulate(steps)
    return [float(min(1.0, smallest[rank])) for rank in np.argsort(order)]


HOLM = Exercise(
    reference=analysis.holm,
    cases=lambda: [
        ([0.04, 0.011, 0.03, 0.2],),
        ([0.9, 0.7, 0.01],),
        ([0.02],),
    ],
    mistakes=(
        Mistake(
            _bonferroni,
            "Every p is multiplied by the number of tests: that is Bonferroni's correction. "
            "Holm's multiplies the smallest by n, the next by n − 1, and so on.",
        ),
        Mistake(
            _not_monotone,
            "A larger p must not get a smaller corrected one: take the largest so far, from the "
            "smallest p upwards.",
        ),
        Mistake(_uncapped, "A p-value above 1 means nothing: 1 is the largest."),
        Mistake(
            _in_sorted_order,
            "The corrected values are sorted: give them back in the order of the tests.",
        ),
        Mistake(
            _sorted_twice,
            "The corrected values are not where their tests are. `order[k]` is the test with the "
            "k-th smallest p: write to `found[order[k]]`, do not read from it.",
        ),
        Mistake(
            _false_discovery,
            "That is Benjamini and Hochberg's correction, n/rank·p. It bounds the share of false "
            "discoveries; Holm's bounds the chance of a single one.",
        ),
        Mistake(
            _from_the_largest,
            "This works down from the largest p, which is Hochberg's procedure and assumes more "
            "about how the tests hang together. Holm's works up from the smallest.",
        ),
    ),
)


def check_holm(function: Callable[..., Any]) -> Verdict:
    """Check ``holm(p_values)``, Holm's correction for several tests.

    Args:
        function: Takes ``p_values``, a list of n floats, and gives the list of corrected ones in
            the same order: from the smallest p upwards, (n − rank)·p with ranks from 0, at least
            as large as the one before, at most 1 (Holm 1979).

    Returns:
        A :class:`~dgprune_book.exercises.checking.Verdict`.

    Source: Holm 1979; chapter 6, "What a study needs".

    >>> check_holm(_bonferroni).passed, check_holm(analysis.holm).passed
    (False, True)
    """
    return check(HOLM, function)
