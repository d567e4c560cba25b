"""cuda_graph.py: a replayed step computes what the step does, and one that cannot be is run.

Without CUDA on taped operations, see `taped.py`; with CUDA (`make test-gpu`) on real graphs.
"""

import random
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import taped
import torch
from networks import assert_same, domains, fingerprint
from torch import nn
from torch.utils.data import TensorDataset

import dgprune_lite as dg
from dgprune_lite.exactness import full_float32
from dgprune_lite.networks import training
from dgprune_lite.networks.cuda_graph import WARM_UP_STEPS, can_be_captured

STEPS = 9
SETTINGS = {"steps": STEPS, "batch_size": 6, "lr": 1e-2, "weight_decay": 1e-3}


@pytest.fixture
def cuda(monkeypatch):
    """Captures on the CPU, and rates that float32 holds, as the static tensor for them does."""
    rate = training.one_cycle
    monkeypatch.setattr(training, "one_cycle", lambda *place: float(np.float32(rate(*place))))
    monkeypatch.setattr(training, "can_be_captured", lambda *_: True)
    return taped.TapedCuda(monkeypatch)


def network(dropout=0.0, more=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            more or nn.Identity(),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(24, 10),
        )


def trained(cuda_graph, make=network, device="cpu", **settings):
    """History and final state on the CPU, and how often Python ran the network."""
    model, runs = make(), []
    model.register_forward_hook(lambda *_: runs.append(1))
    settings = SETTINGS | settings
    history = dg.fit(model, domains(), device=device, cuda_graph=cuda_graph, **settings)
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    return history, state, len(runs) - 1  # the first looked at the classes


def assert_equal(one, other):
    assert one[0].equals(other[0])
    assert_same(one[1], other[1])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("algorithm", "dropout", "max_shift"), [("ERM", 0.0, 2), ("VREx", 0.0, 0), ("VREx", 0.4, 1)]
)
def test_replays_are_the_plain_steps_bit_for_bit(cuda, algorithm, dropout, max_shift, precision):
    settings = {"algorithm": algorithm, "max_shift": max_shift, "precision": precision}
    settings |= {"vrex_lambda": 3.0, "vrex_anneal_steps": 7}  # it grows beyond the warm-up
    plain = trained(False, lambda: network(dropout), **settings)
    assert not cuda.tapes
    replayed = trained(True, lambda: network(dropout), **settings)
    assert_equal(plain, replayed)
    assert plain[2] == STEPS
    assert replayed[2] == WARM_UP_STEPS + 1  # and then Python did not run any more
    assert [tape.replays for tape in cuda.tapes] == [STEPS - WARM_UP_STEPS]


def test_a_network_in_channels_last_is_replayed_too(cuda):
    def make():
        return dg.build_model("digits_cnn", width=8, seed=0)

    assert_equal(trained(False, make), trained(True, make))
    assert len(cuda.tapes) == 1


class Looks(nn.Module):
    """Its code depends on a number."""

    def forward(self, x):
        return x if x.mean().item() < 1e9 else -x


class Refuses(nn.Module):
    """Something else that a capture does not bear, as far as PyTorch knows beforehand."""

    def forward(self, x):
        if any(isinstance(mode, taped.Tape) for mode in modes()):
            raise RuntimeError("nothing for a capture\n(in many lines)")
        return x


def modes():
    return torch.utils._python_dispatch._get_current_dispatch_mode_stack()


@pytest.mark.parametrize(
    ("more", "why", "captures", "state"),
    [
        (Looks(), r"waits for the GPU, as \.item\(\) and \.cpu\(\) do", 0, "found"),
        (Refuses(), "since nothing for a capture$", 1, "spare"),
    ],
)
def test_what_cannot_be_captured_goes_on_as_it_is(cuda, more, why, captures, state):
    plain = trained(False, lambda: network(0.3, more))
    with pytest.warns(UserWarning, match=why):
        other = trained(True, lambda: network(0.3, more))
    assert_equal(plain, other)
    assert other[2] == STEPS
    assert (len(cuda.tapes), cuda.generator.state, cuda.mode) == (captures, state, 0)


class Warns(nn.Module):
    def forward(self, x):
        self.runs = getattr(self, "runs", 0) + 1
        if self.runs == WARM_UP_STEPS:
            warnings.warn("of the network's own", FutureWarning, stacklevel=1)
        return x


def test_warnings_of_the_network_are_shown(cuda):
    with pytest.warns(FutureWarning, match="of the network's own"):
        trained(True, lambda: network(0.3, Warns()))
    assert len(cuda.tapes) == 1


@pytest.mark.parametrize("fails", [False, True])
def test_the_rest_is_left_as_found(cuda, fails):
    data = domains()
    if fails:  # a loss that is not finite is seen when the replays are over
        data["a"].tensors[0][3:] = float("nan")
    model = network(0.5)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[4].eval()
    before, python = fingerprint(model), random.getstate()
    if fails:
        with pytest.raises(ValueError, match=r"is nan at step \d"):
            dg.fit(model, data, cuda_graph=True, **SETTINGS)
    else:
        dg.fit(model, data, cuda_graph=True, **SETTINGS)
    after = fingerprint(model)
    for name in ("grad", "modes", "rng"):
        assert_same({name: before[name]}, {name: after[name]})
    assert random.getstate() == python


@pytest.mark.parametrize("steps", [1, WARM_UP_STEPS, WARM_UP_STEPS + 1])
def test_so_few_steps_need_no_capture(cuda, steps):
    assert_equal(trained(False, steps=steps), trained(True, steps=steps))
    assert len(cuda.tapes) == (steps > WARM_UP_STEPS)


def test_on_a_cpu_nothing_is_captured():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_equal(trained(False), trained(True))


@pytest.mark.parametrize(
    ("places", "precision", "expected"),
    [
        (["cuda:1", "cuda:1"], "bfloat16", True),
        (["cuda:1"], "float16", False),
        (["cuda:0", "cuda:1"], "float32", False),
        (["cpu"], "float32", False),
    ],
)
def test_what_can_be_captured(places, precision, expected):
    model = taped.on_gpus(*places)
    assert can_be_captured(model, torch.device(places[0]), precision) == expected


# --- with CUDA ------------------------------------------------------------------------------------


def on_gpu(cuda_graph, make, **settings):
    found = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        with full_float32():
            return trained(cuda_graph, make, device="cuda", **settings)
    finally:
        torch.backends.cudnn.deterministic = found


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("algorithm", ["ERM", "VREx"])
@pytest.mark.parametrize("name", ["plain", "digits_cnn"])
def test_on_a_gpu_replays_come_close_to_the_plain_steps(name, algorithm, precision):
    def make():
        return network() if name == "plain" else dg.build_model(name, width=16, seed=0)

    settings = {"algorithm": algorithm, "vrex_anneal_steps": 7, "precision": precision, "lr": 1e-3}
    plain, replayed = (on_gpu(captured, make, **settings) for captured in (False, True))
    assert (plain[2], replayed[2]) == (STEPS, WARM_UP_STEPS + 1)
    close = 1e-3 if precision == "float32" else 2e-2
    np.testing.assert_allclose(plain[0], replayed[0], rtol=close, atol=close)
    for key, value in plain[1].items():
        # Adam moves a weight whose gradient is all rounding by the rate, whatever its size.
        apart = (value.double() - replayed[1][key].double()).abs().mean()
        assert apart < close / 10, key


@pytest.mark.gpu
def test_on_a_gpu_dropout_draws_anew_in_every_replay():
    """All images are one and no weight moves, so that nothing else makes a loss differ."""
    image, steps = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)), 40
    data = {"a": TensorDataset(image.repeat(24, 1, 1, 1), torch.zeros(24, dtype=torch.long))}
    how = {"steps": steps, "batch_size": 6, "lr": 0.0, "max_shift": 0, "cuda_graph": True}
    drops, keeps = (
        dg.fit(network(dropout), data, device="cuda", **how)["loss"] for dropout in (0.5, 0.0)
    )
    assert drops.round(5).nunique() > steps / 2
    assert keeps.round(5).nunique() <= 2


@pytest.mark.gpu
def test_on_a_gpu_a_network_that_waits_goes_on_as_it_is():
    plain = on_gpu(False, lambda: network(more=Looks()))
    with pytest.warns(UserWarning, match=r"waits for the GPU"):
        other = on_gpu(True, lambda: network(more=Looks()))
    assert other[2] == STEPS
    np.testing.assert_allclose(plain[0], other[0], rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_on_a_gpu_the_rest_is_left_as_found():
    model = network(0.5).cuda()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[4].eval()
    before = fingerprint(model)
    dg.fit(model, domains(), cuda_graph=True, **SETTINGS)
    after = fingerprint(model)
    for name in ("grad", "modes", "rng", "cuda rng"):
        assert_same({name: before[name]}, {name: after[name]})


SCRIPT = """
import sys, warnings
sys.path[:0] = ["tests", "tests/networks"]
import torch
from test_cuda_graph import domains, network, trained

class Synchronizes(torch.nn.Module):
    def forward(self, x):
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()
        return x

for _ in range(2):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history, _, runs = trained(True, lambda: network(0.5, Synchronizes()), device="cuda")
    assert any("the plain loop goes on" in str(one.message) for one in caught), caught
    assert history["loss"].notna().all()
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
print("went on")
"""


@pytest.mark.gpu
def test_on_a_gpu_a_capture_that_breaks_leaves_the_run_going():
    """In a process of its own: PyTorch's allocator does not recover from it."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "went on", done.stderr
