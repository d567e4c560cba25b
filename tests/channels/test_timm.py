"""Convolutional families of timm: exact, trainable, saved and loaded, and honest about the rest."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import dgprune_lite as dg

# one small network of each family
NETWORKS = [
    "convmixer_768_32",
    "convnext_atto",
    "convnextv2_atto",
    "cpubone_b0_bfrobust",
    "cs3darknet_focus_s",
    "cspdarknet53",
    "cspnext_tiny",
    "cspresnet50",
    "darknet17",
    "densenet121",
    "densenetblur121d",
    "dla46_c",
    "dpn48b",
    "ecaresnet26t",
    "edgenext_xx_small",
    "efficientnet_b0",
    "efficientnet_lite0",
    "efficientvit_b0",
    "ese_vovnet19b_slim_dw",
    "fasternet_t0",
    "fastvit_t8",
    "fbnetc_100",
    "gcresnext26ts",
    "gernet_s",
    "ghostnet_050",
    "ghostnetv2_100",
    "hardcorenas_a",
    "hgnet_tiny",
    "hgnetv2_b0",
    "hrnet_w18_small",
    "inception_next_atto",
    "inception_v3",
    "inception_v4",
    "lcnet_035",
    "lcnetv2_small",
    "legacy_seresnet18",
    "legacy_xception",
    "mambaout_femto",
    "mixnet_s",
    "mnasnet_small",
    "mobileone_s0",
    "mobilenetv2_050",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small",
    "mobilevit_xxs",
    "nf_regnet_b0",
    "nf_resnet26",
    "nfnet_l0",
    "rdnet_tiny",
    "regnetx_002",
    "regnety_002",
    "regnetz_005",
    "repghostnet_050",
    "repvgg_a0",
    "repvit_m0_9",
    "res2net50_14w_8s",
    "resnest14d",
    "resnet10t",
    "resnetblur18",
    "resnetv2_18",
    "rexnet_100",
    "selecsls42",
    "semnasnet_075",
    "seresnext26t_32x4d",
    "skresnet18",
    "spnasnet_100",
    "starnet_s050",
    "tf_efficientnet_b0",
    "tf_efficientnetv2_b0",
    "tf_mobilenetv3_small_minimal_100",
    "tinynet_e",
    "tresnet_m",
    "vgg11_bn",
    "vovnet39a",
    "xception41",
]
SIDES = {"inception_v3": 96, "inception_v4": 96}  # smaller images end before the network does

# why filters stay, where more than a fifth do: what their removal would change
RIGHT = (
    r"normalises (all )?channels together",  # a mean over channels
    r"over the channel axis",
    r"removing it would leave a constant",  # f(0) is not 0
    r"each weight is computed from all of its inputs",  # weights less their mean
    r"(split|chunk) into parts of a size fixed in the code",  # numbers that stay as they are
    r"indexing the channel axis|pad of the channel axis",
    r"(view|reshape) to a size that is fixed in the code",
    r"expand_as to a size that is fixed elsewhere",  # channels read as if they were places
    r"matmul is an operation without a channel rule",
    r"its outputs are the network's outputs",
    r"it filters channels of the input",
    r"with values that no filter makes",
)


KNOWN = [name for name in NETWORKS if timm.is_model(name)]  # an older timm has fewer


def test_there_are_at_least_sixty_families():
    assert len(set(KNOWN)) == len(KNOWN) >= 60


def build(name):
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3), (module.running_var, 0.5, 1.5),
                (module.weight.data, 0.5, 1.5), (module.bias.data, -0.3, 0.3),
            ):  # fmt: skip
                tensor.uniform_(low, high)
    return model.eval()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KNOWN)
def test_family(name, tmp_path):
    model = build(name)
    side = SIDES.get(name, 64)
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    graph = dg.trace_channels(model, images)
    free = total = 0
    for key, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.groups == 1:
            layer = graph.layers[key]
            total += module.out_channels
            free += int((layer.out_units >= 0).sum())
    if free < 0.8 * total:
        for key, reason in (graph.skipped | graph.partly).items():
            if isinstance(model.get_submodule(key), nn.Conv2d):
                assert any(re.search(right, reason) for right in RIGHT), (key, reason)
    if not graph.num_filters:
        assert name in ("nf_resnet26", "convnextv2_atto", "hgnetv2_b0", "mambaout_femto")
        return

    scores = torch.rand(graph.num_filters, generator=torch.Generator().manual_seed(2))
    plan = dg.plan_pruning(graph, graph.split(scores), 0.5)
    small = plan.apply(model, check=False)
    assert dg.check_exact(model, small, plan, graph, images) < 1e-4
    assert sum(p.numel() for p in small.parameters()) == plan.parameters[1] < plan.parameters[0]

    outputs = [out for out in tree_leaves(small.train()(images)) if isinstance(out, torch.Tensor)]
    sum(out.square().mean() for out in outputs).backward()
    torch.optim.SGD(small.parameters(), lr=1e-4).step()

    dg.save(small, plan, tmp_path / "small.safetensors")
    again = dg.load(tmp_path / "small.safetensors", lambda: build(name))
    with torch.no_grad():
        assert torch.equal(again.eval()(images), small.eval()(images))
