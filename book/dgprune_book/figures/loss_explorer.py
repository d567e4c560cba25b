"""The book's slider: what each criterion loses, in-domain and unseen, by ratio and domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dgprune_book.figures import plots, wording
from dgprune_book.figures.explorer import PruneExplorer
from dgprune_book.study.analysis import PAIR, curves, standard_error
from dgprune_book.study.answer import CURVES, Results

AVERAGE = "average of all"
_ROLES = {"in-domain": "loss_in_domain", "unseen": "loss_unseen"}


def loss_explorer(measured: Sequence[Results]) -> PruneExplorer:
    """A slider over pruning ratios, and a choice of data set and unseen domain.

    Args:
        measured: From :func:`~dgprune_book.study.answer.all_results`. The first one with three
            ratios or more is shown first, since a slider should have somewhere to go.

    Source: the book, its first page and chapters 4 and 6.
    """
    parts: dict[str, tuple[Results, pd.DataFrame]] = {}
    measured = sorted(measured, key=lambda each: each.lost["pruning_ratio"].nunique() < 3)
    for results in measured:
        lost = results.lost[results.lost["method"].isin(CURVES)]
        parts[f"{results.title}: {AVERAGE}"] = (results, lost)
        for domain, rows in lost.groupby("test_env"):
            parts[f"{results.title}: {wording.domain_name(str(domain))}"] = (results, rows)
    ratios = {name: sorted(lost["pruning_ratio"].unique()) for name, (_, lost) in parts.items()}

    def draw(ratio: float, name: str) -> Figure:
        return loss_figure(parts[name][1], ratio, title=name)

    def describe(ratio: float, name: str) -> str:
        return describe_losses(parts[name][1], ratio, name)

    start = measured[0].ratio
    return PruneExplorer(
        draw, ratios, list(parts), start=start, describe=describe, choice="Unseen domain"
    )


def loss_figure(lost: pd.DataFrame, ratio: float, *, title: str = "") -> Figure:
    """Draw the losses of each criterion over the ratio, and beside each other at one ratio.

    Args:
        lost: From :func:`~dgprune_book.study.analysis.losses`, of the criteria to show.
        ratio: The one to show, which must be there.
        title: What is shown, above the figure.
    """
    if ratio not in set(lost["pruning_ratio"]):
        raise ValueError(f"ratio={ratio!r} was not measured: {sorted(set(lost['pruning_ratio']))}")
    # A layout of its own: one that fits itself would cost most of the time of so many figures.
    figure = plots.plt.figure(figsize=(plots.SIZES["single"][0], 4.6), layout="none")
    top_row = figure.add_gridspec(1, 2, left=0.13, right=0.98, top=0.87, bottom=0.53, wspace=0.08)
    left = figure.add_subplot(top_row[0])
    panels = (left, figure.add_subplot(top_row[1], sharey=left))
    below = figure.add_axes((0.28, 0.11, 0.70, 0.24))
    lines = curves(lost, list(_ROLES.values()))
    top = max((lines[v] + lines[f"{v}_se"].fillna(0)).max() for v in _ROLES.values())
    methods = [name for name in CURVES if name in set(lost["method"])]
    for axes, (role, value) in zip(panels, _ROLES.items(), strict=True):
        _draw_curves(axes, lines, methods, value, ratio)
        axes.set(ylim=(min(-1.5, -0.06 * top), 1.05 * top), title=role, xlabel="pruning ratio")
        axes.locator_params(axis="x", nbins=4)
    panels[0].set_ylabel("points lost")
    panels[1].tick_params(labelleft=False)
    _draw_beside(below, lost[lost["pruning_ratio"] == ratio], methods)
    figure.text(0.01, 0.955, title, fontsize=11, weight="bold")
    return figure


def _draw_curves(
    axes: Axes, lines: pd.DataFrame, methods: list[str], value: str, ratio: float
) -> None:
    axes.axhline(0, color=plots.NEUTRAL, linewidth=1)
    axes.axvline(ratio, color=plots.NEUTRAL, linewidth=1)
    for name in methods:
        rows = lines[lines["method"] == name]
        style = plots.criterion_style(name)
        x, y, error = rows["pruning_ratio"], rows[value], rows[f"{value}_se"].fillna(0)
        axes.fill_between(x, y - error, y + error, color=style["color"], alpha=0.12, linewidth=0)
        axes.plot(x, y, **style | {"linewidth": 1.5, "markersize": 4})


def _draw_beside(axes: Axes, rows: pd.DataFrame, methods: list[str]) -> None:
    """One row per criterion at one ratio: in-domain and unseen, standard errors over networks."""
    for place, name in enumerate(methods):
        values = rows[rows["method"] == name]
        for (role, value), shift in zip(_ROLES.items(), (-0.14, 0.14), strict=True):
            mean, error = values[value].mean(), np.nan_to_num(standard_error(values[value]))
            look: dict[str, Any] = {"marker": plots.ROLE_MARKERS[role], "linestyle": "none"}
            look |= {"color": plots.ROLE_COLORS[role], "label": None if place else role}
            axes.errorbar(mean, place + shift, xerr=error, **look)
    axes.axvline(0, color=plots.NEUTRAL, linewidth=1)
    axes.set(xlabel="points lost at the chosen ratio", yticks=range(len(methods)))
    axes.set_yticklabels([plots.criterion_style(name)["label"] for name in methods])
    for tick, name in zip(axes.get_yticklabels(), methods, strict=True):
        tick.set_color(plots.CRITERION_COLORS[name])
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower right", bbox_to_anchor=(1.02, 0.96), ncols=2, borderpad=0)


def describe_losses(lost: pd.DataFrame, ratio: float, name: str) -> str:
    """Say in words what :func:`loss_figure` shows; the arguments are its own.

    >>> rows = [("l1", 0.5, "a", 0, 1.0, 3.0), ("random", 0.5, "a", 0, 2.0, 6.0)]
    >>> columns = ["method", "pruning_ratio", *PAIR, "loss_in_domain", "loss_unseen"]
    >>> print(describe_losses(pd.DataFrame(rows, columns=columns), 0.5, "digits: a"))
    digits: a, 50 % of the filters removed. Points lost: in-domain 1.0 to 2.0, unseen 3.0 to 6.0,
    depending on the criterion. Unseen, L1 loses least (3.0) and random pruning loses 6.0.
    """
    rows = lost[lost["pruning_ratio"] == ratio]
    means = rows.groupby("method")[list(_ROLES.values())].mean()
    errors = rows.groupby("method")["loss_unseen"].agg(standard_error)
    inside, unseen = means["loss_in_domain"], means["loss_unseen"]
    best = str(unseen.drop("random").idxmin())

    def said(method: str) -> str:
        return wording.plus_minus(unseen[method], errors[method])

    text = (
        f"{name}, {100 * ratio:.0f} % of the filters removed. Points lost: in-domain "
        f"{inside.min():z.1f} to {inside.max():z.1f}, unseen {unseen.min():z.1f} to "
        f"{unseen.max():z.1f}, depending on the criterion. Unseen, "
        f"{plots.criterion_style(best)['label']} loses least ({said(best)}) and random pruning "
        f"loses {said('random')}."
    )
    networks = len(rows[list(PAIR)].drop_duplicates())
    return text if networks == 1 else f"{text} Mean ± standard error over {networks} networks."
