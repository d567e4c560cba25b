"""DigitsDG on small files: four domains, balanced, reproducible, no scan in two domains."""

from pathlib import Path

import numpy as np
import pytest
import torch
from digit_files import write_mnist, write_svhn
from torch import Tensor

import dgprune_lite as dg
from dgprune_lite.domains import digits, digits_dg


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
    framed, of_scans = data._scans["mnist_m"]
    assert not mnist & {scan.tobytes() for scan in framed}
    assert labels.tolist() == of_scans.tolist()
    # Where there is no digit, in the frame's border, the photo shows as it is.
    arrays = digits.embedded_arrays()
    photos = [arrays[f"photo_{k}"] for k in range(5)]
    used: set[tuple[int, ...]] = set()
    for image in pixels(images)[:5].transpose(0, 2, 3, 1):
        rows = [np.lib.stride_tricks.sliding_window_view(p, 32, axis=1)[:-31] for p in photos]
        hits = [np.argwhere((row.transpose(0, 1, 3, 2) == image[0]).all((2, 3))) for row in rows]
        places = [(k, *place) for k, hit in enumerate(hits) for place in hit.tolist()]
        assert places
        used.update(places)
    assert len({photo for photo, *_ in used}) > 1
    assert len(used) >= 5  # each image has a patch of its own


def test_svhn_is_as_it_was(root: Path) -> None:
    images, labels = tensors(dg.DigitsDG(root, images_per_class=6), "svhn")
    source, digit = dg.domains.sources.svhn_images(root)
    known = {image.tobytes(): k for image, k in zip(source, digit, strict=True)}
    found = np.ascontiguousarray(pixels(images).transpose(0, 2, 3, 1))
    assert [known[image.tobytes()] for image in found] == labels.tolist()
    assert len({image.tobytes() for image in found}) == 60


def test_syn_comes_in_new_variations_of_all_glyphs(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_syn_labels_go_with_glyphs_that_are_turned_moved_and_coloured(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, np.ndarray] = {}

    def look(masks: np.ndarray, colours: np.ndarray) -> np.ndarray:
        seen.update(masks=masks, colours=colours)
        return np.repeat(masks[..., None], 3, axis=3)

    monkeypatch.setattr(digits_dg, "colour_glyphs", look)
    arrays = digits.embedded_arrays()
    known = {
        mask.tobytes(): digit
        for mask, digit in zip(arrays["syn_masks"], arrays["syn_labels"], strict=True)
    }

    def found(masks: np.ndarray) -> list[set[tuple[int, int, int]]]:
        """For each image, the (top, left, digit) of glyphs that are in it as they are."""
        places = [(top, left) for top in range(5) for left in range(5)]
        crops = [masks[:, top : top + 28, left : left + 28] for top, left in places]
        return [
            {
                (*place, int(known[crop[i].tobytes()]))
                for place, crop in zip(places, crops, strict=True)
                if crop[i].tobytes() in known
            }
            for i in range(len(masks))
        ]

    dg.DigitsDG(root, images_per_class=6)["syn"]
    turned = found(seen["masks"])
    assert sum(not matches for matches in turned) > 40  # 20 of 21 are turned
    assert np.abs(np.diff(seen["colours"].astype(int), axis=1)).mean(axis=(1, 2)).min() > 50
    monkeypatch.setattr(digits_dg, "rotate", lambda masks, degrees: masks)
    _, labels = tensors(dg.DigitsDG(root, images_per_class=6), "syn")
    matches = [match.pop() for match in found(seen["masks"])]
    assert [digit for _, _, digit in matches] == labels.tolist()
    assert len({(top, left) for top, left, _ in matches}) > 10  # of 25 places


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
