"""The smaller copy: what it takes over from the network, and what it leaves."""

import pytest
import torch
import torch.nn.functional as F
from networks import assert_same, fingerprint
from torch import nn

import dgprune_lite as dg

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def plan_of(model):
    graph = dg.trace_channels(model, IMAGES)
    return dg.plan_pruning(graph, dg.score("l1", model, graph), 0.5)


def halved(model):
    return plan_of(model).apply(model)


class Keeper(nn.Module):
    """Keeps activations on itself: as an attribute, in a list, and by a hook."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
        self.steps, self.seen = [], {"hook": []}
        self.conv.register_forward_hook(lambda _, args, y: self.seen["hook"].append(y))

    def forward(self, x):
        self.features = F.relu(self.conv(x))
        self.steps.append(self.features)
        return self.out(self.features.mean((2, 3)))


def test_kept_activations_are_copied_without_their_history():
    model = Keeper().train()
    model(IMAGES).sum().backward()
    before, kept = fingerprint(model), model.features
    small = halved(model)
    assert_same(before, fingerprint(model))
    assert kept.grad_fn is not None
    assert small.conv.out_channels == 3
    assert small.features.grad_fn is None
    assert small.steps is not model.steps
    with torch.no_grad():
        assert small(IMAGES).shape == (2, 4)
    assert small.features.shape == (2, 3, 6, 6)


class Shared(nn.Module):
    """Refers to itself and to its layers, keeps a view of a buffer, and a layer with a copier."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
        self.alias, self.again, self.counted = [self.conv], (self,), Counted()
        self.register_buffer("table", torch.arange(3))
        self.first = self.table[:1]

    def forward(self, x):
        return self.out(self.conv(x).relu().mean((2, 3)))


class Counted(nn.Module):
    def __deepcopy__(self, memo):
        made = memo[id(self)] = Counted()
        made.copies = 1
        return made


def test_what_is_shared_in_the_model_is_shared_in_the_copy():
    model = Shared()
    model.out.bias.grad = torch.ones(4)
    small = halved(model)
    assert small.alias[0] is small.conv is not model.conv
    assert small.again[0] is small
    assert small.counted.copies == 1
    assert not hasattr(model.counted, "copies")
    small.table.add_(5)
    assert small.first == 5
    assert model.first == 0
    assert small.out.bias.grad is None


def test_recurrent_layers_and_parametrizations_are_copied_as_they_want():
    normed = torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Flatten(2),
                          nn.LSTM(36, 3, batch_first=True), Last(), normed)  # fmt: skip
    small = halved(model)
    assert small[0].out_channels == 3
    assert small[4]._flat_weights[0] is small[4].weight_ih_l0 is not model[4].weight_ih_l0
    assert torch.equal(small[6].weight, normed.weight)


class Last(nn.Module):
    def forward(self, outputs_and_state):
        return outputs_and_state[0][:, -1]


def test_what_cannot_be_copied_is_said():
    model = Shared()
    model.handle = (number for number in range(3))
    with pytest.raises(ValueError, match=r"Shared cannot be copied: .*generator"):
        plan_of(Shared()).apply(model)
