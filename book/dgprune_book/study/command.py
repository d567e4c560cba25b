"""The command line of the study: ``python -m dgprune_book.study --help``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from dgprune_book.study.cells import Cell
from dgprune_book.study.collecting import collect, collected, names_of, restore
from dgprune_book.study.datasets import PACS_FOLDER
from dgprune_book.study.grids import GRIDS, grid_cells, stages
from dgprune_book.study.runner import cell_path, require_backend, run


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
            require_backend(options.backend)
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


def _to_do(names: Sequence[str], files: Iterable[Path], work: Path, jobs: int) -> str:
    """What there is to do, in words; nothing is written."""
    cells = grid_cells(names)
    done = {key for path in files for key in collected(path)[0]}
    todo = [c for c in cells if names_of(c) not in done and not cell_path(c, work).is_file()]
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
