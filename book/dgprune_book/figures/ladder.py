"""The ladder: points lost in-domain and unseen as the score learns more, one panel a data set."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dgprune_book.figures import plots

PLACES = {"in-domain": -0.17, "unseen": 0.17}  # of the two roles around a rung
MARKERS = {"in-domain": "o", "unseen": "s"}


def draw_ladder(ladders: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw ladders side by side; left is better.

    Args:
        ladders: Title of a panel to what :func:`~dgprune_book.study.headlines.ladder` gives. All
            panels show the rungs of all.

    Returns:
        The figure: means, thick bars for intervals over networks, thin ones for intervals over test
        domains. Where those leave the panel, they end at its edge.
    """
    rungs = list(dict.fromkeys(rung for table in ladders.values() for rung in table["rung"]))
    figure, panels = plots.figure("tall", columns=len(ladders), sharey=True, squeeze=False)
    figure.set_size_inches(7.2, 1.6 + 0.55 * len(rungs))
    for axes, (title, table) in zip(panels[0], ladders.items(), strict=True):
        for role, rows in table.groupby("role"):
            color = plots.ROLE_COLORS[role]
            heights = [rungs.index(rung) + PLACES[role] for rung in rows["rung"]]
            axes.hlines(heights, rows["domain_low"], rows["domain_high"], color=color, linewidth=1)
            axes.hlines(heights, rows["low"], rows["high"], color=color, linewidth=3.5, alpha=0.6)
            axes.plot(rows["mean"], heights, MARKERS[role], color=color, label=role)
        axes.axvline(0, color=plots.NEUTRAL, linewidth=1)
        ends = table[["low", "high", "mean"]].to_numpy()
        room = 0.6 * (np.nanmax(ends) - min(0, np.nanmin(ends)))
        axes.set(
            title=title,
            xlabel="points lost",
            xlim=(min(0, np.nanmin(ends)) - 0.3 * room, np.nanmax(ends) + room),
            yticks=range(len(rungs)),
            yticklabels=[textwrap.fill(rung, 22) for rung in rungs],
            ylim=(len(rungs) - 0.5, -0.5),
        )
        axes.grid(axis="y", visible=False)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2)
    return figure
