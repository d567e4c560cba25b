"""Two networks side by side."""

import pytest
import torch
from networks import assert_same, fingerprint, network
from safetensors.torch import save

import dgprune_lite as dg


def pruned(name):
    model, images = network(name)
    graph = dg.trace_channels(model, images)
    plan = dg.plan_pruning(graph, dg.score("l1", model, graph), 0.5)
    return model, plan.apply(model), plan, images


def test_sizes_are_those_of_the_plan_and_of_the_file():
    model, small, plan, images = pruned("digits_resnet")
    frame = dg.report(model, small, images, rounds=1)
    sizes = frame[["model", "small"]]
    assert tuple(sizes.loc["parameters"]) == plan.parameters
    assert tuple(sizes.loc["MACs"]) == tuple(len(images) * macs for macs in plan.macs)
    for name, net in (("model", model), ("small", small)):
        written = len(save(net.state_dict())) - len(save({}))
        header = 0.35 * written  # names and shapes, which the tensors' bytes leave out
        assert 0 <= written - frame.loc["file size (bytes)", name] < header
    assert frame.loc["parameters", "left"] == pytest.approx(plan.parameters[1] / plan.parameters[0])


def test_a_much_smaller_network_is_faster_and_both_are_left_as_found():
    model, small, _, images = pruned("resnet18")
    model.train()
    before = fingerprint(model), fingerprint(small)
    frame = dg.report(model, small, images.repeat(4, 1, 1, 1))
    assert_same(before[0], fingerprint(model))
    assert_same(before[1], fingerprint(small))
    assert frame.loc["CPU latency (ms)", "left"] < 1
    assert ("CUDA latency (ms)" in frame.index) == torch.cuda.is_available()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_networks_on_the_gpu_are_measured_on_both():
    model, small, _, images = pruned("resnet18")
    frame = dg.report(model.cuda(), small.cuda(), images.cuda())
    assert next(model.parameters()).is_cuda
    assert (frame.loc[["CPU latency (ms)", "CUDA latency (ms)"], "model"] > 0).all()


def test_wrong_calls():
    model, small, _, images = pruned("digits_cnn")
    with pytest.raises(TypeError, match=r"model is 'resnet18', expected an nn.Module"):
        dg.report("resnet18", small, images)
    with pytest.raises(TypeError, match="example_inputs is None"):
        dg.report(model, small, None)
    with pytest.raises(ValueError, match=r"does not run on example_inputs of shape \(1, 5\)"):
        dg.report(model, small, torch.zeros(1, 5))
    with pytest.raises(ValueError, match="rounds is 0; expected a whole number"):
        dg.report(model, small, images, rounds=0)
