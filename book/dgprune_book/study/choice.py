"""Choose a criterion without the unseen domain: leave out one *source* domain in turn.

Reads the study's grids "nested" and "pacs64_nested", in which two domains are left out of training:
``test_env`` plays the unseen domain, and ``without`` is not looked at by anyone. For an unseen
domain T, the cells with ``without`` = T know nothing of it; what loses least in them is chosen, and
only then measured on networks whose unseen domain is T.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dgprune_book.study.analysis import PAIR, balanced, losses
from dgprune_book.study.intervals import bootstrap_interval, domain_interval
from dgprune_book.study.results import read_results


def losses_left_out(path: str | Path) -> pd.DataFrame:
    """Losses on domains left out beside the unseen one, of complete seeds.

    Args:
        path: Results of a grid whose cells have a ``without``.

    Returns:
        As :func:`~dgprune_book.study.analysis.losses`. A cell that measured both domains gives two
        rows; what was pruned in rounds says so in its ``method``.
    """
    lost = losses(balanced(both_ways(read_results(path)[0])))
    rounds = lost["schedule_steps"].map(lambda number: f" in {number} rounds" if number > 1 else "")
    return lost.assign(method=lost["method"] + rounds)


def both_ways(frame: pd.DataFrame) -> pd.DataFrame:
    """Add to cells that measured ``without``, too, the same with the two domains exchanged."""
    if "accuracy_without" not in frame:
        return frame
    both = frame[frame["accuracy_without"].notna()]
    other = both.assign(
        test_env=both["without"],
        without=both["test_env"],
        accuracy_unseen=both["accuracy_without"],
        accuracy_by_domain=[
            {**{name: value for name, value in found.items() if name != env}, left: accuracy}
            for found, env, left, accuracy in zip(
                both["accuracy_by_domain"],
                both["test_env"],
                both["without"],
                both["accuracy_without"],
                strict=True,
            )
        ],
    )
    return pd.concat([frame, other], ignore_index=True)


def choose_on_sources(
    nested: pd.DataFrame, methods: Sequence[str], *, value: str = "loss_unseen"
) -> pd.DataFrame:
    """For every unseen domain, what each method loses on source domains left out in turn.

    Args:
        nested: :func:`~dgprune_book.study.analysis.losses` of the grid "nested".
        methods: Those to choose from.
        value: What should be small.

    Returns:
        Rows are methods, columns the domains T kept out of the choice; entries are means over
        (source domain left out, seed, ratio), in points.

    Raises:
        ValueError: A method that is missing for some domain, or cells that leave out no domain.
    """
    if (nested["without"] == "").any():
        raise ValueError("these cells leave out no source domain: read the grid 'nested'")
    table = nested.pivot_table(index="method", columns="without", values=value, aggfunc="mean")
    table = table.reindex(list(methods))
    if (missing := table.index[table.isna().any(axis=1)]).size:
        raise ValueError(f"method {missing[0]!r} is not in every part of the nested study")
    return table


def advantages(nested: pd.DataFrame, methods: Sequence[str], reference: str) -> pd.DataFrame:
    """By how many points each method loses less than ``reference`` on source domains left out.

    Args:
        nested: From :func:`losses_left_out`.
        methods: Those to compare; the reference itself is left out.
        reference: Such as the default of :func:`~dgprune_lite.pruning.pruning.prune`.

    Returns:
        Rows are methods, best first; ``points`` (mean over networks), its two 95 % intervals,
        ``low`` and ``high`` over networks (bootstrap), ``domain_low`` and ``domain_high`` over the
        domains measured on (Student's t), and ``networks``. A network's value is its mean over
        ratios and over the two domains that it is measured on.

    Raises:
        ValueError: A method that is not there.
    """
    keys = ["test_env", "without", "seed"]
    table = nested.pivot_table(index=keys, columns="method", values="loss_unseen", aggfunc="mean")
    if missing := [name for name in (*methods, reference) if name not in table]:
        raise ValueError(f"no results of {missing[0]!r}; there are: {', '.join(table)}")
    rows = {}
    for name in methods:
        if name != reference:
            gain = (table[reference] - table[name]).dropna()
            networks = by_network(gain)
            ends = (*bootstrap_interval(networks), *domain_interval(gain))
            rows[name] = dict(zip(("low", "high", "domain_low", "domain_high"), ends, strict=True))
            rows[name] |= {"points": networks.mean(), "networks": len(networks)}
    frame = pd.DataFrame.from_dict(rows, orient="index")
    return frame.sort_values("points", ascending=False)


def found_better(ahead: pd.DataFrame) -> str | None:
    """The method that a search found, or None: the best, if both intervals begin above 0.

    Args:
        ahead: From :func:`advantages`.
    """
    best = ahead.iloc[0]
    return str(ahead.index[0]) if min(best["low"], best["domain_low"]) > 0 else None


def by_network(values: pd.Series) -> pd.Series:
    """Average the two measurements that the nested study makes of each trained network.

    The network whose unseen domain is A, trained without B, is the one whose unseen domain is B,
    trained without A. So these are not two networks for an interval to draw from.

    Args:
        values: By ``test_env``, ``without`` and ``seed``.

    Returns:
        By network: the pair of domains that it was not trained on, and the seed.

    >>> index = pd.MultiIndex.from_tuples([("a", "b", 0), ("b", "a", 0), ("a", "c", 0)])
    >>> by_network(pd.Series([1.0, 2.0, 5.0], index)).tolist()
    [1.5, 5.0]
    """
    return values.groupby(lambda key: (*sorted(key[:2]), key[2])).mean()


def chosen(lost: pd.DataFrame, choice: pd.Series, name: str = "chosen on sources") -> pd.DataFrame:
    """What the choice gives on the unseen domains, as a method of its own.

    Args:
        lost: :func:`~dgprune_book.study.analysis.losses` of networks that leave out one domain.
        choice: Unseen domain to the method chosen for it, such as
            ``choose_on_sources(...).idxmin()``.
        name: Its ``method``.

    Returns:
        The rows of ``lost`` that were chosen, under the new name; to be put beside ``lost``.

    Raises:
        ValueError: A chosen method without results on its unseen domain.

    >>> lost = pd.DataFrame({"test_env": ["a", "b"], "seed": [0, 0], "method": ["l1", "fpgm"]})
    >>> chosen(lost, pd.Series({"a": "l1", "b": "fpgm"}))["method"].tolist()
    ['chosen on sources', 'chosen on sources']
    """
    parts = []
    for env, method in choice.items():
        part = lost[(lost["test_env"] == env) & (lost["method"] == method)]
        if part.empty:
            raise ValueError(f"no results of {method!r} on {env!r}")
        parts.append(part)
    rows = pd.concat(parts).assign(method=name)
    return rows.sort_values([*PAIR]).reset_index(drop=True)
