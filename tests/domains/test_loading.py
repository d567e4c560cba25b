"""fetch and batches: the right images in order, and clear errors for wrong ones."""

import os
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import dgprune_lite as dg
from dgprune_lite.checks import named_domains
from dgprune_lite.domains import MultipleDomainDataset, batches, count, fetch, read


class Listed(Dataset):
    """A map-style dataset that is not a TensorDataset, as a folder of images would be."""

    def __init__(self, samples: Sequence[object]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> object:
        return self.samples[i]


def data(n: int = 7) -> TensorDataset:
    images = torch.arange(n * 3 * 4 * 4, dtype=torch.float32).reshape(n, 3, 4, 4)
    return TensorDataset(images, torch.arange(n))


@pytest.mark.parametrize("kind", ["tensors", "subset", "subset of a list", "list"])
@pytest.mark.parametrize("places", [[4, 0, 4], torch.tensor([4, 0, 4]), range(2, 5)])
def test_fetch_is_the_same_for_every_kind(kind: str, places: Sequence[int] | Tensor) -> None:
    whole = data()
    listed = Listed([(image, int(label)) for image, label in whole])
    dataset = {
        "tensors": whole,
        "subset": Subset(whole, range(7)),
        "subset of a list": Subset(listed, list(range(7))),
        "list": listed,
    }[kind]
    images, labels = fetch(dataset, places)
    expected = torch.as_tensor(places)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, expected)
    assert torch.equal(images, whole.tensors[0][expected])


def test_fetch_goes_through_the_indices_of_a_subset() -> None:
    _, labels = fetch(Subset(data(), [6, 5, 4]), [2, 0])
    assert labels.tolist() == [4, 6]


def test_fetch_returns_copies() -> None:
    dataset = data()
    images, _ = fetch(dataset, [0])
    images.fill_(-1.0)
    assert dataset.tensors[0].min() >= 0


def test_fetch_respects_a_subclass_that_overrides_getitem() -> None:
    class Loud(TensorDataset):
        def __getitem__(self, i: int) -> tuple[Tensor, ...]:
            raise AssertionError("read")

    with pytest.raises(AssertionError, match="read"):
        fetch(Loud(*data().tensors), [0])


def test_fetch_outside_is_an_index_error() -> None:
    with pytest.raises(IndexError):
        fetch(data(), [7])


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_batches_cover_everything_in_order(size: int) -> None:
    parts = list(batches(data(), size, num_classes=7))
    assert torch.cat([labels for _, labels in parts]).tolist() == list(range(7))
    assert torch.equal(torch.cat([images for images, _ in parts]), data().tensors[0])
    assert all(len(labels) == size for _, labels in parts[:-1])


def test_batches_move_to_a_device() -> None:
    images, labels = next(batches(data(), 2, device="meta"))
    assert (images.device.type, labels.device.type) == ("meta", "meta")


def test_an_empty_domain_is_named_at_the_call() -> None:
    empty = TensorDataset(torch.empty(0, 3, 4, 4), torch.empty(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="domain 'photo' has no images"):
        batches(empty, 2, domain="photo")


@pytest.mark.parametrize("size", [0, -3, 2.0, True])
def test_a_bad_batch_size_is_refused_at_the_call(size: int) -> None:
    error = ValueError if type(size) is int else TypeError
    with pytest.raises(error, match=rf"batch_size is {size!r}; expected a whole number"):
        batches(data(), size)


@pytest.mark.parametrize("label", [-1, 5])
def test_labels_outside_the_classes_are_named(label: int) -> None:
    labels = torch.tensor([0, 1, 2, label])
    dataset = TensorDataset(torch.rand(4, 3, 4, 4), labels)
    with pytest.raises(
        ValueError, match=rf"domain 'x', batch 1: label {label} lies outside \[0, 5"
    ):
        list(batches(dataset, 2, domain="x", num_classes=5))
    assert len(list(batches(dataset, 2, domain="x"))) == 2


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2).long(), TypeError, "uint8"),
        (torch.zeros(2, 4, 4), torch.zeros(2).long(), ValueError, r"shape \(2, 4, 4\)"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2), TypeError, "labels are torch.float32"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 1).long(), ValueError, r"labels .* \(2, 1\)"),
    ],
)
def test_wrong_tensors_are_refused(
    images: Tensor, labels: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"domain 'x', batch 0: .*{message}"):
        list(batches(TensorDataset(images, labels), 2, domain="x"))


def test_a_shape_that_changes_between_batches_is_named() -> None:
    samples = [(torch.zeros(3, 4, 4), 0)] * 2 + [(torch.zeros(3, 5, 4), 0)] * 2
    with pytest.raises(ValueError, match=r"domain 'x', batch 1: .*\(3, 5, 4\).*\(3, 4, 4\)"):
        list(batches(Listed(samples), 2, domain="x"))


def test_a_shape_that_changes_within_a_batch_is_named() -> None:
    samples = [(torch.zeros(3, 4, 4), 0), (torch.zeros(3, 5, 4), 0)]
    with pytest.raises(ValueError, match=r"domain 'x', batch 0: .*different shapes"):
        list(batches(Listed(samples), 2, domain="x"))


def test_a_sample_that_is_no_pair_is_refused() -> None:
    with pytest.raises(
        TypeError, match=r"domain 'x', batch 0: .*expected an \(image, label\) pair"
    ):
        list(batches(Listed([torch.zeros(3, 4, 4)]), 1, domain="x"))
    with pytest.raises(TypeError, match=r"is a dict of 'x', 'label'; expected .* 'image' and"):
        fetch(Listed([{"x": torch.zeros(3, 4, 4), "label": 1}]), [0])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda image, label: (image, torch.tensor(label), torch.zeros(5)),  # WILDS
        lambda image, label: {"image": image, "label": label},  # the Hugging Face hub
        lambda image, label: {"pixel_values": image, "labels": label, "image": "not prepared"},
    ],
)
def test_triples_and_dicts_are_read_as_pairs(wrap: Callable[[Tensor, int], object]) -> None:
    samples = [wrap(image, int(label)) for image, label in data()]
    (images, labels), (more, _) = batches(Listed(samples), 4)
    assert torch.equal(images, data().tensors[0][:4])
    assert labels.tolist() == [0, 1, 2, 3]
    assert len(more) == 3


def test_tensors_of_images_labels_and_metadata_are_read_as_pairs() -> None:
    images, labels = data().tensors
    found = fetch(TensorDataset(images, labels, torch.zeros(7, 2)), [4, 0])
    assert torch.equal(found[0], images[[4, 0]])
    assert found[1].tolist() == [4, 0]


def test_pil_images_are_refused_with_the_transform_that_is_missing() -> None:
    with pytest.raises(TypeError, match=r"is \(Image, int\); .*transform=torchvision.*ToTensor"):
        fetch(Listed([(Image.new("RGB", (4, 4)), 0)]), [0])


def test_what_is_given_for_a_domain_may_be_tensors_but_no_loader() -> None:
    images, labels = data().tensors
    given = named_domains({"a": (images, labels), "b": data()}, "data")
    assert torch.equal(fetch(given["a"], [3])[0], images[[3]])
    assert count(MultipleDomainDataset({"a": (images, labels)}, ("k",), (3, 4, 4))["a"]) == 7
    with pytest.raises(TypeError, match=r"data\['b'\] is a DataLoader; expected the dataset"):
        named_domains({"a": data(), "b": DataLoader(data(), 2)}, "data")
    with pytest.raises(ValueError, match=r"data\['a'\] holds .*\[7, 3, 4, 4\].*\[6\]"):
        named_domains({"a": (images, labels[:6])}, "data")


def test_all_that_takes_domains_takes_tensors_triples_and_dicts() -> None:
    tensors = torch.rand(6, 3, 28, 28), torch.arange(6)
    triples = [(image, int(label), "metadata") for image, label in zip(*tensors, strict=True)]
    dicts = [{"image": image, "label": label} for image, label, _ in triples]
    kinds = {"tensors": tensors, "triples": Listed(triples), "dicts": Listed(dicts)}
    plain = dict.fromkeys(kinds, TensorDataset(*tensors))
    found = []
    for given in (kinds, plain):
        model = dg.build_model("digits_cnn", width=4)
        dg.fit(model, given, steps=2, batch_size=3)
        dg.recalibrate_batchnorm(model, given)
        small, plan = dg.prune(model, given, pruning_ratio=0.5)
        found.append((plan.removed, dg.evaluate(small, given).to_dict()))
    assert found[0] == found[1]


def test_an_iterable_dataset_has_no_length() -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Iterator[Tensor]:
            return iter(())

    with pytest.raises(TypeError, match="domain 'x' is a Stream without a length"):
        count(Stream(), "x")


class Drawing(Dataset):
    """Augments: every image is another each time, and says which process read it."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.rand(3, 4, 4), os.getpid()


def test_workers_read_the_same_whatever_their_number() -> None:
    places = [[0, 1], [5], [2, 3, 4]]
    state = torch.get_rng_state()
    none, one, two = (
        [batch["a"] for batch in read({"a": Drawing()}, {"a": places}, workers=workers, seed=3)]
        for workers in (0, 1, 2)
    )
    for parts in zip(none, one, two, strict=True):
        assert torch.equal(parts[0][0], parts[1][0])
        assert torch.equal(parts[0][0], parts[2][0])
    assert not torch.equal(none[0][0][0], none[1][0][0])  # another seed for every batch
    assert torch.equal(state, torch.get_rng_state())
    readers = [{int(pid) for _, labels in parts for pid in labels} for parts in (none, one, two)]
    assert readers[0] == {os.getpid()}
    assert [len(pids - {os.getpid()}) for pids in readers] == [0, 1, 2]
    again = next(read({"a": Drawing()}, {"a": places}, seed=4))["a"][0]
    assert not torch.equal(again, none[0][0])


def test_a_domain_without_places_is_left_out() -> None:
    found = list(read({"a": data(), "b": Drawing()}, {"a": [[1], [2]], "b": [[0], []]}))
    assert [sorted(batch) for batch in found] == [["a", "b"], ["a"]]
