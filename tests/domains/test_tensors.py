"""Images kept as bytes: the same samples as from files, augmented batch by batch from a seed."""

import pytest
import torch

import dgprune_lite as dg
from dgprune_lite.domains import ImageTensors, fetch
from dgprune_lite.domains.tensors import augment, colour_maps


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = dg.draw_tiny_pacs(tmp_path_factory.mktemp("pacs"))
    files = dg.PACS(folder, image_size=32)
    return files, files.in_memory()


def test_samples_are_those_of_the_files(pair):
    files, held = pair
    assert repr(held) == repr(files)
    assert held.resolve("art_painting") == "A"
    for env in files:
        (images, labels), (ours, our_labels) = (
            fetch(files[env], range(9)),
            fetch(held[env], range(9)),
        )
        torch.testing.assert_close(ours, images)
        assert torch.equal(our_labels, labels)
        image, label = held[env][3]
        torch.testing.assert_close(image, images[3])
        assert label == labels[3]


def test_only_training_parts_are_augmented_and_equal_batches_equally(pair):
    split = dg.leave_one_domain_out(pair[1], "photo", seed=0)
    part = split.train["A"]
    first, again, other = fetch(part, [3, 1, 2]), fetch(part, [3, 1, 2]), fetch(part, [3, 1, 4])
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0][0], other[0][0])
    plain = ImageTensors("A", part.dataset.images, part.dataset.labels)
    assert not torch.allclose(first[0], plain.batch([part.indices[i] for i in (3, 1, 2)])[0])
    assert torch.equal(fetch(split.val["A"], [0])[0], plain.batch([split.val["A"].indices[0]])[0])


def test_augmentation_stays_within_bounds_and_leaves_its_input():
    images = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    before = images.clone()
    changed = augment(images, torch.Generator().manual_seed(2))
    assert torch.equal(images, before)
    assert changed.min() >= 0
    assert changed.max() <= 1
    grey = (changed.amax(1) - changed.amin(1)).amax((1, 2)) < 1e-4
    assert 1 <= int(grey.sum()) <= 20  # one in ten
    # A plain image stays plain, whatever the crop: only its brightness and colour change.
    plain = augment(torch.full((8, 3, 16, 16), 0.5), torch.Generator().manual_seed(3))
    assert (plain.amax((2, 3)) - plain.amin((2, 3))).max() < 1e-5


def test_half_of_the_crops_are_mirrored():
    ramp = torch.linspace(0.2, 0.8, 16).expand(400, 3, 16, 16)
    changed = augment(ramp, torch.Generator().manual_seed(0)).mean((1, 2))
    mirrored = (changed[:, 0] > changed[:, -1]).float().mean()
    assert 0.4 < mirrored < 0.6


def test_a_turn_of_the_hue_keeps_brightness_and_grey():
    maps = colour_maps(torch.ones(3), torch.ones(3), torch.tensor([0.0, 0.1, -0.3]))
    grey = torch.ones(3, 3, 1)
    torch.testing.assert_close(maps @ grey, grey, rtol=0, atol=1e-3)
    luma = torch.tensor([0.299, 0.587, 0.114])
    torch.testing.assert_close(luma @ maps, luma.expand(3, 3), rtol=0, atol=1e-5)


def test_training_on_bytes_can_be_repeated(pair):
    split = dg.leave_one_domain_out(pair[1], "sketch", seed=0)
    weights = []
    for _ in range(2):
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 7))
        torch.nn.init.zeros_(model[1].weight)
        torch.nn.init.zeros_(model[1].bias)
        dg.fit(model, split.train, steps=3, batch_size=4, max_shift=0, seed=5)
        weights.append(model[1].weight.detach().clone())
    assert torch.equal(*weights)
    assert weights[0].any()
