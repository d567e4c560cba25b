"""Every convolutional network of torchvision: traced, pruned by half, equal to the masked one."""

from __future__ import annotations

import math
from unittest import mock

import pytest
import torch
import torchvision.models
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import dgprune_lite as dg

CLASSIFIERS = [
    name
    for name in torchvision.models.list_models(module=torchvision.models)
    if not name.startswith(("vit_", "swin_", "maxvit"))  # these are transformers
]
SEGMENTATION = torchvision.models.list_models(module=torchvision.models.segmentation)
LARGE = {"regnet_y_128gf", "efficientnet_v2_l", "convnext_large", "wide_resnet101_2", "vgg19"}
SIDES = {"inception_v3": 299}  # smaller images do not reach its auxiliary head

OUTPUT = "its outputs are the network's outputs"
# what cannot go exactly, besides the layers that make the network's outputs
LEFT = {
    "convnext": (  # all but the inside of its blocks lies behind a LayerNorm
        "normalises channels together", "layer_norm is an operation", "is a kind of module",
        "with values that no filter makes", "it filters channels of the input",
    ),
    "shufflenet": ("go only all at once, and some must stay",),  # its shuffles tie whole stages
}  # fmt: skip


def build(name: str) -> nn.Module:
    """The network with weights as in training, but quickly: pieces of one random tensor."""
    settings = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name in SEGMENTATION:
        settings = {"weights_backbone": None, "num_classes": 5}
        settings |= {"aux_loss": True} if not name.startswith("lraspp") else {}
    slow = {key: lambda tensor, *_, **__: tensor for key in dir(nn.init) if key.endswith("_")
            and not key.startswith("_")}  # fmt: skip
    with mock.patch.multiple(nn.init, **slow):
        model = torchvision.models.get_model(name, weights=None, **settings)
    noise = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))

    def fill(tensor: Tensor, scale: float, shift: float = 0.0) -> None:
        flat = tensor.detach().view(-1)
        for start in range(0, len(flat), len(noise)):
            part = flat[start : start + len(noise)]
            torch.mul(noise[: len(part)], scale, out=part)
        flat.add_(shift)

    for module in model.modules():
        for key, tensor in module.named_parameters(recurse=False):
            if tensor.ndim > 1 and key == "weight":
                fill(tensor, math.sqrt(2 / tensor[0].numel()))
            elif key == "bias":
                fill(tensor, 0.3)
            else:  # scales of normalisations and of blocks
                fill(tensor, 0.2, 1.0)
        if isinstance(module, nn.BatchNorm2d):
            fill(module.running_mean, 0.2)
            module.running_var.fill_(0.7).add_(noise[: len(module.running_var)].abs())
            module.num_batches_tracked.zero_()
    return model.eval()


def check(name: str) -> None:
    model, side = build(name), SIDES.get(name, 64)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    graph = dg.trace_channels(model, images)
    scores = torch.rand(graph.num_filters, generator=torch.Generator().manual_seed(2))
    plan = dg.plan_pruning(graph, graph.split(scores), 0.5)

    # nothing is left out without a word
    assert plan.widths == {
        key: (group.size, max(1, round(group.size * 0.5))) for key, group in graph.groups.items()
    }
    allowed = (OUTPUT, *LEFT.get(name.split("_")[0], ()))
    for reason in graph.skipped.values():
        assert any(part in reason for part in allowed), graph.skipped
    for key, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            assert key in graph.layers or key in graph.skipped
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                fixed = graph.layers[key].out_units < 0
                assert fixed.all() == (key in graph.skipped)
                assert (fixed.any() and not fixed.all()) == (key in graph.partly)

    small = plan.apply(model)
    dg.check_exact(model, small, plan, graph, images)
    assert sum(p.numel() for p in small.parameters()) == plan.parameters[1] < plan.parameters[0]

    # a step of training, with auxiliary heads
    small.train()
    optimizer = torch.optim.SGD(small.parameters(), lr=1e-4)
    outputs = [out for out in tree_leaves(small(images)) if isinstance(out, Tensor)]
    heads = 2 if name == "inception_v3" or name.startswith(("fcn", "deeplab")) else 1
    assert len(outputs) == (3 if name == "googlenet" else heads)
    sum(out.square().mean() for out in outputs).backward()
    assert all(p.grad is not None for p in small.parameters())
    optimizer.step()
    del optimizer

    again = plan.apply(model)
    del model
    again.load_state_dict(small.state_dict())
    for one, other in zip(again.state_dict().values(), small.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_all_of_them_are_here():
    assert len(CLASSIFIERS) == 68
    assert len(SEGMENTATION) == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.xdist_group("large")] if name in LARGE else [])
        for name in CLASSIFIERS
    ],
)
def test_classifier(name):
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEGMENTATION)
def test_segmentation(name):
    check(name)
