"""Leave one domain out: source domains split 80/20, the target domain kept whole and untouched."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from dgprune_lite.checks import whole_number
from dgprune_lite.domains.base import MultipleDomainDataset
from dgprune_lite.domains.loading import count


@dataclass(frozen=True)
class Split:
    """One round of leave-one-domain-out: what may be learnt from, and what is only tested on.

    Attributes:
        test_env: Name of the unseen domain.
        seed: Seed of the random division into training and held-out parts.
        train: Source domain name to its training part.
        val: Source domain name to its held-out part, for in-domain accuracy.
        target: The unseen domain, in full. Nothing but a final evaluation may read it.
        num_classes: How many classes there are.
        input_shape: (channels, height, width) of every image.
    """

    test_env: str
    seed: int
    train: dict[str, Dataset]
    val: dict[str, Dataset]
    target: Dataset
    num_classes: int
    input_shape: tuple[int, int, int]

    @property
    def example_inputs(self) -> Tensor:
        """One black image (1, channels, height, width), float32: a shape to trace with, no data."""
        return torch.zeros(1, *self.input_shape)

    def __repr__(self) -> str:
        sources = ", ".join(
            f"{name} {count(self.train[name])}+{count(self.val[name])}" for name in self.train
        )
        return f"Split(test_env={self.test_env!r}, seed={self.seed}, sources: {sources})"


def domain_permutation(name: str, total: int, seed: int) -> Tensor:
    """Return a random order of a domain's images, int64 (total,), that depends on nothing else."""
    # By a cryptographic digest, since `hash` changes by process.
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randperm(total, generator=generator)


def leave_one_domain_out(
    dataset: MultipleDomainDataset,
    test_env: str | int,
    seed: int,
    holdout_fraction: float = 0.2,
) -> Split:
    """Keep one domain unseen and divide every other into a training and a held-out part.

    A domain is divided alike whichever other one is left out. No image of the unseen domain is read
    here. Only the training parts are augmented, if the dataset augments at all.

    Args:
        dataset: The domains.
        test_env: The unseen domain: its name, or its index in ``dataset.ENVIRONMENTS``.
        seed: Decides which images are held out; whole number of at least 0.
        holdout_fraction: Share of each source domain that is held out, in (0, 1); rounded, with
            at least one image on either side.

    Returns:
        A ``Split``; parts of a ``TensorDataset`` are such, with copies, of others a ``Subset``.

    Raises:
        TypeError: No ``MultipleDomainDataset``.
        ValueError: An unknown domain, a number out of range, a dataset of one domain, or a source
            domain with fewer than two images.

    Source: The protocol of DomainBed (Gulrajani and Lopez-Paz, "In search of lost domain
    generalization", ICLR 2021).

    >>> from dgprune_lite import DigitsLite
    >>> split = leave_one_domain_out(DigitsLite(), test_env="mnist_m", seed=0)
    >>> split
    Split(test_env='mnist_m', seed=0, sources: mnist 1920+480, optdigits 1392+348, syn 1920+480)
    >>> len(split.target), split.example_inputs.shape
    (2400, torch.Size([1, 3, 28, 28]))
    """
    if not isinstance(dataset, MultipleDomainDataset):
        raise TypeError(
            f"dataset is a {type(dataset).__name__}; expected a MultipleDomainDataset, which can "
            f"be made of named datasets"
        )
    target_name = dataset.resolve(test_env)
    seed = whole_number("seed", seed)
    if not 0.0 < holdout_fraction < 1.0:
        raise ValueError(
            f"holdout_fraction is {holdout_fraction!r}; expected a share strictly between 0 and 1"
        )
    if len(dataset) < 2:
        raise ValueError(
            f"the dataset has only the domain {target_name!r}; expected at least two, one to "
            f"leave out and one to learn from"
        )
    train: dict[str, Dataset] = {}
    val: dict[str, Dataset] = {}
    for name in (name for name in dataset if name != target_name):
        source = dataset[name]
        total = count(source, name, least=2)  # one to learn from and one to hold out
        held_out = min(max(round(holdout_fraction * total), 1), total - 1)
        order = domain_permutation(name, total, seed)
        train[name] = _subset(dataset.for_training(name), order[held_out:])
        val[name] = _subset(source, order[:held_out])
    target, classes = dataset[target_name], dataset.num_classes
    return Split(target_name, seed, train, val, target, classes, dataset.input_shape)


def _subset(dataset: Dataset, indices: Tensor) -> Dataset:
    if type(dataset) is TensorDataset:
        return TensorDataset(*(tensor[indices] for tensor in dataset.tensors))
    return Subset(dataset, indices.tolist())
