"""The same filters removed by torch-pruning and by us give the same network."""

from __future__ import annotations

import copy

import pytest
import torch
import torch_pruning as tp
import torchvision.models
from networks import lively
from torch import Tensor, nn

import dgprune_lite as dg

# networks that torch-pruning 1.6.1 handles
NETWORKS = [
    "alexnet", "vgg11_bn", "resnet18", "resnet50", "wide_resnet50_2", "densenet121",
    "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5", "googlenet",
]  # fmt: skip


def prune_as_planned(
    model: nn.Module, graph: dg.ChannelGraph, plan: dg.PruningPlan, images: Tensor
) -> nn.Module:
    """Remove the plan's filters with torch-pruning, one of a group's producers at a time."""
    pruned = copy.deepcopy(model)
    for parameter in pruned.parameters():
        parameter.requires_grad_(True)
    dependencies = tp.DependencyGraph().build_dependency(pruned, example_inputs=images)
    modules = dict(pruned.named_modules())
    for name, group in graph.groups.items():
        producer = group.producers[0]
        out = graph.layers[producer].out_units
        gone = (plan.kept_gates[name] == 0).nonzero()[:, 0] + group.start
        indices = [i for i, unit in enumerate(out.tolist()) if unit in gone.tolist()]
        remove = tp.prune_conv_out_channels
        if isinstance(modules[producer], nn.Linear):
            remove = tp.prune_linear_out_channels
        if indices:
            dependencies.get_pruning_group(modules[producer], remove, idxs=indices).prune()
    return pruned


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_same_outputs_as_torch_pruning(name):
    torch.manual_seed(0)
    settings = {"init_weights": True, "aux_logits": False} if name == "googlenet" else {}
    model = lively(torchvision.models.get_model(name, weights=None, num_classes=10, **settings))
    images = torch.randn(2, 3, 64, 64)
    graph = dg.trace_channels(model, images)
    scores = torch.rand(graph.num_filters, generator=torch.Generator().manual_seed(1))
    plan = dg.plan_pruning(graph, graph.split(scores), 0.4)
    ours, theirs = plan.apply(model), prune_as_planned(model, graph, plan, images)
    with torch.no_grad():
        expected, found = theirs(images), ours(images)
    assert not torch.allclose(expected, model(images), rtol=1e-2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert one.shape == other.shape
