"""The resumable study behind the book's figures.

Cells that prune the same dense network are one task: the network is trained once and kept, traced
once and measured once for all of them. Every cell writes its result to a file of its own, in one
piece, and is skipped when that file is there. So the study can be killed at any point and started
again, and several processes or machines can share a work folder: the first dense network to be
ready is everybody's, and each takes what no other has begun before it helps with the rest.

    python -m dgprune_book.study --help

What this file is *not*: the list of experiments (``grids.py``), what each does
(``experiment.py``), files of results (``collecting.py``) or the command line (``command.py``).
"""

from __future__ import annotations

import os
import platform
import random
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from dgprune_book.study.cells import Cell
from dgprune_book.study.experiment import Bench, run_cell
from dgprune_book.study.results import to_line
from dgprune_lite.checks import require
from dgprune_lite.files import write_atomically


def cell_path(cell: Cell, work: Path) -> Path:
    """Where a cell's result is kept."""
    return work / "cells" / cell.dense_id / f"{cell.cell_id}.json"


# The number of threads and the state of random numbers are the whole process's.
_ONE_AT_A_TIME = threading.Lock()


def run_group(cells: Sequence[Cell], work: Path, device: str = "cpu") -> None:
    """Run the cells of one dense network that have no result yet, on one thread.

    Calls from several threads of a process, such as a Dask worker's, wait for each other.
    """
    with _ONE_AT_A_TIME, one_thread():
        bench = None
        for cell in cells:
            path = cell_path(cell, work)
            if path.is_file():
                continue  # another process was faster
            bench = bench or Bench(cell, work, device)
            row = run_cell(cell, bench) | {"made_with": environment(device)}
            # The first result stays: it may have been collected since.
            write_atomically(path, to_line(row), replace=False)


def _begin_group(cells: Sequence[Cell], work: Path, device: str, name: str) -> None:
    """Run a group unless another run has begun it: the first of a run's two turns at it."""
    claim = _claim_path(cells[0], work)
    claim.parent.mkdir(parents=True, exist_ok=True)
    try:
        with claim.open("x", encoding="utf-8") as file:
            file.write(name)
    except FileExistsError:
        if _holder(claim) != name:  # its own is there if a cluster gives a lost task out again
            return
    try:
        run_group(cells, work, device)
    finally:
        claim.unlink(missing_ok=True)


def _help_group(cells: Sequence[Cell], work: Path, device: str, name: str) -> None:
    """Run what is left of a group that another run has begun: the second turn.

    A claim is a hint and nobody waits for one, since whoever made it may have been killed. The
    order is another in every run, so that two at the same group seldom run the same cell.
    """
    claim = _claim_path(cells[0], work)
    if _holder(claim) != name:  # this run is at it itself
        run_group(_shuffled(cells), work, device)
        claim.unlink(missing_ok=True)


def _shuffled(items: Sequence[Any]) -> list[Any]:
    return random.Random().sample(items, len(items))  # seeded by the system: all runs differ


def _claim_path(cell: Cell, work: Path) -> Path:
    return work / "claims" / cell.dense_id


def _holder(claim: Path) -> str:
    """The name of the run that made a claim; "" if it is gone."""
    try:
        return claim.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread for a `with` block: numbers must not depend on how many cores are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def environment(device: str = "cpu") -> dict[str, str]:
    """Versions and machine, as far as they can change a number."""
    import dgprune_lite

    return {
        "dgprune_lite": dgprune_lite.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "date": datetime.now(UTC).date().isoformat(),
    }


def run(
    cells: Iterable[Cell],
    work: str | os.PathLike[str],
    *,
    jobs: int = 1,
    backend: str = "loky",
    device: str = "cpu",
    progress: bool = True,
) -> int:
    """Run all cells that have no result in the work folder.

    Args:
        cells: What to run; cells of one dense network become one task.
        work: Folder for dense networks and results, shared by all processes.
        jobs: Processes. Each computes on one thread.
        backend: A backend of joblib: "loky" on this machine, "dask" on the cluster whose client
            is active, "sequential" in this process. Workers of a cluster should have one thread
            each: a process computes one dense network's cells at a time.
        device: Where to compute, such as "cuda".
        progress: Whether to show a progress bar with the time left.

    Returns:
        How many cells had no result at the start; all have one now.

    Raises:
        ImportError: if joblib is not installed or, for "dask", distributed.
    """
    require_backend(backend)
    import joblib

    work, name = Path(work), uuid.uuid4().hex
    groups: dict[str, list[Cell]] = {}
    pending = [cell for cell in cells if not cell_path(cell, work).is_file()]
    for cell in pending:
        groups.setdefault(cell.dense_id, []).append(cell)
    if not pending:
        return 0
    first = list(groups.values())
    turns = [(_begin_group, group) for group in first]
    turns += [(_help_group, group) for group in _shuffled(first)]
    with _progress_bar([cell_path(cell, work) for cell in pending], progress):
        choice = joblib.parallel_config(backend) if backend != "loky" else nullcontext()
        with choice:
            joblib.Parallel(n_jobs=jobs, batch_size=1)(
                joblib.delayed(turn)(group, work, device, name) for turn, group in turns
            )
    return len(pending)


def require_backend(backend: str) -> None:
    """Raise an ImportError where what a backend of joblib needs is not installed."""
    require("running a study", "joblib", extra="study")
    if backend == "dask":
        require("the backend 'dask'", "distributed", extra="dask")


@contextmanager
def _progress_bar(paths: list[Path], show: bool) -> Iterator[None]:
    """Count result files as they appear, whichever process or machine writes them."""
    finished = threading.Event()

    def watch() -> None:
        missing = set(paths)
        with tqdm(total=len(paths), unit="cell", smoothing=0.02, disable=not show) as bar:
            last = False
            while not last:
                last = finished.wait(2.0)
                done = {path for path in missing if path.is_file()}
                missing -= done
                bar.update(len(done))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
