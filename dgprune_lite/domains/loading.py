"""Images of a domain as batches: in order, all of them, and checked.

What this file is *not*: a shuffling data loader. Training draws its own random places and has them
read with `read`; evaluation and scoring walk through a domain once, in order, with `batches`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

from dgprune_lite.domains.tensors import ImageTensors

Pair = tuple[Tensor, Tensor]
Places = Sequence[Sequence[int] | Tensor] | Tensor
"""The indices wanted in each batch; a tensor has one row a batch."""


def count(dataset: Dataset, domain: str = "?") -> int:
    """Return how many images a dataset has.

    Args:
        dataset: a map-style dataset.
        domain: its name, for the error message.

    Returns:
        The number of images.

    Raises:
        TypeError: if the dataset has no length (an `IterableDataset`, say).

    Example:
        >>> count(TensorDataset(torch.zeros(5, 3, 8, 8), torch.zeros(5, dtype=torch.long)))
        5
    """
    try:
        return len(cast(Sized, dataset))
    except TypeError as error:
        raise TypeError(
            f"domain {domain!r} is a {type(dataset).__name__} without a length; expected a "
            f"map-style dataset with __len__ and __getitem__ (not an IterableDataset)"
        ) from error


def fetch(dataset: Dataset, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
    """Return the images and labels at the given places of a dataset, as one batch.

    A `TensorDataset` or `ImageTensors` is indexed once for the whole batch. Any other dataset is
    asked for all samples at once if it has `__getitems__` (as PyTorch's `DataLoader` does), or else
    for one after another; they are then collated.

    Args:
        dataset: map-style dataset of (image, label).
        indices: places of the samples wanted, a sequence of int or an int64 tensor (n,).

    Returns:
        images (n, channels, height, width) and labels (n,), copies, on the dataset's device.

    Raises:
        IndexError: if an index lies outside the dataset.
        ValueError: if the images differ in shape, or if no index is given (neither for a
            `TensorDataset`, whose images have one shape and whose batch may be empty).
        TypeError: if a sample is not an (image, label) pair.

    Example:
        >>> data = TensorDataset(torch.rand(5, 3, 8, 8), torch.arange(5))
        >>> images, labels = fetch(data, [4, 0])
        >>> images.shape, labels
        (torch.Size([2, 3, 8, 8]), tensor([4, 0]))
    """
    if isinstance(dataset, TensorDataset) and in_memory(dataset):
        places = torch.as_tensor(indices, dtype=torch.long, device=dataset.tensors[0].device)
        images, labels = dataset.tensors
        return images[places], labels[places]
    if isinstance(dataset, ImageTensors):
        return dataset.batch(indices)
    if isinstance(dataset, Subset) and in_memory(dataset):
        return fetch(dataset.dataset, torch.as_tensor(dataset.indices)[torch.as_tensor(indices)])
    places_list = indices.tolist() if isinstance(indices, Tensor) else list(indices)
    all_at_once = getattr(dataset, "__getitems__", None)
    samples = all_at_once(places_list) if all_at_once else [dataset[int(i)] for i in places_list]
    if not samples:
        raise ValueError("no indices given; expected at least one")
    if not (isinstance(samples[0], (tuple, list)) and len(samples[0]) == 2):
        raise TypeError(
            f"a sample of {type(dataset).__name__} is a {type(samples[0]).__name__}; "
            f"expected an (image, label) pair"
        )
    try:
        images, labels = default_collate(samples)
    except RuntimeError as error:
        shapes = sorted({tuple(getattr(image, "shape", ())) for image, _ in samples})
        raise ValueError(
            f"images of {type(dataset).__name__} have different shapes {shapes}; "
            f"expected one shape for all (resize or crop them)"
        ) from error
    return images, labels


def in_memory(dataset: Dataset) -> bool:
    """Whether `fetch` indexes the images as one tensor: `TensorDataset`, `ImageTensors`, `Subset`.

    Example:
        >>> in_memory(TensorDataset(torch.rand(5, 3, 8, 8), torch.arange(5)))
        True
    """
    if type(dataset) is Subset:
        return in_memory(dataset.dataset)
    if type(dataset) is TensorDataset:
        return len(dataset.tensors) == 2
    return type(dataset) is ImageTensors


def read(
    datasets: Mapping[str, Dataset],
    places: Mapping[str, Places],
    *,
    workers: int = 0,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Iterator[dict[str, Pair]]:
    """Read batch after batch from several domains, ahead of time in other processes if asked.

    What is read depends on the places and the seed alone, not on the number of workers: a dataset
    that itself draws random numbers from torch, for augmentation say, finds the generator seeded
    anew for every batch (and the caller's is left as it was). Datasets held in memory are read in
    this process in any case: a worker would only copy them.

    Args:
        datasets: domain name to map-style dataset.
        places: domain name to the indices wanted in each batch; as many batches for all domains.
            A domain with no index in a batch is left out of it.
        workers: processes that read; 0 reads in this one. They keep batches in shared memory.
        seed: what the datasets' own random numbers are seeded with, at least 0.
        device: where the batches are to go later, see `to_device`: for a GPU, what workers have
            read is put into pinned memory, from which it fetches while it computes.

    Returns:
        An iterator over dicts of domain name to (images, labels), as `fetch` returns them.

    Raises:
        ValueError: if `workers` is not a whole number of at least 0; and what `fetch` raises,
            naming domain and batch.

    Example:
        >>> data = TensorDataset(torch.rand(5, 3, 8, 8), torch.arange(5))
        >>> [batch["a"][1].tolist() for batch in read({"a": data}, {"a": [[4, 0], [2]]})]
        [[4, 0], [2]]
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
        raise ValueError(f"workers is {workers!r}; expected a whole number of at least 0")
    if all(map(in_memory, datasets.values())):
        workers = 0
    loader = DataLoader(
        _Reader(datasets, places, seed),
        batch_size=None,  # `_Reader` makes the batches
        num_workers=workers,
        pin_memory=_is_gpu(device) and workers > 0,
        generator=torch.Generator(),  # else it would draw from the caller's
    )
    return iter(loader)


class _Reader(Dataset):
    """Batch number to what is read for it, of every domain."""

    def __init__(
        self,
        datasets: Mapping[str, Dataset],
        places: Mapping[str, Places],
        seed: int,
    ) -> None:
        self.datasets, self.places = dict(datasets), dict(places)
        generator = torch.Generator().manual_seed(seed)
        self.seeds = torch.randint(2**31, (len(self),), generator=generator)

    def __len__(self) -> int:
        return len(next(iter(self.places.values())))

    def __getitem__(self, number: int) -> dict[str, Pair]:
        found = {}
        for name, dataset in self.datasets.items():
            places = self.places[name][number]
            if len(places) == 0:
                continue
            try:
                if in_memory(dataset):
                    found[name] = fetch(dataset, places)
                    continue
                with torch.random.fork_rng(devices=[]):
                    torch.default_generator.manual_seed(int(self.seeds[number]))
                    found[name] = fetch(dataset, places)
            except (TypeError, ValueError) as error:
                raise type(error)(f"domain {name!r}, batch {number}: {error}") from error
        return found


def to_device(tensor: Tensor, device: torch.device | str | None) -> Tensor:
    """Copy a tensor to a device; to a GPU by way of pinned memory, without waiting for it.

    Example:
        >>> to_device(torch.zeros(2), "cpu")
        tensor([0., 0.])
    """
    if _is_gpu(device) and not tensor.is_cuda:
        pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
        return pinned.to(device, non_blocking=True)
    return tensor.to(device)


def _is_gpu(device: torch.device | str | None) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def batches(
    dataset: Dataset,
    batch_size: int,
    *,
    domain: str = "?",
    num_classes: int | None = None,
    device: torch.device | str | None = None,
    workers: int = 0,
) -> Iterator[Pair]:
    """Walk through a domain in order, every image once, in checked batches.

    The length and `batch_size` are checked at the call, the content batch by batch.

    Args:
        dataset: map-style dataset of (image, label).
        batch_size: images a batch; the last batch may be smaller.
        domain: name of the domain, for error messages.
        num_classes: if given, labels must lie in [0, num_classes).
        device: where the batches go; None leaves them where the dataset has them.
        workers: processes that read images ahead, see `read`; 0 for none.

    Returns:
        An iterator over (images float (n, channels, height, width), labels int64 (n,)).

    Raises:
        ValueError: for an empty domain, a batch size below 1, images that are not four-dimensional
            or change shape between batches, and labels outside the classes.
        TypeError: for images that are not floating point, or labels that are not int64.

    Example:
        >>> data = TensorDataset(torch.rand(5, 3, 8, 8), torch.arange(5))
        >>> [len(labels) for _, labels in batches(data, 2, domain="photo", num_classes=5)]
        [2, 2, 1]
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}; expected a whole number of at least 1")
    total = count(dataset, domain)
    if total == 0:
        raise ValueError(
            f"domain {domain!r} has no images; expected at least one (check its folder, or the "
            f"split it comes from)"
        )
    places = [range(start, min(start + batch_size, total)) for start in range(0, total, batch_size)]
    parts = read({domain: dataset}, {domain: places}, workers=workers, device=device)
    return _checked(parts, domain, num_classes, device)


def _checked(
    parts: Iterator[dict[str, Pair]],
    domain: str,
    num_classes: int | None,
    device: torch.device | str | None,
) -> Iterator[Pair]:
    shape: tuple[int, ...] | None = None
    for number, part in enumerate(parts):
        images, labels = part[domain]
        where = f"domain {domain!r}, batch {number}"
        check_batch(images, labels, where=where, shape=shape, num_classes=num_classes)
        shape = tuple(images.shape[1:])
        yield to_device(images, device), to_device(labels, device)


def check_batch(
    images: Tensor,
    labels: Tensor,
    *,
    where: str,
    shape: tuple[int, ...] | None = None,
    num_classes: int | None = None,
) -> None:
    """Check one batch of labelled images, and say what is wrong with it and where.

    Args:
        images: expected float (n, channels, height, width).
        labels: expected int64 (n,).
        where: the beginning of the error message, such as "domain 'photo', batch 3".
        shape: if given, the (channels, height, width) the images must have.
        num_classes: if given, labels must lie in [0, num_classes).

    Raises:
        ValueError: for another number of dimensions, another shape, labels that do not match the
            images in number or lie outside the classes.
        TypeError: for images that are not floating-point tensors or labels that are not int64.

    Example:
        >>> check_batch(torch.rand(2, 3, 8, 8), torch.tensor([1, 7]), where="here", num_classes=5)
        Traceback (most recent call last):
            ...
        ValueError: here: label 7 lies outside [0, 5); expected labels from 0 to 4
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(
            f"{where}: images are {kind}; expected a floating-point tensor "
            f"(divide uint8 images by 255)"
        )
    if images.ndim != 4:
        raise ValueError(
            f"{where}: images have shape {tuple(images.shape)}; "
            f"expected (batch, channels, height, width)"
        )
    if shape is not None and tuple(images.shape[1:]) != tuple(shape):
        raise ValueError(
            f"{where}: images have shape {tuple(images.shape[1:])}, those before had "
            f"{tuple(shape)}; expected one shape in the whole domain"
        )
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"{where}: labels are {kind}; expected an int64 tensor (labels.long())")
    if labels.shape != (len(images),):
        raise ValueError(
            f"{where}: labels have shape {tuple(labels.shape)} for {len(images)} images; "
            f"expected one class index an image"
        )
    if num_classes is not None:
        outside = labels[(labels < 0) | (labels >= num_classes)]
        if len(outside):
            raise ValueError(
                f"{where}: label {int(outside[0])} lies outside [0, {num_classes}); "
                f"expected labels from 0 to {num_classes - 1}"
            )
