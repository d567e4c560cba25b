"""What must hold on every device: the same calls on the CPU, and on a GPU where there is one."""

import copy

import pytest
import torch
from dgprune_book.study.variants import masked_statistics
from networks import ByNumbers, FromDisk, assert_same, domains, fingerprint, network
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import dgprune_lite as dg


@pytest.fixture(params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request, gpu):
    return gpu if request.param == "gpu" else request.param


def few(images=8):
    """Eight images of each of two domains, on the CPU."""
    return {
        name: TensorDataset(*(tensor[:images] for tensor in part.tensors))
        for name, part in domains(("a", "b")).items()
    }


def there(device, name="digits_cnn"):
    """A network on a device, and images on the CPU."""
    model, images = network(name)
    return model.to(device), images


def places(model):
    return {value.device.type for value in model.state_dict().values()}


def test_pruning_with_default_settings(device):
    model, _ = there(device)
    before = fingerprint(model)
    small, plan = dg.prune(model, few())
    assert_same(before, fingerprint(model))
    assert places(small) == {device}
    assert plan.parameters[1] < plan.parameters[0]
    assert dg.evaluate(small, few())["images"].tolist() == [8, 8]


def test_pruning_step_by_step_with_training_between(device):
    model, images = there(device)
    before = fingerprint(model)
    sizes = [dg.count_parameters(model)]
    for small, plan in dg.prune_iteratively(model, few(), "l1", steps=2, example_inputs=images):
        dg.recalibrate_batchnorm(small, few())
        dg.fit(small, few(), steps=1, batch_size=4)
        sizes.append(dg.count_parameters(small))
        assert plan.parameters == (sizes[0], sizes[-1])
        assert places(small) == {device}
    assert sizes == sorted(set(sizes), reverse=True)
    assert_same(before, fingerprint(model))


def test_example_inputs_may_lie_on_the_cpu(device):
    model, images = there(device)
    graph = dg.trace_channels(model, images)
    assert graph.num_filters == dg.trace_channels(there("cpu")[0], images).num_filters


def test_indices_of_a_network_and_an_example_on_the_cpu(device):
    """Such a network is followed with its weights, where they are."""
    model, example = ByNumbers().to(device), torch.rand(1, 3, 28, 28)
    before, allowed = fingerprint(model), torch.backends.cudnn.allow_tf32
    assert dg.trace_channels(model, example).groups["conv"].size == 8
    small, _ = dg.prune(model, few(4), "l1", 0.5, example_inputs=example)
    assert small.conv.out_channels == 4
    assert small(example.to(device)).shape == (1, 10)
    assert_same(before, fingerprint(model))
    assert torch.backends.cudnn.allow_tf32 == allowed


class Drawing(nn.Module):
    """A network that draws random numbers in evaluation, too."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.model(x), 1e-3)


def test_random_states_are_left_as_found(device):
    model, images = there(device)
    graph = dg.trace_channels(model, images.to(device))
    drawing = Drawing(model).eval()
    before = fingerprint(drawing)
    drawing(images.to(device))
    changed = fingerprint(drawing)
    which = "cuda rng" if device == "cuda" else "rng"
    assert not torch.equal(before[which], changed[which])  # so there is something to put back
    dg.evaluate(drawing, few())
    dg.domain_statistics(model, graph, few())
    dg.trace_channels(drawing, images.to(device))
    assert_same(changed, fingerprint(drawing))
    dg.fit(copy.deepcopy(drawing), few(), steps=1, batch_size=4)
    dg.recalibrate_batchnorm(copy.deepcopy(drawing), few())
    assert_same(changed, fingerprint(drawing))


def test_a_worker_reads_what_is_trained_and_measured_with(device):
    data = {name: FromDisk(part) for name, part in few().items()}
    found = []
    for workers in (0, 1):
        model, _ = there(device)
        history = dg.fit(model, data, steps=2, batch_size=4, workers=workers)
        dg.recalibrate_batchnorm(model, data, workers=workers)
        risks = dg.evaluate(model, data, workers=workers)["risk"]
        found.append([*history["loss"], *risks])
    # On a GPU sums are formed in an order of their own each time.
    assert found[0] == pytest.approx(found[1], rel=0 if device == "cpu" else 1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_save_and_load(device, layout, tmp_path):
    model, images = there(device)
    graph = dg.trace_channels(model, images.to(device))
    plan = dg.plan_pruning(graph, dg.score("l1", model, graph), 0.5)
    small = plan.apply(model).to(memory_format=layout)
    dg.save(small, plan, tmp_path / "small.safetensors")
    loaded = dg.load(
        tmp_path / "small.safetensors",
        lambda: dg.build_model("digits_cnn", num_classes=10, width=8),
    )
    assert places(loaded) == {"cpu"}
    for name, value in small.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.cpu())


def test_images_may_lie_where_the_network_does(device):
    model, images = there(device)
    data = {
        name: TensorDataset(*(tensor.to(device) for tensor in part.tensors))
        for name, part in few().items()
    }
    graph = dg.trace_channels(model, images.to(device))
    for order in ("first", "fisher"):
        here, far = (
            dg.domain_statistics(model, graph, part, order=order) for part in (few(), data)
        )
        torch.testing.assert_close(far.gradient_sum, here.gradient_sum, rtol=1e-4, atol=1e-6)
    masked = masked_statistics(model, graph, data, folds=2, repeats=1)
    assert masked.fisher.shape == (2, graph.num_filters)
    small, plan = dg.prune(model, data)
    dg.recalibrate_batchnorm(small, data)
    dg.fit(small, data, steps=5, batch_size=4, algorithm="VREx", cuda_graph=True)
    here, far = (dg.evaluate(small, part)["risk"].tolist() for part in (few(), data))
    assert far == pytest.approx(here, rel=1e-4)
    assert dg.check_exact(model, plan.apply(model), plan, graph, images.to(device)) < 1e-3


def test_saved_weights_come_back_on_the_cpu(device, tmp_path):
    recipe = {"name": "digits_cnn", "num_classes": 10, "width": 8}
    model = dg.build_model(**recipe).to(device)
    dg.save_model(model, tmp_path / "dense.safetensors", **recipe)
    loaded = dg.load_model(tmp_path / "dense.safetensors")
    assert places(loaded) == {"cpu"}
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.cpu())
