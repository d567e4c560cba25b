"""The format of results: tidy JSON lines below one header line that says where they come from.

The header counts the lines and holds their checksum, so that a file that was cut short, or whose
lines were changed by hand, is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from dgprune_lite.files import write_atomically


def to_line(row: Mapping[str, Any]) -> str:
    """One row as a line of JSON, keys in order of insertion."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def write_results(
    path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]], provenance: Mapping[str, Any]
) -> None:
    """Write rows, in the order given, below a header with their provenance.

    Args:
        path: The file, replaced if it is there.
        rows: What :func:`read_results` gives back as the rows of a table.
        provenance: Command, versions, device, duration and the like.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_results(f"{folder}/r.jsonl", [{"seed": 0, "accuracy": 0.5}], {"command": "x"})
    ...     frame, header = read_results(f"{folder}/r.jsonl")
    >>> frame.accuracy.tolist(), header["lines"]
    ([0.5], 1)
    """
    lines = [to_line(row) for row in rows]
    header = {**provenance, "lines": len(lines), "sha256": _digest(lines)}
    write_atomically(path, to_line({"provenance": header}) + "".join(lines))


def read_results(path: str | os.PathLike[str]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read a file of results as a table with one row a line, and its provenance.

    See :func:`read_rows` for arguments and errors.
    """
    rows, header = read_rows(path)
    return pd.DataFrame(rows), header


def read_rows(path: str | os.PathLike[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Read a file of results as it was written.

    Args:
        path: A file that :func:`write_results` wrote.

    Returns:
        The rows, and the header's provenance.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No header, a line that is not JSON, a file that was cut short or changed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no results in {str(path)!r}: make them with python -m dgprune_book.study"
        )
    with path.open(encoding="utf-8") as file:  # str.splitlines would also split at U+2028
        first, *lines = list(file) or [""]
    try:
        header = json.loads(first)["provenance"]
        expected, digest = header["lines"], header["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(path)!r} has no header of provenance in its first line, but {first[:60]!r}"
        ) from error
    if len(lines) != expected or (lines and not lines[-1].endswith("\n")):
        whole = sum(line.endswith("\n") for line in lines)
        raise ValueError(
            f"{str(path)!r} is cut short: its header promises {expected} lines, it holds {whole} "
            "whole ones. Write it again with python -m dgprune_book.study --collect"
        )
    if _digest(lines) != digest:
        raise ValueError(
            f"{str(path)!r} was changed after it was written: its lines do not fit the checksum "
            f"{digest[:12]}... in its header. "
            "Write it again with python -m dgprune_book.study --collect"
        )
    return [json.loads(line) for line in lines], header


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(lines).encode()).hexdigest()
