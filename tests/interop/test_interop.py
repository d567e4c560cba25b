"""Use with what people have: torch-pruning, ONNX, torch.compile, timm."""

import pytest
import torch
from networks import domains, lively, network

import dgprune_lite as dg
from dgprune_lite.interop.torch_pruning import as_importance

tp = pytest.importorskip("torch_pruning")


def pruned(name, ratio=0.5):
    model, images = network(name)
    graph = dg.trace_channels(model, images)
    plan = dg.plan_pruning(graph, dg.score("l1", model, graph), ratio)
    return plan.apply(model), images


def classifier(model):
    return [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]


@pytest.mark.parametrize("name", ["digits_cnn", "digits_resnet", "resnet18", "plain_cnn"])
def test_torch_pruning_removes_the_filters_that_we_would(name):
    model, images = network(name)
    graph = dg.trace_channels(model, images)
    stats = dg.domain_statistics(model, graph, domains(images=4, side=images.shape[-1]))
    scores = dg.score("risk_variance", model, graph, stats)
    ours = dg.plan_pruning(graph, scores, 0.5).apply(model)
    importance = as_importance(model, graph, scores)
    tp.pruner.BasePruner(
        model, images[:1], importance, pruning_ratio=0.5, ignored_layers=[classifier(model)]
    ).step()
    with torch.no_grad():
        torch.testing.assert_close(model(images), ours(images))


def test_another_step_needs_other_scores():
    model, images = network("digits_cnn")

    def importance():
        graph = dg.trace_channels(model, images)
        return as_importance(model, graph, dg.score("l1", model, graph))

    pruner = tp.pruner.BasePruner(
        model, images[:1], importance(), pruning_ratio=0.5, iterative_steps=2,
        ignored_layers=[model.fc],
    )  # fmt: skip
    pruner.step()
    with pytest.raises(ValueError, match="layer 'conv3' has 12 channels, it had 16 when"):
        pruner.step()
    pruner.current_step = 1
    pruner.importance = importance()
    pruner.step()
    assert [len(m.weight) for m in (model.conv1, model.conv2, model.conv3)] == [4, 8, 8]


def test_scores_of_another_model():
    model, images = network("digits_cnn")
    graph = dg.trace_channels(model, images)
    scores = dg.score("l1", model, graph)
    with pytest.raises(ValueError, match="the graph is of another model"):
        as_importance(dg.build_model("digits_cnn", width=16), graph, scores)
    with pytest.raises(TypeError, match=r"expected an nn\.Module"):
        as_importance("model", graph, scores)


@pytest.mark.parametrize(
    "name", ["digits_cnn", "resnet18", pytest.param("mobilenet_v2", marks=pytest.mark.slow)]
)
def test_onnx_computes_the_same(name, tmp_path):
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    small, images = pruned(name)
    path = tmp_path / "small.onnx"
    torch.onnx.export(small, (images,), path, dynamo=True, verbose=False)
    onnx.checker.check_model(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(
        torch.from_numpy(result), small(images).detach(), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("name", ["digits_cnn", "digits_resnet"])
def test_torch_compile_works_on_the_result(name):
    """Through the ahead-of-time tracer, forward and backward; no C compiler is needed for that."""
    small, images = pruned(name)
    compiled = torch.compile(small, backend="aot_eager", fullgraph=True)
    result = compiled(images)
    torch.testing.assert_close(result, small(images))
    result.sum().backward()
    assert all(p.grad is not None for p in small.parameters())


@pytest.mark.slow
def test_a_timm_resnet_is_pruned_exactly():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = lively(timm.create_model("resnet50", pretrained=False, num_classes=10))
    images = torch.randn(2, 3, 64, 64)
    graph = dg.trace_channels(model, images)
    plan = dg.plan_pruning(graph, dg.score("l1", model, graph), 0.5)
    assert list(graph.skipped) == ["fc"]
    assert all(after == round(before / 2) for before, after in plan.widths.values())
    dg.check_exact(model, plan.apply(model), plan, graph, images)


@pytest.mark.parametrize("name", ["test_resnet", "resnet18d", "resnet10t"])
def test_small_timm_networks(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = lively(timm.create_model(name, pretrained=False, num_classes=10))
    images = torch.randn(2, 3, 64, 64)
    graph = dg.trace_channels(model, images)
    plan = dg.plan_pruning(graph, dg.score("l1", model, graph), 0.5)
    assert plan.parameters[1] < 0.5 * plan.parameters[0]
    dg.check_exact(model, plan.apply(model), plan, graph, images)
