"""Why a score works or not: whether it ranks filters as their exact ablation does.

Reads the study's grid "ranking": for every trained network the scores of all its filters, and the
exact change of every domain's risk when each filter goes alone. The unseen domain's ablation is
looked at here, afterwards, and by no score.

What this file is *not*: what pruning costs (``analysis.py``), since no filter goes alone there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from dgprune_book.study.analysis import PAIR, method_name
from dgprune_lite.checks import require
from dgprune_lite.pruning.pruning import kept_filters

Network = dict[str, Any]


def networks(frame: pd.DataFrame) -> Iterator[Network]:
    """The trained networks of a ranking, one after the other.

    Args:
        frame: From :func:`~dgprune_book.study.results.read_results`, the grid "ranking".

    Yields:
        test_env, seed; ``sizes`` (group name to filters); ``sources`` and ``unseen``, float64 (M,):
        magnitude of the exact change of risk in nats when the filter goes, of the mean over the
        source domains (held-out images) and of the unseen domain; ``spread`` (M,), its standard
        deviation over the sources; ``scores``, method name to float64 (M,).

    Raises:
        ValueError: A network without its exact ablation.
    """
    for (env, seed), part in frame.groupby(list(PAIR), sort=False):
        control = part[part["criterion"] == "none"]
        if len(control) != 1:
            raise ValueError(f"no exact ablation for test domain {env!r}, seed {seed}")
        exact = {name: np.array(v) for name, v in control["values"].iloc[0].items()}
        sources = np.stack([values for name, values in exact.items() if name != env])
        yield {
            "test_env": env,
            "seed": seed,
            "sizes": control["sizes"].iloc[0],
            "sources": np.abs(sources.mean(0)),
            "spread": sources.std(0),
            "unseen": np.abs(exact[str(env)]),
            "scores": {
                method_name(row): np.array(row["values"])
                for row in part[part["criterion"] != "none"].to_dict("records")
            },
        }


def _groups(network: Network) -> Iterator[slice]:
    """Where the filters of each group are."""
    start = 0
    for size in network["sizes"].values():
        yield slice(start, start + size)
        start += size


def rank_correlation(
    network: Network, one: np.ndarray, other: np.ndarray, *, given: np.ndarray | None = None
) -> float:
    """Spearman's rank correlation within each group of filters, averaged over groups.

    Filters of different groups are never compared, as in uniform pruning.

    Args:
        network: From :func:`networks`.
        one: float (M,).
        other: float (M,).
        given: float (M,). With it, the partial rank correlation: that of ``one`` and ``other``
            after the ranks of ``given`` are regressed out of both.

    >>> network = {"sizes": {"conv1": 3, "conv2": 2}}
    >>> round(rank_correlation(network, np.array([1, 2, 3, 9, 8]), np.array([4, 5, 6, 2, 1])), 6)
    1.0
    """
    require("the rank correlation", "scipy", extra="study")
    from scipy import stats

    found = []
    for part in _groups(network):
        r = stats.spearmanr(one[part], other[part]).statistic
        if given is not None:
            a, b = (stats.spearmanr(x[part], given[part]).statistic for x in (one, other))
            r = (r - a * b) / np.sqrt((1 - a**2) * (1 - b**2))
        found.append(r)
    return float(np.mean(found))


def rank_correlations(frame: pd.DataFrame) -> pd.DataFrame:
    """How each score's ranking agrees with the exact ablation.

    Args:
        frame: As for :func:`networks`.

    Returns:
        One row a (method, test_env, seed): rank correlations ``sources`` (with the mean change of
        the source domains), ``spread`` (with its standard deviation over the source domains) and
        ``unseen`` (with the change of the unseen domain). The methods named "exact, ..." are the
        ablations themselves: "exact, sources" and "exact, spread" are as good as any estimate of
        these could be, and "exact, unseen" is an oracle.
    """
    rows = []
    targets = ("sources", "spread", "unseen")
    for network in networks(frame):
        exact = {f"exact, {name}": network[name] for name in targets}
        for method, values in {**network["scores"], **exact}.items():
            agreement = {n: rank_correlation(network, values, network[n]) for n in targets}
            rows.append({"method": method, **{n: network[n] for n in PAIR}, **agreement})
    return pd.DataFrame(rows)


def disagreements(
    frame: pd.DataFrame, method: str, others: list[str], *, pruning_ratio: float = 0.5
) -> pd.DataFrame:
    """What the filters that only one of two methods keeps are worth, alone.

    Args:
        frame: As for :func:`networks`.
        method: A method of the ranking.
        others: Those to compare it with.
        pruning_ratio: Share of each group that goes.

    Returns:
        One row a (other, test_env, seed): ``shared``, the share of the filters that ``method``
        keeps and ``other`` keeps as well; and, in nats, the mean exact magnitude of change over
        the filters that only ``method`` keeps minus that over those that only ``other`` keeps,
        ``sources`` and ``unseen``. Positive: ``method`` keeps what costs more. NaN where they
        keep the same filters.

    Raises:
        ValueError: A method that is not in the ranking.
    """
    rows = []
    for network in networks(frame):
        for name in (method, *others):
            if name not in network["scores"]:
                raise ValueError(
                    f"method {name!r} is not in the ranking: {', '.join(network['scores'])}"
                )
        mine = _kept(network, network["scores"][method], pruning_ratio)
        for other in others:
            theirs = _kept(network, network["scores"][other], pruning_ratio)
            only, instead = mine & ~theirs, theirs & ~mine
            worth = {
                name: network[name][only].mean() - network[name][instead].mean()
                if only.any()
                else float("nan")
                for name in ("sources", "unseen")
            }
            shared = float((mine & theirs).sum() / mine.sum())
            rows.append(
                {"other": other, **{n: network[n] for n in PAIR}, "shared": shared, **worth}
            )
    return pd.DataFrame(rows)


def _kept(network: Network, scores: np.ndarray, ratio: float) -> np.ndarray:
    kept = np.zeros(len(scores), dtype=bool)
    for part in _groups(network):
        size = part.stop - part.start
        order = np.argsort(scores[part], kind="stable")
        kept[part.start + order[size - kept_filters(size, ratio) :]] = True
    return kept
