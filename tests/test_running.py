"""running.py: classes, modes and memory layout."""

import pytest
import torch
from torch import nn

from dgprune_lite.models import build_model
from dgprune_lite.running import count_classes, evaluating, layout_for


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5"])
def test_torchvision_networks_by_name(name):
    model = build_model(name, 6).eval()
    assert count_classes(model, torch.zeros(1, 3, 64, 64)) == 6


@pytest.mark.parametrize("model", [nn.Identity(), nn.LSTM(2, 2)])
def test_count_classes_wants_logits(model):
    shape = (1, 3, 4, 4) if isinstance(model, nn.Identity) else (1, 2, 2)
    with pytest.raises(TypeError, match=r"the model returns a .*; expected .*logits"):
        count_classes(model, torch.zeros(shape))


def test_modes_come_back_module_by_module_also_after_an_error():
    model = nn.Sequential(nn.Dropout().eval(), nn.Dropout().train())
    with evaluating(model):
        assert not model[1].training
    assert model[1].training
    with pytest.raises(TypeError), evaluating(model):
        model()
    assert (model.training, model[0].training, model[1].training) == (True, False, True)


def test_only_our_own_networks_of_whole_blocks_store_channels_last():
    assert layout_for(build_model("digits_resnet")) == torch.channels_last
    assert layout_for(build_model("digits_cnn", width=6)) == torch.contiguous_format
    assert layout_for(build_model("mobilenet_v2")) == torch.contiguous_format
    assert layout_for(build_model("resnet18")) == torch.contiguous_format
