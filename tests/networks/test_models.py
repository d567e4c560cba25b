"""models.py: seeded building, clear errors, whole checkpoints."""

import json

import pytest
import torch
from safetensors import safe_open
from torch import nn

from dgprune_lite.networks import models
from dgprune_lite.networks.models import (
    MODELS,
    build_model,
    count_parameters,
    load_model,
    save_model,
)

DIGITS = sorted(name for name in MODELS if name.startswith("digits"))


@pytest.mark.parametrize("name", DIGITS)
@pytest.mark.parametrize("width", [None, 4])
def test_digit_networks_give_logits_and_trace(name, width):
    model = build_model(name, 7, width=width).eval()
    images = torch.rand(3, 3, 28, 28)
    with torch.no_grad():
        logits = model(images)
        traced = torch.fx.symbolic_trace(model)(images)
    assert logits.shape == (3, 7)
    assert torch.equal(logits, traced)


@pytest.mark.parametrize("name", DIGITS)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_images_may_have_another_number_of_channels(name, channels):
    model = build_model(name, 7, width=4, in_channels=channels)
    assert model(torch.rand(2, channels, 28, 28)).shape == (2, 7)
    with pytest.raises(RuntimeError, match="channels"):
        model(torch.rand(2, channels + 1, 28, 28))


@pytest.mark.parametrize("name", DIGITS)
def test_three_channels_are_the_default(name):
    default, three = build_model(name, width=4), build_model(name, width=4, in_channels=3)
    for key, value in default.state_dict().items():
        assert torch.equal(three.state_dict()[key], value), key


def test_default_widths():
    assert build_model("digits_cnn").conv1.out_channels == 32
    assert build_model("digits_resnet").stem[0].out_channels == 16


@pytest.mark.parametrize("name", ["digits_cnn", "digits_resnet", "squeezenet1_1", "googlenet"])
def test_a_seed_decides_the_weights_and_the_global_state_stays(name):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    first = build_model(name, 5, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(321)
    again = build_model(name, 5, seed=3).state_dict()
    other = build_model(name, 5, seed=4).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_auxiliary_heads_return_one_tensor(name):
    model = build_model(name, 4).train()
    side = 75 if name == "inception_v3" else 64
    assert model(torch.rand(2, 3, side, side)).shape == (2, 4)


def test_own_network_joins_the_registry(monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", lambda num_classes: nn.Linear(3, num_classes))
    assert build_model("tiny", 4).out_features == 4
    assert build_model("tiny", 4, in_channels=3).out_features == 4
    with pytest.raises(ValueError, match="width is 8, but 'tiny' has no such setting"):
        build_model("tiny", 4, width=8)
    with pytest.raises(ValueError, match="in_channels is 1, but 'tiny' has no such setting"):
        build_model("tiny", 4, in_channels=1)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("digit_cnn", "digits_cnn"), ("resnet-18", "resnet18"), ("vgg11bn", "vgg11_bn")],
)
def test_unknown_name_gives_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=f"unknown model '{name}'.*Did you mean '{nearest}'"):
        build_model(name)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_classes": 0}, ValueError, "num_classes is 0; expected a whole number of at least 1"),
        ({"num_classes": 2.0}, TypeError, "num_classes is 2.0; expected a whole number"),
        ({"width": 0}, ValueError, "width is 0"),
        ({"in_channels": 0}, ValueError, "in_channels is 0; expected a whole number of at least 1"),
        ({"in_channels": 1.0}, TypeError, r"in_channels is 1\.0; expected a whole number"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"seed": "0"}, TypeError, "seed is '0'"),
    ],
)
def test_bad_settings(options, error, message):
    with pytest.raises(error, match=message):
        build_model("digits_cnn", **options)


def test_a_setting_that_a_network_has_not():
    with pytest.raises(ValueError, match=r"width is 8, .* one of digits_cnn, digits_resnet$"):
        build_model("efficientnet_lite0", width=8)
    with pytest.raises(ValueError, match=r"weights is DEFAULT, .* one of efficientnet_lite0$"):
        build_model("digits_cnn", weights="DEFAULT")
    with pytest.raises(ValueError, match="width is 8, but 'resnet18'"):
        build_model("resnet18", width=8)
    with pytest.raises(ValueError, match="in_channels is 1, but 'resnet18'"):
        build_model("resnet18", in_channels=1)


def test_count_parameters_counts_shared_ones_once():
    linear = nn.Linear(3, 3)
    assert count_parameters(nn.Sequential(linear, linear)) == 12


@pytest.fixture
def saved(tmp_path):
    model = build_model("digits_resnet", 7, width=4, seed=5)
    model.stem[1].running_mean += 1
    path = tmp_path / "net.safetensors"
    save_model(model, path, name="digits_resnet", num_classes=7, width=4)
    return model, path


def test_checkpoint_round_trip(saved):
    model, path = saved
    again = load_model(path).state_dict()
    assert list(again) == list(model.state_dict())
    assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # nothing left over


@pytest.mark.parametrize("name", DIGITS)
def test_checkpoint_of_another_number_of_channels(tmp_path, name):
    model = build_model(name, 2, width=4, in_channels=2)
    recipe = {"name": name, "num_classes": 2, "width": 4}
    with pytest.raises(ValueError, match=r"(?s)does not fit.*\[4, 2, 3, 3\].*\[4, 3, 3, 3\]"):
        save_model(model, tmp_path / "a", **recipe)
    save_model(model, tmp_path / "a", **recipe, in_channels=2)
    again = load_model(tmp_path / "a").state_dict()
    assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())


def test_files_of_three_channels_are_as_they_always_were(saved):
    model, path = saved
    recipe = {"name": "digits_resnet", "num_classes": 7, "width": 4}
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["recipe"]) == recipe  # and so can be read, without in_channels
    save_model(model, path, **recipe, in_channels=3)
    with safe_open(path, framework="pt") as file:  # its header comes in any order
        assert file.metadata() == metadata


def test_checkpoint_of_another_memory_layout(tmp_path):
    model = build_model("digits_cnn", width=4).to(memory_format=torch.channels_last)
    save_model(model, tmp_path / "a", name="digits_cnn", width=4)
    assert torch.equal(load_model(tmp_path / "a").conv2.weight, model.conv2.weight)


def test_a_failed_write_leaves_the_old_file(saved, monkeypatch):
    model, path = saved
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(models.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(model, path, name="digits_resnet", num_classes=7, width=4)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_saving_with_the_wrong_recipe(saved):
    model, path = saved
    with pytest.raises(ValueError, match=r"(?s)the model to save does not fit.* stem\.0\.weight"):
        save_model(model, path, name="digits_resnet", num_classes=7, width=5)


def test_missing_places(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*nothing.safetensors"):
        load_model(tmp_path / "nothing.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        save_model(build_model("digits_cnn"), tmp_path / "nowhere" / "a", name="digits_cnn")


def test_a_file_cut_in_the_middle(saved):
    _, path = saved
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_model(path)


def test_a_file_of_another_format_or_shape(saved):
    model, path = saved
    state = {key: value.clone() for key, value in model.state_dict().items()}
    path.write_bytes(models.to_safetensors(state, {"format": "else"}))
    with pytest.raises(ValueError, match="has the format 'else'; expected 'dgprune_lite-model-1'"):
        load_model(path)
    recipe = {"name": "digits_resnet", "num_classes": 9, "width": 4}
    metadata = {"format": "dgprune_lite-model-1", "recipe": json.dumps(recipe)}
    path.write_bytes(models.to_safetensors(state, metadata))
    with pytest.raises(ValueError, match=r"fc\.weight: .*\[7, 16\].*\[9, 16\]"):
        load_model(path)
