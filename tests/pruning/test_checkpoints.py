"""Saving and loading pruned networks."""

import copy
import json
from functools import partial

import pytest
import torch
from networks import assert_same, network
from safetensors.torch import load_file, save_file
from torch import nn

import dgprune_lite as dg
from dgprune_lite import files
from dgprune_lite.pruning import checkpoints
from tests.channels import test_user_networks as user_networks


def build():
    return dg.build_model("digits_resnet", width=8)


@pytest.fixture
def saved(tmp_path):
    model, images = network("digits_resnet")
    graph = dg.trace_channels(model, images)
    plan = dg.plan_pruning(graph, dg.score("l1", model, graph), 0.5)
    small = plan.apply(model)
    path = tmp_path / "small.safetensors"
    dg.save(small, plan, path)
    return small, plan, path, images


def test_round_trip(saved):
    small, _, path, images = saved
    again = dg.load(path, build).eval()
    assert torch.equal(again(images), small(images))
    for name, value in small.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_round_trip_of_networks_as_users_write_them(tmp_path):
    """Transposed convolutions too, whose weights have their inputs first."""
    makers = {how.__name__: partial(user_networks.build, how) for how in user_networks.FREE}
    makers["transposed"] = user_networks.with_transposed_convolutions
    for name, make in makers.items():
        net = make()
        graph = dg.trace_channels(net, user_networks.IMAGES)
        plan = dg.plan_pruning(graph, dg.score("l1", net, graph), 0.5)
        small = plan.apply(net)
        assert plan.removed, name
        dg.save(small, plan, tmp_path / name)
        again = dg.load(tmp_path / name, make)
        assert_same(dict(again.state_dict()), dict(small.state_dict()))
        images = user_networks.IMAGES
        with torch.no_grad():
            assert torch.equal(again(images.clone()), small(images.clone()))


def test_a_cut_outside_of_a_transposed_convolution_is_refused(tmp_path):
    net = user_networks.with_transposed_convolutions()
    graph = dg.trace_channels(net, user_networks.IMAGES)
    plan = dg.plan_pruning(graph, dg.score("l1", net, graph), 0.5)
    path = tmp_path / "small.safetensors"
    dg.save(plan.apply(net), plan, path)
    header = {"format": checkpoints.FORMAT, "version": checkpoints.VERSION}
    cut = {"out": [6], "into": [], "weight_shape": list(net[1].weight.shape)}  # of 6 outputs
    header["cuts"] = {"1": cut}
    save_file(load_file(path), path, metadata={"dgprune_lite": json.dumps(header)})
    with pytest.raises(ValueError, match=r"no valid cuts \('1' has 6 entries .* lose number 6"):
        dg.load(path, user_networks.with_transposed_convolutions)


def test_channels_last_networks(saved, tmp_path):
    small, plan, _, images = saved
    turned = copy.deepcopy(small).to(memory_format=torch.channels_last)
    assert not turned.stem[0].weight.is_contiguous()
    dg.save(turned, plan, tmp_path / "turned.safetensors")
    again = dg.load(tmp_path / "turned.safetensors", build).eval()
    assert torch.equal(again(images), small(images))


def test_nothing_else_is_left_in_the_folder(saved):
    _, _, path, _ = saved
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_an_interrupted_save_keeps_the_old_file(saved, monkeypatch):
    small, plan, path, _ = saved
    before = path.read_bytes()

    def crash(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        dg.save(small, plan, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_missing_file_and_a_missing_folder(saved, tmp_path):
    small, plan, _, _ = saved
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere.safetensors"):
        dg.load(tmp_path / "nowhere.safetensors", build)
    with pytest.raises(FileNotFoundError, match="make the folder"):
        dg.save(small, plan, tmp_path / "nowhere" / "small.safetensors")


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_damaged_file(saved, damage):
    _, _, path, _ = saved
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "text": b"hello", "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"small.safetensors' is not a whole safetensors file"):
        dg.load(path, build)


def test_a_foreign_file(saved):
    _, _, path, _ = saved
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"not a network saved by dgprune_lite.save"):
        dg.load(path, build)


def test_another_format_version(saved):
    _, _, path, _ = saved
    header = {"format": checkpoints.FORMAT, "version": 99, "cuts": {}}
    save_file(load_file(path), path, metadata={"dgprune_lite": json.dumps(header)})
    with pytest.raises(ValueError, match="format version 99, this package reads 1"):
        dg.load(path, build)


def test_a_factory_of_another_network(saved):
    _, _, path, _ = saved
    with pytest.raises(ValueError, match="was pruned from another network"):
        dg.load(path, lambda: dg.build_model("digits_resnet", width=16))
    with pytest.raises(ValueError, match="is not there"):
        dg.load(path, lambda: dg.build_model("digits_cnn", width=8))


def test_a_network_that_does_not_fit_its_plan(saved, tmp_path):
    _, plan, _, _ = saved
    with pytest.raises(ValueError, match="does not fit the plan at"):
        dg.save(build(), plan, tmp_path / "wrong.safetensors")
    assert not (tmp_path / "wrong.safetensors").exists()


class Normed(nn.Module):
    """With a BatchNorm that has statistics and no weights."""

    def __init__(self):
        super().__init__()
        self.a, self.plain = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False)
        self.norm, self.out = nn.BatchNorm2d(6), nn.Linear(6, 10)

    def forward(self, x):
        return self.out(self.norm(self.plain(self.a(x))).mean((2, 3)))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("a", {"out": [-1]}),
        ("out", {"into": [6]}),
        ("plain", {"out": [6]}),
        ("norm", {"into": [0]}),
    ],
)
def test_a_cut_outside_of_a_layer_is_refused(name, changes, tmp_path):
    model, path = Normed().eval(), tmp_path / "small.safetensors"
    graph = dg.trace_channels(model, torch.rand(1, 3, 8, 8))
    plan = dg.plan_pruning(graph, dg.score("l1", model, graph), 0.5)
    dg.save(plan.apply(model), plan, path)
    header = {"format": checkpoints.FORMAT, "version": checkpoints.VERSION}
    shape = list(plan.cuts[name].weight_shape)
    header["cuts"] = {name: {"out": [], "into": [], "weight_shape": shape} | changes}
    save_file(load_file(path), path, metadata={"dgprune_lite": json.dumps(header)})
    with pytest.raises(
        ValueError, match=rf"no valid cuts \('{name}' has \d entries .* lose number"
    ):
        dg.load(path, Normed)


class Tied(nn.Module):
    """Two layers share a weight, and cannot lose filters; the others can."""

    def __init__(self):
        super().__init__()
        self.a, self.d, self.out = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)
        self.b, self.c = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.c.weight = self.b.weight

    def forward(self, x):
        return self.out(self.d(self.c(self.b(self.a(x)).relu()).relu()).relu().mean((2, 3)))


def saved_and_loaded(make, path, change=lambda small: None):
    model = make().eval()
    graph = dg.trace_channels(model, torch.rand(1, 3, 12, 12))
    plan = dg.plan_pruning(graph, dg.score("l1", model, graph), 0.5)
    small = plan.apply(model)
    change(small)
    dg.save(small, plan, path)
    return small, dg.load(path, make)


def test_tied_weights_stay_tied(tmp_path):
    small, again = saved_and_loaded(Tied, tmp_path / "small")
    assert small.d.out_channels == 4
    assert again.c.weight is again.b.weight
    assert dg.count_parameters(again) == dg.count_parameters(small)
    assert_same(dict(again.state_dict()), dict(small.state_dict()))


def test_weights_that_were_untied_and_trained_apart_stay_so(tmp_path):
    def untie(small):
        small.c.weight = nn.Parameter(small.b.weight.detach() + 1)

    small, again = saved_and_loaded(Tied, tmp_path / "small", untie)
    assert_same(dict(again.state_dict()), dict(small.state_dict()))
    assert dg.count_parameters(again) == dg.count_parameters(small)


class Remembering(nn.Module):
    """Has state that is no tensor."""

    def __init__(self, state=None):
        super().__init__()
        self.conv, self.out, self.state = nn.Conv2d(3, 6, 3), nn.Linear(6, 4), state

    def forward(self, x):
        return self.out(self.conv(x).relu().mean((2, 3)))

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


def test_state_that_is_no_tensor_is_saved_as_json_or_refused(tmp_path):
    state = {"epochs": 3, "names": ["a", "b"], "rate": 0.1}
    small, again = saved_and_loaded(
        Remembering, tmp_path / "small", lambda small: small.set_extra_state(state)
    )
    assert again.state == state
    assert torch.equal(again.conv.weight, small.conv.weight)
    for wrong in ({1, 2}, {1: 2}, (1, 2), object()):
        with pytest.raises(TypeError, match=r"state '_extra_state' is .*get_extra_state"):
            saved_and_loaded(partial(Remembering, wrong), tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()
