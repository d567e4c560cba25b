"""Image domains from the Hugging Face hub, or from local parquet files of the same columns."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from dgprune_lite.checks import nearest_name, require
from dgprune_lite.domains.decoding import as_rgb
from dgprune_lite.domains.images import ImageDomain

if TYPE_CHECKING:
    from PIL.Image import Image

COLUMNS = ("image", "domain", "label")


def open_hub(
    repository: str | os.PathLike[str],
    revision: str | None,
    cache_dir: str | os.PathLike[str] | None,
    folders: Mapping[str, str],
    class_names: tuple[str, ...],
) -> dict[str, ImageDomain]:
    """The ``ImageDomain`` of each domain, whose rows are decoded when asked for."""
    repository, cache_dir = str(repository), None if cache_dir is None else str(cache_dir)
    require("reading from the Hugging Face hub", "datasets", extra="hub")
    from datasets import concatenate_datasets, load_dataset

    try:
        parts = load_dataset(repository, revision=revision, cache_dir=cache_dir)
    except (OSError, RuntimeError) as error:  # what `datasets` raises when a download fails
        raise ConnectionError(
            f"cannot open the data set {repository!r} ({error}). Without network, give a local "
            f"folder with its parquet files, or read the data set from a folder of images"
        ) from error
    table = concatenate_datasets([parts[name] for name in sorted(parts)])
    if missing := [column for column in COLUMNS if column not in table.column_names]:
        raise ValueError(
            f"{repository!r} has no column {missing[0]!r}, only {table.column_names}; "
            f"expected {', '.join(COLUMNS)}"
        )
    labels = _labels(table, repository, class_names)
    rows: dict[str, list[int]] = {folder: [] for folder in folders.values()}
    for row, name in enumerate(table.with_format(None)["domain"]):
        if name not in rows:
            raise ValueError(
                f"{repository!r} has the domain {name!r} in row {row}; expected one of "
                f"{', '.join(rows)}.{nearest_name(name, rows)}"
            )
        rows[name].append(row)
    if empty := [folder for folder, found in rows.items() if not found]:
        raise ValueError(
            f"{repository!r} has no images of {', '.join(empty)}; expected all of {', '.join(rows)}"
        )
    load = partial(_load_row, table)
    return {
        name: ImageDomain(name, rows[folder], [labels[row] for row in rows[folder]], load)
        for name, folder in folders.items()
    }


def _labels(table: Any, repository: str, class_names: tuple[str, ...]) -> list[int]:
    """The table's labels, numbered by our class names, which it may have in another order."""
    labels = list(table["label"])
    # A ClassLabel has names; mere numbers must be in our order.
    given = getattr(table.features["label"], "names", None) or class_names
    if set(given) != set(class_names):
        raise ValueError(
            f"{repository!r} has the classes {', '.join(given)}; expected {', '.join(class_names)}"
        )
    if outside := [label for label in set(labels) if not 0 <= label < len(given)]:
        raise ValueError(
            f"{repository!r} has the label {outside[0]}; expected 0 to {len(given) - 1}"
        )
    return [class_names.index(given[label]) for label in labels]


def _load_row(table: Any, row: int) -> Image:
    return as_rgb(table[row]["image"])
