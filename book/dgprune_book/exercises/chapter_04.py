"""Chapter 4: what pruning costs where nobody looks, and how sure a difference is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

from dgprune_book.exercises.checking import Exercise, Mistake, Verdict, check

Accuracy = dict[str, float]
Losses = dict[tuple[str, int], float]


def _sources(accuracy: Accuracy, test_env: str) -> float:
    return statistics.fmean(value for name, value in accuracy.items() if name != test_env)


def _extra(control: Accuracy, pruned: Accuracy, test_env: str) -> float:
    unseen = control[test_env] - pruned[test_env]
    return 100 * (unseen - _sources(control, test_env) + _sources(pruned, test_env))


def _extra_share(control: Accuracy, pruned: Accuracy, test_env: str) -> float:
    return _extra(control, pruned, test_env) / 100


def _extra_reversed(control: Accuracy, pruned: Accuracy, test_env: str) -> float:
    return -_extra(control, pruned, test_env)


def _extra_gap(control: Accuracy, pruned: Accuracy, test_env: str) -> float:
    return 100 * (_sources(pruned, test_env) - pruned[test_env])


def _extra_all(control: Accuracy, pruned: Accuracy, test_env: str) -> float:
    mean = statistics.fmean(control.values()) - statistics.fmean(pruned.values())
    return 100 * (control[test_env] - pruned[test_env] - mean)


def _extra_unseen(control: Accuracy, pruned: Accuracy, test_env: str) -> float:
    return 100 * (control[test_env] - pruned[test_env])


def _extra_worst(control: Accuracy, pruned: Accuracy, test_env: str) -> float:
    sources = (control[name] - pruned[name] for name in control if name != test_env)
    return 100 * (control[test_env] - pruned[test_env] - max(sources))


EXTRA_LOSS = Exercise(
    reference=_extra,
    cases=lambda: [
        (
            {"mnist": 0.9825, "optdigits": 0.97, "syn": 0.9, "mnist_m": 0.7475},
            {"mnist": 0.96, "optdigits": 0.9675, "syn": 0.8325, "mnist_m": 0.63},
            "mnist_m",
        ),
        (
            {"photo": 0.9, "cartoon": 0.7, "sketch": 0.5},
            {"photo": 0.7, "cartoon": 0.65, "sketch": 0.45},
            "cartoon",
        ),
    ],
    mistakes=(
        Mistake(_extra_share, "That is a share. The chapter counts in points: 100 times as much."),
        Mistake(
            _extra_reversed,
            "The sign is turned round: positive where the unseen domain loses more.",
        ),
        Mistake(
            _extra_gap,
            "That is the gap of the pruned network. Part of it was there before: subtract what "
            "the control has.",
        ),
        Mistake(
            _extra_all,
            "The unseen domain is among the domains that it is compared with. Average over the "
            "source domains alone.",
        ),
        Mistake(
            _extra_unseen,
            "That is all the unseen domain loses. The question is how much more than the others.",
        ),
        Mistake(
            _extra_worst,
            "That compares with the source domain that loses most. Take their mean.",
        ),
    ),
    praise="It is what a test on the source domains does not see.",
)


def check_extra_loss(function: Callable[..., Any]) -> Verdict:
    """Check ``extra_loss(control, pruned, test_env)``, what the unseen domain loses more.

    Args:
        function: Takes ``control`` and ``pruned``, each a dict of domain name to accuracy in
            [0, 1], of the unpruned and of the pruned network after the same fine-tuning, and
            ``test_env``, the name of the unseen domain, which is among them. Gives a float: the
            loss of accuracy on the unseen domain minus the mean loss on the source domains, in
            percentage points.

    Returns:
        A :class:`~dgprune_book.exercises.checking.Verdict`.

    Source: chapter 4, "Over many networks".

    >>> check_extra_loss(lambda control, pruned, test_env: 0.0).passed
    False
    """
    return check(EXTRA_LOSS, function)


def _differences(first: Losses, second: Losses) -> list[float]:
    return [first[pair] - second[pair] for pair in first]


def _error(values: list[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))


def _paired(first: Losses, second: Losses) -> tuple[float, float]:
    differences = _differences(first, second)
    return statistics.fmean(differences), _error(differences)


def _paired_by_place(first: Losses, second: Losses) -> tuple[float, float]:
    differences = [a - b for a, b in zip(first.values(), second.values(), strict=True)]
    return statistics.fmean(differences), _error(differences)


def _unpaired(first: Losses, second: Losses) -> tuple[float, float]:
    errors = [_error(list(losses.values())) for losses in (first, second)]
    return statistics.fmean(_differences(first, second)), math.hypot(*errors)


def _paired_by_size(first: Losses, second: Losses) -> tuple[float, float]:
    pairs = zip(sorted(first.values()), sorted(second.values()), strict=True)
    differences = [a - b for a, b in pairs]
    return statistics.fmean(differences), _error(differences)


def _paired_deviation(first: Losses, second: Losses) -> tuple[float, float]:
    differences = _differences(first, second)
    return statistics.fmean(differences), statistics.stdev(differences)


def _paired_population(first: Losses, second: Losses) -> tuple[float, float]:
    differences = _differences(first, second)
    error = statistics.pstdev(differences) / math.sqrt(len(differences))
    return statistics.fmean(differences), error


def _paired_reversed(first: Losses, second: Losses) -> tuple[float, float]:
    return _paired(second, first)


def _paired_variance(first: Losses, second: Losses) -> tuple[float, float]:
    differences = _differences(first, second)
    return statistics.fmean(differences), statistics.variance(differences) / len(differences)


PAIRED_DIFFERENCE = Exercise(
    reference=_paired,
    cases=lambda: [
        (
            {("syn", 0): 4.0, ("syn", 1): 9.0, ("mnist", 0): 2.0},
            {("mnist", 0): 1.5, ("syn", 1): 8.0, ("syn", 0): 3.5},
        ),
        (
            {("syn", 0): 1.0, ("syn", 1): -2.0, ("mnist", 0): 7.5, ("mnist", 1): 3.0},
            {("mnist", 1): 3.5, ("mnist", 0): 4.0, ("syn", 1): -1.0, ("syn", 0): 0.0},
        ),
        (
            {("syn", 0): 4.0, ("syn", 1): 9.0, ("mnist", 0): 2.0},
            {("syn", 0): 9.5, ("syn", 1): 2.0, ("mnist", 0): 4.0},
        ),
    ],
    mistakes=(
        Mistake(
            _paired_by_size,
            "That pairs the losses by their size. Look the second loss up by the key of the first.",
        ),
        Mistake(
            _paired_by_place,
            "That pairs by the order in the dicts, which is not the same in both. Look the second "
            "loss up by the key of the first.",
        ),
        Mistake(
            _unpaired,
            "That is the standard error of two independent means. What the networks of a pair "
            "have in common cancels if you take the differences first.",
        ),
        Mistake(
            _paired_deviation,
            "That is the standard deviation of one difference. The standard error of their mean "
            "is smaller by the root of the number of pairs.",
        ),
        Mistake(
            _paired_population,
            "The deviation is divided by n. The mean was estimated from the same pairs: divide by "
            "n - 1.",
        ),
        Mistake(_paired_reversed, "The sign is turned round: first minus second."),
        Mistake(_paired_variance, "That is the square of the standard error: take the root."),
    ),
    praise="It is the mean of the differences, not the difference of two unrelated means.",
)


def check_paired_difference(function: Callable[..., Any]) -> Verdict:
    """Check ``paired_difference(first, second)``, mean and standard error within pairs.

    Args:
        function: Takes ``first`` and ``second``, each a dict of pair, ``(test_env, seed)``, to
            the points that one criterion loses there. Both have the same pairs, at least two, in
            any order. Gives a tuple of two floats, in points: the mean over pairs of first minus
            second, and its standard error.

    Returns:
        A :class:`~dgprune_book.exercises.checking.Verdict`.

    Source: chapter 4, "What one run can say".

    >>> check_paired_difference(lambda first, second: (0.0, 0.0)).passed
    False
    """
    return check(PAIRED_DIFFERENCE, function)
