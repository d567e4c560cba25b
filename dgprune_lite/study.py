"""The resumable study behind the book's figures.

Cells that prune the same dense network are one task: the network is trained once and kept, traced
once and measured once for all of them. Every cell writes its result to a file of its own, in one
piece, and is skipped when that file is there. So the study can be killed at any point and started
again, and several processes or machines can share a work folder.

    python -m dgprune_lite.study --help

What this file is *not*: the list of experiments (``grids.py``), what each does
(``experiment.py``), or statistics (``analysis.py``).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from dgprune_lite.experiment import Bench, run_cell
from dgprune_lite.grids import GRIDS, Cell, cell_of, grid_cells
from dgprune_lite.results import read_rows, to_line, write_atomically, write_results


def cell_path(cell: Cell, work: Path) -> Path:
    """Where a cell's result is kept."""
    return work / "cells" / cell.dense_id / f"{cell.cell_id}.json"


def run_group(cells: Sequence[Cell], work: Path, device: str = "cpu") -> None:
    """Run the cells of one dense network that have no result yet, on one thread."""
    with one_thread():
        bench = None
        for cell in cells:
            if cell_path(cell, work).is_file():
                continue  # another process was faster
            bench = bench or Bench(cell, work, device)
            row = run_cell(cell, bench) | {"made_with": environment(device)}
            write_atomically(cell_path(cell, work), to_line(row))


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
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
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
            is active, "sequential" in this process.
        device: Where to compute, such as "cuda".
        progress: Whether to show a progress bar with the time left.

    Returns:
        How many cells were run.

    Raises:
        ImportError: if joblib is not installed.
    """
    try:
        import joblib
    except ImportError as error:
        raise ImportError("running a study needs joblib: pip install joblib") from error
    work = Path(work)
    groups: dict[str, list[Cell]] = {}
    pending = [cell for cell in cells if not cell_path(cell, work).is_file()]
    for cell in pending:
        groups.setdefault(cell.dense_id, []).append(cell)
    if not pending:
        return 0
    with _progress_bar([cell_path(cell, work) for cell in pending], progress):
        choice = joblib.parallel_config(backend) if backend != "loky" else nullcontext()
        with choice:
            joblib.Parallel(n_jobs=jobs)(
                joblib.delayed(run_group)(group, work, device) for group in groups.values()
            )
    return len(pending)


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
    lines, header = read_rows(path)
    done = {_names(cell_of(row)): row for row in lines}
    count = 0
    for cell in cells:
        row, target = done.get(_names(cell)), cell_path(cell, work)
        if row is not None and not target.is_file():
            made_with = header["made_with"][row["made_with"]]
            write_atomically(target, to_line({**asdict(cell), **row, "made_with": made_with}))
            count += 1
        times = _dense_times(cell, work)
        if cell.dense_id in header.get("dense", {}) and not times.is_file():
            write_atomically(times, to_line(header["dense"][cell.dense_id]))
    return count


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
        return step * (steps + passes)

    dense = {cell.dense_id: cell for cell in cells}.values()
    training = sum(seconds(cell, cell.dense_steps, 200) for cell in dense)
    return (training + sum(seconds(cell, cell.finetune_steps, 40) for cell in cells)) / 3600


# --- The command line ---------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    grids = "\n".join(f"  {name:<10} {about}" for name, (about, _) in GRIDS.items())
    parser = argparse.ArgumentParser(
        prog="python -m dgprune_lite.study",
        description="Run the experiments behind the book's figures. Stop it at any time, in any\n"
        "way, and start it again: what is done is kept.",
        epilog=f"grids:\n{grids}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("grid", nargs="*", help="one or several, see below (default: book)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (%(default)s)")
    parser.add_argument("--work", type=Path, default=Path(".study"), help="folder (%(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("book/results"), help="for results (%(default)s)"
    )
    parser.add_argument("--backend", default="loky", help="of joblib: loky (%(default)s) or dask")
    parser.add_argument(
        "--scheduler", help="address of a Dask scheduler whose machines share --work"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--collect", action="store_true", help="only write what is done so far")
    parser.add_argument("--dry-run", action="store_true", help="only say what there is to do")
    options = parser.parse_args(arguments)
    names = options.grid or ["book"]
    for name in names:
        if name not in GRIDS:
            parser.error(f"unknown grid {name!r}; expected {', '.join(GRIDS)}")
    cells = grid_cells(names)
    for name in names:  # go on from what was collected before, here or elsewhere
        if (found := options.output / f"{name}.jsonl").is_file():
            restore(grid_cells([name]), options.work, found)
    if options.dry_run:
        todo = [cell for cell in cells if not cell_path(cell, options.work).is_file()]
        hours = estimated_hours(todo)
        print(f"{len(cells)} cells, {len(cells) - len(todo)} done, {len(todo)} to do:")
        print(
            f"about {hours:.1f} process hours, {hours / options.jobs:.1f} hours on --jobs ", end=""
        )
        print(options.jobs)
        return 0
    if not options.collect:
        with _cluster(options.backend, options.scheduler, options.jobs):
            run(
                cells,
                options.work.resolve(),
                jobs=options.jobs,
                backend=options.backend,
                device=options.device,
            )
    for name in names:
        path = options.output / f"{name}.jsonl"
        command = f"python -m dgprune_lite.study {name}"
        done, planned = collect(grid_cells([name]), options.work, path, command)
        print(f"{path}: {done} of {planned} cells", file=sys.stderr)
    return 0


@contextmanager
def _cluster(backend: str, scheduler: str | None, jobs: int) -> Iterator[None]:
    if backend != "dask":
        yield
        return
    from distributed import Client  # type: ignore[import-not-found,unused-ignore]

    where = {"address": scheduler} if scheduler else {"n_workers": jobs, "threads_per_worker": 1}
    with Client(**where):
        yield


if __name__ == "__main__":
    # As a module of its name, so that other processes can import what they are to run.
    from dgprune_lite import study

    sys.exit(study.main())
