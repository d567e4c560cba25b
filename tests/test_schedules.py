"""Pruning in steps: every step scores anew, the last one reaches what was asked for."""

from itertools import pairwise

import pytest
import torch
from networks import assert_same, domains, fingerprint, network

import dgprune_lite as dg
from dgprune_lite import schedules


@pytest.mark.parametrize("name", ["digits_cnn", "digits_resnet", "resnet18"])
@pytest.mark.parametrize("global_pruning", [False, True])
def test_the_last_step_has_the_widths_of_one_step(name, global_pruning):
    model, images = network(name)
    data = domains(images=4, side=images.shape[-1])
    options = {"global_pruning": global_pruning, "round_to": 2}
    before = fingerprint(model)
    steps = list(dg.prune_iteratively(model, data, "taylor", 0.6, steps=3, **options))
    assert_same(before, fingerprint(model))
    assert len(steps) == 3
    for (_, less), (_, more) in pairwise(steps):
        assert more.parameters[1] < less.parameters[1]
        for group in less.kept_gates:  # what is gone stays gone
            assert (more.kept_gates[group] <= less.kept_gates[group]).all()
    _, first = dg.prune(model, data, "taylor", 0.6 * (1 / 3), **options)
    assert steps[0][1].removed == first.removed
    small, plan = steps[-1]
    _, at_once = dg.prune(model, data, "taylor", 0.6, **options)
    assert plan.pruning_ratio == 0.6
    if not global_pruning:
        assert plan.widths == at_once.widths
    assert dg.count_parameters(small) == plan.parameters[1]
    assert small(images).shape == model(images).shape
    # No weight was changed between the steps, so it is the plan applied at once.
    with torch.no_grad():
        torch.testing.assert_close(small(images), plan.apply(model)(images))


def test_the_next_step_goes_on_from_the_weights_of_the_loop_and_scores_them(monkeypatch):
    model, _ = network("digits_cnn")
    seen = []
    score_on = schedules.score_on

    def spy(network_, *arguments, **reading):
        seen.append(network_.fc.bias.detach().clone())
        return score_on(network_, *arguments, **reading)

    monkeypatch.setattr(schedules, "score_on", spy)
    for number, (small, _) in enumerate(dg.prune_iteratively(model, domains(), "taylor", steps=3)):
        with torch.no_grad():
            small.fc.bias.fill_(number)
    assert torch.equal(seen[0], model.fc.bias)
    assert [float(bias[0]) for bias in seen[1:]] == [0, 1]


def test_targets_and_dicts_go_in_steps():
    model, _ = network("digits_cnn")
    plans = [p for _, p in dg.prune_iteratively(model, domains(), "l1", target_macs=0.4, steps=3)]
    left = [after / before for before, after in (plan.macs for plan in plans)]
    assert left == pytest.approx([0.8, 0.6, 0.4], abs=0.04)
    plans = [p for _, p in dg.prune_iteratively(model, domains(), "l1", {"conv2": 0.5}, steps=2)]
    assert [plan.widths["conv2"] for plan in plans] == [(16, 12), (16, 8)]
    assert all(plan.widths["conv1"] == (8, 8) for plan in plans)


def test_the_last_plan_saves_and_loads(tmp_path):
    model, images = network("digits_resnet")
    *_, (small, plan) = dg.prune_iteratively(model, domains(), "l1", 0.5, steps=2)
    dg.save(small, plan, tmp_path / "small.safetensors")
    again = dg.load(
        tmp_path / "small.safetensors", lambda: dg.build_model("digits_resnet", width=8)
    )
    assert torch.equal(again.eval()(images), small(images))


def test_bad_input_is_refused_before_the_loop():
    model, _ = network("digits_cnn")
    for steps in (0, -1, 2.5, True, None):
        with pytest.raises(ValueError, match="must be a whole number of at least 1"):
            dg.prune_iteratively(model, domains(), steps=steps)
    with pytest.raises(ValueError, match="fits none of the layers"):
        dg.prune_iteratively(model, domains(), ignored_layers=["layer9"])
    with pytest.raises(ValueError, match="pruning_ratio=2"):
        dg.prune_iteratively(model, domains(), "l1", 2)
