"""Two intervals of a mean: over networks, and over the domains that they leave out.

Networks of one test domain share its images and its kind of shift. An interval over networks says
what another seed would give on these domains; the one over domains, wider, what another domain
might.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dgprune_lite.checks import require


@dataclass(frozen=True)
class Estimate:
    """A mean over networks, with 95 % intervals over networks and over domains.

    Attributes:
        mean: Over networks.
        networks: Ends of the bootstrap interval over networks.
        domains: Ends of the t interval over domains; infinite for a single domain.
        count: How many networks.
    """

    mean: float
    networks: tuple[float, float]
    domains: tuple[float, float]
    count: int

    @property
    def sure(self) -> bool:
        """Whether both intervals lie on one side of 0."""
        ends = (*self.networks, *self.domains)
        return min(ends) > 0 or max(ends) < 0


def bootstrap_interval(
    values: Sequence[float], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean.

    Args:
        values: One a pair.
        level: Share of resampled means inside.
        resamples: How often pairs are drawn again, with replacement.
        seed: Of the draws.

    Source: Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 13.

    >>> bootstrap_interval([1.0, 1.0, 1.0])
    (1.0, 1.0)
    """
    array = np.asarray(values, dtype=float)
    if len(array) == 0:
        raise ValueError("no pairs to take an interval over")
    draws = np.random.default_rng(seed).integers(len(array), size=(resamples, len(array)))
    low, high = np.quantile(array[draws].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def domain_interval(values: pd.Series, level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean, with the test domains as units: their means count once.

    With four or so units, a bootstrap over domains comes out far too narrow; t does not, if the
    domains' means are about normal.

    Args:
        values: One a network, indexed by test_env and seed.
        level: Share of such intervals that hold the mean over all domains there might be.

    Returns:
        (low, high); infinite for a single domain.

    Source: Student 1908.
    """
    require("an interval over domains", "scipy", extra="study")
    from scipy import stats

    means = values.groupby(level="test_env").mean()
    if len(means) < 2:
        return -np.inf, np.inf
    half = stats.t.ppf((1 + level) / 2, len(means) - 1) * means.std(ddof=1) / len(means) ** 0.5
    return float(means.mean() - half), float(means.mean() + half)


def estimate(values: pd.Series) -> Estimate:
    """The mean of one value per network, with both intervals.

    Args:
        values: One a network, in points, indexed by test_env and seed.

    >>> index = pd.MultiIndex.from_product([["a", "b"], [0, 1]], names=["test_env", "seed"])
    >>> found = estimate(pd.Series([1.0, 3.0, 3.0, 5.0], index))
    >>> found.mean, [round(end, 1) for end in found.domains], found.sure
    (3.0, [-9.7, 15.7], False)
    """
    return Estimate(
        float(values.mean()), bootstrap_interval(values), domain_interval(values), len(values)
    )
