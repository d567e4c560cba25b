"""DigitsLite: what is in it, that it never changes, and that damage is noticed."""

import hashlib
import json
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dgprune_lite.domains import DigitsLite, batches, digits

SIZES = {"mnist": 2400, "mnist_m": 2400, "optdigits": 1740, "syn": 2400}


@pytest.fixture(scope="module")
def data() -> DigitsLite:
    return DigitsLite()


def test_names_and_shapes(data: DigitsLite) -> None:
    assert tuple(data) == data.ENVIRONMENTS == tuple(SIZES)
    assert (data.num_classes, data.input_shape) == (10, (3, 28, 28))
    assert data.class_names == tuple("0123456789")


@pytest.mark.parametrize("name", SIZES)
def test_each_domain_is_balanced_and_well_formed(data: DigitsLite, name: str) -> None:
    images, labels = data[name].tensors  # type: ignore[attr-defined]
    assert images.shape == (SIZES[name], 3, 28, 28)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert images.is_contiguous()
    assert float(images.min()) >= 0.0
    assert float(images.max()) == 1.0
    assert labels.bincount(minlength=10).tolist() == [SIZES[name] // 10] * 10
    # Shuffled: each tenth of the domain has every class.
    assert all(len(part.unique()) == 10 for part in labels.chunk(10))
    assert sum(len(y) for _, y in batches(data[name], 512, num_classes=10)) == SIZES[name]


def test_no_image_appears_twice() -> None:
    seen = {
        image.tobytes() for name in SIZES for image in digits.composed(name)[0]
    }  # across all domains and within each
    assert len(seen) == sum(SIZES.values())


def test_no_scan_stands_behind_two_domains() -> None:
    arrays = digits.embedded_arrays()
    one, two = ({scan.tobytes() for scan in arrays[f"{d}_scans"]} for d in ("mnist", "mnist_m"))
    assert len(one) == len(two) == 2400
    assert not one & two


@pytest.mark.parametrize("name", SIZES)
def test_composed_bytes_are_the_recorded_ones(name: str) -> None:
    images, labels = digits.composed(name)
    found = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    assert found == json.loads(digits.CHECKSUM_FILE.read_text())[name]


def test_the_file_is_the_recorded_one_small_and_holds_no_pickle() -> None:
    found = hashlib.sha256(digits.DATA_FILE.read_bytes()).hexdigest()
    assert found == json.loads(digits.CHECKSUM_FILE.read_text())["digits_lite.npz"]
    assert digits.DATA_FILE.stat().st_size < 3_000_000
    with np.load(digits.DATA_FILE, allow_pickle=False) as archive:
        assert all(archive[name].dtype.kind == "u" for name in archive.files)


def test_loading_is_quick_and_silent() -> None:
    digits.embedded_arrays.cache_clear()
    digits.composed.cache_clear()
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = DigitsLite()
        for name in data:
            data[name]
    assert time.process_time() - start < 3.0  # about 0.5 s on a quiet machine


def test_changing_the_tensors_leaves_the_next_dataset_intact() -> None:
    for name in SIZES:
        first = DigitsLite()[name].tensors  # type: ignore[attr-defined]
        kept = [tensor.clone() for tensor in first]
        for tensor in first:
            tensor.zero_()
        second = DigitsLite()[name].tensors  # type: ignore[attr-defined]
        assert all(torch.equal(a, b) for a, b in zip(kept, second, strict=True))


def test_grey_domains_are_grey_and_coloured_ones_are_not(data: DigitsLite) -> None:
    for name in SIZES:
        images = data[name].tensors[0]  # type: ignore[attr-defined]
        grey = torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])
        assert grey == (name in ("mnist", "optdigits"))


def test_mnist_m_is_the_absolute_difference_of_patch_and_digit() -> None:
    arrays = digits.embedded_arrays()
    photo, top, left = (int(x) for x in arrays["mnist_m_patches"][5])
    patch = arrays[f"photo_{photo}"][top : top + 28, left : left + 28].astype(int)
    digit = arrays["mnist_m_scans"][5].astype(int)[:, :, None]
    assert np.array_equal(digits.composed("mnist_m")[0][5], np.abs(patch - digit))


def test_syn_colours_differ_and_noise_is_as_stated() -> None:
    arrays = digits.embedded_arrays()
    colours = arrays["syn_colours"].astype(int)
    assert np.abs(colours[:, 0] - colours[:, 1]).mean(axis=1).min() > 50
    background = (arrays["syn_masks"] == 0)[..., None] & (
        (colours[:, 1] > 80) & (colours[:, 1] < 175)
    )[:, None, None, :]  # far from the limits, so that nothing was clipped
    difference = digits.composed("syn")[0].astype(int) - colours[:, None, None, 1]
    noise = difference[background]
    assert abs(noise.mean()) < 0.1
    assert noise.std() == pytest.approx(12.1, abs=0.2)


def test_bicubic_agrees_with_pillow_inside() -> None:
    rng = np.random.default_rng(0)
    scan = rng.integers(0, 17, size=(8, 8)).astype(np.float32)
    expected = Image.fromarray(scan).resize((20, 20), Image.Resampling.BICUBIC)
    expected = np.asarray(expected).clip(0, 16) * (255 / 16)
    # Pillow treats the edges differently: compare where the kernel lies inside.
    difference = digits.upsample(scan[None].astype(np.uint8))[0] - expected
    assert abs(difference[4:16, 4:16]).max() <= 0.5 + 1e-4


def test_upsampling_keeps_plain_images_and_clips_overshoots() -> None:
    plain = np.full((1, 8, 8), 16, dtype=np.uint8)
    assert (digits.upsample(plain) == 255).all()
    edge = np.zeros((1, 8, 8), dtype=np.uint8)
    edge[:, :, 4:] = 16
    up = digits.upsample(edge)
    assert (up.min(), up.max()) == (0, 255)


def test_centring_puts_the_centre_of_mass_in_the_middle() -> None:
    blob = np.zeros((2, 20, 20), dtype=np.uint8)
    blob[0, 6:9, 11:14] = 200  # can be centred
    blob[1, 0, 0] = 200  # would need more than the frame gives
    framed = digits.centre(blob)
    rows, columns = np.nonzero(framed[0])
    assert abs(rows.mean() - 13.5) <= 0.5
    assert abs(columns.mean() - 13.5) <= 0.5
    assert framed[1, 8, 8] == 200
    assert framed.sum() == blob.sum(dtype=int)


def test_optdigits_lie_in_the_middle() -> None:
    grey = digits.composed("optdigits")[0][..., 0].astype(float)
    place = np.arange(28)
    for axis in (1, 2):
        centres = (grey.sum(axis=axis) @ place) / grey.sum(axis=(1, 2))
        assert abs(centres - 13.5).max() <= 0.51


@pytest.mark.parametrize("part", [0.0, 0.205, 0.5, 0.9])  # zlib itself sees the second
def test_a_damaged_file_is_noticed(tmp_path: Path, part: float) -> None:
    content = bytearray(digits.DATA_FILE.read_bytes())
    copy = tmp_path / "digits_lite.npz"
    copy.write_bytes(content)
    assert set(digits.read_arrays(copy)) == set(digits.embedded_arrays())
    content[int(part * len(content))] ^= 1
    for damaged in (content, content[:1000], b""):
        copy.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"digits_lite\.npz' is damaged.*reinstall"):
            digits.read_arrays(copy)


@pytest.mark.parametrize("flag", ["encrypted", "method"])
def test_a_damaged_index_is_noticed(tmp_path: Path, flag: str) -> None:
    content = bytearray(digits.DATA_FILE.read_bytes())
    entry = content.index(b"PK\x01\x02")  # of the first array in the index at the file's end
    content[entry + (8 if flag == "encrypted" else 10)] ^= 1
    copy = tmp_path / "digits_lite.npz"
    copy.write_bytes(content)
    with pytest.raises(ValueError, match=rf"is damaged \(.*{flag}.*reinstall"):
        digits.read_arrays(copy)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no data file.*reinstall"):
        digits.read_arrays(tmp_path / "digits_lite.npz")


def test_a_file_that_is_no_archive_is_named(tmp_path: Path) -> None:
    other = tmp_path / "other.npz"
    other.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ValueError, match=r"other\.npz' is damaged \("):
        digits.read_arrays(other)


def test_damage_is_reported_when_the_dataset_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(digits, "DATA_FILE", tmp_path / "digits_lite.npz")
    digits.embedded_arrays.cache_clear()
    try:
        with pytest.raises(FileNotFoundError, match="no data file"):
            DigitsLite()
    finally:
        digits.embedded_arrays.cache_clear()


def test_unknown_domains_bring_the_nearest(data: DigitsLite) -> None:
    with pytest.raises(ValueError, match=r"no domain 'mnistm'.*Did you mean 'mnist_m'\?"):
        data["mnistm"]
    with pytest.raises(ValueError, match="no domain 'svhn'"):
        digits.compose("svhn", {})
