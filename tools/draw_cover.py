"""Draw the cover, book/images/cover.png, from the committed results of the study.

    python tools/draw_cover.py

The figure shows what all standard criteria together lose: the mean over criteria first, within
each pair (test domain, seed), then mean and standard error over pairs.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from dgprune_lite import plots
from dgprune_lite.analysis import BASELINES, balanced, losses, standard_error
from dgprune_lite.results import read_results

ROOT = Path(__file__).parents[1]
ROLES = {"loss_in_domain": "the domains it was trained on", "loss_unseen": "a domain it never saw"}
STYLES = {"loss_in_domain": (plots.IN_DOMAIN, "s"), "loss_unseen": (plots.UNSEEN, "o")}


def cover_curve(results: Path) -> pd.DataFrame:
    """Mean points lost and standard error over pairs, by ratio, of the standard criteria."""
    lost = losses(balanced(read_results(results)[0]))
    lost = lost[lost["method"].isin(BASELINES)]
    pairs = lost.groupby(["pruning_ratio", "test_env", "seed"])[list(ROLES)].mean()
    groups = pairs.groupby("pruning_ratio")
    table = groups.mean()
    for value in ROLES:
        table[f"{value}_se"] = groups[value].agg(standard_error)
    table["pairs"] = groups.size()
    return table


def main() -> None:
    table = cover_curve(ROOT / "book" / "results" / "book.jsonl")
    plots.use_style()
    figure, axes = plots.figure("wide")
    ratios = 100 * table.index
    for value, label in ROLES.items():
        color, marker = STYLES[value]
        axes.plot(ratios, -table[value], color=color, marker=marker, linewidth=2.5)
        low, high = (-table[value] + sign * table[f"{value}_se"] for sign in (-1, 1))
        axes.fill_between(ratios, low, high, color=color, alpha=0.18, linewidth=0)
        axes.annotate(
            label, (ratios[-1], -table[value].iloc[-1]), xytext=(8, 0), textcoords="offset points",
            color=color, va="center", annotation_clip=False, fontweight="bold",
        )  # fmt: skip
    axes.axhline(0, color=plots.NEUTRAL, linewidth=1)
    axes.set(
        xlabel="filters removed (%)", ylabel="change of accuracy (points)",
        xlim=(ratios[0] - 2, ratios[-1] + 30),
        title="Pruned the standard way, a network loses more where it was not trained",
    )  # fmt: skip
    axes.set_xticks(ratios)
    figure.savefig(ROOT / "book" / "images" / "cover.png")


if __name__ == "__main__":
    main()
