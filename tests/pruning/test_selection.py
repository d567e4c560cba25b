"""Which filters go: ratios by pattern, ignored layers, rounding and bounds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import PlainCNN, network
from torch import nn

import dgprune_lite as dg


@pytest.fixture(scope="module")
def traced():
    model, images = network("digits_resnet")
    graph = dg.trace_channels(model, images)
    generator = torch.Generator().manual_seed(0)
    return model, graph, graph.split(torch.rand(graph.num_filters, generator=generator))


def kept(plan):
    return {name: after for name, (_, after) in plan.widths.items()}


def test_ratios_by_pattern_and_all_others_whole():
    graph = dg.trace_channels(PlainCNN(), torch.zeros(1, 3, 28, 28))
    scores = graph.split(torch.rand(graph.num_filters))
    plan = dg.plan_pruning(graph, scores, {"features.*": 0.5, "features.3": 0.25})
    assert kept(plan) == {"features.0": 3, "features.3": 6, "hidden": 12}
    assert plan.notes == {
        "features.3": "'features.*' fits it, too, but 'features.3' comes last and counts",
        "hidden": "no pattern of pruning_ratio fits it",
    }
    assert plan.pruning_ratio == {"features.*": 0.5, "features.3": 0.25}
    assert "at ratios features.* 0.5, features.3 0.25" in plan.explain()


def test_the_name_of_a_block_stands_for_its_layers(traced):
    _, graph, scores = traced
    block = next(name for name in graph.layers if "." in name).split(".")[0]
    plan = dg.plan_pruning(graph, scores, {block: 0.5})
    inside = {n for n, group in graph.groups.items() if any(p.startswith(f"{block}.") for p in
              group.producers)}  # fmt: skip
    assert inside
    assert {n for n, (before, after) in plan.widths.items() if after < before} == inside


def test_a_pattern_that_fits_nothing_is_an_error(traced):
    _, graph, scores = traced
    with pytest.raises(ValueError, match=r"'layer9' in pruning_ratio fits none of the layers"):
        dg.plan_pruning(graph, scores, {"layer9": 0.5})
    with pytest.raises(ValueError, match=r"ignored_layers='layer9' fits none of the layers"):
        dg.plan_pruning(graph, scores, 0.5, ignored_layers=["layer9"])
    with pytest.raises(ValueError, match=r"pruning_ratio\['\*'\]=1.5 must be a number in \[0, 1\)"):
        dg.plan_pruning(graph, scores, {"*": 1.5})
    with pytest.raises(ValueError, match=r"pruning_ratio=\{\} is empty"):
        dg.plan_pruning(graph, scores, {})
    with pytest.raises(TypeError, match="has the key 3"):
        dg.plan_pruning(graph, scores, {3: 0.5})


def test_layers_ignored_by_name_by_module_and_by_type_are_the_same_layers():
    model = PlainCNN()
    graph = dg.trace_channels(model, torch.zeros(1, 3, 28, 28))
    scores = graph.split(torch.rand(graph.num_filters))
    by = {
        "name": dg.plan_pruning(graph, scores, 0.5, ignored_layers=["features.?"]),
        "module": dg.plan_pruning(graph, scores, 0.5, ignored_layers=[model.features], model=model),
        "type": dg.plan_pruning(graph, scores, 0.5, ignored_layers=nn.Conv2d, model=model),
    }
    for plan in by.values():
        assert kept(plan) == {"features.0": 6, "features.3": 8, "hidden": 6}
    assert by["type"].notes["features.0"] == "ignored_layers=Conv2d"
    assert by["module"].notes["features.0"] == "ignored_layers='features'"


def test_modules_that_cannot_be_found(traced):
    model, graph, scores = traced
    with pytest.raises(ValueError, match="pass model="):
        dg.plan_pruning(graph, scores, 0.5, ignored_layers=[nn.Conv2d])
    with pytest.raises(ValueError, match="a Conv2d module that DigitsResNet has not"):
        dg.plan_pruning(graph, scores, 0.5, ignored_layers=[nn.Conv2d(3, 3, 3)], model=model)
    with pytest.raises(ValueError, match="ignored_layers holds LSTM that DigitsResNet has not"):
        dg.plan_pruning(graph, scores, 0.5, ignored_layers=[nn.LSTM], model=model)
    net = PlainCNN()
    plain = dg.trace_channels(net, torch.zeros(1, 3, 28, 28))
    ones = plain.split(torch.ones(plain.num_filters))
    with pytest.raises(ValueError, match="ignored_layers=AdaptiveAvgPool2d fits none of the"):
        dg.plan_pruning(plain, ones, 0.5, ignored_layers=[nn.AdaptiveAvgPool2d], model=net)
    with pytest.raises(TypeError, match="ignored_layers holds 3"):
        dg.plan_pruning(graph, scores, 0.5, ignored_layers=[3])


def test_the_outputs_are_safe_unasked():
    model = PlainCNN()
    graph = dg.trace_channels(model, torch.zeros(1, 3, 28, 28))
    small = dg.plan_pruning(graph, graph.split(torch.rand(graph.num_filters)), 0.9).apply(model)
    assert small(torch.zeros(2, 3, 28, 28)).shape == (2, 10)


@settings(max_examples=150, deadline=None)
@given(
    ratio=st.floats(0, 0.99),
    round_to=st.integers(1, 12),
    bound=st.floats(0, 1),
    global_pruning=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_width_keeps_its_bounds_or_says_why(
    traced, ratio, round_to, bound, global_pruning, seed
):
    _, graph, _ = traced
    scores = graph.split(
        torch.rand(graph.num_filters, generator=torch.Generator().manual_seed(seed))
    )
    plan = dg.plan_pruning(
        graph, scores, ratio,
        global_pruning=global_pruning, round_to=round_to, max_pruning_ratio=bound,
    )  # fmt: skip
    for name, (before, after) in plan.widths.items():
        assert 1 <= after <= before
        assert after == before or after % round_to == 0
        assert (before - after) / before <= bound + 1e-9
        if not global_pruning and after != round(before * (1 - ratio)):
            assert plan.notes[name].startswith("the ratio asked for")
        if not global_pruning and after == round(before * (1 - ratio)):
            assert name not in plan.notes
        gone = plan.kept_gates[name] == 0
        if gone.any():
            assert scores[name][gone].max() <= scores[name][~gone].min()
    total = sum(before for before, _ in plan.widths.values())
    left = sum(after for _, after in plan.widths.values())
    if global_pruning and left != round(total * (1 - ratio)):
        assert plan.remarks


@settings(max_examples=50, deadline=None)
@given(ratio=st.floats(0, 0.97), more=st.floats(0, 0.02), round_to=st.sampled_from([1, 4, 8]))
def test_a_larger_ratio_keeps_no_filter_that_a_smaller_one_removes(traced, ratio, more, round_to):
    _, graph, scores = traced
    for global_pruning in (False, True):
        less, most = (
            dg.plan_pruning(graph, scores, r, round_to=round_to, global_pruning=global_pruning)
            for r in (ratio, ratio + more)
        )
        for name in graph.groups:
            assert (most.kept_gates[name] <= less.kept_gates[name]).all()


def test_rounding_goes_to_the_nearest_multiple():
    graph = dg.trace_channels(nn.Sequential(nn.Conv2d(3, 20, 1), nn.Conv2d(20, 6, 1),
                              nn.Flatten(), nn.Linear(6, 2)), torch.zeros(1, 3, 1, 1))  # fmt: skip
    scores = graph.split(torch.rand(26))
    for ratio, width in ((0.05, 16), (0.3, 16), (0.4, 16), (0.45, 8), (0.9, 8)):
        plan = dg.plan_pruning(graph, scores, ratio, round_to=8)
        assert plan.widths == {"0": (20, width), "1": (6, 6)}
        assert "round_to=8" in plan.notes["0"]
        why = "no smaller width within bounds is a multiple of round_to=8"
        assert ratio < 0.1 or why in plan.notes["1"]
    assert dg.plan_pruning(graph, scores, 0, round_to=8).notes == {}


@pytest.mark.parametrize("value", [0, -8, 2.5, True, "8", None])
def test_a_wrong_round_to(traced, value):
    _, graph, scores = traced
    with pytest.raises((TypeError, ValueError), match="expected a whole number of at least 1"):
        dg.plan_pruning(graph, scores, 0.5, round_to=value)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "all", None])
def test_a_wrong_bound(traced, value):
    _, graph, scores = traced
    with pytest.raises(ValueError, match=r"max_pruning_ratio=.* must be a number in \[0, 1\]"):
        dg.plan_pruning(graph, scores, 0.5, max_pruning_ratio=value)


def test_a_dict_with_global_pruning_ranks_within_each_pattern():
    graph = dg.trace_channels(PlainCNN(), torch.zeros(1, 3, 28, 28))
    scores = {
        name: torch.full((group.size,), float(number))
        for number, (name, group) in enumerate(graph.groups.items())
    }
    ratio = {"features": 0.5, "hidden": 0.25}
    plan = dg.plan_pruning(graph, scores, ratio, global_pruning=True)
    assert kept(plan) == {"features.0": 1, "features.3": 6, "hidden": 9}
    assert plan.notes["features.0"] == "the ratio asked for 0; one filter always stays"
    assert (
        plan.notes["features.3"] == "the ratio asked for 7; it makes up for groups at their bound"
    )
