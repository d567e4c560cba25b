"""What the exercises of chapters 7 to 11 call right is what the package does."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from dgprune_book.exercises import chapter_07, chapter_09, chapter_10, chapter_11
from dgprune_book.study import analysis

import dgprune_lite as dg


def test_the_interval_is_the_one_of_the_tables():
    """Of a network's mean over ratios, within pairs; resampled from other random numbers."""
    rng = np.random.default_rng(3)
    ours, baseline = rng.normal(size=(2, 15, 2)) + np.array([[[5.0]], [[6.0]]])
    rows = [
        {"test_env": "a", "seed": seed, "method": method, "pruning_ratio": ratio, "lost": lost}
        for method, table in (("ours", ours), ("baseline", baseline))
        for seed, values in enumerate(table)
        for ratio, lost in zip((0.5, 0.7), values, strict=True)
    ]
    tables = {"pruning_ratio": (0.5, 0.7), "value": "lost"}
    found = analysis.compare(pd.DataFrame(rows), "ours", ["baseline"], **tables)
    expected = found.loc[0, ["low", "high"]].astype(float)
    interval = chapter_07.PAIRED_INTERVAL.reference(ours, baseline, rng)
    width = expected["high"] - expected["low"]
    assert interval == pytest.approx(tuple(expected), abs=0.1 * width)


def test_the_operations_are_those_of_a_plan():
    model = dg.build_model("digits_cnn", width=8)
    graph = dg.trace_channels(model, torch.zeros(1, 3, 28, 28))
    plan = dg.plan_pruning(graph, dg.score("l1", model, graph), {"conv1": 0.25, "conv[23]": 0.5})
    frame = plan.to_frame()
    convolutions = frame[frame["kind"] == "conv"]
    kept = tuple(convolutions["channels_after"])
    left = chapter_09.MACS_LEFT.reference((3, 8, 16, 16), (784, 196, 49), kept)
    expected = convolutions["macs_after"].sum() / convolutions["macs_before"].sum()
    assert left == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "stem", "shortcut"),
    [("digits_resnet", "stem.0", "shortcut.1"), ("resnet18", "conv1", "downsample.0")],
)
def test_the_tied_layers_are_the_groups_of_the_trace(name, stem, shortcut):
    model = dg.build_model(name, num_classes=10, seed=0).eval()
    graph = dg.trace_channels(model, torch.zeros(1, 3, 64, 64))
    names = dict(model.named_modules())
    blocks = [
        (
            f"{block}.conv1",
            f"{block}.conv2",
            where if (where := f"{block}.{shortcut}") in names else None,
        )
        for block in names
        if f"{block}.conv2" in names
    ]
    groups = {frozenset(group.producers) for group in graph.groups.values()}
    assert len(blocks) > 2
    assert chapter_10.TIED_LAYERS.reference(stem, blocks) == groups


def test_the_kept_widths_are_those_of_a_plan():
    model = dg.build_model("digits_cnn", width=20)
    graph = dg.trace_channels(model, torch.zeros(1, 3, 28, 28))
    scores = dg.score("l1", model, graph)
    for ratio in (0.0, 0.1, 0.45, 0.5, 0.8, 0.97):
        for round_to in (1, 4, 8, 32):
            for bound in (1.0, 0.5):
                plan = dg.plan_pruning(
                    graph, scores, ratio, round_to=round_to, max_pruning_ratio=bound
                )
                for filters, width in plan.widths.values():
                    found = chapter_10.KEPT_WIDTH.reference(filters, ratio, round_to, bound)
                    assert found == width, (filters, ratio, round_to, bound)


def test_the_average_is_that_of_the_tables():
    accuracy = torch.rand(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = [
        {"method": "m", "pruning_ratio": 0.5, "test_env": str(env), "seed": seed, "loss": value}
        for seed, values in enumerate(accuracy.tolist())
        for env, value in enumerate(values)
    ]
    table = analysis.by_test_domain(pd.DataFrame(rows), "loss").set_index("test_env")
    expected = tuple(table.loc["average", ["mean", "se"]].astype(float))
    assert chapter_11.AVERAGE_WITH_ERROR.reference(accuracy) == pytest.approx(expected)
