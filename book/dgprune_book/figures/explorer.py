"""The pruning explorer of the chapters: choose a ratio and a criterion, and see a figure for them.

One object serves two hosts. In Jupyter it is a widget, and a move draws one figure in the kernel.
A built page has no kernel: there the same object shows as HTML with all figures drawn beforehand.

*Which host?* A front end that gets several representations shows the one it prefers: Jupyter takes
the widget, the book's build takes ``text/html`` (``nb_mime_priority_overrides`` in
``_config.yml``). Only the HTML needs all figures, 8 seconds for 27 of them, so it is added only
where the environment variable ``DGPRUNE_STATIC`` is set. The book's Sphinx extension sets it, and
the kernels that run the chapters inherit it. That is certain, while guessing from the front end of
a kernel is not; and it serves anybody who runs a notebook to export it.

*Where is the script?* In ``explorer.html``, the page's half of this file, and from there in every
explorer: 1 KB of style and 1 KB of script. So a notebook exported alone works as the book does,
from a disk too, and no file has to travel beside it.

A chapter must not use ``ipywidgets.interact`` or ``ipywidgets.Output``: nbclient, which runs the
chapters, sometimes loses a message while it serves an output widget, and the cell then waits until
its time is up.
"""

from __future__ import annotations

import html
import io
import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

STATIC = "DGPRUNE_STATIC"
"""Name of the environment variable that asks for all figures beforehand."""

_PAGE = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
_serial = itertools.count(1)  # two explorers of one page must not share the ids of their drawings


class PruneExplorer(widgets.VBox):
    """A slider over pruning ratios, and a choice of criteria, that redraw a figure.

    Make it the last expression of a cell. Each state is drawn once, when it is first asked for.

    Args:
        draw: makes the figure: `draw(ratio)`, or `draw(ratio, criterion)` if there are criteria.
            Let it read numbers computed before: a build calls it for all states.
        ratios: the values the slider can take, each in [0, 1), in order; or a mapping from every
            criterion to its own, where they differ.
        criteria: what to choose from, or a mapping from each to the name that readers see. None:
            there is nothing to choose but the ratio.
        start: the ratio shown first; the first of `ratios` if None. The first criterion is shown.
        describe: a sentence or two on the figure, called like `draw`. They stand below the figure,
            are read aloud at a move, and are the figure's alternative text.
        label: the slider's label.
        choice: the label of what is chosen from `criteria`, such as "Unseen domain".

    Raises:
        ValueError: no ratio, a ratio that is twice there or outside [0, 1), no criterion, one
            without ratios, or a `start` that is not one of the (first) `ratios`.
        TypeError: `criteria` is one string, or `draw` returns something else than a figure.

    Source: the book, chapters 3, 4 and 6.

    >>> from dgprune_book.figures import plots
    >>> explorer = PruneExplorer(lambda ratio: plots.figure()[0], [0.0, 0.5])
    >>> explorer.ratio.options
    (('0', 0.0), ('0.5', 0.5))
    >>> explorer.ratio.value = 0.5  # what a move of the slider does
    >>> explorer.to_html().count("<template>")  # one figure is shown, the other waits
    1
    """

    def __init__(
        self,
        draw: Callable[..., Figure],
        ratios: Sequence[float] | Mapping[str, Sequence[float]],
        criteria: Sequence[str] | Mapping[str, str] | None = None,
        *,
        start: float | None = None,
        describe: Callable[..., str] | None = None,
        label: str = "Pruning ratio",
        choice: str = "Criterion",
    ) -> None:
        self._criteria = _checked_criteria(criteria)
        self._ratios = _ratios_of_rows(ratios, self._criteria)
        first = self._ratios[0]
        start = first[0] if start is None else start
        if start not in first:
            raise ValueError(f"start={start!r} is not among the ratios {first}: give one")
        self._draw, self._describe = draw, describe
        self._frames: dict[tuple[Any, ...], tuple[str, str]] = {}
        self._prefix = f"dg{next(_serial)}-"

        self.ratio = widgets.SelectionSlider(
            options=_options(first),
            value=start,
            description=label,
            continuous_update=False,
            style={"description_width": "initial"},
        )
        controls = [self.ratio]
        self.criterion: Any = None
        if self._criteria:
            self.criterion = widgets.Dropdown(
                options=[(shown, name) for name, shown in self._criteria.items()],
                description=choice,
                style={"description_width": "initial"},
            )
            controls.insert(0, self.criterion)
            self.criterion.observe(self._offer_ratios, names="value")
        self.view = widgets.HTML()
        super().__init__([*controls, self.view])
        for control in controls:
            control.observe(self._show, names="value")
        self._start = self._states()[first.index(start)]
        self._show()

    def _states(self) -> list[tuple[Any, ...]]:
        """The arguments of `draw` for every state, criterion by criterion."""
        if not self._criteria:
            return [(ratio,) for ratio in self._ratios[0]]
        rows = zip(self._criteria, self._ratios, strict=True)
        return [(ratio, criterion) for criterion, ratios in rows for ratio in ratios]

    def _offer_ratios(self, change: Any) -> None:
        """Give the slider the ratios of the criterion that was chosen, and keep to the nearest."""
        ratios, old = self._ratios[list(self._criteria).index(change["new"])], self.ratio.value
        if tuple(_options(ratios)) != tuple(self.ratio.options):
            self.ratio.options = _options(ratios)
            self.ratio.value = min(ratios, key=lambda ratio: abs(ratio - old))

    def _frame(self, state: tuple[Any, ...]) -> tuple[str, str]:
        """The figure as SVG, and its description; drawn once a state."""
        if state not in self._frames:
            shown = ", ".join([f"{state[0]:g}", *(self._criteria[name] for name in state[1:])])
            text = self._describe(*state) if self._describe else f"{self.ratio.description} {shown}"
            figure = self._draw(*state)
            if not isinstance(figure, Figure):
                call = f"draw({', '.join(map(repr, state))})"
                raise TypeError(
                    f"{call} returned {figure!r}: expected a matplotlib Figure. "
                    "Does the function end with `return figure`?"
                )
            self._frames[state] = (_svg(figure, text, self._prefix), text)
        return self._frames[state]

    def _show(self, change: Any = None) -> None:
        chosen = (self.criterion.value,) if self._criteria else ()
        svg, text = self._frame((self.ratio.value, *chosen))
        self.view.value = f'{svg}<p role="status">{html.escape(text)}</p>'

    def to_html(self) -> str:
        """Draw all states, and give HTML that shows them without a kernel.

        Returns:
            The controls, the first figure and its description, the other figures in `<template>`
            elements, and the style and script they need. Equal figures are there once. Without
            JavaScript the first figure shows, and no controls.
        """
        numbers = {self._frame(self._start)[0]: 0}  # of each different frame; 0 shows first
        states = [
            numbers.setdefault(self._frame(state)[0], len(numbers)) for state in self._states()
        ]
        figure, *others = numbers
        rows = [" ".join(f"{ratio:g}" for ratio in ratios) for ratios in self._ratios]
        labels = rows[0].split()
        start = self._ratios[0].index(self._start[0])
        choice = self.criterion.description if self._criteria else ""
        return _PAGE.substitute(
            frame_numbers=" ".join(map(str, states)),
            rows=",".join(rows),
            criterion_control=_select(choice, list(self._criteria.values())),
            label=html.escape(self.ratio.description),
            labels=rows[0],
            last=len(labels) - 1,
            start=start,
            value=labels[start],
            figure=figure,
            text=html.escape(self._frame(self._start)[1]),
            templates="\n".join(f"<template>{svg}</template>" for svg in others),
        )

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = super()._repr_mimebundle_(**kwargs)
        if os.environ.get(STATIC):
            bundle["text/html"] = self.to_html()
        return bundle


def _options(ratios: Sequence[float]) -> list[tuple[str, float]]:
    return [(f"{ratio:g}", ratio) for ratio in ratios]


def _ratios_of_rows(
    ratios: Sequence[float] | Mapping[str, Sequence[float]], criteria: Mapping[str, str]
) -> list[list[float]]:
    """The slider's ratios for every criterion, in their order; one list if there are none."""
    if not isinstance(ratios, Mapping):
        checked = _checked_ratios(ratios)
        return [checked] * max(1, len(criteria))
    if missing := [name for name in criteria if name not in ratios]:
        raise ValueError(f"no ratios for {missing[0]!r}, only for {list(ratios)}")
    return [_checked_ratios(ratios[name]) for name in criteria]


def _checked_ratios(ratios: Sequence[float]) -> list[float]:
    checked = [float(ratio) for ratio in ratios]
    if not checked:
        raise ValueError("ratios is empty: give at least one value for the slider to take")
    for ratio in checked:
        if not 0 <= ratio < 1:
            raise ValueError(f"ratio {ratio} is outside [0, 1): it is the share of filters to go")
        if checked.count(ratio) > 1:
            raise ValueError(f"ratio {ratio} is more than once among {checked}: give it once")
    return checked


def _checked_criteria(criteria: Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
    """Name to label; empty if there is nothing to choose."""
    if criteria is None:
        return {}
    if isinstance(criteria, str):
        raise TypeError(f"criteria={criteria!r} is one string: give a list, [{criteria!r}]")
    if not criteria:
        raise ValueError(f"criteria={criteria!r} is empty: give a name, or None for no choice")
    return dict(criteria if isinstance(criteria, Mapping) else zip(criteria, criteria, strict=True))


def _select(title: str, labels: list[str]) -> str:
    if not labels:
        return ""
    options = "".join(f"<option>{html.escape(label)}</option>" for label in labels)
    return f'<label>{html.escape(title)} <select autocomplete="off">{options}</select></label>'


def _svg(figure: Figure, text: str, prefix: str) -> str:
    """Render a figure, and close it, as a small SVG element that can stand inside a page.

    Of the ids only those stay that the drawing refers to, renamed to begin with `prefix`; the
    style rule that would reach the page around it becomes an attribute. What repeats at every
    text is said once or left out: gzip sees 32 KB at a time, and then two frames fit.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with plt.rc_context({"svg.fonttype": "none"}):  # text as text
        figure.savefig(buffer, format="svg", metadata=nothing)
    plt.close(figure)
    svg = buffer.getvalue()
    svg = re.sub(r"<style.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    svg = svg.replace("font-family: 'DejaVu Sans'; ", "")

    used = dict.fromkeys(re.findall(r'(?:url\(|href=")#([\w-]+)', svg))  # in order of appearance
    names = {name: f"{prefix}{number}" for number, name in enumerate(used)}
    svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{names[m[1]]}"' if m[1] in names else "", svg)
    svg = re.sub(r"#([\w-]+)", lambda match: f"#{names.get(match[1], match[1])}", svg)
    # A reader's machine may lack the font that comes with matplotlib; Verdana is as wide.
    attributes = {
        "role": "img",
        "aria-label": html.escape(text),
        "font-family": "DejaVu Sans, Verdana, sans-serif",
        "stroke-linejoin": "round",
    }
    inserted = " ".join(f'{name}="{value}"' for name, value in attributes.items())
    return svg.replace("<svg", f"<svg {inserted}", 1)
