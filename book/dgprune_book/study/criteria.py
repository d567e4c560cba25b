"""The criteria of the grids: the fields of a cell that say how its filters are scored.

What this file is *not*: the scores themselves, which are the package's and ``variants.py``'s.
"""

from __future__ import annotations

from typing import Any

Criterion = dict[str, Any]  # the fields of a cell that say how filters are scored

BASELINES: tuple[Criterion, ...] = (
    {"criterion": "random"},
    {"criterion": "l1"},
    {"criterion": "bn_scale"},
    {"criterion": "fpgm"},
    {"criterion": "taylor", "scored_on": "train"},
    {"criterion": "fisher", "scored_on": "train"},
)
_, L1, BN_SCALE, FPGM, TAYLOR, FISHER = BASELINES


def variance_score(scored_on: str = "val", statistics: str = "plain", **options: Any) -> Criterion:
    """The risk-variance score with options of its own."""
    return {
        "criterion": "risk_variance",
        "scored_on": scored_on,
        "statistics": statistics,
        "options": options,
    }


STD = variance_score(order="fisher", mean_weight=0.0, variance_weight=1.0)
MEAN_AND_STD = variance_score(order="fisher", mean_weight=1.0, variance_weight=1.0)
WORST_DOMAIN: Criterion = {"criterion": "worst_domain", "scored_on": "val"}
OURS: tuple[Criterion, ...] = (
    STD,
    MEAN_AND_STD,
    variance_score(order="second"),
    WORST_DOMAIN,
    {"criterion": "risk_gradient", "scored_on": "val"},
)


def objective_score(order: str, variance_weight: float) -> Criterion:
    """The signed score: what V-REx's objective loses when the filter goes."""
    options = {"order": order, "variance_weight": variance_weight}
    return {"criterion": "risk_objective", "scored_on": "val", "options": options}


def on_held_out_images(criterion: Criterion) -> Criterion:
    """The same on all images that are held out."""
    return {**criterion, "scored_on": "val"}


HELD_OUT_FISHER = on_held_out_images(FISHER)
# The search for a better score. Each goes back to a reason why the plain one may fall short.
SECOND = variance_score(order="second", mean_weight=1.0)  # ½F is a poor estimate: measure better
# A domain with large risks outweighs the others.
SCALED = variance_score(mean_weight=1.0, normalize=True)
GEOMETRIC: Criterion = {"criterion": "geometric_mean", "scored_on": "val"}
# Three risks give a poor variance: make more domains.
VIRTUAL = variance_score(mean_weight=1.0, statistics="virtual")
# Filters do not go alone.
MASKED = variance_score(order="fisher", mean_weight=1.0, statistics="masked")
PRIOR: Criterion = {"criterion": "bn_scale_and_risk", "scored_on": "val"}  # needs no data
# What only some domains need goes first, among what is needed equally on average or in any case.
REVERSED = variance_score(mean_weight=1.0, reverse=True)
SPREAD_REVERSED = variance_score(reverse=True)
