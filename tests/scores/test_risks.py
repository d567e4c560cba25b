"""Gate gradients and ablation against independent computations."""

import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import EACH, FromDisk, assert_same, domains, fingerprint, network
from scipy.stats import spearmanr
from torch.utils.data import Subset, TensorDataset

import dgprune_lite as dg
from dgprune_lite.pruning.pruning import make_plan
from dgprune_lite.scores.ablation import ablated_losses
from dgprune_lite.scores.risks import ORDERS

ALL = [*EACH, "plain_cnn"]


def setting(name, dtype=torch.float64, images=12):
    model, example = network(name, dtype)
    data = domains(images=images, dtype=dtype, side=example.shape[-1])
    return model, dg.trace_channels(model, example), data


@pytest.mark.parametrize("name", ALL)
def test_gradient_from_parameters_equals_explicit_gates(name):
    model, graph, data = setting(name)
    stats = dg.domain_statistics(model, graph, data, order="first")
    for row, dataset in zip(stats.gradient, data.values(), strict=True):
        images, labels = dataset.tensors
        gates = torch.ones(graph.num_filters, dtype=torch.float64, requires_grad=True)
        handles = []
        for gate_name in graph.gates:
            units = torch.from_numpy(graph.layers[gate_name].out_units)

            def hook(module, args, output, units=units, gates=gates):
                factor = torch.where(units >= 0, gates[units.clamp(min=0)], 1.0)
                return output * factor.reshape(1, -1, *[1] * (output.ndim - 2))

            handles.append(model.get_submodule(gate_name).register_forward_hook(hook))
        F.cross_entropy(model(images), labels).backward()
        for handle in handles:
            handle.remove()
        expected = gates.grad
        assert float((row - expected).norm() / expected.norm()) < 1e-6


@pytest.mark.parametrize("name", ["digits_cnn", "digits_resnet", "plain_cnn"])
def test_fisher_is_the_mean_squared_gradient_of_single_images(name):
    model, graph, data = setting(name, images=5)
    stats = dg.domain_statistics(model, graph, data, order="fisher", batch_size=3)
    for d, (domain, dataset) in enumerate(data.items()):
        single = torch.stack(
            [
                dg.domain_statistics(model, graph, {domain: Subset(dataset, [i])}).gradient[0]
                for i in range(len(dataset))
            ]
        )
        torch.testing.assert_close(stats.gradient[d], single.mean(0))
        torch.testing.assert_close(stats.fisher[d], (single**2).mean(0))


@pytest.mark.parametrize("name", ALL)
def test_ablation_equals_deleting_the_filter_for_real(name):
    model, graph, data = setting(name, images=4)
    images, labels = data["a"].tensors
    groups = list(graph.groups.values())
    units = [g.start + i for g in groups[:: max(1, len(groups) // 6)] for i in (0, g.size - 1)]
    whole, result = ablated_losses(model, graph, images, labels, units)
    with torch.no_grad():
        expected = F.cross_entropy(model(images), labels, reduction="sum")
    assert float(whole) == pytest.approx(float(expected), rel=1e-12)
    for unit, loss in zip(units, result, strict=True):
        removed = np.zeros(graph.num_filters, dtype=bool)
        removed[unit] = True
        small = make_plan(graph, removed, 0.0).apply(model)
        with torch.no_grad():
            expected = F.cross_entropy(small(images), labels, reduction="sum")
        assert float(loss) == pytest.approx(float(expected), rel=1e-9)


def test_exact_statistics_are_the_differences_of_the_risks():
    model, graph, data = setting("digits_cnn", images=6)
    stats = dg.domain_statistics(model, graph, data, order="exact", batch_size=4)
    gates = torch.ones(graph.num_filters)
    gates[11] = 0
    before = dg.evaluate(model, data)["risk"]
    with dg.gated(model, graph, gates):
        after = dg.evaluate(model, data)["risk"]
    assert stats.ablation[:, 11].tolist() == pytest.approx(list(after - before), rel=1e-6)


def test_risk_is_the_mean_cross_entropy():
    model, graph, data = setting("digits_cnn")
    stats = dg.domain_statistics(model, graph, data, batch_size=5)
    for d, dataset in enumerate(data.values()):
        images, labels = dataset.tensors
        assert float(stats.risk[d]) == pytest.approx(F.cross_entropy(model(images), labels).item())


@pytest.mark.parametrize("order", ["first", "fisher", "exact"])
def test_statistics_are_the_sum_of_those_of_shards(order):
    model, graph, data = setting("digits_cnn")
    whole = dg.domain_statistics(model, graph, data, order=order)
    shards = [
        dg.domain_statistics(
            model, graph, {k: Subset(v, range(start, 12, 2)) for k, v in data.items()}, order=order
        )
        for start in (0, 1)
    ]
    total = shards[0] + shards[1]
    assert total.images.tolist() == whole.images.tolist() == [12, 12, 12]
    for name in ("risk_sum", "gradient_sum", "fisher_sum", "ablation_sum"):
        a, b = getattr(total, name), getattr(whole, name)
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("order", ORDERS)
def test_the_batch_size_only_rounds(order):
    model, graph, data = setting("digits_cnn", images=20)
    one, seven, all_ = (
        dg.domain_statistics(model, graph, data, order=order, batch_size=size)
        for size in (1, 7, 256)
    )
    for name in ("images", "risk_sum", "gradient_sum", "fisher_sum", "ablation_sum"):
        a, b, c = (getattr(stats, name) for stats in (one, seven, all_))
        assert (a is None) == (b is None) == (c is None)
        if a is not None:
            torch.testing.assert_close(a, c, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(b, c, rtol=1e-10, atol=1e-12)


def test_out_of_memory_goes_on_with_smaller_chunks_and_says_so_once():
    model, graph, data = setting("digits_cnn", images=24)
    expected = dg.domain_statistics(model, graph, data, batch_size=24)
    sizes = []

    def too_large(module, args):
        sizes.append(len(args[0]))
        if len(args[0]) > 6:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    handle = model.register_forward_pre_hook(too_large)
    with pytest.warns(UserWarning, match="pass batch_size=6") as caught:
        found = dg.domain_statistics(model, graph, data, batch_size=24)
    assert len(caught) == 1
    assert sizes == [24, 12] + 12 * [6]  # found out in the first domain
    torch.testing.assert_close(found.fisher, expected.fisher)
    torch.testing.assert_close(found.risk, expected.risk)

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no warning when it fits, or where no size was asked for
        dg.domain_statistics(model, graph, data, batch_size=6)
        torch.testing.assert_close(dg.domain_statistics(model, graph, data).risk, expected.risk)
    handle.remove()
    model.register_forward_pre_hook(lambda *_: too_large(model, [range(7)]))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        dg.domain_statistics(model, graph, data, batch_size=3)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_workers_change_nothing(noise):
    model, graph, data = setting("digits_cnn", torch.float32)
    data = {name: FromDisk(dataset, noise) for name, dataset in data.items()}
    state = torch.get_rng_state()
    none, two = (
        dg.domain_statistics(model, graph, data, batch_size=5, workers=workers)
        for workers in (0, 2)
    )
    assert torch.equal(none.gradient_sum, two.gradient_sum)
    assert torch.equal(none.fisher_sum, two.fisher_sum)
    assert torch.equal(state, torch.get_rng_state())


@pytest.fixture(scope="module")
def trained():
    """A network that has learned the digits somewhat, its graph and source domains."""
    split = dg.leave_one_domain_out(dg.DigitsLite(), test_env="syn", seed=0)
    model = dg.build_model("digits_cnn", width=16)
    dg.fit(model, split.train, steps=60, batch_size=16)
    few = {name: Subset(part, range(128)) for name, part in split.val.items()}
    return model, dg.trace_channels(model, split.example_inputs), few


@pytest.mark.parametrize("order", ["first", "fisher"])
def test_bfloat16_ranks_filters_like_float32(trained, order):
    model, graph, data = trained
    full = dg.domain_statistics(model, graph, data, order=order)
    half = dg.domain_statistics(model, graph, data, order=order, precision="bfloat16")
    assert half.gradient_sum.dtype == torch.float64
    assert not torch.equal(full.risk_sum, half.risk_sum)  # it did compute in bfloat16
    torch.testing.assert_close(full.risk, half.risk, rtol=0.02, atol=0)
    for criterion in ("risk_variance", "risk_gradient", "taylor"):
        options = {"order": order} if criterion == "risk_variance" else {}
        a, b = (dg.score(criterion, model, graph, stats, **options) for stats in (full, half))
        assert spearmanr(graph.join(a), graph.join(b)).statistic > 0.98, criterion


def test_precisions_that_are_refused(trained):
    model, graph, data = trained
    with pytest.raises(ValueError, match="precision='float16' needs a CUDA device, not 'cpu'"):
        dg.domain_statistics(model, graph, data, precision="float16")
    with pytest.raises(ValueError, match="precision='half' is not one of 'float32', 'bfloat16'"):
        dg.domain_statistics(model, graph, data, precision="half")
    with pytest.raises(ValueError, match="precision='bfloat16' with order='exact'"):
        dg.domain_statistics(model, graph, data, precision="bfloat16", order="exact")


def test_statistics_of_different_domains_do_not_add_up():
    model, graph, data = setting("digits_cnn")
    a = dg.domain_statistics(model, graph, {"a": data["a"]})
    b = dg.domain_statistics(model, graph, {"b": data["b"]})
    with pytest.raises(ValueError, match="do not add up"):
        a + b


def test_statistics_can_be_pickled():
    model, graph, data = setting("digits_cnn")
    stats = dg.domain_statistics(model, graph, data, order="fisher")
    again = pickle.loads(pickle.dumps(stats))
    assert torch.equal(again.fisher, stats.fisher)


def test_terms_that_were_not_measured():
    model, graph, data = setting("digits_cnn")
    stats = dg.domain_statistics(model, graph, data, order="first")
    with pytest.raises(ValueError, match=r"hold no 'fisher' terms.*order='fisher'"):
        _ = stats.fisher
    with pytest.raises(ValueError, match="order='third' is not one of"):
        stats.risk_change("third")
    with pytest.raises(ValueError, match="order='third' is not one of"):
        dg.domain_statistics(model, graph, data, order="third")


@pytest.mark.parametrize("order", ["first", "fisher", "exact"])
@pytest.mark.parametrize("broken", [False, True])
def test_the_model_is_as_it_was(order, broken):
    model, graph, data = setting("digits_cnn", torch.float32)
    model.train()
    next(model.children()).eval()
    F.cross_entropy(model(data["a"].tensors[0]), data["a"].tensors[1]).backward()
    list(model.parameters())[2].requires_grad_(False)
    before = fingerprint(model)
    if broken:
        images = data["b"].tensors[0].clone()
        images[-1] = torch.nan
        data["b"] = TensorDataset(images, data["b"].tensors[1])
        with pytest.raises(ValueError, match="the loss is nan in domain 'b', batch 1"):
            dg.domain_statistics(model, graph, data, order=order, batch_size=8)
    else:
        dg.domain_statistics(model, graph, data, order=order, batch_size=8)
    assert_same(before, fingerprint(model))


def test_frozen_parameters_are_scored_like_any_other():
    model, graph, data = setting("digits_cnn")

    def gradients() -> list[torch.Tensor]:
        return [dg.domain_statistics(model, graph, data, order=o).gradient for o in ORDERS]

    expected = gradients()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert all(torch.equal(a, b) for a, b in zip(gradients(), expected, strict=True))


def test_bad_data_is_named():
    model, graph, data = setting("digits_cnn")
    images, labels = data["a"].tensors
    with pytest.raises(ValueError, match=r"data=\{\} holds no domain"):
        dg.domain_statistics(model, graph, {})
    with pytest.raises(ValueError, match="'a'"):
        dg.domain_statistics(model, graph, {"a": TensorDataset(images[:0], labels[:0])})
    with pytest.raises(ValueError, match=r"domain 'a', batch 0: label 12 lies outside \[0, 10\)"):
        dg.domain_statistics(model, graph, {"a": TensorDataset(images, labels * 0 + 12)})


def test_no_domains_and_no_model_are_named():
    model, graph, data = setting("digits_cnn", images=2)
    with pytest.raises(TypeError, match="data is a TensorDataset; expected a mapping"):
        dg.domain_statistics(model, graph, data["a"])
    with pytest.raises(TypeError, match=r"model is None, expected an nn\.Module"):
        dg.domain_statistics(None, graph, data)


class WithAConstant(torch.nn.Module):
    """torch.fx stores the constant on the network."""

    fail = False

    def __init__(self):
        super().__init__()
        self.a, self.out = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 10)

    def forward(self, x):
        y = self.a(x).relu() * torch.tensor(2.0)
        if self.fail:
            raise RuntimeError("forward fails")
        return self.out(y.mean((2, 3)))


@pytest.mark.parametrize("place", ["run", "trace"])
def test_ablation_leaves_no_constants_behind_after_an_error(place):
    model, (images, labels) = WithAConstant(), domains(images=2)["a"].tensors
    graph = dg.trace_channels(model, images)
    model.fail = place == "trace"
    if place == "run":
        model.out = torch.nn.Linear(5, 10)
    before = set(vars(model))
    message = {"run": "mat1 and mat2 shapes", "trace": "forward fails"}[place]
    with pytest.raises((RuntimeError, ValueError), match=message):
        ablated_losses(model, graph, images, labels)
    assert set(vars(model)) == before


def test_a_graph_of_another_model():
    _, graph, data = setting("digits_cnn")
    other = dg.build_model("digits_cnn", width=4).double()
    with pytest.raises(ValueError, match="the graph is of another model"):
        dg.domain_statistics(other, graph, data)


def test_gates_of_one_change_nothing_and_a_wrong_number_is_refused():
    model, images = network("digits_resnet")
    graph = dg.trace_channels(model, images)
    with dg.gated(model, graph, torch.ones(graph.num_filters)):
        inside = model(images)
    assert torch.equal(inside, model(images))
    with (
        pytest.raises(ValueError, match=r"gates have shape \(3,\)"),
        dg.gated(model, graph, torch.ones(3)),
    ):
        pass
    with pytest.raises(TypeError, match=r"gates is \[1, 1\]"), dg.gated(model, graph, [1, 1]):
        pass


def test_a_filter_that_gives_nothing_loses_nothing_to_the_last_bit():
    model, graph, data = setting("digits_cnn", torch.float32, images=4)
    model.bn2.weight.data[3], model.bn2.bias.data[3] = 0, 0
    lost = dg.domain_statistics(model, graph, data, order="exact").ablation_sum
    assert not lost[:, graph.groups["conv2"].start + 3].any()
    assert lost.any()
