"""The ratio slider of the chapters: move it in Jupyter, and a figure is drawn for the new value.

It is made of a slider and an HTML view only. A chapter must not use `ipywidgets.interact` or
`ipywidgets.Output`: nbclient, which runs the chapters, sometimes loses a message while it serves an
output widget, and the cell then waits until its time is up.
"""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Sequence

import ipywidgets as widgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure


def ratio_slider(
    draw: Callable[[float], Figure],
    ratios: Sequence[float],
    *,
    start: int = 0,
    label: str = "Pruning ratio",
    describe: Callable[[float], str] | None = None,
) -> widgets.VBox:
    """Make a slider over pruning ratios that redraws a figure at each move.

    A page built without a kernel shows a note in its place, so a chapter puts a static figure
    beside it.

    Args:
        draw: makes the figure for a ratio; called in the kernel once for each ratio visited.
        ratios: the values the slider can take, in order.
        start: index of the first one shown.
        label: the slider's label.
        describe: one sentence about the figure for a ratio; it is the figure's alternative text.

    Returns:
        The widget; make it the last expression of a cell.

    Raises:
        ValueError: if `ratios` is empty or `start` is not an index of it.

    Source: the book, chapters 4 and 6.

    >>> from dgprune_lite import plots
    >>> slider = ratio_slider(lambda ratio: plots.figure()[0], [0.0, 0.5])
    >>> slider.children[0].options
    (('0.00', 0.0), ('0.50', 0.5))
    """
    if not ratios:
        raise ValueError("ratios is empty: give at least one value for the slider to take")
    if not 0 <= start < len(ratios):
        raise ValueError(f"start={start}: expected an index into {len(ratios)} ratios")
    slider = widgets.SelectionSlider(
        options=[(f"{ratio:.2f}", ratio) for ratio in ratios],
        index=start,
        description=label,
        continuous_update=False,
        style={"description_width": "initial"},
    )
    view = widgets.HTML()
    drawn: dict[float, str] = {}

    def show(ratio: float) -> None:
        if ratio not in drawn:
            text = describe(ratio) if describe else f"{label} {ratio:.2f}"
            drawn[ratio] = _svg(draw(ratio), text)
        view.value = drawn[ratio]

    slider.observe(lambda change: show(change["new"]), names="value")
    show(slider.value)
    return widgets.VBox([slider, view])


def _svg(figure: Figure, alt: str) -> str:
    """Render a figure as an SVG element with alternative text, and close it."""
    buffer = io.StringIO()
    with plt.rc_context({"svg.hashsalt": "dgprune_lite"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    label = html.escape(alt, quote=True)
    return text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
