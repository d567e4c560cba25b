"""The headlines of a grid: the ladder of scores, and by how much one of them is ahead of others.

What this file is *not*: the intervals themselves (``intervals.py``), paired tests (``analysis.py``)
or figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dgprune_book.study.analysis import losses, table_of_pairs
from dgprune_book.study.cells import cell_of
from dgprune_book.study.intervals import Estimate, estimate
from dgprune_book.study.results import read_results

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


def as_row(found: Estimate) -> dict[str, float]:
    """An estimate as columns of a table: mean, low, high, domain_low, domain_high, networks."""
    (low, high), (domain_low, domain_high) = found.networks, found.domains
    return {
        "mean": found.mean,
        "low": low,
        "high": high,
        "domain_low": domain_low,
        "domain_high": domain_high,
        "networks": found.count,
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
    """Of a table of pairs, the seeds that have every test domain, and the methods that have such.

    So a study in progress compares methods on the same networks, and domains count alike.
    """
    domains = table.index.get_level_values("test_env").nunique()

    def whole(part: pd.DataFrame) -> pd.Index:
        size = part.dropna().groupby(level="seed").size()
        return size.index[size == domains]

    table = table[[method for method in table if len(whole(table[[method]]))]]
    return table[table.index.get_level_values("seed").isin(whole(table))]


def ladder(lost: pd.DataFrame, ratio: float) -> pd.DataFrame:
    """Points lost as the score learns more, on the networks that have all rungs.

    Args:
        lost: From :func:`lost_points`.
        ratio: At which to compare.

    Returns:
        One row a rung and role: rung, role ("in-domain", "unseen") and what :func:`as_row` gives.
        Rungs without results are left out.
    """
    known = {method for methods in LADDER.values() for method in methods}
    rows = []
    for role, value in (("in-domain", "loss_in_domain"), ("unseen", "loss_unseen")):
        table = table_of_pairs(lost, ratio, value)
        table = whole_seeds(table[[method for method in table if method in known]])
        rows += [
            {"rung": name, "role": role, **as_row(estimate(table[list(methods)].mean(axis=1)))}
            for name, methods in LADDER.items()
            if set(methods) <= set(table.columns)
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
        One row a baseline that has such networks: baseline and what :func:`as_row` gives.
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
        if set(names) <= set(table.columns):
            difference = table[baseline] - table[method]
            rows.append({"baseline": baseline, **as_row(estimate(difference))})
    return pd.DataFrame(rows)
