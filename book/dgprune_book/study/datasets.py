"""The data sets of the study by name; PACS is in a folder that a variable names."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, partial

from dgprune_lite.checks import nearest_name
from dgprune_lite.domains import (
    PACS,
    ColoredMNIST,
    DigitsLite,
    MultipleDomainDataset,
    RotatedMNIST,
)

PACS_FOLDER = "DGPRUNE_PACS"  # the environment variable that says where PACS is


def _pacs(size: int) -> MultipleDomainDataset:
    folder = os.environ.get(PACS_FOLDER)
    if not folder:
        raise ValueError(
            f"where is PACS? Name its folder with --data FOLDER or the variable {PACS_FOLDER}"
        )
    return PACS(folder, image_size=size)


DATASETS: dict[str, Callable[[], MultipleDomainDataset]] = {
    "DigitsLite": DigitsLite,
    "RotatedMNIST": RotatedMNIST,
    "ColoredMNIST": ColoredMNIST,
    "PACS64": partial(_pacs, 64),
    "PACS128": partial(_pacs, 128),
}


@cache
def dataset_of(name: str, device: str) -> MultipleDomainDataset:
    """A data set, read once a process; images of PACS in the memory of the device."""
    if name not in DATASETS:
        raise ValueError(
            f"dataset {name!r} is unknown; expected one of {', '.join(DATASETS)}."
            f"{nearest_name(name, DATASETS)}"
        )
    dataset = DATASETS[name]()
    return dataset.in_memory(device) if isinstance(dataset, PACS) else dataset
