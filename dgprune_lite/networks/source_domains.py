"""The source domains as training sees them: checked, and mixed batch by batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from dgprune_lite.checks import named_domains, nearest_name
from dgprune_lite.domains import check_batch, count, fetch, read, to_device
from dgprune_lite.running import Logits, count_classes, device_of, in_dtype_of

ALGORITHMS = ("ERM", "VREx")
Batch = tuple[Tensor, Tensor]


def check_numbers(**settings: float) -> None:
    """Raise an error that names the first setting that is no number, negative, NaN or infinite."""
    for name, value in settings.items():
        if not hasattr(value, "__float__"):
            raise TypeError(f"{name} is {value!r}; expected a number of at least 0")
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"{name} is {value!r}; expected a finite number of at least 0")


def check_algorithm(algorithm: str, train: dict[str, Dataset]) -> None:
    """Raise a ValueError unless the algorithm is known and has the domains it needs."""
    if algorithm not in ALGORITHMS:
        raise ValueError(
            f"unknown algorithm {algorithm!r}; expected one of {', '.join(ALGORITHMS)}."
            f"{nearest_name(algorithm, ALGORITHMS)}"
        )
    if algorithm == "VREx" and len(train) == 1:
        raise ValueError(
            f"algorithm 'VREx' with the single domain {next(iter(train))!r}; expected at least "
            f"two, since it minimises the variance of their risks (use 'ERM' for one domain)"
        )


def source_domains(train: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """Return named datasets, none of them called like a column of the history."""
    train = named_domains(train, "train")
    if taken := [name for name in train if name in ("step", "loss")]:
        raise ValueError(
            f"a domain is called {taken[0]!r}, like a column of the history; give it another name"
        )
    return train


def check_domains(
    model: nn.Module, train: dict[str, Dataset], logits: Logits | None = None
) -> tuple[tuple[int, ...], int]:
    """Look at one image of each domain; return the shape of images and the number of classes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, dataset in train.items():
        count(dataset, name, least=1)
        images, labels = fetch(dataset, [0])
        check_batch(images, labels, f"domain {name!r}, image 0")
        shapes[name] = tuple(images.shape[1:])
    if len(set(shapes.values())) > 1:
        raise ValueError(f"the domains have images of shapes {shapes}; expected one shape for all")
    images = in_dtype_of(model, images.to(device_of(model)))
    return shapes[name], count_classes(model, images, logits)


def mixed_batches(
    train: dict[str, Dataset],
    indices: Mapping[str, Sequence[Tensor] | Tensor],
    shape: tuple[int, ...],
    num_classes: int,
    *,
    workers: int,
    seed: int,
    device: torch.device,
) -> Iterator[Batch]:
    """Images and labels of all domains, one domain after the other, checked and on a device."""
    loader = read(train, indices, workers=workers, seed=seed, device=device)
    for number, parts in enumerate(loader):
        for name, part in parts.items():
            check_batch(*part, f"domain {name!r}, batch {number}", shape, num_classes)
        # Each part goes to the device by itself: what is put together here is in no pinned memory.
        images, labels = zip(*parts.values(), strict=True)
        yield (
            torch.cat([to_device(part, device) for part in images]),
            torch.cat([to_device(part, device) for part in labels]),
        )


def check_losses(losses: Tensor, steps: range, names: list[str]) -> None:
    """Raise a ValueError that names the step and domain of the first loss that is not finite."""
    table = losses[steps.start : steps.stop].cpu()
    if bool(torch.isfinite(table).all()):
        return
    row = int((~torch.isfinite(table)).any(1).nonzero()[0])
    bad = [name for name, risk in zip(names, table[row, 1:], strict=True) if not risk.isfinite()]
    what = f"the risk of domain {bad[0]!r}" if len(bad) == 1 else f"the risk of domains {bad}"
    value = table[row, 1 + names.index(bad[0])] if bad else table[row, 0]
    raise ValueError(
        f"{what if bad else 'the objective'} is {float(value)} at step {steps.start + row + 1}; "
        f"expected a finite number (check the images for NaN, or lower lr)"
    )
