"""Criteria against hand computations."""

from copy import deepcopy

import pytest
import torch
from networks import PlainCNN, assert_same, domains, fingerprint, network

import dgprune_lite as dg
from dgprune_lite.scores.criteria import NEEDS_STATISTICS

NAMES = [
    "random", "l1", "l2", "bn_scale", "fpgm", "taylor", "fisher",
    "risk_variance", "risk_gradient", "worst_domain", "bn_scale_and_risk", "risk_objective",
]  # fmt: skip
SIGNED = {"risk_objective"}


@pytest.fixture(scope="module")
def case():
    model, images = network("digits_cnn")
    graph = dg.trace_channels(model, images)
    return model, graph, dg.domain_statistics(model, graph, domains(), order="exact")


def test_the_criteria_of_the_book_are_registered():
    assert set(NAMES) <= set(dg.CRITERIA)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_every_criterion_scores_every_filter_and_leaves_the_model(case, name, dtype):
    model, graph, stats = case
    model = deepcopy(model).to(dtype)
    before = fingerprint(model)
    scores = dg.score(name, model, graph, stats)
    assert_same(before, fingerprint(model))
    assert {group: tuple(v.shape) for group, v in scores.items()} == {
        group.name: (group.size,) for group in graph.groups.values()
    }
    assert name in SIGNED or all((values >= 0).all() for values in scores.values())


def test_weight_criteria_on_the_first_layer(case):
    model, graph, _ = case
    name, size = "conv1", 8
    rows = model.get_submodule(name).weight.detach().double().reshape(size, -1)
    distances = torch.stack([torch.stack([(a - b).norm() for b in rows]).sum() for a in rows])
    expected = {"l1": rows.abs().sum(1), "l2": rows.norm(dim=1), "fpgm": distances}
    for criterion, values in expected.items():
        torch.testing.assert_close(dg.score(criterion, model, graph)[name], values)
    gamma = model.get_submodule("bn1").weight.detach().double().abs()
    torch.testing.assert_close(dg.score("bn_scale", model, graph)[name], gamma)


def test_a_filter_of_several_layers_adds_them_up():
    model, images = network("resnet18")
    graph = dg.trace_channels(model, images)
    layers = graph.groups["conv1"].producers
    expected = sum(
        model.get_submodule(n).weight.detach().double().abs().sum((1, 2, 3)) for n in layers
    )
    torch.testing.assert_close(dg.score("l1", model, graph)["conv1"], expected)


def test_risk_criteria_by_hand(case):
    model, graph, stats = case
    gradient, fisher, exact = stats.gradient, stats.fisher, stats.ablation
    mean_risk = stats.risk.mean()
    variance_gradient = torch.stack(
        [
            sum(2 / 3 * (stats.risk[d] - mean_risk) * gradient[d, m] for d in range(3))
            for m in range(graph.num_filters)
        ]
    )
    second = -gradient + fisher / 2
    cases = [
        ("taylor", {}, gradient.mean(0) ** 2),
        ("fisher", {}, fisher.mean(0)),
        ("risk_variance", {"order": "first"}, gradient.std(0, unbiased=False)),
        ("risk_variance", {}, (fisher / 2).std(0, unbiased=False)),
        ("risk_variance", {"order": "second"}, second.std(0, unbiased=False)),
        ("risk_variance", {"order": "exact"}, exact.std(0, unbiased=False)),
        (
            "risk_variance",
            {"order": "exact", "mean_weight": 2.0, "variance_weight": 3.0},
            (2 * exact.mean(0) ** 2 + 3 * exact.var(0, unbiased=False)).sqrt(),
        ),
        ("risk_gradient", {}, variance_gradient**2),
        ("worst_domain", {"order": "exact"}, exact.abs().max(0).values),
        (
            "risk_variance",
            {"order": "exact", "mean_weight": 1.0, "normalize": True},
            _root_mean_square(exact / exact.abs().mean(1, keepdim=True)),
        ),
    ]
    for name, options, expected in cases:
        result = graph.join(dg.score(name, model, graph, stats, **options))
        torch.testing.assert_close(result, expected)


def _root_mean_square(change):
    return (change**2).mean(0).sqrt()  # mean² + population variance


def test_risk_objective_is_what_the_objective_loses_without_the_filter(case):
    """Against risks measured with the filter's gate at 0."""
    model, graph, stats = case
    found = dg.score("risk_objective", model, graph, stats, order="exact", variance_weight=3.0)
    found = graph.join(found)

    def objective(risks):
        return risks.mean() + 3 * risks.var(unbiased=False)

    assert (found < 0).any(), "a filter whose removal helps must score below zero"
    for m in (0, 9, graph.num_filters - 1):
        gates = torch.ones(graph.num_filters)
        gates[m] = 0
        with dg.gated(model, graph, gates):
            without = dg.domain_statistics(model, graph, domains(), order="first").risk
        expected = objective(without) - objective(stats.risk)
        torch.testing.assert_close(found[m], expected, rtol=1e-4, atol=1e-7)
    with pytest.raises(ValueError, match=r"variance_weight=-1 must be a number of at least 0"):
        dg.score("risk_objective", model, graph, stats, variance_weight=-1)


def test_bn_scale_and_risk_averages_ranks_within_each_group(case):
    model, graph, stats = case
    found = dg.score("bn_scale_and_risk", model, graph, stats)
    prior = dg.score("bn_scale", model, graph)
    risk = dg.score("risk_variance", model, graph, stats, mean_weight=1.0)
    for group, values in found.items():
        orders = [  # equal scores keep their order
            sorted(range(len(part)), key=part.tolist().__getitem__)
            for part in (prior[group], risk[group])
        ]
        ranks = [[order.index(m) + 1 for m in range(len(order))] for order in orders]
        expected = [(a + b) / 2 / len(values) for a, b in zip(*ranks, strict=True)]
        assert values.tolist() == pytest.approx(expected)


def test_risk_gradient_is_the_gradient_of_the_variance_of_risks(case):
    model, graph, stats = case
    gates = torch.ones(graph.num_filters, dtype=torch.float64, requires_grad=True)
    linear_risks = stats.risk + (stats.gradient * (gates - 1)).sum(1)
    linear_risks.var(unbiased=False).backward()
    result = graph.join(dg.score("risk_gradient", model, graph, stats))
    torch.testing.assert_close(result, gates.grad**2)


def test_random_scores_follow_their_seed(case):
    model, graph, _ = case
    first, second, other = (
        graph.join(dg.score("random", model, graph, seed=seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_an_unknown_criterion_names_the_nearest(case):
    model, graph, stats = case
    with pytest.raises(
        ValueError, match=r"'risk_varianse' is unknown. Did you mean 'risk_variance'"
    ):
        dg.score("risk_varianse", model, graph, stats)


def test_no_model_is_named(case):
    with pytest.raises(TypeError, match=r"graph is 'resnet18', expected what trace_channels"):
        dg.score("l1", torch.nn.Conv2d(3, 2, 3), "resnet18")
    with pytest.raises(TypeError, match=r"model is 'resnet18', expected an nn\.Module"):
        dg.score("l1", "resnet18", case[1])


def test_missing_and_foreign_statistics(case):
    model, graph, stats = case
    with pytest.raises(ValueError, match=r"'fisher' needs statistics of the source domains"):
        dg.score("fisher", model, graph)
    other, images = network("plain_cnn")
    with pytest.raises(ValueError, match="the statistics hold 40 filters, the graph 26"):
        dg.score("fisher", other, dg.trace_channels(other, images), stats)


@pytest.mark.parametrize("name", ["risk_variance", "risk_gradient", "risk_objective"])
def test_a_variance_needs_two_domains(case, name):
    model, graph, _ = case
    one = dg.domain_statistics(model, graph, domains(("only",)), order="fisher")
    with pytest.raises(ValueError, match=rf"{name} needs at least two source .* got 1: only"):
        dg.score(name, model, graph, one)


def test_bn_scale_without_batchnorm():
    graph = dg.trace_channels(PlainCNN(), torch.zeros(1, 3, 28, 28))
    with pytest.raises(ValueError, match=r"group 'features.0' has none"):
        dg.score("bn_scale", PlainCNN(), graph)


@pytest.mark.parametrize("option", ["mean_weight", "variance_weight"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_weights_out_of_range(case, option, value):
    model, graph, stats = case
    with pytest.raises(ValueError, match=f"{option}={value!r}"):
        dg.score("risk_variance", model, graph, stats, **{option: value})


def test_a_criterion_of_ones_own(case):
    model, graph, stats = case

    @dg.criterion("most_changed")
    def most_changed(model, graph, stats):
        return stats.gradient.abs().sum(0)

    try:
        assert "most_changed" in NEEDS_STATISTICS
        result = graph.join(dg.score("most_changed", model, graph, stats))
        torch.testing.assert_close(result, stats.gradient.abs().sum(0))

        @dg.criterion("most_changed")
        def broken(model, graph, stats):
            return stats.gradient[0] * torch.nan

        with pytest.raises(ValueError, match="40 values that are not finite"):
            dg.score("most_changed", model, graph, stats)

        @dg.criterion("most_changed", statistics=False)  # as when a notebook's cell is run again
        def by_group(model, graph, stats):
            return {name: torch.ones(group.size) for name, group in graph.groups.items()}

        with pytest.raises(TypeError, match=r"'most_changed' gave \{.*, expected a tensor"):
            dg.score("most_changed", model, graph)
    finally:
        del dg.CRITERIA["most_changed"]
        NEEDS_STATISTICS.discard("most_changed")


def test_a_later_layer_may_need_more_room_than_an_earlier_one():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 224), torch.nn.Conv2d(4, 300, 30),
        torch.nn.Flatten(), torch.nn.Linear(300, 2),
    )  # fmt: skip
    graph = dg.trace_channels(model, torch.zeros(1, 3, 253, 253))
    expected = model[1].weight.detach().double().abs().sum((1, 2, 3))
    torch.testing.assert_close(dg.score("l1", model, graph)["1"], expected)
