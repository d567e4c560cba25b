"""What a headline needs: an interval over networks, one over domains, and the ladder of scores.

Networks of one test domain share its images and its kind of shift. An interval over networks says
what another seed would give on these domains; the one over domains, wider, what another domain
might. What this file is *not*: paired tests (``analysis.py``) or figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dgprune_book.study.analysis import bootstrap_interval, losses, table_of_pairs
from dgprune_book.study.cells import cell_of
from dgprune_book.study.results import read_results
from dgprune_lite.checks import require

# What a score knows, and the methods (their mean counts) that stand for it.
LADDER: dict[str, tuple[str, ...]] = {
    "nothing: random": ("random",),
    "weights: L1, BN scale": ("l1", "bn_scale"),
    "gradients: Taylor": ("taylor",),
    "their squares, image by image: Fisher": ("fisher",),
    "the same on held-out images": ("fisher on val",),
    "spread over domains, held-out": ("risk_variance",),
    "mean and spread, held-out": ("risk_variance mean=1",),
}
# Mean, spread, both and reversed, on training and on held-out images.
LIKE_FOR_LIKE: dict[str, tuple[str, str]] = {
    "mean": ("fisher", "fisher on val"),
    "spread": ("risk_variance on train", "risk_variance"),
    "mean and spread": ("risk_variance mean=1 on train", "risk_variance mean=1"),
    "mean less spread (reversed)": (
        "risk_variance mean=1 reverse=True on train",
        "risk_variance mean=1 reverse=True",
    ),
}


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

    >>> index = pd.MultiIndex.from_product([["a", "b"], [0, 1]], names=["test_env", "seed"])
    >>> low, high = domain_interval(pd.Series([1.0, 1.0, 3.0, 3.0], index=index))
    >>> round(low, 1), round(high, 1)
    (-10.7, 14.7)
    """
    require("an interval over domains", "scipy", extra="study")
    from scipy import stats

    means = values.groupby(level="test_env").mean()
    if len(means) < 2:
        return -np.inf, np.inf
    half = stats.t.ppf((1 + level) / 2, len(means) - 1) * means.std(ddof=1) / len(means) ** 0.5
    return float(means.mean() - half), float(means.mean() + half)


def headline(values: pd.Series) -> dict[str, Any]:
    """The mean over networks with both intervals, in the units of the values.

    Args:
        values: One a network, indexed by test_env and seed.

    Returns:
        mean; low, high (bootstrap over networks); domain_low, domain_high (t over domains);
        networks; domains.
    """
    low, high = bootstrap_interval(values)
    domain_low, domain_high = domain_interval(values)
    return {
        "mean": float(values.mean()),
        "low": low,
        "high": high,
        "domain_low": domain_low,
        "domain_high": domain_high,
        "networks": len(values),
        "domains": values.index.get_level_values("test_env").nunique(),
    }


def lost_points(*files: str | Path) -> pd.DataFrame:
    """Points lost, as :func:`~dgprune_book.study.analysis.losses` has them, of one or more files.

    Where a score of training images saw as many in all of a file's cells, their number is left out
    of its name: it is a setting of the grid, not a variant.

    Args:
        files: Results of grids that prune the same networks; a control may stand in each.
    """
    frames = []
    for path in files:
        frame = read_results(path)[0]
        if len(set(frame["images_per_domain"].dropna())) == 1:
            frame["images_per_domain"] = None
        frames.append(frame)
    frame = pd.concat(frames, ignore_index=True)
    names = [[str(cell.dense_id), cell.cell_id] for cell in map(cell_of, frame.to_dict("records"))]
    return losses(frame[~pd.DataFrame(names).duplicated()].reset_index(drop=True))


def whole_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table of pairs without gaps, of seeds that have every test domain.

    So a study in progress compares methods on the same networks, and domains count alike.
    """
    table = table.dropna()
    domains = table.groupby(level="seed").size()
    seeds = domains.index[domains == domains.max()]
    return table[table.index.get_level_values("seed").isin(seeds)]


def ladder(lost: pd.DataFrame, ratio: float) -> pd.DataFrame:
    """Points lost as the score learns more, on the networks that have all rungs.

    Args:
        lost: From :func:`lost_points`.
        ratio: At which to compare.

    Returns:
        One row a rung and role: rung, role ("in-domain", "unseen") and what :func:`headline` gives.
        Rungs without results are left out.
    """
    rows = []
    for role, value in (("in-domain", "loss_in_domain"), ("unseen", "loss_unseen")):
        table = table_of_pairs(lost, ratio, value)
        rungs = {name: list(m) for name, m in LADDER.items() if set(m) <= set(table.columns)}
        table = whole_seeds(table[[method for methods in rungs.values() for method in methods]])
        rows += [
            {"rung": name, "role": role, **headline(table[methods].mean(axis=1))}
            for name, methods in rungs.items()
        ]
    return pd.DataFrame(rows)


def advantage(
    lost: pd.DataFrame,
    method: str,
    baselines: Sequence[str],
    ratio: float,
    value: str = "loss_unseen",
) -> pd.DataFrame:
    """By how many points a method loses less than each baseline, with both intervals.

    Args:
        lost: From :func:`lost_points`.
        method: Its ``method``.
        baselines: Theirs; each is compared on the networks that it has in common with the method.
        ratio: At which to compare.
        value: A column of losses. "beyond": what the unseen domain gains beyond the gain in-domain.

    Returns:
        One row a baseline: baseline and what :func:`headline` gives.
    """
    rows = []
    for baseline in baselines:
        names = [method, baseline]
        if value == "beyond":
            both = [
                table_of_pairs(lost, ratio, f"loss_{x}")[names] for x in ("unseen", "in_domain")
            ]
            table = whole_seeds(both[0] - both[1])
        else:
            table = whole_seeds(table_of_pairs(lost, ratio, value)[names])
        rows.append({"baseline": baseline, **headline(table[baseline] - table[method])})
    return pd.DataFrame(rows)
