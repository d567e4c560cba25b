"""Two intervals of a mean: over networks, and over the domains that they leave out.

What this file is *not*: the interval over domains itself (``headlines.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from dgprune_book.study.analysis import bootstrap_interval
from dgprune_book.study.headlines import domain_interval


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


def estimate(values: pd.Series) -> Estimate:
    """The mean of one value a network, with both intervals.

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
