"""training.py: learns, repeats itself bit for bit, refuses bad input, leaves the rest as found."""

import hashlib
import random
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import FromDisk
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset

from dgprune_lite.networks.models import build_model
from dgprune_lite.networks.recalibration import recalibrate_batchnorm
from dgprune_lite.networks.training import fit, one_cycle, shift_images


def domain(n=24, seed=0, classes=3, side=8, brightness=0.0):
    """Images whose brightest channel is their class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    images = torch.rand(n, 3, side, side, generator=generator) * 0.5
    images += F.one_hot(labels, 3)[:, :, None, None] * 0.5 + brightness
    return TensorDataset(images, labels)


def domains():
    return {"a": domain(seed=0), "b": domain(20, seed=1, brightness=0.2)}


def network(classes=3, dropout=0.0, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(24, classes),
        )


def copy_of(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(left, right):
    return all(torch.equal(left[key], right[key]) for key in left)


def digest(model):
    parts = [value.contiguous().numpy().tobytes() for value in model.state_dict().values()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


# --- it learns ------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["ERM", "VREx"])
def test_it_learns(algorithm):
    history = fit(network(), domains(), steps=60, lr=2e-2, batch_size=8, algorithm=algorithm)
    assert history["loss"].iloc[-5:].mean() < 0.3 * history["loss"].iloc[:5].mean()


def test_history_holds_the_objective_and_the_risk_of_each_domain():
    erm = fit(network(), domains(), steps=4, batch_size=8)
    assert list(erm.columns) == ["step", "loss", "a", "b"]
    assert erm["step"].tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(erm["loss"], erm[["a", "b"]].mean(axis=1), rtol=1e-6)

    vrex = fit(
        network(), domains(), steps=4, batch_size=8, algorithm="VREx", vrex_lambda=10.0,
        vrex_anneal_steps=2,
    )  # fmt: skip
    weights = np.array([5.0, 10.0, 10.0, 10.0])
    risks = vrex[["a", "b"]].to_numpy()
    np.testing.assert_allclose(vrex["loss"], risks.mean(1) + weights * risks.var(1), rtol=1e-5)


def test_first_risks_against_a_forward_pass_by_hand():
    # All 8 images of a domain in a batch, no shifts: order cannot matter.
    train = {"a": domain(8), "b": domain(8, seed=1, brightness=0.3)}
    model = network()
    images = torch.cat([dataset.tensors[0] for dataset in train.values()])
    labels = torch.cat([dataset.tensors[1] for dataset in train.values()])
    logits = network().train()(images)
    expected = [F.cross_entropy(logits[k], labels[k]).item() for k in (slice(8), slice(8, 16))]
    history = fit(model, train, steps=1, batch_size=8, max_shift=0)
    assert history.loc[0, ["a", "b"]].tolist() == pytest.approx(expected, rel=1e-5)


def test_every_image_is_seen_before_any_is_seen_again():
    seen = []

    class Recorder(Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            seen.append(index)
            return torch.rand(3, 8, 8), index % 3

    fit(network(), {"a": Recorder()}, steps=3, batch_size=4)
    seen = seen[1:]  # the first look only checks the shape
    assert sorted(seen[:6]) == sorted(seen[6:]) == list(range(6))


def test_other_datasets_train_as_tensors_do():
    train = domains()
    wrapped = {name: Subset(dataset, range(len(dataset))) for name, dataset in train.items()}
    left, right = network(), network()
    fit(left, train, steps=3, batch_size=8)
    fit(right, wrapped, steps=3, batch_size=8)
    assert same(copy_of(left), copy_of(right))


def test_no_steps_change_nothing():
    model = network()
    before = copy_of(model)
    history = fit(model, domains(), steps=0)
    assert list(history.columns) == ["step", "loss", "a", "b"]
    assert len(history) == 0
    assert same(before, copy_of(model))


def test_frozen_parameters_stay():
    model = network()
    model[0].requires_grad_(False)
    before = copy_of(model)
    fit(model, domains(), steps=2, lr=0.1, batch_size=8)
    after = copy_of(model)
    assert torch.equal(before["0.weight"], after["0.weight"])
    assert not torch.equal(before["6.weight"], after["6.weight"])


def test_one_cycle():
    rates = [one_cycle(step, 100, 1.0) for step in range(100)]
    assert max(rates) == pytest.approx(1.0, abs=1e-2)
    assert np.argmax(rates) in (29, 30)
    assert rates[0] < 0.05
    assert rates[-1] < 1e-3
    assert all(np.diff(rates[:29]) > 0)
    assert all(np.diff(rates[31:]) < 0)
    assert one_cycle(0, 1, 1.0) > 0.5  # a single step does something


def test_shifts_against_slicing():
    images = torch.rand(50, 3, 7, 9)
    shifts = torch.randint(0, 5, (50, 2))
    moved = shift_images(images, shifts, 2)
    padded = F.pad(images, (2, 2, 2, 2), mode="replicate")
    for image, big, (row, column) in zip(moved, padded, shifts.tolist(), strict=True):
        assert torch.equal(image, big[:, row : row + 7, column : column + 9])
    assert torch.equal(shift_images(images, torch.full((50, 2), 2), 2), images)
    assert shift_images(images, shifts * 0, 0) is images


def test_it_learns_in_bfloat16():
    full, half = network(), network()
    fit(full, domains(), steps=60, lr=2e-2, batch_size=8)
    history = fit(half, domains(), steps=60, lr=2e-2, batch_size=8, precision="bfloat16")
    assert history["loss"].iloc[-5:].mean() < 0.3 * history["loss"].iloc[:5].mean()
    assert {value.dtype for value in half.parameters()} == {torch.float32}
    assert not same(copy_of(full), copy_of(half))  # it did compute in bfloat16


def test_precisions_that_are_refused():
    with pytest.raises(ValueError, match="precision='float16' needs a CUDA device, not 'cpu'"):
        fit(network(), domains(), steps=1, precision="float16")
    with pytest.raises(ValueError, match="precision='float64' is not one of"):
        fit(network(), domains(), steps=1, precision="float64")


# --- the same numbers again -----------------------------------------------------------------------

SCRIPT = """
import sys
import torch
sys.path[:0] = ["tests", "tests/networks"]
from test_training import trained_to_the_bit
torch.set_num_threads({threads})
torch.manual_seed(99)
print(trained_to_the_bit())
"""


def trained_to_the_bit():
    model = network(dropout=0.3)
    history = fit(model, domains(), steps=5, batch_size=8, algorithm="VREx", seed=7)
    recalibrate_batchnorm(model, domains())
    return digest(model) + history.to_numpy().tobytes().hex()


def test_bit_for_bit_in_a_fresh_process():
    script = SCRIPT.format(threads=torch.get_num_threads())
    fresh = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],  # where tests/ and dgprune_lite/ are
        capture_output=True,
        text=True,
        check=True,
    )
    assert fresh.stdout.strip() == trained_to_the_bit()


def test_workers_change_nothing():
    def trained(workers, seed=0):
        train = {name: FromDisk(dataset, noise=0.1) for name, dataset in domains().items()}
        model = network(dropout=0.3)
        fit(model, train, steps=3, batch_size=8, workers=workers, seed=seed)
        recalibrate_batchnorm(model, train, batch_size=16, workers=workers)
        return digest(model)

    assert trained(0) == trained(2)
    assert trained(0) != trained(0, seed=1)


def test_an_error_in_a_worker_is_told():
    class Broken(FromDisk):
        def __getitem__(self, index):
            if index == 7:
                raise ValueError("image 7 is cut short")
            return super().__getitem__(index)

    with pytest.raises(ValueError, match=r"domain 'a', batch \d: image 7 is cut short"):
        fit(network(), {"a": Broken(domain())}, steps=9, batch_size=8, workers=2)
    with pytest.raises(ValueError, match="workers is -1; expected a whole number of at least 0"):
        fit(network(), {"a": Broken(domain())}, steps=9, workers=-1)


def test_the_seed_matters():
    def trained(seed):
        model = network()
        fit(model, domains(), steps=2, batch_size=8, seed=seed)
        return digest(model)

    assert trained(0) == trained(0)
    assert trained(0) != trained(1)


# --- the rest as found ----------------------------------------------------------------------------


def found(model):
    return (
        [module.training for module in model.modules()],
        [dict(module._forward_hooks) for module in model.modules()],
        [parameter.stride() for parameter in model.parameters()],
        [id(parameter) for parameter in model.parameters()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [getattr(module, "momentum", None) for module in model.modules()],
    )


def prepared():
    model = network(dropout=0.5)
    model.eval()
    model[3].train()
    model.insert(4, AlwaysDropping())
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model.register_forward_hook(lambda *_: None)
    return model


class Boom(Exception):
    pass


def raising(model):
    """Let the third forward pass fail."""
    calls = []

    def hook(*_):
        calls.append(1)
        if len(calls) == 3:
            raise Boom

    return model.register_forward_hook(hook)


def assert_as_found(left, right):
    assert left[:4] == right[:4]
    assert left[5] == right[5]
    for a, b in zip(left[4], right[4], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


class AlwaysDropping(nn.Module):
    """Draws random numbers in evaluation mode, too, as some networks do by mistake."""

    def forward(self, x):
        return F.dropout(x, 0.1)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("action", ["fit", "recalibrate"])
def test_left_as_found(action, fails):
    def act(model):
        if action == "fit":
            fit(model, domains(), steps=3, batch_size=8)
        else:
            recalibrate_batchnorm(model, domains(), batch_size=8)

    model = prepared()
    before, random_state, python_state = (
        found(model),
        torch.get_rng_state(),
        random.getstate(),
    )
    statistics = model[1].running_mean.clone()
    if fails:
        handle = raising(model)
        with pytest.raises(Boom):
            act(model)
        handle.remove()
        if action == "recalibrate":
            assert torch.equal(model[1].running_mean, statistics)
    else:
        act(model)
    assert_as_found(before, found(model))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert random.getstate() == python_state


@pytest.mark.parametrize("fails", [False, True])
def test_weights_stay_in_their_own_memory(fails):
    """Also where they are laid out otherwise for training; others may share it."""
    model = build_model("digits_cnn", 3, width=8)
    train = {"a": domain(side=28), "b": domain(seed=1, side=28)}
    places = [parameter.data_ptr() for parameter in model.parameters()]
    alias, before = model.conv1.weight.data, model.conv1.weight.detach().clone()
    if fails:
        raising(model)
    with pytest.raises(Boom) if fails else nullcontext():
        fit(model, train, steps=2, batch_size=8)
    assert places == [parameter.data_ptr() for parameter in model.parameters()]
    assert torch.equal(alias, model.conv1.weight)
    assert not torch.equal(alias, before)


def test_it_trains_inside_no_grad():
    with torch.no_grad():
        fit(network(), domains(), steps=1, batch_size=8)
        assert not torch.is_grad_enabled()


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": -1}, ValueError, "steps is -1; expected a whole number of at least 0"),
        ({"steps": 1.5}, TypeError, "steps is 1.5; expected a whole number"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"max_shift": -1}, ValueError, "max_shift is -1"),
        ({"seed": -1}, ValueError, "seed is -1"),
        ({"lr": float("nan")}, ValueError, "lr is nan"),
        ({"lr": -1.0}, ValueError, r"lr is -1\.0"),
        ({"vrex_lambda": -2.0}, ValueError, r"vrex_lambda is -2\.0"),
        ({"lr": "1e-3"}, TypeError, r"lr is '1e-3'; expected a number"),
        ({"weight_decay": float("inf")}, ValueError, "weight_decay is inf"),
        ({"vrex_anneal_steps": -3}, ValueError, "vrex_anneal_steps is -3"),
        ({"algorithm": "vrex"}, ValueError, "unknown algorithm 'vrex'.*Did you mean 'VREx'"),
    ],
)
def test_bad_settings(options, error, message):
    with pytest.raises(error, match=message):
        fit(network(), domains(), **{"steps": 1, **options})


def fit_once(train):
    return fit(network(), train, steps=1)


def recalibrate(train):
    return recalibrate_batchnorm(network(), train)


@pytest.mark.parametrize("act", [fit_once, recalibrate])
def test_bad_domains(act):
    images, labels = torch.rand(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"train=\{\} holds no domain"):
        act({})
    with pytest.raises(TypeError, match="train is a TensorDataset; expected a mapping"):
        act(domain())
    with pytest.raises(ValueError, match="a domain is called 'loss'"):
        act({"loss": domain()})
    with pytest.raises(ValueError, match="domain 'b' has no images"):
        act({"a": domain(), "b": TensorDataset(images[:0], labels[:0])})
    with pytest.raises(ValueError, match=r"shapes \{'a': \(3, 8, 8\), 'b': \(3, 9, 9\)\}"):
        act({"a": domain(), "b": domain(side=9)})
    with pytest.raises(TypeError, match=r"domain 'a', image 0: images are torch\.uint8"):
        act({"a": TensorDataset(images.byte(), labels)})
    with pytest.raises(ValueError, match=r"domain 'b', .* label 5 lies outside \[0, 3\)"):
        act({"a": domain(), "b": TensorDataset(images, labels + 5)})


def test_what_is_no_network():
    with pytest.raises(TypeError, match=r"model is 'resnet18', expected an nn\.Module"):
        fit("resnet18", domains(), steps=1)
    with pytest.raises(TypeError, match=r"model is 'resnet18', expected an nn\.Module"):
        recalibrate_batchnorm("resnet18", domains())


def test_a_precision_refused_leaves_the_network_where_it_was():
    model = network()
    with pytest.raises(ValueError, match="precision='float16' needs a CUDA device, not 'meta'"):
        fit(model, domains(), steps=1, device="meta", precision="float16")
    assert model[0].weight.device.type == "cpu"


def test_images_are_cast_to_the_type_of_the_weights():
    wide = {
        name: TensorDataset(part.tensors[0].double(), part.tensors[1])
        for name, part in domains().items()
    }

    def risks(model, train):
        history = fit(model, train, steps=3, batch_size=8)
        recalibrate_batchnorm(model, train)
        assert {value.dtype for value in model.parameters()} == {model[0].weight.dtype}
        return history["loss"].tolist(), model[1].running_mean.tolist()

    expected = risks(network(), domains())
    assert risks(network(), wide) == expected
    assert risks(network().double(), domains())[0] == pytest.approx(expected[0], rel=1e-4)


def test_vrex_needs_two_domains():
    with pytest.raises(ValueError, match="algorithm 'VREx' with the single domain 'a'"):
        fit(network(), {"a": domain()}, steps=1, algorithm="VREx")


def test_frozen_network():
    with pytest.raises(ValueError, match="no trainable parameter"):
        fit(network().requires_grad_(False), domains(), steps=1)


def test_not_a_classifier():
    with pytest.raises(TypeError, match="expected floating-point logits"):
        fit(nn.Sequential(nn.Conv2d(3, 3, 1)), domains(), steps=1)


def test_nan_names_step_and_domain_and_the_weights_are_not_spoilt():
    images, labels = domain(24).tensors
    images[10:] = float("nan")
    train = {"a": domain(), "b": TensorDataset(images, labels)}
    model = network()
    model.eval()
    with pytest.raises(ValueError, match=r"risk of domains \['a', 'b'\] is nan at step \d+"):
        fit(model, train, steps=20, batch_size=2)  # BatchNorm spreads it over the batch
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert not model.training

    plain = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 3))
    with pytest.raises(ValueError, match=r"risk of domain 'b' is nan at step \d+; expected"):
        fit(plain, train, steps=20, batch_size=2)
    assert all(torch.isfinite(p).all() for p in plain.parameters())


# --- BatchNorm ------------------------------------------------------------------------------------


def test_recalibration_gives_the_statistics_of_the_images():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 3))
    train = domains()
    model[0].running_mean += 100
    assert recalibrate_batchnorm(model, train, batch_size=512) == 1
    images = torch.cat([dataset.tensors[0] for dataset in train.values()])
    by_channel = images.transpose(0, 1).flatten(1)
    torch.testing.assert_close(model[0].running_mean, by_channel.mean(1))
    torch.testing.assert_close(model[0].running_var, by_channel.var(1))  # unbiased, as BatchNorm's

    # Several batches: the average over batches, each a mixture of the domains.
    assert recalibrate_batchnorm(model, train, batch_size=11) == 1
    torch.testing.assert_close(model[0].running_mean, by_channel.mean(1), rtol=0.02, atol=0)
    torch.testing.assert_close(model[0].running_var, by_channel.var(1), rtol=0.05, atol=0)
    assert model[0].momentum == 0.1
    assert int(model[0].num_batches_tracked) == 4


def test_recalibration_takes_so_many_images_of_each_domain():
    seen = []

    class Recorder(Dataset):
        def __len__(self):
            return 50

        def __getitem__(self, index):
            seen.append(index)
            return torch.rand(3, 8, 8), 0

    recalibrate_batchnorm(network(), {"a": Recorder()}, images_per_domain=9)
    assert len(seen) == len(set(seen[1:])) + 1 == 10


def test_recalibration_repairs_a_network():
    model = network()
    fit(model, domains(), steps=40, lr=2e-2, batch_size=8)
    model.eval()
    images, labels = domain(90, seed=5).tensors
    before = float((model(images).argmax(1) == labels).float().mean())
    model[1].running_mean.fill_(5.0)
    recalibrate_batchnorm(model, domains())
    after = float((model(images).argmax(1) == labels).float().mean())
    assert after >= before - 0.05
    assert before > 0.9


class Auxiliary(nn.Module):
    """Calls a BatchNorm in training only."""

    def __init__(self):
        super().__init__()
        self.net, self.aux = network(), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.aux(self.net(x)) if self.training else self.net(x)


def test_recalibration_leaves_statistics_that_evaluation_does_not_use():
    model = Auxiliary()
    model.aux.running_mean.fill_(7)
    before = copy_of(model.aux), copy_of(model.net)
    assert recalibrate_batchnorm(model, domains()) == 1
    assert same(before[0], model.aux.state_dict())
    assert not same(before[1], model.net.state_dict())


def test_recalibration_without_batchnorm_does_nothing():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    assert recalibrate_batchnorm(model, domains()) == 0
    untracked = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), *model)
    assert recalibrate_batchnorm(untracked, domains()) == 0


def test_recalibration_refuses_statistics_that_are_not_finite():
    images, labels = domain().tensors
    images[:] = float("nan")
    model = network()
    with pytest.raises(ValueError, match="statistics of BatchNorm '1' became NaN or infinite"):
        recalibrate_batchnorm(model, {"a": TensorDataset(images, labels)})
    assert torch.isfinite(model[1].running_var).all()
    with pytest.raises(ValueError, match="batch_size is 1; expected a whole number of at least 2"):
        recalibrate_batchnorm(model, domains(), batch_size=1)


# --- real networks --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits_cnn", "digits_resnet"])
def test_digit_networks_fit(name):
    model = build_model(name, 3, width=4)
    train = {"a": domain(side=28), "b": domain(seed=1, side=28)}
    history = fit(model, train, steps=15, lr=1e-2, batch_size=8)
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]


def test_a_strided_1x1_convolution_with_few_channels_trains():
    # With channels stored last, oneDNN writes past the end of an array here: see `layout_for`.
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 8, 1, stride=2), nn.AdaptiveAvgPool2d(1)
    )
    fit(nn.Sequential(*model, nn.Flatten()), {"a": domain(side=14)}, steps=20)


@pytest.mark.gpu
def test_gpu(gpu):
    model = network(dropout=0.1)
    history = fit(model, domains(), steps=60, lr=2e-2, batch_size=8, device=gpu)
    assert next(model.parameters()).device.type == gpu
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert recalibrate_batchnorm(model, domains()) == 1
