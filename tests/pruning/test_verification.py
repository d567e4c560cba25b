"""The pruned network against the masked one: equal where it is exact, an error where it is not."""

from __future__ import annotations

import pytest
import torch
from networks import assert_same, fingerprint, network
from torch import nn
from torch.utils.data import TensorDataset

import dgprune_lite as dg


def with_a_hook():
    """A network that a hook changes, which tracing does not follow."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4))
    model[1].register_forward_hook(lambda module, args, output: output + 1)
    return model


def plan_for(model, images):
    graph = dg.trace_channels(model, images)
    return graph, dg.plan_pruning(graph, dg.score("l1", model, graph), pruning_ratio=0.5)


@pytest.mark.parametrize("name", ["digits_cnn", "resnet18", "mobilenet_v2"])
def test_exact_networks_pass_and_are_left_as_found(name):
    model, images = network(name)
    model.train()
    graph, plan = plan_for(model, images)
    small = plan.apply(model)
    before = fingerprint(model)
    assert 0 <= dg.check_exact(model, small, plan, graph, images) < 1e-5
    assert_same(before, fingerprint(model))
    assert small.training


def test_another_network_is_told_from_the_pruned_one():
    model, images = network("digits_cnn")
    graph, plan = plan_for(model, images)
    small = plan.apply(model)
    with torch.no_grad():
        small.fc.bias[0] += 0.5
    with pytest.raises(ValueError, match=r"outputs differ by 0\.5.*ignored_layers"):
        dg.check_exact(model, small, plan, graph, images)
    small.fc = nn.Linear(small.fc.in_features, 3)
    with pytest.raises(ValueError, match=r"gives shape \(\d+, 3\), the masked one \(\d+, 10\)"):
        dg.check_exact(model, small, plan, graph, images)
    with torch.no_grad():
        small.fc = nn.Linear(small.fc.in_features, 10)
        small.fc.bias[:] = float("nan")
    with pytest.raises(ValueError, match="outputs differ by nan"):
        dg.check_exact(model, small, plan, graph, images)


def test_prune_refuses_a_network_that_it_cannot_prune_exactly():
    torch.manual_seed(0)
    model = with_a_hook()
    domains = {name: TensorDataset(torch.rand(4, 3, 8, 8), torch.arange(4)) for name in ("a", "b")}
    with pytest.raises(ValueError, match="does not compute what the masked one does"):
        dg.prune(model, domains, "l1", 0.5)
    small, _ = dg.prune(model, domains, "l1", 0.5, ignored_layers=["0"])
    assert small[0].out_channels == 6
