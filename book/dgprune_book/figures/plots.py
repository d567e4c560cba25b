"""The one plotting style of the book: sizes, colours and markers, all colour-blind safe.

Every figure uses the same colour for the same thing: `IN_DOMAIN` and `UNSEEN` for the two roles of
a domain; one colour, marker and line style for each criterion (`criterion_style`). The unseen
domain is always orange-red, and nothing else is. Core modules do not import this one; it is no part
of `import dgprune_lite`.
"""

from __future__ import annotations

import difflib
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

# Okabe and Ito's palette (2008) for the two roles.
IN_DOMAIN = "#0072B2"  # blue
UNSEEN = "#D55E00"  # vermillion
NEUTRAL = "#595959"  # reference lines, the unpruned network

ROLE_COLORS = {"in-domain": IN_DOMAIN, "unseen": UNSEEN}
ROLE_MARKERS = {"in-domain": "o", "unseen": "s"}

# (colour, marker, line style): three signals each, so that no reader depends on the colour alone.
# Baselines are dashed; the criteria of the risk-variance family are solid, its variants (named as
# the study names them) nearly so.
_CRITERIA: dict[str, tuple[str, str, Any]] = {
    "random": ("#707070", "x", ":"),
    "l1": ("#117733", "s", "--"),
    "l2": ("#44AA99", "D", "--"),
    "bn_scale": ("#8C6D1F", "^", "--"),
    "fpgm": ("#999933", "v", "--"),
    "taylor": ("#6699CC", "P", "--"),
    "fisher": ("#332288", "X", "--"),
    "risk_variance": ("#882255", "o", "-"),
    "risk_variance mean=1": ("#000000", "d", "-."),
    "risk_variance order=second": ("#CC79A7", "*", (0, (5, 1))),
    "risk_gradient": ("#AA4499", "h", "-"),
    "worst_domain": ("#CC6677", "p", "-"),
}
_LABELS = {
    **{name: name.title() for name in ("l1", "l2", "taylor", "fisher")},
    "bn_scale": "BN scale",
    "fpgm": "FPGM",
    "risk_variance mean=1": "mean and spread",
    "fisher on val": "Fisher, held-out images",
    "taylor on val": "Taylor, held-out images",
    "risk_variance order=second": "second order",
}
# The domains, where a figure tells them apart: none of the colours of the roles.
DOMAIN_PALETTE = ("#332288", "#117733", "#AA4499", "#8C6D1F")
CRITERION_COLORS = {name: style[0] for name, style in _CRITERIA.items()}

# Width and height in inches. A page shows 100 px an inch, a phone 330 px in all: 11 pt text
# in a figure of 5.6 in is then 15 and 9 px high.
SIZES = {"single": (5.6, 3.5), "wide": (7.2, 3.4), "tall": (5.6, 5.6), "square": (4.2, 4.2)}

STYLE: dict[str, Any] = {
    "figure.figsize": SIZES["single"],
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "savefig.facecolor": "white",
    "font.family": "DejaVu Sans",  # matplotlib ships it: the same figure on every machine
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": plt.cycler(color=[IN_DOMAIN, "#882255", "#117733", "#8C6D1F", "#332288"]),
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.8,
    "lines.linewidth": 2.0,
    "lines.markersize": 6,
    "errorbar.capsize": 3,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "image.cmap": "cividis",
    "image.interpolation": "nearest",
}


def use_style() -> None:
    """Set the book's plotting style for the figures that follow.

    Source: the book's own; chapters call it once, in their first cell.

    >>> use_style()
    >>> plt.rcParams["font.size"]
    11.0
    """
    plt.style.use(STYLE)
    try:  # sharp figures on sharp screens, where a notebook shows them
        from IPython.core.getipython import get_ipython
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:
        return
    if get_ipython() is not None:
        set_matplotlib_formats("retina")


def figure(
    size: str = "single", rows: int = 1, columns: int = 1, **kwargs: Any
) -> tuple[Figure, Any]:
    """Make a figure of one of the book's sizes.

    Args:
        size: "single" (the default), "wide" (for two panels side by side), "tall" or "square".
        rows: panels below each other.
        columns: panels beside each other.
        **kwargs: passed on to `matplotlib.pyplot.subplots`.

    Returns:
        The figure and its axes: one `Axes`, or an array of them when there are several panels.

    Raises:
        ValueError: for a size that does not exist.

    >>> fig, axes = figure("wide", columns=2)
    >>> axes.shape, fig.get_size_inches().tolist()
    ((2,), [7.2, 3.4])
    >>> plt.close(fig)
    """
    if size not in SIZES:
        raise ValueError(f"unknown figure size {size!r}: expected one of {', '.join(SIZES)}")
    return plt.subplots(rows, columns, figsize=SIZES[size], **kwargs)


def criterion_style(name: str) -> dict[str, Any]:
    """Give the line style of a criterion, as keyword arguments of `Axes.plot`.

    Args:
        name: a criterion of `dgprune_lite.score`, such as "l1" or "risk_variance", or one of its
            variants in the study, such as "risk_variance mean=1".

    Returns:
        `color`, `marker`, `linestyle` and `label`.

    Raises:
        ValueError: for a criterion without a style of its own; names the nearest one.

    >>> criterion_style("risk_variance")
    {'color': '#882255', 'marker': 'o', 'linestyle': '-', 'label': 'risk variance'}
    """
    if name not in _CRITERIA:
        near = difflib.get_close_matches(name, _CRITERIA, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(
            f"no plotting style for criterion {name!r}{hint} Known: {', '.join(_CRITERIA)}"
        )
    color, marker, linestyle = _CRITERIA[name]
    label = _LABELS.get(name, name.replace("_", " "))
    return {"color": color, "marker": marker, "linestyle": linestyle, "label": label}


def diagram(width: float, height: float) -> tuple[Figure, Axes]:
    """Make axes for a diagram, 7.2 inches wide, with (0, 0) at the lower left and no frame.

    Args:
        width: of the plane that is drawn on, in units of its own.
        height: of that plane; the figure gets the height that makes both units equally long.

    >>> fig, axes = diagram(12, 3)
    >>> fig.get_size_inches().tolist()
    [7.2, 1.8]
    >>> plt.close(fig)
    """
    fig, axes = plt.subplots(figsize=(7.2, 7.2 * height / width))
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.set_axis_off()
    return fig, axes


def box(
    axes: Axes, x: float, y: float, text: str, width: float = 2, height: float = 1, color: str = "w"
) -> None:
    """Draw a box with words in it, centred at (x, y).

    Args:
        axes: of :func:`diagram`.
        x: of the centre.
        y: of the centre.
        text: may have several lines.
        width: in units of the plane.
        height: in units of the plane.
        color: of the ground.
    """
    shape = FancyBboxPatch(
        (x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0,rounding_size=0.15"
    )
    shape.set(facecolor=color, edgecolor="black")
    axes.add_patch(shape)
    axes.text(x, y, text, ha="center", va="center")


def arrow(axes: Axes, *points: tuple[float, float]) -> None:
    """Draw an arrow along two or more points to the last one.

    Args:
        axes: of :func:`diagram`.
        *points: (x, y) in units of the plane.
    """
    axes.plot(*zip(*points, strict=True), color="black", linewidth=1, solid_capstyle="butt")
    head = FancyArrowPatch(*points[-2:], arrowstyle="-|>", mutation_scale=14, shrinkA=0, shrinkB=0)
    head.set(facecolor="black", edgecolor="black", linewidth=1)
    axes.add_patch(head)


def show_images(axes: Axes, images: Any, columns: int = 8) -> None:
    """Show images side by side on one pair of axes.

    Args:
        axes: where to draw.
        images: tensor or array (n, channels, height, width) with values in [0, 1]; one channel or
            three.
        columns: images per row.

    Raises:
        ValueError: if `images` has not four dimensions, or neither one channel nor three.

    >>> fig, axes = figure()
    >>> show_images(axes, np.zeros((5, 3, 28, 28)), columns=4)
    >>> axes.images[0].get_array().shape       # 2 rows and 4 columns of 28 px, 2 px apart
    (58, 118, 3)
    >>> plt.close(fig)
    """
    array = np.asarray(images, dtype=float)
    if array.ndim != 4 or array.shape[1] not in (1, 3):
        raise ValueError(
            f"images of shape {array.shape}: expected (n, channels, height, width), "
            "with 1 or 3 channels"
        )
    count, _, height, width = array.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    gap = 2
    sheet = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, 3))
    for index, image in enumerate(array.clip(0, 1)):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    axes.imshow(sheet)
    axes.set_axis_off()
