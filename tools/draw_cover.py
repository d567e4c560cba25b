"""Draw the cover, book/images/cover.png, from the committed results of the study.

    python tools/draw_cover.py

The figure shows what all standard criteria together lose: the mean over criteria first, within
each pair (test domain, seed), then mean and standard error over pairs.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from dgprune_book.figures import plots
from dgprune_book.study.analysis import BASELINES, balanced, losses, standard_error
from dgprune_book.study.results import read_results

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
    ratios = [0, *(100 * table.index)]  # at ratio 0 stands the control itself
    for value, label in ROLES.items():
        color, marker = STYLES[value]
        change, spread = [0, *-table[value]], [0, *table[f"{value}_se"]]
        low, high = (
            [c + sign * s for c, s in zip(change, spread, strict=True)] for sign in (-1, 1)
        )
        axes.plot(ratios, change, color=color, marker=marker, linewidth=2.5, label=f"on {label}")
        axes.fill_between(ratios, low, high, color=color, alpha=0.18, linewidth=0)
    pairs = int(table["pairs"].min())
    axes.set(
        xlabel="filters removed (%)",
        ylabel="change of accuracy (points)",
        title=f"What standard pruning costs ({pairs} networks; bands: standard error)",
        xticks=ratios,
    )
    axes.legend(loc="lower left", fontsize=12)
    figure.savefig(ROOT / "book" / "images" / "cover.png")


if __name__ == "__main__":
    main()
