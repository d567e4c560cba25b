"""An interval over domains counts domains, not networks."""

import numpy as np
import pandas as pd
import pytest
from dgprune_book.study.intervals import domain_interval, estimate
from made_results import ENVS
from scipy import stats


def pairs(values, seeds=2):
    index = pd.MultiIndex.from_product([ENVS, range(seeds)], names=["test_env", "seed"])
    return pd.Series(values, index=index, dtype=float)


def test_an_interval_over_domains_is_students():
    values = pairs([1, 3, 2, 4, 5, 5, 0, 2])
    means = np.array([2, 3, 5, 1])
    low, high = domain_interval(values)
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 3, means.mean(), stats.sem(means)))
    # More seeds of the same domains do not make it narrower; the one over networks, they do.
    again = pd.concat([values, values.rename(index={0: 2, 1: 3}, level="seed")])
    assert domain_interval(again) == pytest.approx((low, high))
    found = estimate(again)
    assert found.networks[1] - found.networks[0] < high - low
    assert found.count == 16


def test_one_domain_says_nothing_about_others():
    assert domain_interval(pairs(range(8))["syn":"syn"]) == (-np.inf, np.inf)
