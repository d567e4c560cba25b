"""gates.py: what the gates cost, and that they stay out of the way of other hooks."""

import pytest
import torch
import torch.nn.functional as F
from networks import assert_same, fingerprint, network
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import dgprune_lite as dg
from dgprune_lite.scores.gates import _products, _UnitGate, gate_gradients_per_image


def kept_bytes(run):
    """Bytes that autograd keeps for the backward pass, each storage counted once."""
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(storages.values())


@pytest.mark.parametrize("name", ["resnet18", "digits_resnet", "digits_cnn"])
def test_gates_keep_no_more_than_a_training_step(name):
    model, images = network(name)
    graph = dg.trace_channels(model, images)
    labels = torch.zeros(len(images), dtype=torch.long)
    losses = []
    training = kept_bytes(lambda: losses.append(F.cross_entropy(model.train()(images), labels)))
    model.eval()
    scoring = kept_bytes(lambda: gate_gradients_per_image(model, graph, images, labels))
    weights = sum(p.nbytes for p in model.parameters())  # which autograd keeps, too
    assert 0.5 * (training - weights) < scoring - weights < training - weights


class Wide(TorchDispatchMode):
    """Notes the shapes of all float32 results that are as large as an activation."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float32:
            self.shapes.append(tuple(result.shape))
        return result


def test_no_activation_is_copied_to_float32_in_bfloat16():
    model, images = network("digits_cnn")
    graph, labels = dg.trace_channels(model, images), torch.arange(len(images))
    found = {}
    for precision in ("float32", "bfloat16"):
        with Wide() as wide:
            gate_gradients_per_image(model, graph, images, labels, precision=precision)
        found[precision] = {s for s in wide.shapes if len(s) == 4 and s[:2] == (4, 8)}
    assert found["float32"]
    assert not found["bfloat16"]


class Mask(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(4, 10)

    def forward(self, x):
        return self.fc(self.relu(self.bn(self.conv(x))).mean((2, 3)))


def test_a_hook_of_the_caller_is_seen_by_the_gates():
    torch.manual_seed(0)
    model = Mask().double().eval()
    images, labels = torch.rand(5, 3, 8, 8).double(), torch.arange(5)
    graph = dg.trace_channels(model, images)
    factor = torch.tensor([0.0, 0.5, 2.0, 1.0]).double()
    handle = model.bn.register_forward_hook(
        lambda module, args, output: output * factor[:, None, None]
    )
    _, hooked = gate_gradients_per_image(model, graph, images, labels)
    handle.remove()
    model.bn.weight.data *= factor
    model.bn.bias.data *= factor
    _, written = gate_gradients_per_image(model, graph, images, labels)
    torch.testing.assert_close(hooked, written)
    assert not hooked[:, 0].any()
    assert hooked[:, 1:].all()


def test_a_network_in_training_mode_is_left_as_found():
    model, images = network("digits_resnet")
    graph, labels = dg.trace_channels(model, images), torch.arange(len(images))
    expected = gate_gradients_per_image(model, graph, images, labels)
    model.train()
    model.fc.eval()
    before = fingerprint(model)
    found = gate_gradients_per_image(model, graph, images, labels)
    assert_same(before, fingerprint(model))
    assert all(map(torch.equal, found, expected))
    with pytest.raises(ValueError, match="outside the model's 10 classes"):
        gate_gradients_per_image(model, graph, images, labels + 8)
    assert_same(before, fingerprint(model))


def test_what_is_refused():
    model, images = network("digits_cnn")
    graph, labels = dg.trace_channels(model, images), torch.arange(len(images))
    other, _ = network("digits_resnet")
    with pytest.raises(ValueError, match="the graph is of another model"):
        gate_gradients_per_image(other, graph, images, labels)
    with pytest.raises(TypeError, match=r"model is 'digits_cnn', expected an nn\.Module"):
        gate_gradients_per_image("digits_cnn", graph, images, labels)
    with pytest.raises(ValueError, match="precision='half' is not one of"):
        gate_gradients_per_image(model, graph, images, labels, precision="half")


@pytest.mark.parametrize(
    ("dtype", "value", "size"), [(torch.float16, 300.0, 4), (torch.bfloat16, 1.0, 4097)]
)
def test_products_do_not_overflow_and_their_sum_is_not_rounded(dtype, value, size):
    inputs = torch.full((1, 1, size), value, dtype=dtype)
    gate = torch.ones(1, 1, requires_grad=True)
    output = _UnitGate.apply(inputs.clone(), gate, nn.Identity(), inputs)
    (found,) = torch.autograd.grad(output, [gate], torch.full_like(inputs, value))
    assert float(found) == size * value**2


def test_products_of_large_layers_are_summed_in_parts():
    weights, gradients = torch.randn(2, 5, 700_000)
    expected = (weights.double() * gradients.double()).sum(1)
    torch.testing.assert_close(_products(weights, gradients), expected, rtol=1e-12, atol=0)
