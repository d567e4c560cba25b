"""The pruned network against the masked one: equal where it is exact, an error where it is not."""

from __future__ import annotations

import pytest
import torch
from networks import assert_same, fingerprint, network
from torch import nn
from torch.utils.data import TensorDataset

import dgprune_lite as dg


class AddsThroughAView(nn.Module):
    """Adds 1 to an activation through a view of it, which tracing by value cannot see."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        y = self.conv(x).relu()
        y.view(y.size(0), -1).add_(1.0)
        return self.fc(y.mean((2, 3)))


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
    model = AddsThroughAView()
    domains = {name: TensorDataset(torch.rand(4, 3, 8, 8), torch.arange(4)) for name in ("a", "b")}
    with pytest.raises(ValueError, match="does not compute what the masked one does"):
        dg.prune(model, domains, "l1", 0.5)
    small, _ = dg.prune(model, domains, "l1", 0.5, ignored_layers=["conv"])
    assert small.conv.out_channels == 6
