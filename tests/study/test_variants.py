"""Measuring in the absence of other filters, and on changed copies of the domains."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from dgprune_book.study import variants
from dgprune_book.study.variants import (
    CHANGES,
    geometric_mean,
    masked_statistics,
    mean_rank,
    virtual_domains,
)
from torch.utils.data import TensorDataset
from torchvision.transforms.v2 import functional

import dgprune_lite as dg
from dgprune_lite.domains.tensors import MEAN, STD


@pytest.fixture
def small():
    model = dg.build_model("digits_cnn", width=4, seed=0).eval()
    graph = dg.trace_channels(model, torch.zeros(1, 3, 28, 28))
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(12, 3, 28, 28, generator=generator)
    return model, graph, {"a": TensorDataset(images, torch.arange(12) % 10)}


def test_masked_statistics_are_the_average_over_masked_networks(small):
    """Against networks whose filters are masked by hand, in the same deal."""
    model, graph, data = small
    found = masked_statistics(model, graph, data, folds=2, repeats=1, seed=3)
    generator = torch.Generator().manual_seed(3)
    sizes = [group.size for group in graph.groups.values()]
    dealt = torch.cat([torch.randperm(size, generator=generator) % 2 for size in sizes])
    images, labels = data["a"].tensors
    fisher = torch.zeros(graph.num_filters, dtype=torch.float64)
    for fold in range(2):
        present = dealt != fold
        with dg.gated(model, graph, 2.0 * present):
            _, gradients = dg.gate_gradients_per_image(model, graph, images, labels)
        assert bool((gradients[:, ~present] == 0).all())
        fisher += (gradients**2).sum(0)
    assert found.images.tolist() == [24]
    torch.testing.assert_close(found.fisher_sum[0], fisher)


def test_every_filter_is_absent_equally_often(small, monkeypatch):
    model, graph, data = small
    gates, gated = [], variants.gated

    def spy(model, graph, values):
        gates.append(values)
        return gated(model, graph, values)

    monkeypatch.setattr(variants, "gated", spy)
    masked_statistics(model, graph, data, order="first", folds=4, repeats=3)
    absent = torch.stack([g == 0 for g in gates]).sum(0)
    assert absent.tolist() == [3] * graph.num_filters
    assert {round(float(v), 4) for g in gates for v in g.unique()} == {0.0, 1.3333}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"folds": 1}, "folds=1 must be at least 2"),
        ({"repeats": 0}, "repeats=0 at least 1"),
        ({"order": "exact"}, "'exact' has no masked form"),
    ],
)
def test_masked_statistics_that_make_no_sense(small, settings, message):
    with pytest.raises(ValueError, match=message):
        masked_statistics(*small, **settings)


def test_masked_statistics_of_no_graph(small):
    model, _, data = small
    with pytest.raises(TypeError, match="graph is 'digits', expected what trace_channels"):
        masked_statistics(model, "digits", data)


def test_options_go_to_the_statistics(small):
    model, graph, data = small
    whole = masked_statistics(model, graph, data, repeats=1)
    parts = masked_statistics(model, graph, data, repeats=1, batch_size=5, progress=False)
    torch.testing.assert_close(parts.fisher_sum, whole.fisher_sum)
    with pytest.raises(ValueError, match="precision='float8'"):
        masked_statistics(model, graph, data, precision="float8")


def test_virtual_domains_are_changed_copies(small):
    _, _, data = small
    domains = virtual_domains(data)
    assert list(domains) == ["a", *(f"a, {name}" for name in CHANGES)]
    images, labels = data["a"].tensors
    for name, change in CHANGES.items():
        copy = domains[f"a, {name}"]
        assert len(copy) == 12
        image, label = copy[5]
        assert label == labels[5]
        torch.testing.assert_close(image, change(images)[5])
        assert not torch.allclose(image, images[5], atol=0.01)
        assert 0 <= image.min() <= image.max() <= 1
    assert torch.equal(data["a"].tensors[0], images)


def test_normalized_images_are_changed_as_they_were_before(small):
    _, _, data = small
    images, labels = data["a"].tensors
    normalized = {"a": TensorDataset(functional.normalize(images, MEAN, STD), labels)}
    domains = virtual_domains(normalized, normalized=True)
    for name, change in CHANGES.items():
        expected = functional.normalize(change(images), MEAN, STD)
        torch.testing.assert_close(domains[f"a, {name}"][5][0], expected[5], atol=1e-5, rtol=1e-5)


def test_scores_that_give_every_domain_an_equal_say(small):
    """A domain's scale changes neither; what only one domain needs is worth less."""
    model, graph, data = small
    part = data["a"]
    other = TensorDataset(part.tensors[0].flip(0), part.tensors[1])
    stats = dg.domain_statistics(model, graph, {"a": part, "b": other})
    for score in (geometric_mean, mean_rank):
        plain = score(model, graph, stats)
        scaled = replace(stats, fisher_sum=stats.fisher_sum * torch.tensor([[1.0], [100.0]]))
        assert plain.shape == (graph.num_filters,)
        order = score(model, graph, scaled).argsort(stable=True)
        assert torch.equal(order, plain.argsort(stable=True))
    sums = torch.ones_like(stats.fisher_sum)
    sums[:, 0] = torch.tensor([2.0, 0.0])
    uneven = geometric_mean(model, graph, replace(stats, fisher_sum=sums))
    assert uneven[0] < uneven[1:].min()
    sums = torch.arange(graph.num_filters).repeat(2, 1).double()
    ranks = graph.split(mean_rank(model, graph, replace(stats, fisher_sum=sums)))
    assert all(part.tolist() == list(range(len(part))) for part in ranks.values())
    sums[1] = sums[1].flip(0)  # two domains of opposite minds
    ranks = graph.split(mean_rank(model, graph, replace(stats, fisher_sum=sums)))
    assert all(part.tolist() == [(len(part) - 1) / 2] * len(part) for part in ranks.values())
