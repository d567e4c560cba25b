"""The resumable study behind the book's figures.

Cells that prune the same dense network are one task: the network is trained once and kept, traced
once and measured once for all of them. Every cell writes its result to a file of its own, in one
piece, and is skipped when that file is there. So the study can be killed at any point and started
again, and several processes or machines can share a work folder: the first dense network to be
ready is everybody's, and each takes what no other has begun before it helps with the rest.

    python -m dgprune_book.study --help

What this file is *not*: the list of experiments (``grids.py``), what each does
(``experiment.py``), or statistics (``analysis.py``).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from dgprune_book.study.cells import Cell, cell_of
from dgprune_book.study.experiment import PACS_FOLDER, Bench, run_cell
from dgprune_book.study.grids import GRIDS, grid_cells, stages
from dgprune_book.study.results import read_rows, to_line, write_results
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
    _require_backend(backend)
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


def _require_backend(backend: str) -> None:
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
    collected, header = _collected(path)
    count = 0
    for cell in cells:
        row, target = collected.get(_names(cell)), cell_path(cell, work)
        if row is not None and not target.is_file():
            made_with = header["made_with"][row["made_with"]]
            line = to_line({**asdict(cell), **row, "made_with": made_with})
            count += write_atomically(target, line, replace=False)
        times = _dense_times(cell, work)
        if cell.dense_id in header.get("dense", {}) and not times.is_file():
            write_atomically(times, to_line(header["dense"][cell.dense_id]), replace=False)
    return count


def _collected(
    path: str | os.PathLike[str],
) -> tuple[dict[tuple[str, str], dict[str, Any]], dict[str, Any]]:
    """The rows of a collected file by the names of their cells, and its header."""
    rows, header = read_rows(path)
    return {_names(cell_of(row)): row for row in rows}, header


def _names(cell: Cell) -> tuple[str, str]:
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


def estimated_hours(cells: Sequence[Cell]) -> float:
    """Roughly how many process hours cells take on one thread of a laptop."""

    def seconds(cell: Cell, steps: int, passes: float) -> float:
        step = (0.010 + 0.0018 * cell.width) * (1.5 if cell.network == "digits_resnet" else 1)
        if cell.network == "efficientnet_lite0":
            step = 0.8 if cell.dataset == "PACS64" else 3.0
        return step * (steps + passes)

    dense = {cell.dense_id: cell for cell in cells}.values()
    training = sum(seconds(cell, cell.dense_steps, 200) for cell in dense)
    return (training + sum(seconds(cell, cell.finetune_steps, 40) for cell in cells)) / 3600


# --- The command line ---------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    grids = "\n".join(f"  {name:<10} {about}" for name, (about, _) in GRIDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m dgprune_book.study",
        description="Run the experiments behind the book's figures. Stop it at any time, in any\n"
        "way, and start it again: what is done is kept.",
        epilog=f"grids:\n{grids}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("grid", nargs="*", help="one or several, see below (default: book)")
    parser.add_argument(
        "--jobs", type=int, help=f"processes ({os.cpu_count()}, or 1 if --device is a GPU)"
    )
    parser.add_argument("--work", type=Path, default=Path(".study"), help="folder (%(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("book/results"), help="for results (%(default)s)"
    )
    parser.add_argument("--backend", default="loky", help="of joblib: loky (%(default)s) or dask")
    parser.add_argument(
        "--scheduler", help="address of a Dask scheduler whose machines share --work"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1 (%(default)s)")
    parser.add_argument(
        "--data", type=Path, help=f"folder with PACS (or the environment variable {PACS_FOLDER})"
    )
    parser.add_argument("--collect", action="store_true", help="only write what is done so far")
    parser.add_argument("--dry-run", action="store_true", help="only say what there is to do")
    options = parser.parse_args(arguments)
    names = options.grid or ["book"]
    if options.data is not None:  # as a variable, so that other processes inherit it
        os.environ[PACS_FOLDER] = str(options.data.resolve())
    for name in names:
        if name not in GRIDS:
            parser.error(f"unknown grid {name!r}; expected {', '.join(GRIDS)}")
    if options.jobs is None:  # processes would share a GPU and wait for each other
        options.jobs = (os.cpu_count() or 1) if options.device == "cpu" else 1
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs} must be at least 1")
    files = {name: options.output / f"{name}.jsonl" for name in names}
    found = {name: path for name, path in files.items() if path.is_file()}
    if options.dry_run:
        print(_to_do(names, found.values(), options.work, options.jobs))
        return 0
    if not options.collect:
        try:
            _require_backend(options.backend)
        except ImportError as error:
            parser.error(str(error))
    for name, path in found.items():  # go on from what was collected before, here or elsewhere
        restore(grid_cells([name]), options.work, path)
    if not options.collect:
        with _cluster(options.backend, options.scheduler, options.jobs):
            for stage in stages(grid_cells(names)):
                run(
                    stage,
                    options.work.resolve(),
                    jobs=options.jobs,
                    backend=options.backend,
                    device=options.device,
                )
    for name in names:
        command = f"python -m dgprune_book.study {name}"
        done, planned = collect(grid_cells([name]), options.work, files[name], command)
        print(f"{files[name]}: {done} of {planned} cells", file=sys.stderr)
    return 0


def _to_do(names: Sequence[str], collected: Iterable[Path], work: Path, jobs: int) -> str:
    """What there is to do, in words; nothing is written."""
    cells = grid_cells(names)
    done = {key for path in collected for key in _collected(path)[0]}
    todo = [c for c in cells if _names(c) not in done and not cell_path(c, work).is_file()]
    hours = estimated_hours(todo)
    return (
        f"{len(cells)} cells, {len(cells) - len(todo)} done, {len(todo)} to do:\n"
        f"about {hours:.1f} process hours, {hours / jobs:.1f} hours on --jobs {jobs}"
    )


@contextmanager
def _cluster(backend: str, scheduler: str | None, jobs: int) -> Iterator[None]:
    if backend != "dask":
        yield
        return
    from distributed import Client  # type: ignore[import-not-found,unused-ignore]

    where = {"address": scheduler} if scheduler else {"n_workers": jobs, "threads_per_worker": 1}
    with Client(**where) as client:
        _check_threads(client.nthreads())
        yield


def _check_threads(threads: Mapping[str, int]) -> None:
    """Refuse a cluster whose workers would have tasks wait for each other in one process."""
    for worker, number in threads.items():
        if number > 1:
            raise ValueError(
                f"worker {worker} has {number} threads, and a process computes on one: start it "
                "with dask worker --nworkers ... --nthreads 1"
            )
