"""Images of a domain as batches: at given indices, or all in order and checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

from dgprune_lite.checks import whole_number
from dgprune_lite.domains.tensors import ImageTensors, is_gpu, to_device

Pair = tuple[Tensor, Tensor]
Indices = Sequence[Sequence[int] | Tensor] | Tensor
"""The indices wanted in each batch; a tensor has one row a batch."""

# What the Hugging Face hub calls an image, prepared or not, and its class.
KEYS = (("pixel_values", "image"), ("label", "labels"))


def count(dataset: Dataset, domain: str = "?", least: int = 0) -> int:
    """Return how many images a dataset has; refuse one without a length, or with too few (≤ 2)."""
    try:
        total = len(cast(Sized, dataset))
    except TypeError as error:
        raise TypeError(
            f"domain {domain!r} is a {type(dataset).__name__} without a length; expected a "
            f"map-style dataset with __len__ and __getitem__ (not an IterableDataset)"
        ) from error
    if total < least:
        raise ValueError(
            f"domain {domain!r} has {('no images', 'one image')[total]}; expected at least {least} "
            f"(check its folder, or the split it comes from)"
        )
    return total


def fetch(dataset: Dataset, indices: Sequence[int] | Tensor) -> Pair:
    """Return the images and labels at the given indices, as one batch: copies, on their device."""
    if isinstance(dataset, ImageTensors):
        return dataset.batch(indices)
    if isinstance(dataset, TensorDataset) and in_memory(dataset):
        images, labels = dataset.tensors[:2]
        wanted = torch.as_tensor(indices, dtype=torch.long, device=images.device)
        return images[wanted], labels[wanted]
    if isinstance(dataset, Subset) and in_memory(dataset):
        return fetch(dataset.dataset, torch.as_tensor(dataset.indices)[torch.as_tensor(indices)])
    numbers = indices.tolist() if isinstance(indices, Tensor) else [int(i) for i in indices]
    all_at_once = getattr(dataset, "__getitems__", None)
    samples = all_at_once(numbers) if all_at_once else [dataset[i] for i in numbers]
    if not samples:
        raise ValueError("no indices given; expected at least one")
    kind = type(dataset).__name__
    pairs = [_image_and_label(sample, kind) for sample in samples]
    try:
        images, labels = default_collate(pairs)
    except RuntimeError as error:
        shapes = sorted({tuple(getattr(image, "shape", ())) for image, _ in pairs})
        raise ValueError(
            f"images of {kind} have different shapes {shapes}; "
            f"expected one shape for all (resize or crop them)"
        ) from error
    except TypeError as error:
        image, label = (type(part).__name__ for part in pairs[0])
        raise TypeError(
            f"a sample of {kind} is ({image}, {label}); expected a tensor and a whole number (for "
            f"PIL images, give the dataset transform=torchvision.transforms.ToTensor())"
        ) from error
    return images, labels


def _image_and_label(sample: Any, dataset: str) -> tuple[Any, Any]:
    """The pair in a sample, also in a triple as in WILDS, or a dict as on the Hugging Face hub."""
    if isinstance(sample, (tuple, list)) and len(sample) in (2, 3):
        return sample[0], sample[1]
    kind = type(sample).__name__
    if isinstance(sample, Mapping):
        found = [[sample[key] for key in keys if key in sample] for keys in KEYS]
        if all(found):
            return found[0][0], found[1][0]
        kind += f" of {', '.join(map(repr, sample))}"
    raise TypeError(
        f"a sample of {dataset} is a {kind}; expected an (image, label) pair, (image, label, "
        f"metadata) or a dict with 'image' and 'label'. Wrap it in a dataset whose __getitem__ "
        f"returns (image, label)"
    )


def in_memory(dataset: Dataset) -> bool:
    """Whether ``fetch`` indexes the images as one tensor."""
    if type(dataset) is Subset:
        return in_memory(dataset.dataset)
    if type(dataset) is TensorDataset:
        return len(dataset.tensors) in (2, 3)
    return type(dataset) is ImageTensors


def read(
    datasets: Mapping[str, Dataset],
    indices: Mapping[str, Indices],
    *,
    workers: int = 0,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Iterator[dict[str, Pair]]:
    """Read batch after batch from several domains, the same for any number of ``workers``."""
    workers = whole_number("workers", workers)
    if all(map(in_memory, datasets.values())):
        workers = 0  # they would only copy
    loader = DataLoader(
        _Batches(datasets, indices, seed),
        batch_size=None,  # each sample is a whole batch
        num_workers=workers,
        pin_memory=is_gpu(device) and workers > 0,
        generator=torch.Generator(),  # else it would draw from the caller's
    )
    return iter(loader)


class _Batches(Dataset):
    """Number of a batch to what is read for it, of every domain that has an index in it."""

    def __init__(
        self, datasets: Mapping[str, Dataset], indices: Mapping[str, Indices], seed: int
    ) -> None:
        self.datasets, self.indices = dict(datasets), dict(indices)
        generator = torch.Generator().manual_seed(seed)
        self.seeds = torch.randint(2**31, (len(self),), generator=generator)

    def __len__(self) -> int:
        return len(next(iter(self.indices.values())))

    def __getitem__(self, number: int) -> dict[str, Pair]:
        found, seed = {}, int(self.seeds[number])
        with torch.random.fork_rng(devices=[]):  # for datasets that draw, to augment say
            for name, dataset in self.datasets.items():
                torch.default_generator.manual_seed(seed)
                try:
                    if len(indices := self.indices[name][number]):
                        found[name] = fetch(dataset, indices)
                except (TypeError, ValueError) as error:
                    raise type(error)(f"domain {name!r}, batch {number}: {error}") from error
        return found


def batches(
    dataset: Dataset,
    batch_size: int,
    *,
    domain: str = "?",
    num_classes: int | None = None,
    device: torch.device | str | None = None,
    workers: int = 0,
) -> Iterator[Pair]:
    """Return all images of a domain in order, in batches that ``check_batch`` has passed."""
    size, total = whole_number("batch_size", batch_size, 1), count(dataset, domain, least=1)
    indices = [range(start, min(start + size, total)) for start in range(0, total, size)]
    parts = read({domain: dataset}, {domain: indices}, workers=workers, device=device)

    def checked() -> Iterator[Pair]:
        shape: tuple[int, ...] | None = None
        for number, part in enumerate(parts):
            images, labels = part[domain]
            check_batch(images, labels, f"domain {domain!r}, batch {number}", shape, num_classes)
            shape = tuple(images.shape[1:])
            yield to_device(images, device), to_device(labels, device)

    return checked()


def check_batch(
    images: Tensor,
    labels: Tensor,
    where: str,
    shape: tuple[int, ...] | None = None,
    num_classes: int | None = None,
) -> None:
    """Raise an error unless images are float (n, channels, height, width) and labels int64 (n,)."""
    image_kind, label_kind = (getattr(x, "dtype", type(x).__name__) for x in (images, labels))
    if not isinstance(images, Tensor) or not images.is_floating_point():
        raise TypeError(
            f"{where}: images are {image_kind}; expected a floating-point tensor (divide uint8 by "
            f"255)"
        )
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        raise TypeError(
            f"{where}: labels are {label_kind}; expected an int64 tensor (labels.long())"
        )
    size, wrong = tuple(images.shape), ""
    if images.ndim != 4:
        wrong = f"images have shape {size}; expected (batch, channels, height, width)"
    elif shape is not None and size[1:] != tuple(shape):
        wrong = f"images have shape {size[1:]}, those before had {tuple(shape)}; expected one shape"
    elif labels.shape != size[:1]:
        wrong = f"labels have shape {tuple(labels.shape)} for {size[0]} images; expected {size[:1]}"
    if wrong:
        raise ValueError(f"{where}: {wrong}")
    if num_classes is not None:
        check_labels(labels, num_classes, where)


def check_labels(labels: Tensor, num_classes: int, where: str) -> None:
    """Raise a ValueError that names a label that is none of the network's classes."""
    if not len(labels):
        raise ValueError(f"{where}: no images; expected at least one")
    least, most = torch.stack(labels.aminmax()).tolist()  # a GPU is waited for once
    if least < 0 or most >= num_classes:
        raise ValueError(
            f"{where}: label {least if least < 0 else most} lies outside [0, {num_classes}), the "
            f"model's classes; check the data set's labels and the model's num_classes"
        )
