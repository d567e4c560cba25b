"""Plans for a share of MACs, parameters or time."""

import time

import pytest
import torch
from networks import assert_same, fingerprint, network

import dgprune_lite as dg
from dgprune_lite.pruning import targets


def traced(name):
    model, images = network(name)
    graph = dg.trace_channels(model, images)
    return model, images, graph, dg.score("l1", model, graph)


@pytest.mark.parametrize("name", ["digits_cnn", "digits_resnet", "resnet18"])
@pytest.mark.parametrize("global_pruning", [False, True])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.2])
def test_targets_are_met_or_said_to_be_missed(name, global_pruning, share):
    model, images, graph, scores = traced(name)
    for kind in ("macs", "parameters"):
        options = {f"target_{kind}": share, "global_pruning": global_pruning}
        plan = dg.plan_pruning(graph, scores, **options)
        before, after = getattr(plan, kind)
        missed = abs(after / before - share) > targets.TOLERANCE
        assert missed == ("the nearest that was found" in plan.remarks[0])
        assert not (missed and name == "resnet18")  # its steps are fine
        assert f"{after / before:.1%} of" in plan.remarks[0]
    assert torch.isfinite(plan.apply(model)(images)).all()


def test_what_cannot_be_reached_is_said():
    _, _, graph, scores = traced("digits_cnn")
    plan = dg.plan_pruning(graph, scores, target_macs=0.2, max_pruning_ratio=0.25)
    assert "every group is at its bound" in plan.remarks[0]
    assert all(after >= 0.75 * before for before, after in plan.widths.values())
    assert f"note: {plan.remarks[0]}" in plan.explain()


def test_groups_that_go_one_step_further_say_so():
    _, _, graph, scores = traced("digits_cnn")
    plan = dg.plan_pruning(graph, scores, target_macs=0.5)
    for name, (before, after) in plan.widths.items():
        expected = round(before * (1 - plan.pruning_ratio))
        assert after == expected or "one step further" in plan.notes[name]


def test_a_target_keeps_to_round_to():
    _, _, graph, scores = traced("resnet18")
    plan = dg.plan_pruning(graph, scores, target_parameters=0.4, round_to=8)
    assert all(after % 8 == 0 for _, after in plan.widths.values())


def test_the_whole_network_is_a_target():
    _, _, graph, scores = traced("digits_cnn")
    assert dg.plan_pruning(graph, scores, target_macs=1.0).removed == {}


def test_a_latency_target_is_measured(monkeypatch):
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 20, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(20, 10)
    )
    images = torch.rand(1, 3, 3, 3)
    graph = dg.trace_channels(model, images)
    scores = dg.score("l1", model, graph)
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    model[0].register_forward_hook(lambda _, args, y: clock.__setitem__(0, clock[0] + y.shape[1]))
    before = fingerprint(model)
    plan = dg.plan_pruning(graph, scores, target_latency=0.5, model=model, example_inputs=images)
    assert plan.widths == {"0": (20, 10)}  # it takes a second a filter
    assert "50.0% of the time left" in plan.remarks[0]
    assert_same(before, fingerprint(model))


def test_a_latency_target_with_a_clock():
    model, images, graph, scores = traced("resnet18")
    plan = dg.plan_pruning(graph, scores, target_latency=0.5, model=model, example_inputs=images)
    assert 0 < plan.pruning_ratio < 1
    assert plan.macs[1] < plan.macs[0]


def test_wrong_targets():
    _, _, graph, scores = traced("digits_cnn")
    for value in (0, -1, 1.5, "half", float("nan")):
        with pytest.raises(ValueError, match=r"target_macs=.* must be"):
            dg.plan_pruning(graph, scores, target_macs=value)
    with pytest.raises(ValueError, match="give one target"):
        dg.plan_pruning(graph, scores, target_macs=0.5, target_parameters=0.5)
    for ratio in (0.3, 0.5):
        with pytest.raises(ValueError, match=rf"pruning_ratio={ratio} and target_macs=0.5: give"):
            dg.plan_pruning(graph, scores, ratio, target_macs=0.5)
    with pytest.raises(ValueError, match=r"needs model=... and example_inputs=..."):
        dg.plan_pruning(graph, scores, target_latency=0.5)
