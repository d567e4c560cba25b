"""Channel analysis: what goes with what, and what is left alone with a reason."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import EACH, ByNumbers, PlainCNN, assert_same, fingerprint, lively, network
from torch import Tensor, nn

import dgprune_lite as dg
from dgprune_lite import running


def test_groups_of_the_teaching_network():
    graph = dg.trace_channels(dg.build_model("digits_cnn", width=4), torch.zeros(1, 3, 28, 28))
    assert [group.size for group in graph.groups.values()] == [4, 8, 8]
    assert graph.num_filters == 20
    (reason,) = graph.skipped.values()
    assert reason == "its outputs are the network's outputs"


def test_a_residual_stream_is_one_group():
    graph = dg.trace_channels(dg.build_model("resnet18"), torch.zeros(1, 3, 32, 32))
    stream = graph.groups["conv1"]
    assert stream.producers == ("conv1", "layer1.0.conv2", "layer1.1.conv2")
    assert stream.size == 64


def test_a_depthwise_convolution_goes_with_its_input():
    graph = dg.trace_channels(dg.build_model("mobilenet_v2"), torch.zeros(1, 3, 32, 32))
    for name, layer in graph.layers.items():
        if name == "features.2.conv.1.0":
            assert layer.in_units is None
            expand = graph.layers["features.2.conv.0.0"]
            assert np.array_equal(layer.out_units, expand.out_units)


def test_flattened_features_belong_to_their_channel():
    graph = dg.trace_channels(PlainCNN(), torch.zeros(1, 3, 28, 28))
    units = graph.layers["hidden"].in_units.reshape(8, 4)
    assert (units == units[:, :1]).all()
    assert len(np.unique(units)) == 8


class Residual(nn.Module):
    """A convolution that reads and writes the same stream."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.block = nn.Conv2d(4, 4, 1)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.out(x + self.block(x))


def test_a_sum_unites_its_terms():
    graph = dg.trace_channels(Residual(), torch.zeros(1, 3, 4, 4))
    assert {name: g.producers for name, g in graph.groups.items()} == {"stem": ("stem", "block")}


class Concatenated(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 4, 1)
        self.out = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([self.left(x), self.right(x)], dim=1))


def test_a_concatenation_keeps_its_parts_apart():
    graph = dg.trace_channels(Concatenated(), torch.zeros(1, 3, 4, 4))
    assert graph.layers["out"].in_units.tolist() == [0, 1, 2, 3, 4, 5]
    assert [group.size for group in graph.groups.values()] == [2, 4]


class WithLayerNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.out = nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.first(x)))


class WithSigmoid(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.first(x).sigmoid())


class WithFixedSize(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Conv2d(3, 4, 1), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.first(x).view(-1, 16))


@pytest.mark.parametrize(
    ("model", "shape", "reason"),
    [
        (WithLayerNorm(), (1, 6), "norm (LayerNorm) normalises channels together"),
        (WithSigmoid(), (1, 6), "removing it would leave a constant at the input of out"),
        (WithFixedSize(), (1, 3, 2, 2), "view to a size that is fixed in the code"),
    ],
)
def test_what_cannot_go_exactly_is_kept_and_named(model, shape, reason):
    graph = dg.trace_channels(model, torch.zeros(shape))
    assert graph.groups == {}
    assert graph.skipped["first"] == reason


def test_a_group_with_one_filter_and_a_layer_in_part_are_named():
    padded = OneFilterAndPadding()
    graph = dg.trace_channels(padded, torch.zeros(1, 3, 8, 8))
    assert graph.groups["wide"].size == 5
    assert graph.skipped["one"] == "the channels of one go only all at once, and some must stay"
    reason = "add with values that no filter makes"
    assert graph.partly == {"sum": f"2 of its 6 channels stay: {reason}"}
    assert graph.groups["narrow"].producers == ("narrow", "sum")


class OneFilterAndPadding(nn.Module):
    """A convolution with one filter, and a shortcut that is padded with channels of zeros."""

    def __init__(self):
        super().__init__()
        self.one, self.wide = nn.Conv2d(3, 1, 1), nn.Conv2d(1, 5, 1)
        self.narrow, self.sum = nn.Conv2d(5, 4, 1), nn.Conv2d(5, 6, 1)
        self.out = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(self.one(x))
        shortcut = nn.functional.pad(self.narrow(x), (0, 0, 0, 0, 1, 1))
        return self.out(shortcut + self.sum(x))


class AuxiliaryHead(nn.Module):
    """Has one more head in training, whose pooling only runs on large images."""

    def __init__(self):
        super().__init__()
        self.body, self.out = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.pool, self.aux = nn.AvgPool2d(6), nn.Conv2d(4, 8, 1)
        self.aux_out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.body(x)
        if self.training:
            return self.out(x), self.aux_out(self.aux(self.pool(x)))
        return self.out(x)


def test_heads_of_training_are_followed_or_keep_what_they_read():
    model = AuxiliaryHead()
    graph = dg.trace_channels(model, torch.zeros(1, 3, 6, 6))
    assert list(graph.groups) == ["body", "aux"]
    assert graph.layers["aux"].size(np.zeros(12, dtype=bool)) == (40, 0)  # not run in evaluation
    plan = dg.plan_pruning(graph, dg.score("l1", model, graph), 0.5)
    small = plan.apply(model).train()
    assert [out.shape[1] for out in small(torch.zeros(2, 3, 6, 6))] == [2, 2]
    assert (small.body.out_channels, small.aux.out_channels) == (2, 4)
    graph = dg.trace_channels(model, torch.zeros(1, 3, 4, 4))  # too small for the pooling
    assert "in training the example does not run at forward(): `" in graph.skipped["body"]
    assert "self.pool(x)" in graph.skipped["body"]
    assert graph.skipped["aux"] == "this Conv2d is not called on the example, and stays as it is"


class AsksItsLayer(AuxiliaryHead):
    """Has the head above where a layer of PyTorch's, of which it asks, is in training."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.body(x)
        if self.fails:
            raise RuntimeError("as asked")
        return (self.out(x), self.aux_out(self.aux(x))) if self.pool.training else (self.out(x),)


@pytest.mark.parametrize("fails", [False, True])
def test_whatever_layer_is_asked_for_its_mode_training_is_followed(fails):
    model = AsksItsLayer()
    model.fails = fails
    if fails:
        with pytest.raises(ValueError, match="as asked"):
            dg.trace_channels(model, torch.zeros(1, 3, 6, 6))
    else:
        assert list(dg.trace_channels(model, torch.zeros(1, 3, 6, 6)).groups) == ["body", "aux"]
    assert not hasattr(nn.Module, "training")  # what noticed it is gone
    assert model.training


class NormAct(nn.BatchNorm2d):
    """Hands its mode on to the function, as timm's does."""

    def forward(self, x: Tensor) -> Tensor:
        own = self.running_mean, self.running_var, self.weight, self.bias
        return F.relu(F.batch_norm(x, *own, self.training))


class DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout2d(x, 0.5, self.training)


class Scaled(DropPath):
    """The same with a weight of its own, which it may leave out in evaluation."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


@pytest.mark.parametrize(
    ("norm", "drop", "runs"),
    [
        (nn.BatchNorm2d(4), nn.Dropout(), 1),
        (NormAct(4), DropPath(), 1),
        (NormAct(4), Scaled(), 2),
    ],
)
def test_a_second_run_follows_what_may_differ_in_training(norm, drop, runs):
    seen = []
    model = nn.Sequential(nn.Conv2d(3, 4, 1), norm, drop, nn.Conv2d(4, 2, 1))
    model.register_forward_hook(lambda *_: seen.append(1))
    assert dg.trace_channels(model, torch.zeros(2, 3, 6, 6)).num_filters == 4
    assert len(seen) == runs


class OwnModes(nn.Module):
    """Has the head above, but keeps its mode in an attribute of its own."""

    def __init__(self):
        super().__init__()
        self.body, self.out, self.aux = (nn.Conv2d(i, o, 1) for i, o in ((3, 4), (4, 2), (4, 2)))
        self.heads = 2

    def train(self, mode: bool = True) -> nn.Module:
        self.heads = 2 if mode else 1
        return super().train(mode)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.body(x)
        return [head(x) for head in (self.out, self.aux)[: self.heads]]


@pytest.mark.parametrize("kind", [AuxiliaryHead, OwnModes])
def test_training_is_followed_where_it_is_another_network(kind):
    assert "aux" in dg.trace_channels(kind(), torch.zeros(1, 3, 6, 6)).layers


def test_networks_that_need_numbers_are_followed_with_their_weights():
    graph = dg.trace_channels(ByNumbers(), torch.zeros(1, 3, 8, 8))
    assert graph.groups["conv"].size == 8


@pytest.mark.parametrize("name", EACH)
def test_tracing_leaves_the_model_as_it_was(name):
    model, images = network(name)
    model.train()
    next(model.children()).eval()  # a mixed mode must survive
    before = fingerprint(model)
    dg.trace_channels(model, images)
    assert_same(before, fingerprint(model))


class DataDependent(nn.Module):
    """Has a layer that only bright images see."""

    def __init__(self):
        super().__init__()
        self.stem, self.bright, self.out = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        bright, x = x.mean() > 100, self.stem(x)
        if bright:
            x = self.bright(x)
        return self.out(x.mean((2, 3)))


def test_what_other_images_may_take_another_way_is_kept():
    graph = dg.trace_channels(DataDependent(), torch.zeros(1, 3, 2, 2))
    assert graph.groups == {}
    assert graph.skipped["stem"] == "bright is not called, and may read it for other numbers"


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no such layer")


def test_a_model_that_does_not_run_names_the_place():
    match = r"Broken does not run on .* at forward\(\): `raise RuntimeError.*`: no such layer"
    with pytest.raises(ValueError, match=match):
        dg.trace_channels(Broken(), torch.zeros(1, 3))


def test_inputs_that_do_not_fit_the_model():
    with pytest.raises(
        ValueError, match=r"does not run on example_inputs of shape \(1, 5, 28, 28\)"
    ):
        dg.trace_channels(dg.build_model("digits_cnn", width=4), torch.zeros(1, 5, 28, 28))
    with pytest.raises(TypeError, match="got list"):
        dg.trace_channels(dg.build_model("digits_cnn", width=4), [1, 2])


def test_four_threads_trace_at_once_while_another_runs_a_network():
    models = [dg.build_model("resnet18", seed=seed) for seed in range(4)]
    images, other = torch.zeros(1, 3, 32, 32), lively(dg.build_model("digits_cnn", width=4))
    example = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        expected, own = other(example), dg.trace_channels(models[0], images)
    tracing = threading.Event()
    seen = []

    def run():
        with torch.no_grad():
            while not tracing.is_set():
                seen.append(torch.equal(other(example), expected))

    with ThreadPoolExecutor(5) as pool:
        running = pool.submit(run)
        try:
            graphs = list(pool.map(lambda model: dg.trace_channels(model, images), models * 2))
        finally:
            tracing.set()
        running.result()
    assert all(graph.groups == own.groups for graph in graphs)
    assert seen
    assert all(seen)


def test_random_numbers_of_the_models_gpus_are_put_back(monkeypatch):
    """Without a GPU: which devices tracing says it draws on."""
    asked, fork = [], torch.random.fork_rng

    def spy(devices):
        asked.append(list(devices))
        return fork(devices=[])

    monkeypatch.setattr(torch.random, "fork_rng", spy)
    gpus = [torch.device("cuda:0"), torch.device("cuda:1")]
    monkeypatch.setattr(running, "gpus_of", lambda _: gpus)
    model, images = network("digits_cnn")
    asked.clear()
    dg.trace_channels(model, images)
    assert asked == [gpus]


def test_an_example_is_not_changed_by_a_network_that_needs_numbers():
    class InPlace(ByNumbers):
        def forward(self, x):
            return super().forward(x.sub_(0.5))

    example = torch.rand(1, 3, 8, 8)
    before = example.clone()
    assert dg.trace_channels(InPlace(), example).groups["conv"].size == 8
    assert torch.equal(example, before)
