"""Plans and their application: exact, honest about sizes, and harmless to the model."""

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import EACH, PlainCNN, assert_same, domains, fingerprint, network
from torch.utils.flop_counter import FlopCounterMode

import dgprune_lite as dg
from dgprune_lite.pruning.pruning import make_plan

RATIOS = [0.1, 0.3, 0.5, 0.7, 0.9]


def random_plan(graph, ratio, seed=0):
    scores = graph.split(
        torch.rand(graph.num_filters, generator=torch.Generator().manual_seed(seed))
    )
    return dg.plan_pruning(graph, scores, ratio)


def relative_error(result, expected):
    return float((result - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", [*EACH, "plain_cnn"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_pruned_network_equals_gated_network(name, dtype, bound):
    model, images = network(name, dtype)
    before = fingerprint(model)
    graph = dg.trace_channels(model, images)
    for ratio in RATIOS:
        plan = random_plan(graph, ratio, seed=int(ratio * 10))
        small = plan.apply(model)
        with torch.no_grad():
            result = small(images)
            with dg.gated(model, graph, plan.kept_gates):
                expected = model(images)
        assert relative_error(result, expected) < bound
        assert relative_error(result, model(images).detach()) > 1e-3  # something did go
    assert_same(before, fingerprint(model))


@pytest.mark.parametrize("name", EACH)
def test_reported_sizes_equal_those_counted(name):
    model, images = network(name)
    graph = dg.trace_channels(model, images)
    plan = random_plan(graph, 0.4)
    for network_, index in ((model, 0), (plan.apply(model), 1)):
        assert dg.count_parameters(network_) == plan.parameters[index]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network_(images[:1])
        assert counter.get_total_flops() == 2 * plan.macs[index]
    frame = plan.to_frame()
    assert frame["macs_after"].sum() == plan.macs[1]


@pytest.mark.parametrize("name", EACH)
def test_a_training_step_on_the_pruned_network(name):
    model, images = network(name)
    small = random_plan(dg.trace_channels(model, images), 0.5).apply(model).train()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.01)
    before = [p.detach().clone() for p in small.parameters()]
    F.cross_entropy(small(images), torch.tensor([0, 1, 2, 3])).backward()
    optimizer.step()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, small.parameters(), strict=True))


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.25, 0.5, 0.99])
def test_uniform_widths(ratio):
    model, images = network("digits_cnn")
    plan = random_plan(dg.trace_channels(model, images), ratio)
    for before, after in plan.widths.values():
        assert after == max(1, round(before * (1 - ratio)))


def test_lowest_scores_go_and_ties_go_in_order():
    graph = dg.trace_channels(PlainCNN(), torch.zeros(1, 3, 28, 28))
    scores = {name: torch.zeros(group.size) for name, group in graph.groups.items()}
    scores["features.0"] = torch.tensor([3.0, 1.0, 2.0, 0.0, 5.0, 4.0])
    plan = dg.plan_pruning(graph, scores, 0.5)
    assert plan.removed["features.0"] == (1, 2, 3)
    assert plan.removed["features.3"] == (0, 1, 2, 3)


def test_global_pruning_takes_the_lowest_of_all_and_leaves_one_in_each_group():
    graph = dg.trace_channels(PlainCNN(), torch.zeros(1, 3, 28, 28))
    scores = {
        name: torch.full((group.size,), float(i))
        for i, (name, group) in enumerate(graph.groups.items())
    }
    plan = dg.plan_pruning(graph, scores, 0.5, global_pruning=True)
    assert plan.widths == {"features.0": (6, 1), "features.3": (8, 1), "hidden": (12, 11)}
    assert sum(after for _, after in plan.widths.values()) == 13  # half of 26


def test_ignored_layers_keep_their_filters():
    model, images = network("resnet18")
    graph = dg.trace_channels(model, images)
    scores = graph.split(torch.rand(graph.num_filters))
    plan = dg.plan_pruning(graph, scores, 0.5, ignored_layers=["layer1.*"])
    assert plan.widths["conv1"] == (64, 64)  # shares its stream with layer1
    assert plan.widths["layer2.0.conv1"] == (128, 64)
    with pytest.raises(ValueError, match=r"ignored_layers='layer9.\*' fits none"):
        dg.plan_pruning(graph, scores, 0.5, ignored_layers=["layer9.*"])


def test_explain_names_what_goes_and_what_stays():
    model, images = network("digits_cnn")
    graph = dg.trace_channels(model, images)
    scores = graph.split(torch.arange(graph.num_filters, 0, -1))
    text = dg.plan_pruning(graph, scores, 0.5).explain()
    assert "conv1      8 ->     4 filters, without 4, 5, 6, 7" in text
    assert "conv2     16 ->     8 filters, without 8, 9, 10, 11, 12, 13, 14, 15" in text
    assert "keeps all its filters: its outputs are the network's outputs" in text
    assert "parameters:" in text


def test_removed_is_plain_data():
    model, images = network("digits_cnn")
    removed = random_plan(dg.trace_channels(model, images), 0.5).removed
    assert all(isinstance(i, int) for indices in removed.values() for i in indices)
    assert list(removed)[:2] == ["conv1", "bn1"]


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan"), "half", {"conv1": None}])
def test_a_ratio_outside_the_range(ratio):
    model, images = network("digits_cnn")
    graph = dg.trace_channels(model, images)
    with pytest.raises(ValueError, match=r"pruning_ratio.*=.* must be a number in \[0, 1\)"):
        dg.plan_pruning(graph, graph.split(torch.rand(graph.num_filters)), ratio)


def test_scores_that_do_not_fit_the_graph():
    model, images = network("digits_cnn")
    graph = dg.trace_channels(model, images)
    scores = graph.split(torch.rand(graph.num_filters))
    first = next(iter(scores))
    with pytest.raises(ValueError, match=r"scores do not fit the graph: group .* shape \(3,\)"):
        dg.plan_pruning(graph, {**scores, first: torch.rand(3)}, 0.5)
    with pytest.raises(ValueError, match="shape none"):
        dg.plan_pruning(graph, {k: v for k, v in scores.items() if k != first}, 0.5)
    with pytest.raises(ValueError, match="not all finite"):
        dg.plan_pruning(graph, {**scores, first: torch.full_like(scores[first], torch.nan)}, 0.5)


def test_a_plan_applied_to_another_model():
    model, images = network("digits_cnn")
    plan = random_plan(dg.trace_channels(model, images), 0.5)
    with pytest.raises(ValueError, match="the plan is for another model: its layer 'conv1'"):
        plan.apply(dg.build_model("digits_cnn", width=16))
    with pytest.raises(ValueError, match="is not there"):
        plan.apply(dg.build_model("digits_resnet"))


def test_a_plan_fits_every_copy_of_its_model():
    model, images = network("digits_cnn")
    graph = dg.trace_channels(model, images)
    plan = random_plan(graph, 0.5)
    other = copy.deepcopy(model)
    assert torch.equal(plan.apply(model)(images), plan.apply(other)(images))


def test_frozen_parameters_stay_frozen_and_the_mode_is_kept():
    model, images = network("digits_cnn")
    model.train()
    next(model.parameters()).requires_grad_(False)
    small = random_plan(dg.trace_channels(model, images), 0.5).apply(model)
    assert small.training
    assert [p.requires_grad for p in small.parameters()] == [
        p.requires_grad for p in model.parameters()
    ]


@pytest.mark.parametrize("criterion", ["l1", "taylor", "fisher", "risk_variance"])
def test_prune_is_the_main_path_in_one_call(criterion):
    model, _ = network("digits_cnn")
    data = domains()
    before = fingerprint(model)
    small, plan = dg.prune(model, data, criterion, 0.5)
    assert_same(before, fingerprint(model))
    graph = dg.trace_channels(model, torch.zeros(1, 3, 28, 28))
    stats = dg.domain_statistics(model, graph, data, order="fisher")
    expected = dg.plan_pruning(graph, dg.score(criterion, model, graph, stats), 0.5)
    assert plan.removed == expected.removed
    assert dg.count_parameters(small) == plan.parameters[1]


def test_prune_checks_the_ratio_before_it_works():
    with pytest.raises(ValueError, match=r"pruning_ratio=2"):
        dg.prune(dg.build_model("digits_cnn", width=4), domains(), pruning_ratio=2)


def test_an_example_is_brought_to_the_models_precision():
    model, _ = network("digits_cnn", torch.float64)
    data = domains(images=4, dtype=torch.float64)
    example = torch.rand(1, 3, 28, 28)
    _, plan = dg.prune(model, data, "l1", 0.5, example_inputs=example)
    assert plan.removed == dg.prune(model, data, "l1", 0.5)[1].removed
    assert example.dtype == torch.float32


def test_removing_nothing_changes_nothing():
    model, images = network("mobilenet_v2")
    graph = dg.trace_channels(model, images)
    plan = make_plan(graph, np.zeros(graph.num_filters, dtype=bool), 0.0)
    assert plan.removed == {}
    assert torch.equal(plan.apply(model)(images), model(images))


def test_a_network_of_which_nothing_can_go_is_refused_with_the_reasons():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 28 * 28, 10)).eval()
    why = r"no filter of this network can be removed exactly:\n  1: its outputs are the network's"
    with pytest.raises(ValueError, match=why):
        dg.prune(model, domains(images=4), "l1")
    graph = dg.trace_channels(model, torch.zeros(1, 3, 28, 28))
    with pytest.raises(ValueError, match=why):
        dg.plan_pruning(graph, {}, 0.5)
    model = torch.nn.Sequential(torch.nn.AvgPool2d(28), torch.nn.Flatten())
    with pytest.raises(ValueError, match=r"no filter .* it has none"):
        dg.prune(model, domains(images=4), "l1", example_inputs=torch.rand(1, 3, 28, 28))


def test_a_network_of_which_little_can_go_is_pruned_with_a_warning():
    class Normed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 12, 3)
            self.norm, self.out = torch.nn.LayerNorm((12, 4, 4)), torch.nn.Linear(12, 10)

        def forward(self, x):
            return self.out(self.norm(self.b(self.a(x))).mean((2, 3)))

    model, images = Normed(), torch.rand(1, 3, 8, 8)
    graph = dg.trace_channels(model, images)
    with pytest.warns(UserWarning, match=r"only 4 of the 16 filters .* can be removed.*\n  b: "):
        plan = dg.plan_pruning(graph, dg.score("l1", model, graph))
    assert plan.widths == {"a": (4, 2)}


def test_nothing_is_warned_of_where_most_filters_can_go():
    model, images = network("digits_cnn")
    graph = dg.trace_channels(model, images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dg.plan_pruning(graph, dg.score("l1", model, graph), 0.5, ignored_layers=["conv3"])
