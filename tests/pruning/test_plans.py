"""How a plan shows itself: as text, as a table, as a figure."""

import dataclasses
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from networks import network

import dgprune_lite as dg


@pytest.fixture
def plan():
    model, images = network("digits_cnn")
    graph = dg.trace_channels(model, images)
    scores = graph.split(torch.arange(graph.num_filters, 0, -1))
    return dg.plan_pruning(graph, scores, {"conv1": 0.5, "conv*": 0.9}, max_pruning_ratio=0.5)


def test_the_text_says_why_a_group_keeps_more(plan):
    lines = plan.explain().split("\n")
    where = next(i for i, line in enumerate(lines) if line.startswith("  conv2"))
    assert "16 ->     8 filters, without 8, 9," in lines[where]
    assert lines[where + 1].endswith(
        "the ratio asked for 2; max_pruning_ratio=0.5 leaves at least 8"
    )


@pytest.mark.parametrize(
    ("removed", "error", "message"),
    [
        ([False] * 40, TypeError, r"removed is \[False, .* expected a numpy array of bool"),
        (np.zeros(40, dtype=int), TypeError, "expected a numpy array of bool"),
        (np.zeros(37, dtype=bool), ValueError, r"shape \(37,\), expected \(40,\)"),
        (np.zeros((40, 1), dtype=bool), ValueError, r"shape \(40, 1\), expected \(40,\)"),
        (np.arange(40) < 8, ValueError, "all 8 filters of group 'conv1', at least one must stay"),
    ],
)
def test_marks_that_make_no_plan(removed, error, message):
    model, images = network("digits_cnn")
    with pytest.raises(error, match=message):
        dg.make_plan(dg.trace_channels(model, images), removed, 0.5)


def test_layers_that_keep_a_part_are_named():
    wide, narrow, out = (torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(3, 2, 1), torch.nn.Linear(4, 2))

    class Padded(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.narrow, self.out = wide, narrow, out

        def forward(self, x):
            padded = torch.nn.functional.pad(self.narrow(x), (0, 0, 0, 0, 1, 1))
            return self.out((self.wide(x) + padded).mean((2, 3)))

    graph = dg.trace_channels(Padded(), torch.zeros(1, 3, 4, 4))
    plan = dg.plan_pruning(graph, graph.split(torch.rand(graph.num_filters)), 0.5)
    assert list(plan.partly) == ["wide"]
    assert f"  wide: {plan.partly['wide']}" in plan.explain().split("\n")
    assert plan.partly["wide"].startswith("2 of its 4 channels stay: ")
    assert plan.partly["wide"] in plan._repr_html_()


def test_the_notebook_table_is_well_formed_and_says_the_same(plan):
    page = ET.fromstring(f"<div>{plan._repr_html_()}</div>")
    rows = [[cell.text or "" for cell in row] for row in page.iter("tr")]
    assert rows[0] == ["group", "filters", "without", "why"]
    assert [row[0] for row in rows[1:]] == ["conv1", "conv2", "conv3", "fc"]
    assert rows[2][1] == "16 → 8"
    assert rows[2][3] == plan.notes["conv2"]
    assert rows[4][3] == plan.skipped["fc"]
    assert "parameters: " in "".join(page.itertext())


def test_names_are_escaped_in_the_table(plan):
    plan.notes["conv2"] = "<script>"
    assert "<script>" not in plan._repr_html_()


def test_the_figure_has_the_channels_of_each_layer(plan):
    figure = plan.plot()
    bars = [bar.get_width() for bar in figure.axes[0].patches]
    rows = [row for row in plan.layers if row["kind"] != "norm"]
    assert bars[: len(rows)] == [row["channels_before"] for row in rows]
    assert bars[len(rows) :] == [row["channels_after"] for row in rows]
    assert plt.rcParams["font.size"] == 10  # the style is the figure's alone
    plt.close(figure)


def test_layers_that_stay_for_one_reason_share_a_line():
    model = dg.build_model("digits_resnet", width=4)
    graph = dg.trace_channels(model, torch.zeros(1, 3, 28, 28))
    reason = "for a reason of its own"
    graph = dataclasses.replace(graph, skipped={"a": reason, "b": "alone", "c": reason})
    plan = dg.plan_pruning(graph, dg.score("l1", model, graph), 0.5)
    lines = plan.explain().split("\n")
    assert f"  a, c keep all their filters: {reason}" in lines
    assert "  b keeps all its filters: alone" in lines
    assert "<td>a, c</td>" in plan._repr_html_()
