"""gates.py: what the gates cost, and that they stay out of the way of other hooks."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from networks import assert_same, fingerprint, network
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import dgprune_lite as dg
from dgprune_lite.running import logits_of
from dgprune_lite.scores.gates import gate_gradients, gate_gradients_per_image, sum_of_products


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


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "digits_resnet", "digits_cnn"])
def test_gates_keep_no_more_than_a_training_step(name, per_image):
    model, images = network(name)
    graph = dg.trace_channels(model, images)
    labels = torch.zeros(len(images), dtype=torch.long)
    losses = []
    training = kept_bytes(lambda: losses.append(F.cross_entropy(model.train()(images), labels)))
    model.eval()
    scoring = kept_bytes(lambda: gate_gradients(model, graph, images, labels, per_image=per_image))
    weights = sum(p.nbytes for p in model.parameters())  # which autograd keeps, too
    assert 0.5 * (training - weights) < scoring - weights < training - weights


class Operations(TorchDispatchMode):
    """Counts what is computed, forward and backward, and notes float32 shapes; views are free."""

    def __init__(self):
        super().__init__()
        self.count, self.wide = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        view = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        if not view and "empty" not in func.__name__ and "detach" not in func.__name__:
            # A convolution's gradients by its input, weight and bias are a kernel each.
            convolution = func is torch.ops.aten.convolution_backward.default
            self.count += sum(args[-1]) if convolution else 1
        if isinstance(result, torch.Tensor) and result.dtype == torch.float32:
            self.wide.add(tuple(result.shape))
        return result


def operations(run):
    with Operations() as found:
        run()
    return found


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["resnet18", "digits_resnet"])
def test_three_operations_a_gate_more_than_bare_passes(name, precision, per_image):
    """On a GPU each is a launch, which bounds the speed where its work is small."""
    model, images = network(name)
    graph, labels = dg.trace_channels(model, images), torch.arange(len(images))

    def bare():
        loss = F.cross_entropy(logits_of(model, images, precision), labels)
        torch.autograd.grad(loss, list(model.parameters()))

    def scoring():
        gate_gradients(model, graph, images, labels, per_image=per_image, precision=precision)

    more = operations(scoring).count - operations(bare).count
    assert more <= 3 * len(graph.gates)


def test_no_activation_is_copied_to_float32_in_bfloat16():
    model, images = network("digits_cnn")
    graph, labels = dg.trace_channels(model, images), torch.arange(len(images))
    found = {}
    for precision in ("float32", "bfloat16"):
        measure = partial(gate_gradients_per_image, precision=precision)
        wide = operations(partial(measure, model, graph, images, labels)).wide
        found[precision] = {s for s in wide if len(s) == 4 and s[:2] == (4, 8)}
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
    with pytest.raises(ValueError, match=r"lies outside \[0, 10\), the model's classes"):
        gate_gradients_per_image(model, graph, images, labels + 8)
    with pytest.raises(ValueError, match="data: no images; expected at least one"):
        gate_gradients_per_image(model, graph, images[:0], labels[:0])
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
    factor = torch.full((2, 1, size), value, dtype=dtype)
    for axes, expected in (((2,), 2 * [[size * value**2]]), ((0, 2), [2 * size * value**2])):
        assert sum_of_products(factor, factor, axes).tolist() == expected
