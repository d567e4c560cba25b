"""Two intervals of a mean: over networks, and over the domains that they leave out.

Networks with the same unseen domain share its images and its shift, so they are not independent:
many seeds make sure of these domains, and of nothing about the next one. Over domains the means of
the domains are the units, and Student's t allows for how few they are. (A bootstrap of four units
comes out far too narrow.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from dgprune_book.study.analysis import bootstrap_interval
from dgprune_lite.checks import require


@dataclass(frozen=True)
class Estimate:
    """A mean over networks, with 95 % intervals over networks and over domains.

    Attributes:
        mean: Mean of the domains' means; with equally many seeds a domain, that over networks.
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


def estimate(values: pd.Series, level: float = 0.95) -> Estimate:
    """The mean of one value a network, with both intervals.

    Args:
        values: One a network, in points; the index has a level "test_env", its unseen domain.
        level: Share of the intervals.

    Source: Student 1908; :func:`~dgprune_book.study.analysis.bootstrap_interval`.

    >>> index = pd.MultiIndex.from_product([["a", "b"], [0, 1]], names=["test_env", "seed"])
    >>> found = estimate(pd.Series([1.0, 3.0, 3.0, 5.0], index))
    >>> found.mean, [round(end, 1) for end in found.domains], found.sure
    (3.0, [-9.7, 15.7], False)
    """
    require("the interval over domains", "scipy", extra="study")
    from scipy import stats

    means = values.groupby(level="test_env").mean()
    half = float("inf")
    if len(means) > 1:
        error = means.std(ddof=1) / np.sqrt(len(means))
        half = float(stats.t.ppf((1 + level) / 2, len(means) - 1) * error)
    mean = float(means.mean())
    networks = bootstrap_interval(values.to_numpy(), level=level)
    return Estimate(mean, networks, (mean - half, mean + half), len(values))
