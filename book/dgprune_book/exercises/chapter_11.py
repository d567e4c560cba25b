"""A check for chapter 11: an average over test domains, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dgprune_book.exercises.checking import Exercise, Mistake, Verdict, check
from dgprune_book.study import analysis


def _spread(values: Tensor, count: int) -> tuple[float, float]:
    return float(values.mean()), float(values.std()) / math.sqrt(count)


def _average_with_error(accuracy: Tensor) -> tuple[float, float]:
    by_seed = accuracy.mean(dim=1)
    return float(by_seed.mean()), analysis.standard_error(by_seed.tolist())


def _over_cells(accuracy: Tensor) -> tuple[float, float]:
    return _spread(accuracy.flatten(), accuracy.numel())


def _over_domains(accuracy: Tensor) -> tuple[float, float]:
    return _spread(accuracy.mean(dim=0), accuracy.shape[1])


def _no_root(accuracy: Tensor) -> tuple[float, float]:
    return _spread(accuracy.mean(dim=1), 1)


def _population(accuracy: Tensor) -> tuple[float, float]:
    by_seed = accuracy.mean(dim=1)
    error = float(by_seed.std(correction=0)) / math.sqrt(len(by_seed))
    return float(by_seed.mean()), error


def _mean_of_errors(accuracy: Tensor) -> tuple[float, float]:
    errors = accuracy.std(dim=0) / math.sqrt(len(accuracy))
    return float(accuracy.mean()), float(errors.mean())


def _tables() -> list[tuple[Any, ...]]:
    """Accuracies in per cent: domains differ more than seeds do."""
    cases = []
    for seed, (seeds, domains) in enumerate([(3, 4), (5, 4), (3, 6)]):
        generator = torch.Generator().manual_seed(seed)
        level = 75 + 10 * torch.randn(1, domains, generator=generator, dtype=torch.float64)
        luck = torch.randn(seeds, domains, generator=generator, dtype=torch.float64)
        cases.append((level + 1.5 * luck,))
    return cases


AVERAGE_WITH_ERROR = Exercise(
    reference=_average_with_error,
    cases=_tables,
    mistakes=(
        Mistake(
            _over_cells,
            "All cells are treated as draws of one number. Test domains are not drawn anew with "
            "each seed: their differences are no uncertainty of the average. Average each seed "
            "over the domains first.",
        ),
        Mistake(
            _over_domains,
            "This is the spread over test domains, how unlike they are. How sure the average is, "
            "is asked over seeds.",
        ),
        Mistake(
            _no_root,
            "This is the standard deviation; the standard error of a mean is √n times smaller.",
        ),
        Mistake(
            _population,
            "The standard deviation is divided by n; from a few seeds take n − 1.",
        ),
        Mistake(
            _mean_of_errors,
            "The errors of the single domains are averaged. The average over domains is a number "
            "of its own: compute it for each seed, and see how it varies.",
        ),
    ),
    praise="Each seed's average first, then its spread over seeds.",
)


def check_average_with_error(function: Callable[..., Any]) -> Verdict:
    """Check ``average_with_error(accuracy)``, an average over test domains with its error.

    Args:
        function: Takes ``accuracy``, a float64 tensor (seeds, test domains), in per cent. Gives
            the mean and its standard error over seeds, two floats, as DomainBed reports them:
            each seed's mean over the test domains, then mean and standard error of these.

    Returns:
        A :class:`~dgprune_book.exercises.checking.Verdict`.

    Source: DomainBed (Gulrajani and Lopez-Paz 2021); chapter 7, "Results by test domain".

    >>> check_average_with_error(_no_root).message[:30]
    'This is the standard deviation'
    """
    return check(AVERAGE_WITH_ERROR, function)
