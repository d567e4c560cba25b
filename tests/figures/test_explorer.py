"""The explorer: one object that draws in a kernel, and shows without one."""

from __future__ import annotations

import gzip
import os
import re
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from dgprune_book.figures import plots
from dgprune_book.figures.explorer import STATIC, PruneExplorer
from dgprune_book.figures.explorer_figure import describe_explorer, draw_filters, explorer_figure
from nbclient import NotebookClient

WIDGET = "application/vnd.jupyter.widget-view+json"
RATIOS = [0.0, 0.3, 0.6]
CRITERIA = {"l1": "L1", "fisher": "Fisher & <Co>"}
ACCURACY = pd.DataFrame(
    {"mnist": [98.0, 95.0, 60.0], "syn": [90.0, 85.0, 40.0], "mnist_m": [70.0, 50.0, 20.0]},
    index=RATIOS,
)


class Draw:
    """A draw function that remembers how it was called."""

    def __init__(self):
        self.calls = []

    def __call__(self, *state):
        self.calls.append(state)
        figure, axes = plt.subplots(figsize=(2, 1))
        axes.plot([0, 1], [0, state[0]], marker="o")
        axes.set_title(str(state))
        return figure


def describe(*state):
    return f"The state is {state}; it has <angles> & more."


@pytest.fixture
def draw():
    return Draw()


class Page(HTMLParser):
    """The start tags of a page, and whether each sits in a template."""

    def __init__(self, text):
        super().__init__()
        self.tags, self._templates = [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes), self._templates > 0))
        self._templates += tag == "template"

    def handle_endtag(self, tag):
        self._templates -= tag == "template"

    def all(self, tag, hidden=None):
        return [a for name, a, inside in self.tags if name == tag and hidden in (None, inside)]


# Live


def test_draws_one_figure_at_first_and_one_for_each_new_state(draw):
    explorer = PruneExplorer(draw, RATIOS, CRITERIA, start=0.3, describe=describe)
    assert draw.calls == [(0.3, "l1")]
    first = explorer.view.value
    explorer.ratio.value = 0.6
    explorer.criterion.value = "fisher"
    assert draw.calls[1:] == [(0.6, "l1"), (0.6, "fisher")]
    assert explorer.view.value != first
    explorer.criterion.value = "l1"
    explorer.ratio.value = 0.3
    assert len(draw.calls) == 3, "a state seen before is not drawn again"
    assert explorer.view.value == first


def test_one_criterion_is_a_slider_alone(draw):
    explorer = PruneExplorer(draw, np.array(RATIOS))
    assert explorer.criterion is None
    assert [type(child).__name__ for child in explorer.children] == ["SelectionSlider", "HTML"]
    assert draw.calls == [(0.0,)]


OWN_RATIOS = {"l1": RATIOS, "fisher": [0.1, 0.4]}


def test_each_choice_can_have_ratios_of_its_own(draw):
    explorer = PruneExplorer(draw, OWN_RATIOS, CRITERIA, start=0.3, choice="Data set")
    assert explorer.criterion.description == "Data set"
    explorer.criterion.value = "fisher"
    assert [value for _, value in explorer.ratio.options] == [0.1, 0.4]
    assert explorer.ratio.value == 0.4, "the nearest that there is"
    assert set(draw.calls) <= {(0.3, "l1"), (0.1, "fisher"), (0.4, "fisher")}
    page = Page(explorer.to_html())
    (root, *_) = page.all("div")
    assert root["data-rows"] == "0 0.3 0.6,0.1 0.4"
    assert len(root["data-frames"].split()) == 5
    assert set(draw.calls) == {(r, c) for c, ratios in OWN_RATIOS.items() for r in ratios}
    with pytest.raises(ValueError, match=r"no ratios for 'fisher', only for \['l1'\]"):
        PruneExplorer(draw, {"l1": RATIOS}, CRITERIA)


def test_the_live_view_says_what_the_figure_shows(draw):
    explorer = PruneExplorer(draw, RATIOS, describe=describe)
    said = "The state is (0.0,); it has &lt;angles&gt; &amp; more."
    assert f'<p role="status">{said}</p>' in explorer.view.value
    assert f'aria-label="{said}"' in explorer.view.value


def test_figures_are_closed(draw):
    before = plt.get_fignums()
    PruneExplorer(draw, RATIOS, CRITERIA).to_html()
    assert plt.get_fignums() == before


# Without a kernel


def test_page_has_every_state_labelled_controls_and_the_first_figure(draw):
    explorer = PruneExplorer(draw, RATIOS, CRITERIA, start=0.3, describe=describe)
    page = Page(explorer.to_html())
    assert sorted(draw.calls) == sorted((r, c) for c in CRITERIA for r in RATIOS)
    (root, *_) = page.all("div")
    assert root["data-frames"] == "1 0 2 3 4 5"
    (slider,) = page.all("input")
    assert slider["type"] == "range"
    assert (slider["min"], slider["max"], slider["value"]) == ("0", "2", "1")
    assert (slider["aria-valuetext"], slider["data-labels"]) == ("0.3", "0 0.3 0.6")
    assert len(page.all("label")) == 2
    assert len(page.all("option")) == 2
    assert len(page.all("template")) == 5
    (shown,) = page.all("svg", hidden=False)
    assert shown["aria-label"] == describe(0.3, "l1")
    labels = [svg["aria-label"] for svg in page.all("svg", hidden=True)]
    assert labels == [describe(r, c) for c in CRITERIA for r in RATIOS if (r, c) != (0.3, "l1")]
    assert any(tag == "p" and a.get("aria-live") == "polite" for tag, a, _ in page.tags)


def test_page_of_one_criterion_has_no_choice(draw):
    page = Page(PruneExplorer(draw, RATIOS).to_html())
    assert page.all("select") == []
    assert len(page.all("label")) == 1


def test_page_needs_nothing_from_elsewhere(draw):
    text = PruneExplorer(draw, RATIOS, CRITERIA).to_html()
    page = Page(text)
    addresses = set(re.findall(r"https?://[^\"' ]*", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not [a for _, a, _ in page.tags if any(name.startswith("on") for name in a)]
    assert [a for _, a, _ in page.tags if a.get("src") or a.get("href")] == []


def test_equal_figures_are_there_once():
    def draw(ratio, criterion):  # whatever the criterion
        return Draw()(ratio)

    explorer = PruneExplorer(draw, RATIOS, CRITERIA, describe=lambda ratio, _: f"{ratio}")
    page = Page(explorer.to_html())
    assert page.all("div")[0]["data-frames"] == "0 1 2 0 1 2"
    assert len(page.all("template")) == 2


def test_ids_of_two_explorers_differ_and_every_reference_is_met(draw):
    pages = [PruneExplorer(draw, RATIOS).to_html() for _ in range(2)]
    found = [set(re.findall(r' id="([^"]+)"', page)) for page in pages]
    assert found[0]
    assert not found[0] & found[1]
    for page, ids in zip(pages, found, strict=True):
        assert set(re.findall(r'(?:url\(|href=")#([\w-]+)', page)) == ids


def test_drawing_does_not_reach_the_page_around_it(draw):
    svg = PruneExplorer(draw, RATIOS).view.value
    assert "<style" not in svg
    assert "<metadata" not in svg


def test_text_stays_text(draw):
    assert ">(0.0,)</text>" in PruneExplorer(draw, RATIOS).view.value


# Which host: the bundle


def test_html_comes_only_where_it_is_asked_for(draw, monkeypatch):
    explorer = PruneExplorer(draw, RATIOS)
    monkeypatch.delenv(STATIC, raising=False)
    assert set(explorer._repr_mimebundle_()) == {"text/plain", WIDGET}
    assert len(draw.calls) == 1
    monkeypatch.setenv(STATIC, "1")
    assert set(explorer._repr_mimebundle_()) == {"text/plain", WIDGET, "text/html"}
    assert len(draw.calls) == len(RATIOS)


NOTEBOOK = """
from dgprune_book.figures import plots
from dgprune_book.figures.explorer import PruneExplorer

plots.use_style()

def draw(ratio, criterion):
    figure, axes = plots.figure()
    axes.plot([0, ratio], [0, len(criterion)], marker="o")
    return figure

PruneExplorer(draw, [0.0, 0.5], ["l1", "fisher"])
"""


def run_notebook(environment):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK)])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute(env=environment)
    (output,) = notebook.cells[0].outputs
    return output["data"]


@pytest.mark.slow
def test_executed_notebook_has_both_and_the_same_bytes_each_time():
    environment = os.environ | {STATIC: "1"}
    first, second = run_notebook(environment), run_notebook(environment)
    assert set(first) == {"text/plain", WIDGET, "text/html"}
    assert first["text/html"] == second["text/html"]


# What is refused


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ratios": []}, ValueError, "ratios is empty: give at least one"),
        ({"ratios": [0.1, 1.5]}, ValueError, r"ratio 1\.5 is outside \[0, 1\)"),
        ({"ratios": [-0.1]}, ValueError, r"ratio -0\.1 is outside \[0, 1\)"),
        ({"ratios": [float("nan")]}, ValueError, r"ratio nan is outside \[0, 1\)"),
        ({"ratios": [0.1, 0.1]}, ValueError, r"0\.1 is more than once .*: give it once"),
        ({"start": 0.4}, ValueError, r"start=0\.4 is not among the ratios \[0\.0, 0\.3, 0\.6\]"),
        ({"criteria": "l1"}, TypeError, r"criteria='l1' is one string: give a list, \['l1'\]"),
        ({"criteria": []}, ValueError, r"criteria=\[\] is empty: give a name, or None"),
    ],
)
def test_bad_arguments_are_named(draw, arguments, error, message):
    with pytest.raises(error, match=message):
        PruneExplorer(draw, **({"ratios": RATIOS} | arguments))
    assert draw.calls == []


def test_draw_without_a_figure_is_named():
    with pytest.raises(TypeError, match=r"draw\(0\.0, 'l1'\) returned None: .*`return figure`"):
        PruneExplorer(lambda ratio, criterion: None, RATIOS, ["l1"])


# The ready-made figure


@pytest.fixture
def kept():
    return {"conv1": np.arange(16) > 5, "conv2": np.arange(40) > 9}


def test_figure_shows_both_roles_and_marks_the_ratio(kept):
    figure = explorer_figure(ACCURACY, 0.3, unseen="mnist_m", kept=kept)
    curve, domains, filters = figure.axes
    marks = [line for line in curve.lines if len(line.get_xdata()) == 1]
    assert [(m.get_xdata()[0], m.get_ydata()[0]) for m in marks] == [(0.3, 90.0), (0.3, 50.0)]
    looks = {(m.get_color(), m.get_marker()) for m in marks}
    assert looks == {(plots.IN_DOMAIN, "o"), (plots.UNSEEN, "D")}
    named = [label.get_text() for label in domains.get_yticklabels()]
    assert named == ["mnist", "syn", "mnist_m"]
    assert [label.get_text() for label in filters.get_yticklabels()] == ["conv1", "conv2"]
    plt.close(figure)


def test_figure_without_filters_has_two_panels():
    figure = explorer_figure(ACCURACY, 0.0, unseen="mnist_m")
    assert len(figure.axes) == 2
    plt.close(figure)


def test_map_has_a_square_a_filter_and_dots_for_the_second_choice(kept):
    dotted = {"conv1": np.arange(16) > 9, "conv2": np.arange(40) < 20}
    figure, axes = plt.subplots()
    draw_filters(axes, kept, dotted=dotted)
    squares = [len(line.get_xdata()) for line in axes.lines if line.get_marker() == "s"]
    assert squares == [10, 6, 30, 10]  # of each layer: stay, removed
    dots = [len(line.get_xdata()) for line in axes.lines if line.get_marker() == "o"]
    assert dots == [6, 0, 10, 10]  # on what stays, on what is removed
    plt.close(figure)


def test_description_has_the_figures_numbers(kept):
    text = describe_explorer(ACCURACY, 0.3, unseen="mnist_m", kept=kept)
    assert text == (
        "Pruning ratio 0.3: accuracy in-domain 90 % (mnist 95, syn 85), on the unseen mnist_m 50 %."
        " Filters left: conv1 10 of 16, conv2 30 of 40."
    )


@pytest.mark.parametrize("function", [explorer_figure, describe_explorer])
def test_figure_names_what_is_not_in_the_table(function):
    with pytest.raises(ValueError, match=r"ratio=0\.5 is not in the index .*\[0\.0, 0\.3, 0\.6\]"):
        function(ACCURACY, 0.5, unseen="mnist_m")
    with pytest.raises(ValueError, match=r"unseen='usps': expected one of .*'mnist_m'"):
        function(ACCURACY, 0.3, unseen="usps")


@pytest.mark.slow
def test_many_states_stay_small(kept):
    """19 ratios and 3 criteria, three panels each: under 60 KB, compressed as a server does."""
    ratios = [round(0.05 * step, 2) for step in range(19)]
    random = np.random.default_rng(0)
    tables = {
        name: pd.DataFrame(random.uniform(10, 99, (19, 3)), ratios, ACCURACY.columns)
        for name in ("l1", "taylor", "fisher")
    }

    def draw(ratio, name):
        stays = {layer: random.permutation(bools) for layer, bools in kept.items()}
        return explorer_figure(tables[name], ratio, unseen="mnist_m", kept=stays)

    page = PruneExplorer(draw, ratios, list(tables)).to_html()
    assert len(gzip.compress(page.encode())) < 60_000
