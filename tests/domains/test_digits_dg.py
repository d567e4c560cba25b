"""DigitsDG on small files: four domains, balanced, reproducible, no scan in two domains."""

from pathlib import Path

import numpy as np
import pytest
import torch
from digit_files import write_mnist, write_svhn
from torch import Tensor

import dgprune_lite as dg
from dgprune_lite.domains import digits
from dgprune_lite.domains.mnist import rotate


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_mnist(tmp_path, train=100, test=20)
    write_svhn(tmp_path, monkeypatch)
    return tmp_path


def tensors(data: dg.DigitsDG, env: str) -> tuple[Tensor, Tensor]:
    return data[env].tensors  # type: ignore[attr-defined]


def pixels(images: Tensor) -> np.ndarray:
    return images.mul(255).round().byte().numpy()


def test_each_domain_is_balanced_and_well_formed(root: Path) -> None:
    data = dg.DigitsDG(root, images_per_class=6)
    assert tuple(data) == ("mnist", "mnist_m", "svhn", "syn")
    assert (data.num_classes, data.input_shape) == (10, (3, 32, 32))
    for env in data:
        images, labels = tensors(data, env)
        assert images.shape == (60, 3, 32, 32)
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert labels.bincount().tolist() == [6] * 10
        assert labels[:10].tolist() != list(range(10))  # in random order
        assert 0 <= float(images.min()) < 0.1 < 0.9 < float(images.max()) <= 1
    split = dg.leave_one_domain_out(data, "svhn", seed=0)
    assert list(split.train) == ["mnist", "mnist_m", "syn"]


def test_the_seed_decides_whichever_domain_is_opened_first(root: Path) -> None:
    one, two = dg.DigitsDG(root, images_per_class=6), dg.DigitsDG(root, images_per_class=6)
    other = dg.DigitsDG(root, images_per_class=6, seed=1)
    opened = {env: tensors(one, env) for env in one}
    for env in reversed(tuple(two)):
        for first, second in zip(opened[env], tensors(two, env), strict=True):
            assert torch.equal(first, second)
        assert not torch.equal(opened[env][0], tensors(other, env)[0])


def test_mnist_lies_in_the_middle_of_a_black_frame(root: Path) -> None:
    images, labels = tensors(dg.DigitsDG(root, images_per_class=6), "mnist")
    scans, digit = dg.domains.sources.mnist_scans(root)
    known = {scan.tobytes(): k for scan, k in zip(scans, digit, strict=True)}
    inside = pixels(images)[:, :, 2:30, 2:30]
    for channel in range(3):
        assert [known[image.tobytes()] for image in inside[:, channel]] == labels.tolist()
    assert images.sum().item() == pytest.approx(images[:, :, 2:30, 2:30].sum().item())


def test_mnist_m_has_the_other_scans_before_photos(root: Path) -> None:
    data = dg.DigitsDG(root, images_per_class=6)
    images, labels = tensors(data, "mnist_m")
    mnist = {image.tobytes() for image in pixels(tensors(data, "mnist")[0])[:, 0]}
    scans, digit = dg.domains.sources.mnist_scans(root)
    framed = np.pad(scans, ((0, 0), (2, 2), (2, 2)))
    other = np.array([scan.tobytes() not in mnist for scan in framed])
    arrays = digits.embedded_arrays()
    photos = [arrays[f"photo_{k}"].astype(int) for k in range(5)]
    used: set[tuple[int, ...]] = set()
    for image, label in zip(
        pixels(images)[:5].transpose(0, 2, 3, 1), labels.tolist(), strict=False
    ):
        # Where there is no digit, in the first row, the photo shows as it is.
        rows = [np.lib.stride_tricks.sliding_window_view(p, 32, axis=1)[:-31] for p in photos]
        hits = [np.argwhere((row.transpose(0, 1, 3, 2) == image[0]).all((2, 3))) for row in rows]
        candidates = framed[other & (digit == label), :, :, None].astype(int)
        corners = [(k, *corner) for k, hit in enumerate(hits) for corner in hit.tolist()]
        fitting = [
            (k, top, left)
            for k, top, left in corners
            if (abs(photos[k][top : top + 32, left : left + 32] - candidates) == image)
            .all((1, 2, 3))
            .any()
        ]
        assert fitting
        used.update(fitting)
    assert len({photo for photo, *_ in used}) > 1
    assert len(used) >= 5  # each image has a patch of its own


def test_svhn_is_as_it_was(root: Path) -> None:
    images, labels = tensors(dg.DigitsDG(root, images_per_class=6), "svhn")
    source, digit = dg.domains.sources.svhn_images(root)
    known = {image.tobytes(): k for image, k in zip(source, digit, strict=True)}
    found = np.ascontiguousarray(pixels(images).transpose(0, 2, 3, 1))
    assert [known[image.tobytes()] for image in found] == labels.tolist()
    assert len({image.tobytes() for image in found}) == 60


def test_syn_comes_in_new_variations_of_all_glyphs(root: Path) -> None:
    data = dg.DigitsDG(root, images_per_class=6)
    data.images_per_class = 300  # more than there are glyphs
    images, labels = tensors(data, "syn")
    assert labels.bincount().tolist() == [300] * 10
    assert len({image.tobytes() for image in pixels(images)}) == 3000
    border = images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]  # corners: the ground, and noise
    assert (border.std(2) * 255).mean() == pytest.approx(12, abs=4)
    # A digit can be read: its colour differs from the ground's.
    middle = (images - border.mean(2)[:, :, None, None]).abs().amax((2, 3)).mean(1)
    assert middle.min() > 40 / 255


def test_syn_labels_go_with_glyphs_that_are_turned_and_moved(root: Path) -> None:
    images, labels = tensors(dg.DigitsDG(root, images_per_class=6), "syn")
    ground = images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].mean(2)
    differences = (images - ground[:, :, None, None]).flatten(2)  # (n, 3, 1024)
    colour = torch.linalg.svd(differences, full_matrices=False).U[
        :, :, 0
    ]  # in which direction the glyph differs
    shown = torch.einsum("nc,ncp->np", colour, differences).view(-1, 32, 32)
    shown = (shown / shown.norm(dim=(1, 2), keepdim=True)).numpy()
    arrays = digits.embedded_arrays()
    best = np.zeros(60, dtype=[("likeness", float), ("angle", int), ("top", int), ("left", int)])
    for digit in range(10):
        glyphs = arrays["syn_masks"][arrays["syn_labels"] == digit]
        mine = np.flatnonzero(labels.numpy() == digit)
        for angle in range(-10, 11):
            turned = rotate(glyphs, angle).reshape(len(glyphs), -1).astype(np.float32)
            turned /= np.linalg.norm(turned, axis=1, keepdims=True)
            for top, left in np.ndindex(5, 5):
                crops = shown[mine, top : top + 28, left : left + 28].reshape(len(mine), -1)
                likeness = abs(crops @ turned.T).max(1)  # (images,), of the likest glyph
                better = likeness > best["likeness"][mine]
                best[mine[better]] = [(x, angle, top, left) for x in likeness[better]]
    assert best["likeness"].min() > 0.7  # some colours hardly stand out from the noise
    assert best["likeness"].mean() > 0.93
    assert len(set(best["angle"])) > 10  # of 21
    assert len(set(zip(best["top"], best["left"], strict=True))) > 10  # of 25


def test_too_few_images_and_bad_settings(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"MNIST has 12 images of the digit 0, and 14 are needed"):
        dg.DigitsDG(root, images_per_class=7)
    with pytest.raises(ValueError, match="images_per_class is 0; expected a whole number of at"):
        dg.DigitsDG(root, images_per_class=0)
    with pytest.raises(TypeError, match=r"seed is 0\.5; expected a whole number"):
        dg.DigitsDG(root, seed=0.5)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"no MNIST in '.*nowhere'.*or download=True"):
        dg.DigitsDG(tmp_path / "nowhere")
    (root / "train_32x32.mat").unlink()
    with pytest.raises(FileNotFoundError, match="no SVHN in"):
        dg.DigitsDG(root, images_per_class=6)
