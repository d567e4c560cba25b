"""ImageDomain: what preparing and augmenting does, and that chance is under control."""

import os
import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torchvision.transforms import v2

from dgprune_lite.domains import ImageDomain, fetch
from dgprune_lite.domains.images import MEAN, STD, balanced_indices, draw_augmentation


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((40, 30), Image.Resampling.BICUBIC)


@pytest.fixture
def plain() -> ImageDomain:
    return ImageDomain("photo", range(8), [0, 1] * 4, picture, size=24)


@pytest.fixture
def augmented(plain: ImageDomain) -> ImageDomain:
    return replace(plain, augmented=True)


def images(dataset: ImageDomain, places: list[int]) -> Tensor:
    return fetch(dataset, places)[0]


def test_preparing_is_domainbeds(plain: ImageDomain) -> None:
    expected = v2.Compose(
        [
            v2.Resize((24, 24)),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    for place in range(3):
        assert torch.allclose(plain[place][0], expected(picture(place)), atol=1e-6)


def test_augmenting_is_domainbeds_on_average(augmented: ImageDomain) -> None:
    reference = v2.Compose(
        [
            v2.RandomResizedCrop(24, scale=(0.7, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.3, 0.3, 0.3, 0.3),
            v2.RandomGrayscale(),
            v2.PILToTensor(),
        ]
    )
    image = picture(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ours = [draw_augmentation(image, 24)(image) for _ in range(600)]
        ours = torch.stack([v2.functional.pil_to_tensor(one) for one in ours]).float()
        theirs = torch.stack([reference(image) for _ in range(600)]).float()
    # Means and spreads of every pixel over 600 draws; a standard error is about 2 grey levels.
    assert (ours.mean(0) - theirs.mean(0)).abs().mean() < 4
    assert (ours.std(0) - theirs.std(0)).abs().mean() < 4
    grey = [(one.amax(1) == one.amin(1)).all().item() for one in (ours, theirs)]
    assert grey == [False, False]
    shares = [(x[:, 0] == x[:, 1]).all(2).all(1).float().mean().item() for x in (ours, theirs)]
    assert shares == pytest.approx([0.1, 0.1], abs=0.05)


def test_equal_batches_are_augmented_equally_and_others_not(augmented: ImageDomain) -> None:
    one = images(augmented, [3, 1, 2])
    assert torch.equal(one, images(augmented, [3, 1, 2]))
    assert not torch.equal(one[0], images(augmented, [3, 2, 1])[0])
    assert not torch.equal(one[0], images(replace(augmented, name="sketch"), [3, 1, 2])[0])
    assert torch.equal(augmented[3][0], augmented[3][0])


def test_augmenting_changes_images_and_keeps_labels(
    plain: ImageDomain, augmented: ImageDomain
) -> None:
    before, labels = fetch(plain, range(8))
    after, same = fetch(augmented, range(8))
    assert torch.equal(labels, same)
    assert all(not torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_the_global_random_state_is_neither_read_nor_changed(augmented: ImageDomain) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = images(augmented, [0, 1])
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(one, images(augmented, [0, 1]))


def white_in_a_thread(index: int) -> Image.Image:
    main = threading.current_thread() is threading.main_thread()
    return Image.new("RGB", (8, 8), "black" if main else "white")


@pytest.mark.skipif(os.cpu_count() == 1, reason="threads need processors")
def test_threads_decode_but_not_in_a_worker_of_a_data_loader(augmented: ImageDomain) -> None:
    batches = []
    for workers in (0, 1):
        where = ImageDomain("photo", range(8), [0] * 8, white_in_a_thread, size=8)
        pixels, _ = next(iter(DataLoader(where, 8, num_workers=workers)))
        assert bool((pixels > 0).all()) == (workers == 0)
        batches.append(next(iter(DataLoader(augmented, 8, num_workers=workers)))[0])
    assert torch.equal(*batches)


def test_images_are_decoded_only_when_asked_for() -> None:
    seen: list[int] = []

    def load(place: int) -> Image.Image:
        seen.append(place)
        return picture(place)

    domain = ImageDomain("photo", range(8), [0] * 8, load, size=8)
    assert len(domain) == 8
    fetch(Subset(domain, [5, 6, 7]), [2, 0])
    assert sorted(seen) == [5, 7]


def test_subsets_and_data_loaders_ask_for_whole_batches(augmented: ImageDomain) -> None:
    expected = images(augmented, [5, 6, 7])
    subset = Subset(augmented, [4, 5, 6, 7])
    assert torch.equal(fetch(subset, [1, 2, 3])[0], expected)
    (loaded, labels), _ = DataLoader(Subset(augmented, [5, 6, 7, 0]), batch_size=3)
    assert torch.equal(loaded, expected)
    assert labels.tolist() == [1, 0, 1]


def test_all_images_of_a_batch_that_cannot_be_decoded_are_named() -> None:
    def load(place: int) -> Image.Image:
        if place % 2:
            raise OSError(f"file {place} is cut")
        return picture(place)

    domain = ImageDomain("photo", range(8), [0] * 8, load, size=8)
    assert len(fetch(domain, [0, 2])[1]) == 2
    with pytest.raises(
        ValueError, match=r"2 of 3 images of domain 'photo'.*file 5 .*file 3 is cut"
    ):
        fetch(domain, [5, 2, 3])


def test_indices_outside_are_index_errors(plain: ImageDomain) -> None:
    with pytest.raises(IndexError):
        plain[8]
    assert len(list(plain)) == 8  # iterating relies on it


def test_grey_and_large_images_come_out_in_one_shape() -> None:
    sizes = [(30, 20), (7, 90)]
    domain = ImageDomain("photo", sizes, [0, 1], partial(Image.new, "RGB"), size=12)
    assert images(domain, [0, 1]).shape == (2, 3, 12, 12)


def test_balance_holds_as_far_as_the_classes_last() -> None:
    labels = [0] * 10 + [1] * 2 + [2] * 5
    places = balanced_indices(labels, 11, "photo", seed=0)
    assert places == sorted(set(places))
    assert [sum(labels[place] == k for place in places) for k in range(3)] == [5, 2, 4]
    assert places != balanced_indices(labels, 11, "photo", seed=1)
    assert places != balanced_indices(labels, 11, "sketch", seed=0)
