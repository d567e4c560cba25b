"""The four claims of the paper's abstract, judged by a rule that was written before the results.

What this file is *not*: the statistics that the rule uses (``analysis.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from dgprune_book.study.analysis import BASELINES, compare, known_method, table_of_pairs
from dgprune_book.study.headlines import as_row
from dgprune_book.study.intervals import estimate

CLAIMS = (
    "After filter pruning the intra-domain performance is maintained",
    "Cross-domain performance decays to a large extent",
    "Risk variance keeps more domain-generalized filters",
    "At the same ratio, risk variance is significantly better across domains than the baselines",
)


def claims_table(
    lost: pd.DataFrame,
    *,
    pruning_ratio: float = 0.5,
    method: str = "risk_variance",
    standard: Sequence[str] = BASELINES,
) -> pd.DataFrame:
    """Judge the four claims of the paper's abstract by the results, with a rule fixed beforehand.

    All effects are means over pairs, in points, with two 95 % intervals: [low, high] over networks
    (bootstrap), [domain_low, domain_high] over test domains (Student's t). A verdict asks for what
    it says of both. "Standard criteria" are l1, bn_scale, fpgm, taylor and fisher.

    1. *Maintained in-domain.* Effect: in-domain loss, averaged over the standard criteria.
       Supported if the intervals end at 1 or below, not supported if they begin above 1, else
       partly.
    2. *Decays across domains.* Effect: unseen loss minus in-domain loss, averaged over the
       standard criteria. Supported if the intervals begin above 1, partly if above 0, else not
       supported.
    3. *Keeps more domain-generalized filters.* Effect, before fine-tuning (BatchNorm
       recalibrated): what the method keeps more on the unseen domain than the average standard
       criterion, minus the same in-domain. Supported if the intervals begin above 0, partly if the
       mean is positive, else not supported.
    4. *Significantly better.* Effect: unseen loss of the best standard criterion (smallest mean
       loss on the unseen domain, which favours the baselines) minus the method's. Supported if
       the method is better than every standard criterion with Holm-corrected p < 0.05 (Wilcoxon,
       over networks), partly if better than at least one with p < 0.05 and worse than none with
       p < 0.05, else not.

    Args:
        lost: From :func:`~dgprune_book.study.analysis.losses`, of one network and one budget.
        pruning_ratio: At which to judge.
        method: A ``method`` of :func:`~dgprune_book.study.analysis.losses`, chosen without looking
            at the unseen domain.

    Returns:
        One row a claim: claim, measured (what the effect is), effect, low, high, pairs,
        pruning_ratio, verdict ("supported", "partly", "not supported").
    """
    standard = list(standard)

    def table(value: str) -> pd.DataFrame:
        pairs = table_of_pairs(lost, pruning_ratio, value)
        return pairs[[known_method(name, pairs) for name in (*standard, method)]].dropna()

    def kept(role: str) -> pd.Series:
        before = table(f"loss_{role}_before")
        return before[standard].mean(axis=1) - before[method]

    inside, unseen = table("loss_in_domain"), table("loss_unseen")
    maintained = inside[standard].mean(axis=1)
    decay = (unseen[standard] - inside[standard]).mean(axis=1)
    beyond = kept("unseen") - kept("in_domain")
    best = str(unseen[standard].mean().idxmin())
    gain = unseen[best] - unseen[method]
    against = compare(lost, method, standard, pruning_ratio=pruning_ratio)
    significant = against["p_holm"] < 0.05
    better = significant & (against["difference"] > 0)
    worse = significant & (against["difference"] < 0)

    rows: list[dict[str, Any]] = []
    for claim, measured, effect in zip(
        CLAIMS,
        (
            "in-domain loss of the standard criteria",
            "unseen loss minus in-domain loss, standard criteria",
            f"kept more before fine-tuning, unseen minus in-domain, {method} over the average",
            f"unseen loss, best standard criterion ({best}) minus {method}",
        ),
        (maintained, decay, beyond, gain),
        strict=True,
    ):
        found = as_row(estimate(effect))
        rows.append(
            {
                "claim": claim,
                "measured": measured,
                "effect": found.pop("mean"),
                "pairs": found.pop("networks"),
                **found,
                "pruning_ratio": pruning_ratio,
            }
        )
    begins = [min(row["low"], row["domain_low"]) for row in rows]
    ends = [max(row["high"], row["domain_high"]) for row in rows]
    verdicts = (
        _verdict(ends[0] <= 1, begins[0] <= 1),
        _verdict(begins[1] > 1, begins[1] > 0),
        _verdict(begins[2] > 0, rows[2]["effect"] > 0),
        _verdict(bool(better.all()), bool(better.any() and not worse.any())),
    )
    return pd.DataFrame(rows).assign(verdict=verdicts)


def _verdict(supported: bool, partly: bool) -> str:
    return "supported" if supported else "partly" if partly else "not supported"
