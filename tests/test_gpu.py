"""A GPU computes what a CPU does, at the cost promised. Skipped, and said so, without CUDA.

What is asked of both kinds of device alike is in `test_devices.py`. Tests that ask for the fixture
`gpu` can run on a pretended one, too.
"""

import copy
import itertools
import time

import pytest
import torch
import torch.nn.functional as F
from networks import assert_same, domains, fingerprint, network
from scipy.stats import spearmanr
from torch.utils.data import TensorDataset

import dgprune_lite as dg
from dgprune_lite.domains import fetch
from dgprune_lite.exactness import full_float32
from dgprune_lite.running import evaluating, layout_for
from dgprune_lite.scores.gates import gate_gradients
from dgprune_lite.scores.risks import ORDERS

pytestmark = pytest.mark.gpu
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


@pytest.fixture(scope="module", autouse=True)
def strict_float32():
    """No TF32, which rounds to 10 bits and would hide a mistake of that size.

    For the whole module, so that the fixtures of the module are made without it, too.
    """
    with full_float32():
        yield


def pair(name, gpu, dtype=torch.float64):
    """The same network on the CPU and on the GPU, and its data on the CPU."""
    here, example = network(name, dtype)
    return here, copy.deepcopy(here).to(gpu), example, domains(dtype=dtype, side=example.shape[-1])


@pytest.mark.parametrize(
    ("name", "order"),
    [
        *itertools.product(["digits_cnn", "digits_resnet", "plain_cnn"], ORDERS),
        *itertools.product(["resnet18"], ["first", "fisher"]),  # ablation takes minutes on a CPU
    ],
)
def test_scoring(gpu, name, order):
    here, there, example, data = pair(name, gpu)
    data = {domain: TensorDataset(*(t[:6] for t in part.tensors)) for domain, part in data.items()}
    graph = dg.trace_channels(here, example)
    before = fingerprint(there)
    one, other = (
        dg.domain_statistics(model, graph, data, order=order, batch_size=4)
        for model in (here, there)
    )
    assert_same(before, fingerprint(there))
    for what in ("risk_sum", "gradient_sum", "fisher_sum", "ablation_sum"):
        expected, found = getattr(one, what), getattr(other, what)
        assert (expected is None) == (found is None)
        if expected is not None:
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


def test_evaluation_and_recalibration(gpu):
    here, there, _, data = pair("digits_resnet", gpu)
    for model in (here, there):
        assert dg.recalibrate_batchnorm(model, data, batch_size=32) > 0
    for name, value in here.state_dict().items():
        torch.testing.assert_close(there.state_dict()[name].cpu(), value)
    one, other = (dg.evaluate(model, data)["risk"].tolist() for model in (here, there))
    assert other == pytest.approx(one, rel=1e-6)


@pytest.mark.parametrize("algorithm", ["ERM", "VREx"])
def test_training(gpu, algorithm):
    here, there, _, data = pair("digits_cnn", gpu, torch.float32)
    one, other = (
        dg.fit(model, data, steps=5, lr=1e-3, batch_size=8, algorithm=algorithm)
        for model in (here, there)
    )
    torch.testing.assert_close(
        torch.tensor(other.to_numpy()), torch.tensor(one.to_numpy()), rtol=1e-2, atol=1e-3
    )


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_training_in_half_precision_learns(precision):
    model = dg.build_model("digits_cnn", width=16).cuda()
    split = dg.leave_one_domain_out(dg.DigitsLite(), test_env="syn", seed=0)
    history = dg.fit(model, split.train, steps=100, precision=precision)
    assert history["loss"].iloc[-5:].mean() < 0.5 * history["loss"].iloc[:5].mean()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    full, half = (dg.evaluate(model, split, precision=p) for p in ("float32", precision))
    assert half["risk"].tolist() == pytest.approx(full["risk"].tolist(), rel=0.05)


def test_a_plan_applied_there_computes_what_the_masked_network_does(gpu):
    here, there, example, data = pair("resnet18", gpu)
    graph = dg.trace_channels(there, example.to(gpu))
    stats = dg.domain_statistics(there, graph, data)
    plan = dg.plan_pruning(graph, dg.score("risk_variance", there, graph, stats), 0.5)
    small = plan.apply(there)
    assert next(small.parameters()).device.type == gpu
    assert dg.check_exact(there, small, plan, graph, example.to(gpu)) < 1e-9
    with torch.no_grad():
        torch.testing.assert_close(small(example.to(gpu)).cpu(), plan.apply(here)(example))


@pytest.fixture(scope="module")
def resnet50(strict_float32):
    """A resnet50 as trained networks are, and 3 domains of 256 images of 224 pixels on the GPU."""
    model = dg.build_model("resnet50", 10)
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.2, 0.6, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
    generator = torch.Generator("cuda").manual_seed(0)
    model = model.cuda()
    data = {}
    for brightness, name in enumerate(("a", "b", "c"), 1):
        images = torch.rand(256, 3, 224, 224, device="cuda", generator=generator) * brightness
        labels = torch.randint(0, 10, (256,), device="cuda", generator=generator)
        data[name] = TensorDataset(images, labels)
    dg.recalibrate_batchnorm(model, data, batch_size=96)
    return model, dg.trace_channels(model, torch.zeros(1, 3, 64, 64, device="cuda")), data


@pytest.fixture(scope="module")
def trained(strict_float32):
    """A resnet18 that has learned the digits: what it is right about has small, plain gradients."""
    split = dg.leave_one_domain_out(dg.DigitsLite(), test_env="syn", seed=0)
    model = dg.build_model("resnet18", 10).cuda()
    history = dg.fit(model, split.train, steps=300)
    assert history["loss"].iloc[-20:].mean() < 0.5 * history["loss"].iloc[:20].mean()
    return model, dg.trace_channels(model, split.example_inputs), split.val


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("order", ["first", "fisher"])
def test_half_precision_ranks_the_filters_of_a_trained_network_like_float32(
    trained, order, precision
):
    model, graph, data = trained
    full, half = (
        dg.domain_statistics(model, graph, data, order=order, precision=p)
        for p in ("float32", precision)
    )
    assert not torch.equal(full.risk_sum, half.risk_sum)
    scores = [dg.score("risk_variance", model, graph, s, order=order) for s in (full, half)]
    assert spearmanr(*map(graph.join, scores)).statistic > 0.98


def bare_pass(model, images, labels, precision):
    images = images.contiguous(memory_format=layout_for(model, precision))
    half = {"float32": None, "bfloat16": torch.bfloat16}[precision]
    with torch.autocast("cuda", dtype=half, enabled=half is not None):
        logits = model(images)
    F.cross_entropy(logits.float(), labels).backward()


@pytest.mark.parametrize(
    ("precision", "batch_size", "limit"),
    [("float32", 64, 1.15), ("float32", 256, 1.15), ("bfloat16", 256, 1.15), ("bfloat16", 64, 1.3)],
)
@pytest.mark.parametrize("order", ["first", "fisher"])
def test_scoring_costs_what_bare_passes_cost(resnet50, order, precision, batch_size, limit):
    """Batches of 256 keep the GPU busy; with 64 in half precision it waits for launches.

    How many launches a batch needs is counted, without a GPU, in `scores/test_gates.py`.
    """
    model, graph, data = resnet50
    how = {"order": order, "batch_size": batch_size, "precision": precision}

    def bare():
        with evaluating(model):
            for part in data.values():
                pairs = zip(*(t.split(batch_size) for t in part.tensors), strict=True)
                for images, labels in pairs:
                    bare_pass(model, images, labels, precision)
                    model.zero_grad()

    def scoring():
        dg.domain_statistics(model, graph, data, **how)

    def seconds(run):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    for run in (bare, scoring):
        run()  # cuDNN chooses its algorithms
    ratios = sorted(seconds(scoring) / seconds(bare) for _ in range(5))
    assert ratios[2] < limit, ratios


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("per_image", [False, True])
def test_scoring_needs_little_more_memory_than_a_training_step(resnet50, per_image, precision):
    model, graph, data = resnet50
    images, labels = (tensor[:64] for tensor in data["a"].tensors)

    def peak(run):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before

    with evaluating(model):
        scoring = peak(
            lambda: gate_gradients(
                model, graph, images, labels, per_image=per_image, precision=precision
            )
        )
        model.train()
        training = peak(lambda: bare_pass(model, images, labels, precision))
    model.zero_grad()
    assert scoring < 1.1 * training


def test_a_batch_too_large_for_the_memory_is_halved(resnet50):
    model, graph, data = resnet50
    few = {"a": TensorDataset(*(tensor[:64] for tensor in data["a"].tensors))}
    expected = dg.domain_statistics(model, graph, few, batch_size=8)
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((held + 2**31) / total)  # 2 GiB more, not 5
    try:
        with pytest.warns(UserWarning, match="do not fit into memory"):
            found = dg.domain_statistics(model, graph, few, batch_size=64)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    torch.testing.assert_close(found.risk, expected.risk, **CLOSE)
    assert spearmanr(found.fisher[0], expected.fisher[0]).statistic > 0.99


def test_images_kept_on_a_gpu_are_augmented_and_learnt_from_there(tmp_path, gpu):
    files = dg.PACS(dg.draw_tiny_pacs(tmp_path), image_size=32)
    here, there = (files.in_memory(device) for device in ("cpu", gpu))
    splits = [dg.leave_one_domain_out(held, "S", seed=0) for held in (here, there)]
    (images, labels), (moved, same) = (fetch(split.train["A"], [3, 1, 2]) for split in splits)
    assert moved.device.type == torch.device(gpu).type
    assert torch.equal(labels, same)
    torch.testing.assert_close(moved.cpu(), images, rtol=1e-4, atol=1e-4)
    model = dg.build_model("efficientnet_lite0", 7, seed=0).to(gpu)
    history = dg.fit(model, splits[1].train, steps=2, batch_size=4, max_shift=0)
    assert history["loss"].notna().all()
    assert dg.evaluate(model, splits[1])["accuracy"].between(0, 1).all()
