"""A figure for the pruning explorer: accuracy over the ratio and by domain, and the filters left.

What the three panels show is numbers that were computed before; nothing is evaluated here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dgprune_book.figures import plots

MARKERS = {"in-domain": "o", "unseen": "D"}
_LINES = {"in-domain": "-", "unseen": "--"}
_SQUARES = 32  # filters side by side in one row of the map
_REMOVED = "#8C8C8C"


def explorer_figure(
    accuracy: pd.DataFrame,
    ratio: float,
    *,
    unseen: str,
    kept: Mapping[str, Any] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw accuracy over the ratio, accuracy by domain, and the filters that remain.

    Args:
        accuracy: in per cent; a row for each pruning ratio (the index, rising), a column for each
            domain.
        ratio: the one to show, a value of that index.
        unseen: the column of the domain that was left out of training; the others are in-domain.
        kept: layer name to bools (filters,), True for a filter that stays. None: no map of filters.
        title: above the figure; the ratio if None.

    Returns:
        The figure, as wide as the book's "single" size.

    Raises:
        ValueError: a `ratio` that is not in the index, an `unseen` that is no column, or no other
            column beside it.

    Source: the book, chapters 3 and 4.

    >>> accuracy = pd.DataFrame({"mnist": [98, 90], "syn": [80, 60]}, index=[0.0, 0.5])
    >>> kept = {"conv1": [True, False, True, False]}
    >>> figure = explorer_figure(accuracy, 0.5, unseen="syn", kept=kept)
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['accuracy (%)', '', '']
    >>> plots.plt.close(figure)
    """
    _check(accuracy, ratio, unseen)
    squares = _rows(kept) if kept else 0
    heights = [2.0, 0.6 + 0.3 * accuracy.shape[1], *([0.5 + 0.17 * squares] if kept else [])]
    figure, panels = plots.figure(rows=len(heights), height_ratios=heights)
    figure.set_size_inches(plots.SIZES["single"][0], sum(heights))
    draw_curve(panels[0], accuracy, ratio, unseen)
    draw_domains(panels[1], accuracy.loc[ratio], unseen)
    if kept:
        draw_filters(panels[2], kept)
    panels[0].set_title(f"Pruning ratio {ratio:g}" if title is None else title)
    return figure


def describe_explorer(
    accuracy: pd.DataFrame, ratio: float, *, unseen: str, kept: Mapping[str, Any] | None = None
) -> str:
    """Say in words what :func:`explorer_figure` shows; the arguments are its own.

    >>> accuracy = pd.DataFrame({"mnist": [98, 90], "syn": [80, 60]}, index=[0.0, 0.5])
    >>> kept = {"conv1": [True, False, True, False]}
    >>> print(describe_explorer(accuracy, 0.5, unseen="syn", kept=kept))
    Pruning ratio 0.5: accuracy in-domain 90 % (mnist 90), on the unseen syn 60 %.
    Filters left: conv1 2 of 4.
    """
    _check(accuracy, ratio, unseen)
    row = accuracy.loc[ratio]
    inside = row.drop(unseen)
    each = ", ".join(f"{domain} {value:.0f}" for domain, value in inside.items())
    text = (
        f"Pruning ratio {ratio:g}: accuracy in-domain {inside.mean():.0f} % ({each}), "
        f"on the unseen {unseen} {row[unseen]:.0f} %."
    )
    if kept:
        left = ", ".join(f"{name} {_left(stays)}" for name, stays in kept.items())
        text += f" Filters left: {left}."
    return text


def draw_curve(axes: Axes, accuracy: pd.DataFrame, ratio: float, unseen: str) -> None:
    """Draw both roles' accuracy over the ratio, with a large marker at one ratio.

    Args: as in :func:`explorer_figure`.
    """
    lines = {"in-domain": accuracy.drop(columns=unseen).mean(axis=1), "unseen": accuracy[unseen]}
    axes.axvline(ratio, color=plots.NEUTRAL, linewidth=1)
    for role, line in lines.items():
        style: dict[str, Any] = {"color": plots.ROLE_COLORS[role], "marker": MARKERS[role]}
        axes.plot(line.index, line, linestyle=_LINES[role], markersize=4, label=role, **style)
        axes.plot(ratio, line[ratio], markersize=11, markeredgecolor="white", **style)
    axes.set(xlabel="pruning ratio", ylabel="accuracy (%)", ylim=(0, 105), yticks=range(0, 101, 25))
    axes.legend(loc="lower left")


def draw_domains(axes: Axes, accuracy: pd.Series, unseen: str) -> None:
    """Draw the accuracy on each domain as a labelled stem, the unseen domain last.

    Args:
        axes: where to draw.
        accuracy: in per cent, indexed by domain.
        unseen: the domain that was left out of training.
    """
    domains = [*accuracy.index.drop(unseen), unseen]
    for place, domain in enumerate(domains):
        role = "unseen" if domain == unseen else "in-domain"
        color, value = plots.ROLE_COLORS[role], accuracy[domain]
        axes.plot([0, value], [place, place], color=color, linestyle=_LINES[role])
        axes.plot(value, place, color=color, marker=MARKERS[role], markersize=9)
        axes.text(value + 3, place, f"{value:.0f}", va="center")
    axes.set(yticks=range(len(domains)), yticklabels=domains, ylim=(len(domains) - 0.5, -0.5))
    axes.set(xlim=(0, 112), xticks=range(0, 101, 20), xlabel="accuracy (%) by domain")
    axes.grid(axis="y", visible=False)


def draw_filters(
    axes: Axes,
    kept: Mapping[str, Any],
    *,
    dotted: Mapping[str, Any] | None = None,
    color: str = plots.NEUTRAL,
) -> None:
    """Draw each layer's filters as squares: large and filled if it stays, small and hollow if not.

    Args:
        axes: where to draw.
        kept: layer name to bools (filters,).
        dotted: the same for a second choice of filters, which get a dot.
        color: of the filters that stay.

    >>> figure, axes = plots.figure()
    >>> draw_filters(axes, {"conv1": [True, False], "conv2": [False, True, True]})
    >>> [label.get_text() for label in axes.get_yticklabels()]
    ['conv1', 'conv2']
    >>> plots.plt.close(figure)
    """
    top, ticks = 0, []
    hollow: dict[str, Any] = {"color": _REMOVED, "markerfacecolor": "none", "markersize": 4}
    for name, stays in kept.items():
        stays = np.asarray(stays, dtype=bool)  # accepts tensors and gates of 0 and 1
        y, x = np.divmod(np.arange(len(stays)), _SQUARES)
        marks = [(stays, {"color": color, "markersize": 7.5}), (~stays, hollow)]
        if dotted:
            dots = np.asarray(dotted[name], dtype=bool)
            marks += [(dots & stays, _dot("white")), (dots & ~stays, _dot("black"))]
        for chosen, style in marks:
            axes.plot(x[chosen], top + y[chosen], **{"marker": "s", "linestyle": "none", **style})
        axes.text(_SQUARES, top, _left(stays), va="center", fontsize=10)
        ticks.append(top)
        top += y[-1] + 1.4
    axes.set(yticks=ticks, yticklabels=list(kept), xticks=[], xlabel="large: stays; small: removed")
    axes.set(xlim=(-0.8, _SQUARES + 6), ylim=(top - 0.6, -0.8))
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _left(stays: Any) -> str:
    return f"{np.asarray(stays, dtype=bool).sum()} of {len(stays)}"


def _dot(color: str) -> dict[str, Any]:
    return {"marker": "o", "color": color, "markersize": 2.5}


def _rows(kept: Mapping[str, Any]) -> int:
    return sum(-(-len(stays) // _SQUARES) for stays in kept.values())


def _check(accuracy: pd.DataFrame, ratio: float, unseen: str) -> None:
    if unseen not in accuracy or accuracy.shape[1] < 2:
        raise ValueError(
            f"unseen={unseen!r}: expected one of two or more columns of accuracy, {list(accuracy)}"
        )
    if ratio not in accuracy.index:
        raise ValueError(f"ratio={ratio!r} is not in the index of accuracy: {list(accuracy.index)}")
