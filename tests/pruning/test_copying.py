"""A quick copy is the copy that deepcopy makes."""

import copy

import pytest
import torch
from networks import EACH, network
from torch import nn

from dgprune_lite.channels.copying import copy_network


@pytest.mark.parametrize("name", EACH)
def test_it_has_the_same_attributes_and_shares_none_of_them(name):
    model, images = network(name)
    model.register_forward_hook(lambda *_: None)
    twin, expected = copy_network(model, {}), copy.deepcopy(model)
    assert repr(twin) == repr(expected)
    own = {id(module) for module in model.modules()}
    for one, other in zip(twin.modules(), expected.modules(), strict=True):
        assert type(one) is type(other)
        assert id(one) not in own
        assert list(vars(one)) == list(vars(other))
        for key, value in vars(other).items():
            assert type(getattr(one, key)) is type(value)
    for one, other in zip(twin.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
        assert one.data_ptr() != other.data_ptr()
    with torch.no_grad():
        assert torch.equal(twin(images), expected(images))


class Odd(nn.Module):
    """Shares objects, refers to itself, and holds a module that says itself how it is copied."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(2, 2), nn.Linear(2, 2)
        self.other.weight = self.one.weight
        self.one.notes = self.other.notes = {}
        self.alias, self.steps, self.again = [self.one], [1], (self,)
        self.sized, self.listed = Sized(), nn.ModuleList([self.one])
        self.register_buffer("table", torch.arange(3))
        self.first = self.table[:1]


class Sized(nn.Module):
    def __deepcopy__(self, memo):
        made = memo[id(self)] = Sized()
        made.copies = 1
        return made


def test_what_is_shared_in_the_model_is_shared_in_the_copy():
    model = Odd()
    model.one.weight.grad = torch.ones(2, 2)
    twin = copy_network(model, {})
    assert twin.other.weight is twin.one.weight is not model.one.weight
    assert twin.one.notes is twin.other.notes is not model.one.notes
    assert twin.alias[0] is twin.one is twin.listed[0]
    assert twin.again[0] is twin
    assert twin.steps is not model.steps
    assert twin.sized.copies == 1
    assert not hasattr(model.sized, "copies")
    twin.table.add_(5)
    assert twin.first == 5
    assert model.first == 0
    assert twin.one.weight.grad is None


def test_recurrent_layers_and_parametrizations_are_copied_as_they_want():
    model = nn.Sequential(nn.Flatten(2), nn.LSTM(4, 3, batch_first=True))
    twin = copy_network(model, {})
    with torch.no_grad():
        twin[1].weight_ih_l0.zero_()
    assert twin[1]._flat_weights[0] is twin[1].weight_ih_l0
    assert model[1].weight_ih_l0.abs().sum() > 0
    normed = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    assert torch.equal(copy_network(normed, {})[0].weight, normed[0].weight)
