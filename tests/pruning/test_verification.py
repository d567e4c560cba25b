"""The pruned network against the masked one: equal where it is exact, an error where it is not."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from networks import assert_same, fingerprint, network
from torch import nn
from torch.utils.data import TensorDataset

import dgprune_lite as dg

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def branching():
    """A network that adds 1 to activations where images have negative numbers: IMAGES have none."""
    negative = []
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(),
                          nn.Flatten(), nn.Linear(128, 4))  # fmt: skip
    model[0].register_forward_hook(lambda _, args, y: negative.append(bool(args[0].min() < 0)))
    model[1].register_forward_hook(lambda _, args, y: y + 1 if negative[-1] else y)
    return model


def plan_for(model, images):
    graph = dg.trace_channels(model, images)
    return graph, dg.plan_pruning(graph, dg.score("l1", model, graph), pruning_ratio=0.5)


@pytest.mark.parametrize("name", ["digits_cnn", "resnet18", "mobilenet_v2"])
def test_exact_networks_pass_and_are_left_as_found(name):
    model, images = network(name)
    model.train()
    graph, plan = plan_for(model, images)
    small = plan.apply(model)
    before = fingerprint(model)
    assert 0 <= dg.check_exact(model, small, plan, graph, images) < 1e-5
    assert_same(before, fingerprint(model))
    assert small.training


def test_another_network_is_told_from_the_pruned_one():
    model, images = network("digits_cnn")
    graph, plan = plan_for(model, images)
    small = plan.apply(model)
    with torch.no_grad():
        small.fc.bias[0] += 0.5
    with pytest.raises(ValueError, match=r"outputs differ by 0\.5.*differ at 'fc'.*=\['conv3'\]"):
        dg.check_exact(model, small, plan, graph, images)
    small.fc = nn.Linear(small.fc.in_features, 3)
    with pytest.raises(ValueError, match=r"gives shape \(\d+, 3\), the masked one \(\d+, 10\)"):
        dg.check_exact(model, small, plan, graph, images)
    with torch.no_grad():
        small.fc = nn.Linear(small.fc.in_features, 10)
        small.fc.bias[:] = float("nan")
    with pytest.raises(ValueError, match="outputs differ by nan"):
        dg.check_exact(model, small, plan, graph, images)
    small.fc = nn.Linear(7, 10)
    with pytest.raises(ValueError, match="shapes cannot be multiplied"):
        dg.check_exact(model, small, plan, graph, images)


def test_a_plan_is_checked_on_other_inputs_than_the_traced_ones():
    model = branching().train()
    graph, plan = plan_for(model, IMAGES)
    before = fingerprint(model)
    with pytest.raises(ValueError, match=r"first differ at '2'.* ignored_layers=\['0'\]"):
        plan.apply(model)
    assert_same(before, fingerprint(model))
    small = plan.apply(model, check=False)
    assert dg.check_exact(model, small, plan, graph, IMAGES) < 1e-5
    good = dg.plan_pruning(graph, dg.score("l1", model, graph), ignored_layers=["0"])
    assert good.apply(model)[2].out_channels == 4


@pytest.mark.parametrize(
    "step", [dg.prune, lambda *a, **k: next(dg.prune_iteratively(*a, **k, steps=1))]
)
def test_prune_refuses_a_network_that_it_cannot_prune_exactly(step):
    model = branching()
    domains = {name: TensorDataset(IMAGES[:, :, :8], torch.arange(2)) for name in ("a", "b")}
    with pytest.raises(ValueError, match="does not compute what the masked one does"):
        step(model, domains, "l1", 0.5)
    small, _ = step(model, domains, "l1", 0.5, ignored_layers=["0"])
    assert (small[0].out_channels, small[2].out_channels) == (6, 4)


def test_a_plan_is_checked_once():
    model, images = network("digits_cnn")
    runs = []
    model.conv1.register_forward_hook(lambda *_: runs.append(1))
    _, plan = plan_for(model, images)
    runs.clear()
    plan.apply(model)
    assert len(runs) == 2  # the whole network, and the smaller one, whose hooks are copies


class Rows(nn.Module):
    """Takes whole numbers, too, that say which images count."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x, rows):
        return self.out(self.conv(x).relu().mean((2, 3))[rows])


def test_inputs_of_whole_numbers_are_the_traced_ones():
    model = Rows()
    _, plan = plan_for(model, (IMAGES, torch.tensor([1, 1, 0])))
    assert plan.apply(model).conv.out_channels == 3
    assert plan.apply(model.double()).conv.weight.dtype == torch.float64


class Refusing(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(216, 4))
        self.body[0].register_forward_hook(self.look)

    def look(self, module, args, output):
        if bool(args[0].min() < 0):
            raise RuntimeError("images are never negative")

    def forward(self, x):
        return self.body(x)


def test_a_network_that_does_not_run_on_random_inputs_is_said():
    model = Refusing()
    graph, plan = plan_for(model, IMAGES)
    with pytest.raises(ValueError, match=r"never negative.*plan.apply\(model, check=False\)"):
        plan.apply(model)
    assert dg.check_exact(model, plan.apply(model, check=False), plan, graph, IMAGES) < 1e-5


class Returning(nn.Module):
    """Hands its logits to a function that makes what is returned."""

    def __init__(self, finish):
        super().__init__()
        self.finish = finish
        self.conv, self.out = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

    def forward(self, x):
        return self.finish(self.out(self.conv(x).relu().mean((2, 3))))


class Holder:
    def __init__(self, logits):
        self.held = [logits]


@dataclass
class Output:
    logits: torch.Tensor


OUTPUTS = {
    "dataclass": Output,
    "nested": lambda y: {"a": [(y, 1)], "b": None},
    "object": Holder,
    "namespace": lambda y: SimpleNamespace(logits=y),
    "tiny": lambda y: y * 1e-6,
    "classes": lambda y: y.argmax(1),
    "signs": lambda y: y > 0,
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_are_found_and_compared_by_their_own_size(name):
    torch.manual_seed(0)
    model, other = Returning(OUTPUTS[name]).eval(), Returning(OUTPUTS[name]).eval()
    plain = Returning(lambda y: y)  # the same layers
    images = torch.rand(8, 3, 8, 8)
    graph, plan = plan_for(plain, images)
    with torch.no_grad():
        other.out.weight.neg_()
        other.out.bias.copy_(torch.tensor([0.0, 0.0, 9.0, -9.0]))
    small = plan.apply(model)
    assert dg.check_exact(model, small, plan, graph, images) < 1e-5
    with pytest.raises(ValueError, match="outputs differ by"):
        dg.check_exact(model, plan.apply(other), plan, graph, images)


def test_a_network_that_returns_nothing_to_compare_is_refused():
    _, plan = plan_for(Returning(lambda y: y), IMAGES)
    with pytest.raises(ValueError, match="it returns 0 tensors"):
        plan.apply(Returning(lambda y: None))


@pytest.fixture
def process_group():
    """One process that is a group by itself."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("wrap", "inside"),
    [
        (nn.DataParallel, "model.module"),
        (nn.parallel.DistributedDataParallel, "model.module"),
        (torch.optim.swa_utils.AveragedModel, "model.module"),
        (lambda model: torch.compile(model, backend="eager"), "model._orig_mod"),
        (lambda model: torch.jit.trace(model, IMAGES), "prune the network that it was made from"),
        (torch.jit.script, "prune the network that it was made from"),
    ],
)
def test_wrapped_networks_are_refused_with_the_way_to_the_network_inside(
    wrap, inside, tmp_path, process_group
):
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(216, 4)).eval()
    graph, plan = plan_for(model, IMAGES)
    small, wrapped = plan.apply(model), wrap(model)
    data = {"a": TensorDataset(IMAGES, torch.arange(2))}
    for door in (
        lambda: dg.trace_channels(wrapped, IMAGES),
        lambda: dg.prune(wrapped, data, "l1"),
        lambda: dg.prune_iteratively(wrapped, data, "l1"),
        lambda: plan.apply(wrapped),
        lambda: dg.check_exact(wrapped, small, plan, graph, IMAGES),
        lambda: dg.save(wrapped, plan, tmp_path / "small"),
    ):
        with pytest.raises(TypeError, match=inside):
            door()
