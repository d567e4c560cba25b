"""What networks do in forward beside computing: checkpoints, changes in place, other outputs."""

from collections import deque, namedtuple
from copy import copy
from dataclasses import dataclass

import pytest
import timm
import torch
import torch.nn.functional as F
from networks import assert_same, fingerprint
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset

import dgprune_lite as dg
from dgprune_lite.scores.risks import ORDERS

IMAGES = torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(0)).double()
LABELS = torch.arange(6) % 5
DATA = {"a": TensorDataset(IMAGES[:4], LABELS[:4]), "b": TensorDataset(IMAGES[2:], LABELS[2:])}


class Net(nn.Module):
    """Two layers with a BatchNorm or without, to be used by ``body``."""

    def __init__(self, body, norm=True):
        super().__init__()
        torch.manual_seed(0)
        self.body, norm = body, nn.BatchNorm2d if norm else nn.Identity
        self.a, self.na = nn.Conv2d(3, 6, 3, padding=1), norm(6)
        self.b, self.nb = nn.Conv2d(6, 6, 3, padding=1), norm(6)
        self.silu, self.out = nn.SiLU(inplace=True), nn.Linear(6, 5)
        self.double().eval()

    def one(self, x):
        return self.na(self.a(x))

    def two(self, x):
        return self.nb(self.b(x))

    def forward(self, x):
        return self.out(self.body(self, x).mean((2, 3)))


def assert_same_statistics(found, expected):
    for name in ("risk_sum", "gradient_sum", "fisher_sum", "ablation_sum"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None)
        if one is not None:
            assert other.any()
            torch.testing.assert_close(one, other)


def compare(body, plain, order, norm):
    """Statistics of two networks that compute the same in different ways."""
    one, other = Net(body, norm), Net(plain, norm)
    torch.testing.assert_close(one(IMAGES), other(IMAGES))
    graph = dg.trace_channels(one, IMAGES)
    before = fingerprint(one)
    found = dg.domain_statistics(one, graph, DATA, order=order, batch_size=3)
    assert_same(before, fingerprint(one))
    assert_same_statistics(found, dg.domain_statistics(other, graph, DATA, order=order))


def chain(net, x):
    return net.two(net.one(x).relu()).relu()


def checkpointed(net, x):
    def inner(x):
        return net.two(net.one(x).relu())

    return checkpoint(inner, x, use_reentrant=False).relu()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("norm", [True, False])
def test_gradient_checkpointing(order, norm):
    compare(checkpointed, chain, order, norm)


def test_checkpointing_of_timm():
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=5).double().eval()
    graph = dg.trace_channels(model, IMAGES)
    expected = dg.domain_statistics(model, graph, DATA)
    model.set_grad_checkpointing()
    assert_same_statistics(dg.domain_statistics(model, graph, DATA), expected)


def added_behind_relu(net, x):
    x = F.relu(net.one(x))
    x += net.two(x)
    return x


def silu_after_add(net, x):
    x = net.one(x)
    x += net.two(x)
    return net.silu(x)


def twice_itself(net, x):
    y = net.one(x)
    x = F.relu(y)
    x += y
    return net.two(x)


def some_set_to_zero(net, x):
    x = net.one(x)
    x[:, :4] = 0
    return net.two(x.relu())


def some_set_to_zero_behind_relu(net, x):
    x = net.one(x).relu()
    x[:, :4] = 0
    return net.two(x)


def masked(net, x):
    return net.two(net.one(x).relu() * torch.tensor([0, 0, 0, 0, 1, 1])[:, None, None])


IN_PLACE = {
    "x[:, :4] = 0": (some_set_to_zero, masked),
    "x[:, :4] = 0 behind a ReLU": (some_set_to_zero_behind_relu, masked),
    "x += y behind a ReLU": (
        added_behind_relu,
        lambda net, x: (h := F.relu(net.one(x))) + net.two(h),
    ),
    "SiLU(inplace=True) after an add": (
        silu_after_add,
        lambda net, x: F.silu((h := net.one(x)) + net.two(h)),
    ),
    "a BatchNorm's output added to its ReLU": (
        twice_itself,
        lambda net, x: net.two(F.relu(h := net.one(x)) + h),
    ),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("name", IN_PLACE)
def test_activations_that_are_changed_in_place(name, norm, order):
    compare(*IN_PLACE[name], order, norm)


def without_gradients(net, x):
    with torch.no_grad():
        x = net.one(x).relu()
    return net.two(x)


def reentrant(net, x):
    return checkpoint(lambda x: net.two(net.one(x)), x, use_reentrant=True)


@pytest.mark.parametrize("body", [without_gradients, reentrant])
def test_layers_without_gradients_are_named(body):
    model = Net(body)
    graph = dg.trace_channels(model, IMAGES)
    before = fingerprint(model)
    with pytest.raises(ValueError, match=r"na runs without gradients.*use_reentrant=False"):
        dg.domain_statistics(model, graph, DATA)
    assert_same(before, fingerprint(model))


def notes(net, x):
    x = net.one(x)
    net.number += 1
    for change, note in ((list.append, []), (set.add, set()), (deque.append, deque())):
        change(net.notes.setdefault(type(note), note), net.number)
        change(getattr(net, type(note).__name__), net.number)
    return net.two(x)


def test_what_a_network_notes_is_as_it_was():
    model = Net(notes)
    kept = {"number": 3, "notes": {}, "list": [], "set": {1, 2}, "deque": deque([5], maxlen=1)}
    vars(model).update({name: copy(value) for name, value in kept.items()})
    graph = dg.trace_channels(model, IMAGES)
    assert graph.num_filters == 12
    assert {name: vars(model)[name] for name in kept} == kept


class Computed(nn.Conv2d):
    """Standardises its weights and doubles its bias, or the latter alone."""

    def forward(self, x):
        weight = self.weight
        if self.groups == 1:
            weight = weight - weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, 2 * self.bias)


@pytest.mark.parametrize("groups", [1, 2])
def test_filters_of_computed_weights_are_left_out_exactly(groups):
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), Computed(4, 6, 3, groups=groups), nn.ReLU()
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)).double()
    graph = dg.trace_channels(model, IMAGES)
    found = dg.domain_statistics(model, graph, {"a": DATA["a"]}, order="exact")
    assert graph.num_filters == (6 if groups == 1 else 5)
    for unit in range(graph.num_filters):
        with dg.gated(model, graph, (torch.arange(graph.num_filters) != unit).double()):
            risk = F.cross_entropy(model(IMAGES[:4]), LABELS[:4])
        torch.testing.assert_close(found.ablation[0, unit], (risk - found.risk[0]).detach())


@dataclass
class Output:
    features: Tensor
    logits: Tensor


Named = namedtuple("Named", "features out")
KINDS = {
    "tuple": lambda logits, features: (logits, features),
    "dict": lambda logits, features: {"features": features, "logits": logits},
    "torchvision": lambda logits, features: {"out": logits},
    "named tuple": lambda logits, features: Named(features, logits),
    "dataclass": lambda logits, features: Output(features, logits),
    "first tensor": lambda logits, features: {"note": "none", "classes": logits, "more": features},
}


class Returns(nn.Module):
    """A network with another output."""

    def __init__(self, kind):
        super().__init__()
        self.net, self.kind = Net(chain), kind

    def forward(self, x):
        logits = self.net(x)
        return self.kind(logits, logits * 2)


@pytest.mark.parametrize(
    ("kind", "logits"),
    [*((kind, None) for kind in KINDS.values()),
     (lambda logits, features: [{"deep": (features, logits)}], lambda out: out[0]["deep"][1])],
)  # fmt: skip
def test_logits_are_found_in_what_a_network_returns(kind, logits):
    plain, model = Returns(lambda logits, _: logits), Returns(kind)
    graph = dg.trace_channels(plain, IMAGES)
    for order in ORDERS:
        expected = dg.domain_statistics(plain, graph, DATA, order=order)
        found = dg.domain_statistics(model, graph, DATA, order=order, logits=logits)
        assert_same_statistics(found, expected)
    _, expected = dg.gate_gradients_per_image(plain, graph, IMAGES, LABELS)
    _, found = dg.gate_gradients_per_image(model, graph, IMAGES, LABELS, logits=logits)
    assert torch.equal(found, expected)
    for network, how in ((plain, None), (model, logits)):
        dg.recalibrate_batchnorm(network, DATA, logits=how)
        dg.fit(network, DATA, steps=2, batch_size=2, logits=how)
    frames = dg.evaluate(plain, DATA), dg.evaluate(model, DATA, logits=logits)
    assert frames[0].equals(frames[1])


@pytest.mark.parametrize("output", [None, {"a": 1}, "logits"])
def test_no_logits(output):
    model = Returns(lambda *_: output)
    graph = dg.trace_channels(Returns(lambda logits, _: logits), IMAGES)
    message = r"the model returns a .* in which no logits are found; .*logits=lambda output"
    calls = (
        dg.evaluate,
        lambda m, d: dg.fit(m, d, steps=1),
        lambda m, d: dg.domain_statistics(m, graph, d),
    )
    for call in calls:
        with pytest.raises(TypeError, match=message):
            call(model, DATA)
    with pytest.raises(TypeError, match=r"logits is 'out', expected a function"):
        dg.evaluate(model, DATA, logits="out")
