"""RotatedMNIST and ColoredMNIST: DomainBed's definitions, from the embedded scans, for good."""

import hashlib
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.functional import InterpolationMode
from torchvision.transforms.functional import rotate as torchvision_rotate

from dgprune_lite.domains import (
    ColoredMNIST,
    MultipleDomainDataset,
    RotatedMNIST,
    batches,
    digits,
    leave_one_domain_out,
)
from dgprune_lite.domains.mnist import rotate

VARIANTS = [RotatedMNIST, ColoredMNIST]
ROTATED = {"0": 0, "15": 15, "30": 30, "45": 45, "60": 60, "75": 75}
FLIPPED = {"+90%": 0.1, "+80%": 0.2, "-90%": 0.9}
# SHA-256 of images as bytes (n, channels, 28, 28) followed by labels as bytes (n,), for seed 0.
DIGESTS = {
    "0": "8a63342a1f3f",
    "15": "89315c00b14a",
    "30": "d1b4dc7c6c66",
    "45": "1ed2dca90a38",
    "60": "1e1aa726f129",
    "75": "94d387bc6e41",
    "+90%": "cc79651841c3",
    "+80%": "172b04d25b07",
    "-90%": "d810e7da9b09",
}


def tensors(data: MultipleDomainDataset, env: str) -> tuple[Tensor, Tensor]:
    return data[env].tensors  # type: ignore[attr-defined]


def scans() -> Counter[bytes]:
    """Every embedded MNIST scan, with its digit."""
    arrays = digits.embedded_arrays()
    return Counter(
        scan.tobytes() + bytes([digit])
        for domain in ("mnist", "mnist_m")
        for scan, digit in zip(arrays[f"{domain}_scans"], arrays[f"{domain}_labels"], strict=True)
    )


def as_bytes(images: Tensor) -> np.ndarray:
    return (images * 255).round().byte().numpy()


def colours_of(images: Tensor) -> Tensor:
    return images.amax((2, 3)).argmax(1)


def test_names_and_shapes() -> None:
    rotated, coloured = RotatedMNIST(), ColoredMNIST()
    assert tuple(rotated) == rotated.ENVIRONMENTS == tuple(ROTATED)
    assert tuple(coloured) == coloured.ENVIRONMENTS == tuple(FLIPPED)
    assert (rotated.num_classes, rotated.input_shape) == (10, (1, 28, 28))
    assert (coloured.num_classes, coloured.input_shape) == (2, (2, 28, 28))


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_environment_is_well_formed(variant: type[MultipleDomainDataset]) -> None:
    data = variant()
    for env in data:
        images, labels = tensors(data, env)
        assert images.shape == (4800 // len(data), *data.input_shape)
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert images.is_contiguous()
        assert (float(images.min()), float(images.max())) == (0.0, 1.0)
        assert labels.shape == (len(images),)
        share = labels.bincount(minlength=data.num_classes) / len(labels)
        assert share.sub(1 / data.num_classes).abs().max() < 0.04
        # Shuffled: each tenth of the environment has every class.
        assert all(len(part.unique()) == data.num_classes for part in labels.chunk(10))
        walked = batches(data[env], 512, num_classes=data.num_classes)
        assert sum(len(y) for _, y in walked) == len(images)


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_seeds_give_equal_data_in_any_order_of_opening(variant: type) -> None:
    first, second, other = variant(), variant(seed=np.int64(0)), variant(seed=1)
    opened = {env: tensors(first, env) for env in first}
    for env in reversed(tuple(second)):
        for one, two in zip(opened[env], tensors(second, env), strict=True):
            assert torch.equal(one, two)
        assert not torch.equal(opened[env][0], tensors(other, env)[0])


@pytest.mark.parametrize("env", DIGESTS)
def test_bytes_are_the_recorded_ones(env: str) -> None:
    images, labels = tensors(RotatedMNIST() if env in ROTATED else ColoredMNIST(), env)
    content = as_bytes(images).tobytes() + labels.byte().numpy().tobytes()
    assert hashlib.sha256(content).hexdigest()[:12] == DIGESTS[env]


def test_the_global_random_states_stay() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for data in (RotatedMNIST(), ColoredMNIST()):
        for env in data:
            data[env]
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


@pytest.mark.parametrize("variant", VARIANTS)
def test_changing_the_tensors_leaves_the_next_dataset_intact(variant: type) -> None:
    data = variant()
    env = data.ENVIRONMENTS[0]
    kept = [tensor.clone() for tensor in tensors(data, env)]
    for tensor in tensors(data, env):
        tensor.zero_()
    for before, after in zip(kept, tensors(variant(), env), strict=True):
        assert torch.equal(before, after)


def test_loading_is_quick() -> None:
    start = time.process_time()
    for data in (RotatedMNIST(), ColoredMNIST()):
        for env in data:
            data[env]
    assert time.process_time() - start < 3.0  # about 0.4 s on a quiet machine


# --- RotatedMNIST -------------------------------------------------------------------------


def test_every_scan_is_in_one_environment_of_rotated() -> None:
    data, found = RotatedMNIST(), Counter[bytes]()
    everything = list(scans())
    upright = np.stack([np.frombuffer(scan[:-1], np.uint8).reshape(28, 28) for scan in everything])
    for env in data:
        turned = np.concatenate([rotate(part, ROTATED[env]) for part in np.split(upright, 10)])
        before = {image.tobytes(): scan for image, scan in zip(turned, everything, strict=True)}
        images, labels = tensors(data, env)
        for image, label in zip(as_bytes(images), labels.tolist(), strict=True):
            assert before[image.tobytes()][-1] == label
            found[before[image.tobytes()]] += 1
    assert found == scans()


@pytest.mark.parametrize("degrees", [0, 15, 30, 45, 60, 75, 90, 180, -20])
def test_rotation_is_torchvisions_up_to_a_grey_level(degrees: int) -> None:
    noise = np.random.PCG64(0).random_raw(20 * 28 * 28).reshape(20, 28, 28) % 256
    for images in (digits.embedded_arrays()["mnist_scans"][:20], noise.astype(np.uint8)):
        pixels = torch.from_numpy(images.copy())[:, None]
        expected = torchvision_rotate(pixels, degrees, InterpolationMode.BILINEAR)[:, 0].numpy()
        difference = np.abs(rotate(images, degrees).astype(int) - expected)
        assert difference.max() <= 1
        assert difference.mean() < 0.001


def test_quarter_turns_are_exact() -> None:
    images = digits.embedded_arrays()["mnist_scans"][:10]
    for turns in range(4):
        assert np.array_equal(rotate(images, 90 * turns), np.rot90(images, turns, axes=(1, 2)))


def test_the_environment_of_0_degrees_holds_scans_as_they_are() -> None:
    images, labels = tensors(RotatedMNIST(), "0")
    known = scans()
    pairs = zip(as_bytes(images), labels.tolist(), strict=True)
    assert all(image.tobytes() + bytes([label]) in known for image, label in pairs)


# --- ColoredMNIST -------------------------------------------------------------------------


def test_every_scan_is_in_one_environment_of_coloured() -> None:
    data, found = ColoredMNIST(), Counter[bytes]()
    for env in data:
        images = tensors(data, env)[0]
        assert ((images > 0).any(3).any(2).sum(1) == 1).all()  # one colour each
        found.update(image.tobytes() for image in as_bytes(images.sum(1)))
    assert found == Counter(scan[:-1] for scan in scans())


def test_labels_and_colours_are_flipped_as_often_as_domainbed_says() -> None:
    digit_of = {scan[:-1]: scan[-1] for scan in scans()}
    noise: dict[str, list[Tensor]] = {env: [] for env in FLIPPED}
    flips: dict[str, list[Tensor]] = {env: [] for env in FLIPPED}
    for seed in range(5):
        data = ColoredMNIST(seed)
        for env in data:
            images, labels = tensors(data, env)
            shapes = [digit_of[image.tobytes()] < 5 for image in as_bytes(images.sum(1))]
            noise[env].append(torch.tensor(shapes).long() != labels)
            flips[env].append(colours_of(images) != labels)
    for env, share in FLIPPED.items():
        noisy, flipped = torch.cat(noise[env]).double(), torch.cat(flips[env]).double()
        # 8000 images: four standard errors are 0.019 and at most 0.018.
        assert noisy.mean().item() == pytest.approx(0.25, abs=0.02)
        assert flipped.mean().item() == pytest.approx(share, abs=0.02)
        together = torch.corrcoef(torch.stack([noisy, flipped]))[0, 1].item()
        assert together == pytest.approx(0, abs=0.05)  # one is independent of the other


# --- The contract of a data set -----------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_environment_can_be_left_out(variant: type[MultipleDomainDataset]) -> None:
    data = variant()
    split = leave_one_domain_out(data, test_env=data.ENVIRONMENTS[-1], seed=0)
    assert list(split.train) == list(data.ENVIRONMENTS[:-1])
    assert split.example_inputs.shape == (1, *data.input_shape)


def test_unknown_environments_bring_the_known_ones() -> None:
    data = RotatedMNIST()
    with pytest.raises(ValueError, match=r"RotatedMNIST has no domain '20'; expected one of 0, 15"):
        data["20"]
    with pytest.raises(ValueError, match=r"no domain '90%'; .*Did you mean '[+-]90%'"):
        ColoredMNIST()["90%"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("seed", "error", "message"),
    [
        (-1, ValueError, "seed is -1; expected a whole number of at least 0"),
        (0.5, TypeError, r"seed is 0\.5; expected a whole number"),
        ("0", TypeError, "seed is '0'"),
    ],
)
def test_bad_seeds(variant: type, seed: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        variant(seed)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_missing_file_is_reported_at_once(
    variant: type, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(digits, "DATA_FILE", tmp_path / "digits_lite.npz")
    digits.embedded_arrays.cache_clear()
    try:
        with pytest.raises(FileNotFoundError, match="no data file"):
            variant()
    finally:
        digits.embedded_arrays.cache_clear()
