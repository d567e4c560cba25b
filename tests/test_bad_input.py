"""Two hundred wrong calls: each ends in a documented error and leaves the model as it was."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
import torch
from networks import PlainCNN, assert_same, domains, fingerprint, network
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import TensorDataset

import dgprune_lite as dg

CALLS = 200
DOCUMENTED = (TypeError, ValueError, FileNotFoundError)

NO_MODEL = [None, 3, "resnet18", [], PlainCNN, torch.zeros(3)]
NO_TENSOR = [None, "image", 3, [], {}, (), (None,), [torch.zeros(1, 3, 28, 28)], object()]
WRONG_IMAGES = [
    torch.zeros(1, 1, 28, 28), torch.zeros(3, 28), torch.zeros(0), torch.zeros(1, 3, 28, 28).long(),
    torch.zeros(1, 3, 28, 28, dtype=torch.float64), torch.zeros(1, 3, 28, 28, dtype=torch.bool),
    (torch.zeros(1, 3, 28, 28), torch.zeros(1)), torch.zeros(1, 3, 28, 28, dtype=torch.complex64),
]  # fmt: skip
NO_RATIO = [
    "half", -0.1, 1, 1.5, float("nan"), float("inf"), [], [0.5], object(), 1j,
    torch.tensor([0.1, 0.2]), {}, {"conv9": 0.5}, {"conv1": 2}, {1: 0.5}, {"conv1": None},
]  # fmt: skip
NO_LAYERS = [3, None, [3], ["conv9"], [""], [nn.LSTM], [int], [nn.Conv2d(1, 1, 1)], [None], [["x"]]]
NO_COUNT = [0, -3, 1.5, "8", None, True, [8], float("nan")]
NO_SHARE = [0, -0.5, 2, "half", float("nan"), [0.5], {}, object()]
NO_NAME = ["", "l3", "Taylor", None, 3, ["l1"], {}, b"l1", object()]


class Setting:
    """A model with all that is made from it, and the same of another model."""

    def __init__(self, folder):
        self.model, self.images = network("digits_cnn")
        self.graph = dg.trace_channels(self.model, self.images)
        self.scores = dg.score("l1", self.model, self.graph)
        self.plan = dg.plan_pruning(self.graph, self.scores, 0.5)
        self.small = self.plan.apply(self.model)
        self.stats = dg.domain_statistics(self.model, self.graph, domains(images=4))
        self.other = PlainCNN()
        self.other_graph = dg.trace_channels(self.other, self.images)
        self.other_scores = dg.score("l1", self.other, self.other_graph)
        self.folder = folder
        self.path = folder / "small.safetensors"
        dg.save(self.small, self.plan, self.path)

    def build(self):
        return dg.build_model("digits_cnn", width=8)


def wrong_trace(s, rng):
    if rng.random() < 0.4:
        return lambda: dg.trace_channels(rng.choice(NO_MODEL), s.images)
    return lambda: dg.trace_channels(s.model, rng.choice(NO_TENSOR + WRONG_IMAGES[:3]))


def wrong_score(s, rng):
    def without(stats):
        return replace(stats, fisher_sum=None)

    few = dg.DomainStatistics(
        ("a",), torch.ones(1), torch.ones(1), torch.ones(1, 3), torch.ones(1, 3)
    )
    return rng.choice(
        [
            lambda: dg.score(rng.choice(NO_NAME), s.model, s.graph, s.stats),
            lambda: dg.score("l1", s.other, s.graph),
            lambda: dg.score("l1", s.model, s.other_graph),
            lambda: dg.score("taylor", s.model, s.graph, rng.choice([None, few])),
            lambda: dg.score("fisher", s.model, s.graph, without(s.stats)),
            lambda: dg.score("risk_variance", s.model, s.graph, s.stats, order="third"),
            lambda: dg.score(
                "risk_variance", s.model, s.graph, s.stats, mean_weight=rng.choice(["a", -1, None])
            ),
            lambda: dg.score("l1", s.model, s.graph, bogus=1),
            lambda: dg.score("risk_variance", s.model, s.graph, replace(
                s.stats, fisher_sum=s.stats.fisher_sum * float("nan"))),
        ]
    )  # fmt: skip


def wrong_plan(s, rng):
    def plan(graph=s.graph, scores=s.scores, ratio=None, **options):
        return lambda: dg.plan_pruning(graph, scores, ratio, **options)

    name = rng.choice(list(s.scores))
    values = s.scores[name]
    broken = [
        values * float("nan"), values[:-1], values[None], None, values.tolist(), values + 1j,
        torch.full_like(values, float("-inf")), "values",
    ]  # fmt: skip
    return rng.choice(
        [
            plan(ratio=rng.choice(NO_RATIO)),
            plan(scores=s.other_scores),
            plan(graph=s.other_graph),
            plan(graph=rng.choice([None, s.model, "graph", {}])),
            plan(scores={**s.scores, name: rng.choice(broken)}),
            plan(scores={k: v for k, v in s.scores.items() if k != name}),
            plan(scores={**s.scores, "conv9": values}),
            plan(scores=rng.choice([None, 3, "l1", [], list(s.scores.values()), values])),
            plan(ignored_layers=rng.choice(NO_LAYERS), model=s.model),
            plan(ignored_layers=[nn.Conv2d]),
            plan(round_to=rng.choice(NO_COUNT)),
            plan(max_pruning_ratio=rng.choice([*NO_SHARE[1:], None])),
            plan(**{rng.choice(["target_macs", "target_parameters"]): rng.choice(NO_SHARE)}),
            plan(target_macs=0.5, target_parameters=0.5),
            plan(ratio=rng.choice([0.3, 0.5]), target_macs=0.5),
            plan(target_latency=rng.choice([0.5, *NO_SHARE])),
            plan(target_latency=0.5, model=s.model, example_inputs=rng.choice(WRONG_IMAGES[:3])),
            plan(target_latency=0.5, model=s.model, example_inputs=rng.choice(NO_TENSOR)),
            plan(target_latency=0.5, model=rng.choice(NO_MODEL), example_inputs=s.images),
            plan(target_latency=0.5, model=s.other, example_inputs=s.images),
        ]
    )


def wrong_apply(s, rng):
    other = rng.choice([s.other, s.small, dg.build_model("digits_cnn", width=16), nn.ReLU()])
    return lambda: s.plan.apply(rng.choice([*NO_MODEL, other]))


def wrong_prune(s, rng):
    data = domains(images=4)
    noisy = {"a": TensorDataset(torch.full((4, 3, 28, 28), float("nan")), torch.arange(4))}
    far = {"a": TensorDataset(torch.zeros(4, 3, 28, 28), torch.full((4,), 99))}
    no_data = [
        None, {}, [], "data", {"a": None}, {"a": []}, {"a": [1, 2]}, {"a": 3}, noisy, far,
        {"a": TensorDataset(torch.zeros(0, 3, 28, 28), torch.zeros(0))}, {"a": data["a"]},
        {"a": [("image", 1)]}, domains(side=4),
    ]  # fmt: skip
    step = rng.choice([dg.prune, lambda *a, **k: next(dg.prune_iteratively(*a, **k))])
    return rng.choice(
        [
            lambda: step(rng.choice(NO_MODEL), data),
            lambda: step(s.model, rng.choice(no_data)),
            lambda: step(s.model, data, rng.choice(NO_NAME)),
            lambda: step(s.model, data, "l1", rng.choice(NO_RATIO)),
            lambda: step(s.model, data, "l1", example_inputs=rng.choice(NO_TENSOR[1:])),
            lambda: step(s.model, data, "l1", example_inputs=rng.choice(WRONG_IMAGES[:3])),
            lambda: step(s.model, data, "l1", ignored_layers=rng.choice(NO_LAYERS)),
            lambda: step(s.model, data, "taylor", batch_size=rng.choice(NO_COUNT[:4])),
            lambda: step(s.model, data, "l1", round_to=rng.choice(NO_COUNT)),
            lambda: step(s.model, data, "l1", bogus=3),
            lambda: dg.prune_iteratively(s.model, data, "l1", steps=rng.choice(NO_COUNT)),
        ]
    )


def wrong_report(s, rng):
    return rng.choice(
        [
            lambda: dg.report(rng.choice(NO_MODEL), s.small, s.images),
            lambda: dg.report(s.model, rng.choice(NO_MODEL), s.images),
            lambda: dg.report(s.model, s.small, rng.choice(NO_TENSOR + WRONG_IMAGES)),
            lambda: dg.report(s.model, s.small, s.images, rounds=rng.choice(NO_COUNT)),
        ]
    )


def wrong_load(s, rng):
    def damaged():
        header = {
            "format": "dgprune_lite pruned network",
            "version": 1,
            "pruning_ratio": 0.5,
            "cuts": {"conv1": {"out": [0], "into": [], "weight_shape": [8, 3, 3, 3]}},
        }
        cut = header["cuts"]["conv1"]
        rng.choice(
            [
                lambda: header.update(cuts=rng.choice([None, [], "x", {"conv1": 3}, {"x": {}}])),
                lambda: header.update(version=rng.choice([0, 2, None, "1", []])),
                lambda: header.update(format=rng.choice(["other", None, 3, {}])),
                lambda: cut.update(out=rng.choice([[99], [-9], "x", None, [0.5], 3, [[1]]])),
                lambda: cut.update(into=rng.choice([[99], [-9], "x", None, [None], 3])),
                lambda: cut.update(weight_shape=rng.choice([[9], "x", None, 3, [8, 3, 3]])),
                lambda: cut.update(more=1),
                lambda: cut.pop(rng.choice(list(cut))),
            ]
        )()
        text = rng.choice([json.dumps(header)] * 8 + ["{", "[]", "3", "null"])
        path = s.folder / "damaged.safetensors"
        save_file(load_file(s.path), path, metadata={"dgprune_lite": text})
        return dg.load(path, s.build)

    def cut_in_the_middle():
        content = s.path.read_bytes()
        path = s.folder / "cut.safetensors"
        path.write_bytes(content[: rng.randrange(len(content) - 1)])
        return dg.load(path, s.build)

    factories = [None, 3, s.model, "digits_cnn", lambda: None, lambda: s.other, lambda: s.small]
    return rng.choice(
        [
            damaged,
            damaged,
            cut_in_the_middle,
            lambda: dg.load(rng.choice([None, 3, "", "nowhere", s.folder, b"x", []]), s.build),
            lambda: dg.load(s.path, rng.choice(factories)),
            lambda: dg.save(rng.choice([*NO_MODEL, s.model, s.other]), s.plan, s.folder / "x"),
            lambda: dg.save(s.small, rng.choice([None, 3, {}]), s.folder / "x"),
            lambda: dg.save(s.small, s.plan, rng.choice([None, 3, s.folder / "no" / "x", []])),
        ]
    )


KINDS = [wrong_trace, wrong_score, wrong_plan, wrong_plan, wrong_apply, wrong_prune, wrong_report,
         wrong_load]  # fmt: skip


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    return Setting(tmp_path_factory.mktemp("bad"))


@pytest.mark.parametrize("seed", range(CALLS))
def test_a_wrong_call_ends_in_a_documented_error(setting, seed):
    rng = random.Random(seed)
    call = KINDS[seed % len(KINDS)](setting, rng)
    before = fingerprint(setting.model), fingerprint(setting.other), fingerprint(setting.small)
    with pytest.raises(DOCUMENTED) as caught:
        call()
    assert str(caught.value)
    after = fingerprint(setting.model), fingerprint(setting.other), fingerprint(setting.small)
    for one, other in zip(before, after, strict=True):
        assert_same(one, other)
