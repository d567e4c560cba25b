"""From the many files of a study in progress to one file of results, and back.

What this file is *not*: the format of such a file (``results.py``), or what makes the many
(``runner.py``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dgprune_book.study.cells import Cell, cell_of
from dgprune_book.study.results import read_rows, to_line, write_results
from dgprune_book.study.runner import cell_path
from dgprune_lite.files import write_atomically


def collect(
    cells: Iterable[Cell], work: str | os.PathLike[str], path: str | os.PathLike[str], command: str
) -> tuple[int, int]:
    """Write the results of the cells that are done to one file of tidy JSON lines.

    Args:
        cells: The cells of interest; lines are in their order.
        work: The study's folder.
        path: The file to write.
        command: What made the results, for the header.

    Returns:
        (cells done, cells planned).

    Raises:
        ValueError: A result in the work folder that is not whole (names the file).
    """
    work, rows, cells = Path(work), [], list(cells)
    environments: dict[str, int] = {}  # each row says by number in which it was made
    for cell in cells:
        source = cell_path(cell, work)
        if source.is_file():
            row = _read_row(source)
            made = to_line(row["made_with"])
            row["made_with"] = environments.setdefault(made, len(environments))
            rows.append(row)
    files = {cell.dense_id: _dense_times(cell, work) for cell in cells}
    dense = {name: _read_row(file) for name, file in files.items() if file.is_file()}
    costs = [*dense.values(), *rows]
    provenance = {
        "command": command,
        "cells": len(cells),
        "seeds": sorted({row["seed"] for row in rows}),
        "threads": 1,
        "made_with": [json.loads(line) for line in environments],
        "dense": dense,
        **{
            f"{name}hours": round(sum(cost[f"{name}seconds"] for cost in costs) / 3600, 2)
            for name in ("", "processor_")
        },
    }
    write_results(path, rows, provenance)
    return len(rows), len(cells)


def restore(
    cells: Iterable[Cell], work: str | os.PathLike[str], path: str | os.PathLike[str]
) -> int:
    """Put the results of a collected file back into the work folder, to go on from there.

    Args:
        cells: The cells of interest.
        work: The study's folder; what it holds already is kept.
        path: A file that :func:`collect` wrote.

    Returns:
        How many cells were put back.
    """
    work = Path(work)
    found, header = collected(path)
    count = 0
    for cell in cells:
        row, target = found.get(names_of(cell)), cell_path(cell, work)
        if row is not None and not target.is_file():
            made_with = header["made_with"][row["made_with"]]
            line = to_line({**asdict(cell), **row, "made_with": made_with})
            count += write_atomically(target, line, replace=False)
        times = _dense_times(cell, work)
        if cell.dense_id in header.get("dense", {}) and not times.is_file():
            write_atomically(times, to_line(header["dense"][cell.dense_id]), replace=False)
    return count


def collected(
    path: str | os.PathLike[str],
) -> tuple[dict[tuple[str, str], dict[str, Any]], dict[str, Any]]:
    """The rows of a collected file by the names of their cells, and its header."""
    rows, header = read_rows(path)
    return {names_of(cell_of(row)): row for row in rows}, header


def names_of(cell: Cell) -> tuple[str, str]:
    """What tells a cell from all others: its dense network's name and its own."""
    return cell.dense_id, cell.cell_id


def _dense_times(cell: Cell, work: Path) -> Path:
    return work / "dense" / f"{cell.dense_id}.json"


def _read_row(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{str(path)!r} is not whole ({error}): delete it and run the study again"
        ) from error
