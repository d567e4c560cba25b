"""running.py: classes, modes, random states, place and memory layout."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dgprune_lite.networks.models import build_model
from dgprune_lite.running import count_classes, evaluating, in_dtype_of, layout_for, logits_of, move


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


@pytest.mark.parametrize(
    ("places", "expected"),
    [((), []), (("cpu",), []), (("cuda:1", "cpu", "cuda:0", "cuda:1"), ["cuda:0", "cuda:1"])],
)
def test_the_random_states_of_the_networks_own_gpus_come_back(monkeypatch, places, expected):
    """Without a GPU: which random states are asked for."""
    model, asked = nn.Dropout(), []
    stored = [SimpleNamespace(device=torch.device(place)) for place in places]
    monkeypatch.setattr(model, "parameters", lambda: iter(stored))
    monkeypatch.setattr(
        torch.random, "fork_rng", lambda devices: nullcontext(asked.extend(map(str, devices)))
    )
    with evaluating(model):
        pass
    assert asked == expected


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float64"])
def test_a_network_is_not_moved_to_a_device_that_cannot_compute_so(precision):
    model = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=f"precision='{precision}'"):
        move(model, "meta", precision)
    assert model.weight.device.type == "cpu"
    assert move(model, "meta", "float32") == model.weight.device == torch.device("meta")


def test_images_take_the_type_of_the_weights():
    images = torch.rand(1, 3)
    assert in_dtype_of(nn.Linear(3, 2).double(), images).dtype == torch.float64
    assert in_dtype_of(nn.Linear(3, 2), images) is images
    assert in_dtype_of(nn.ReLU(), images) is images


def test_only_our_own_networks_of_whole_blocks_store_channels_last():
    assert layout_for(build_model("digits_resnet")) == torch.channels_last
    assert layout_for(build_model("digits_cnn", width=6)) == torch.contiguous_format
    assert layout_for(build_model("mobilenet_v2")) == torch.contiguous_format
    assert layout_for(build_model("resnet18")) == torch.contiguous_format


def test_layout_on_a_gpu(monkeypatch):
    monkeypatch.setattr("dgprune_lite.running.device_of", lambda _: torch.device("cuda"))
    last, usual = torch.channels_last, torch.contiguous_format
    assert layout_for(build_model("digits_cnn"), "float32") == usual
    assert layout_for(build_model("digits_cnn"), "bfloat16") == last
    assert layout_for(build_model("resnet18"), "float16") == last
    assert layout_for(build_model("digits_cnn", width=6), "bfloat16") == usual
    own = nn.Sequential(nn.Conv2d(3, 8, 3))
    assert layout_for(own, "bfloat16") == usual
    own.stores_channels_last = True
    assert layout_for(own, "bfloat16") == last


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "densenet121"])
def test_torchvision_networks_compute_the_same_with_channels_last(name):
    model, images = build_model(name).eval(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        found = model(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_logits_in_half_precision_come_back_in_full():
    model = build_model("digits_cnn", width=8).eval()
    images = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        full, half = (logits_of(model, images, p) for p in ("float32", "bfloat16"))
    assert full.dtype == half.dtype == torch.float32
    assert not torch.equal(full, half)
    torch.testing.assert_close(full, half, rtol=0.1, atol=0.05)
    assert logits_of(model.double(), images.double()).dtype == torch.float64


def test_weights_that_are_whole_numbers_do_not_count():
    model = nn.Module()
    model.codes = nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)
    model.scale = nn.Parameter(torch.ones(2, dtype=torch.float64))
    assert in_dtype_of(model, torch.rand(1, 3)).dtype == torch.float64
