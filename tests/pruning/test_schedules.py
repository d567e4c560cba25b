"""Pruning in steps: every step scores anew, the last one reaches what was asked for."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from networks import assert_same, domains, fingerprint, lively, network

import dgprune_lite as dg
from dgprune_lite.scores import criteria


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
    monkeypatch.setattr(criteria, "CRITERIA", dict(criteria.CRITERIA))
    model, _ = network("digits_cnn")
    seen = []

    @dg.criterion("sees_the_bias")
    def sees_the_bias(network_, graph, stats):
        seen.append(network_.fc.bias.detach().clone())
        return graph.join(dg.score("l1", network_, graph))

    steps = dg.prune_iteratively(model, domains(), "sees_the_bias", steps=3)
    for number, (small, _) in enumerate(steps):
        with torch.no_grad():
            small.fc.bias.fill_(number)
    assert torch.equal(seen[0], model.fc.bias)
    assert [float(bias[0]) for bias in seen[1:]] == [0, 1]


def test_a_split_is_scored_on_its_held_out_parts():
    split = dg.leave_one_domain_out(dg.DigitsLite(), test_env="syn", seed=0)
    split = replace(split, val=domains(split.val, images=4), target=None)
    model, _ = network("digits_cnn")
    ((_, plan),) = dg.prune_iteratively(model, split, "taylor", steps=1)
    assert plan.removed == dg.prune(model, split.val, "taylor")[1].removed


@pytest.mark.parametrize("global_pruning", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_the_last_filter_of_a_group_is_the_same_in_all_steps(seed, global_pruning):
    """Also where it has the lowest number of its group."""
    model = lively(dg.build_model("digits_cnn", width=2, seed=seed))
    plans = []
    for small, plan in dg.prune_iteratively(
        model, domains(images=4), "taylor", 0.8, steps=4, global_pruning=global_pruning
    ):
        plans.append(plan)
        for name, kept in plan.kept_gates.items():  # the plan is that of the network beside it
            norm = name.replace("conv", "bn")
            rows = model.get_submodule(norm).weight[kept == 1]
            assert torch.equal(small.get_submodule(norm).weight, rows)
    assert any(after == 1 for _, after in plans[1].widths.values())
    for less, more in pairwise(plans):
        for group in less.kept_gates:
            assert (more.kept_gates[group] <= less.kept_gates[group]).all()


def test_an_example_of_another_precision_and_several_inputs():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.out = torch.nn.Conv2d(3, 6, 3), torch.nn.Linear(6, 10)

        def forward(self, x, rows):
            return self.out(self.a(x).relu().mean((2, 3))[rows])

    data = domains(images=4, dtype=torch.float64)
    images, rows = torch.rand(1, 3, 28, 28), torch.zeros(2, dtype=torch.int64)
    model, _ = network("digits_cnn", torch.float64)
    for net, inputs in ((Two().double(), (images, rows)), (model, images)):
        *_, (_, plan) = dg.prune_iteratively(net, data, "l1", steps=2, example_inputs=inputs)
        assert all(2 * after == before for before, after in plan.widths.values())
    assert (images.dtype, rows.dtype) == (torch.float32, torch.int64)


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
        with pytest.raises((TypeError, ValueError), match="expected a whole number of at least 1"):
            dg.prune_iteratively(model, domains(), steps=steps)
    with pytest.raises(ValueError, match="fits none of the layers"):
        dg.prune_iteratively(model, domains(), ignored_layers=["layer9"])
    with pytest.raises(ValueError, match="pruning_ratio=2"):
        dg.prune_iteratively(model, domains(), "l1", 2)
