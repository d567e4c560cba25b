"""Score submissions and prune by their scores, as the book does: the assignment's protocol.

For every network (a test domain and a seed): train it, or take it from the study's folder; measure
the control; ask every submission for scores; prune, recalibrate, fine-tune and measure with the
functions of ``experiment.py``. Nothing of the protocol is written here a second time.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dgprune_book.assignment.packing import pack
from dgprune_book.assignment.runner import Answer, Limits, ask
from dgprune_book.study import runner
from dgprune_book.study.cells import Cell, cross
from dgprune_book.study.experiment import Bench, network_recipe, prune_and_measure, random_seed
from dgprune_lite.channels.graph import ChannelGraph
from dgprune_lite.pruning.plans import PruningPlan
from dgprune_lite.pruning.pruning import plan_pruning

BASELINE_FILES = Path(__file__).parent / "baselines"
BASELINES = ("random", "l1", "bn_scale", "fisher", "risk_variance")
RATIO = 0.5  # share of every layer's filters that goes


@dataclass(frozen=True)
class Outcome:
    """What came of all submissions on all networks.

    Attributes:
        controls: One row per network: the unpruned one, with the same fine-tuning.
        rows: One row a (network, submission) with valid scores: the fields of a cell, with the
            submission's name as ``criterion``, and its results.
        problems: One row a (network, submission) without: ``criterion``, ``test_env``, ``seed``,
            ``problem`` and the end of what it ``printed``.
        submissions: Name to the SHA-256 of the file, baselines included.
    """

    controls: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    problems: list[dict[str, Any]]
    submissions: dict[str, str]


def collect_submissions(places: Iterable[str | Path]) -> dict[str, bytes]:
    """Read the submissions of files and folders.

    Args:
        places: Python files, and folders with such files at any depth. In folders, names that
            begin with "." or "_" are passed over.

    Returns:
        Name to content, sorted by name: the file's name or, where several files share it, as in
        folders with one submission each, the name with its folder's before it.

    Raises:
        FileNotFoundError: No such file or folder, or a folder without a submission.
        ValueError: Two submissions, or one and a baseline, of one name.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for student in ("ada", "max"):
    ...         path = Path(folder, student, "my_score.py")
    ...         path.parent.mkdir()
    ...         _ = path.write_text(student)
    ...     collect_submissions([folder])
    {'ada/my_score': b'ada', 'max/my_score': b'max'}
    """
    files: list[Path] = []
    for place in map(Path, places):
        found = [place] if place.is_file() else _in_folder(place)
        if not found:
            what = "no Python file in" if place.is_dir() else "no file or folder"
            raise FileNotFoundError(
                f"{what} {str(place)!r}; expected submissions, such as the file that "
                "python -m dgprune_book.assignment --template my_score.py writes"
            )
        files += found
    files = sorted({path.resolve() for path in files})
    stems = [path.stem for path in files]
    shared = {stem for stem in stems if stems.count(stem) > 1}
    named: dict[str, Path] = {}
    for path, stem in zip(files, stems, strict=True):
        name = f"{path.parent.name}/{stem}" if stem in shared else stem
        if other := named.get(name):
            raise ValueError(f"{str(path)!r} and {str(other)!r} are both {name!r}: rename one")
        if name in BASELINES:
            raise ValueError(f"{str(path)!r} has the name of a baseline, {name!r}: rename it")
        named[name] = path
    return {name: named[name].read_bytes() for name in sorted(named)}


def _in_folder(folder: Path) -> list[Path]:
    def hidden(path: Path) -> bool:
        return any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)

    return [path for path in folder.rglob("*.py") if path.is_file() and not hidden(path)]


def baseline_submissions(names: Iterable[str] = BASELINES) -> dict[str, bytes]:
    """The criteria to beat, name to content: submissions like any other."""
    return {name: (BASELINE_FILES / f"{name}.py").read_bytes() for name in names}


def networks(
    seeds: Iterable[int] = (0,),
    *,
    dataset: str = "DigitsLite",
    test_envs: Iterable[str] | None = None,
    **settings: Any,
) -> list[Cell]:
    """The unpruned networks that submissions are judged on, one a test domain and seed.

    Args:
        seeds: Of the networks; by default those of the book's first seed.
        dataset: As in :class:`~dgprune_book.study.cells.Cell`.
        test_envs: The domains left out in turn; all of the data set by default.
        settings: Further fields of the cells, such as ``dense_steps``.

    >>> [cell.test_env for cell in networks()]
    ['mnist', 'mnist_m', 'optdigits', 'syn']
    """
    return cross([], [], seeds=seeds, dataset=dataset, test_envs=test_envs, **settings)


def run(
    submissions: Mapping[str, bytes],
    controls: Sequence[Cell],
    work: str | Path,
    *,
    baselines: Sequence[str] = BASELINES,
    limits: Limits | None = None,
    jobs: int = 1,
    progress: bool = False,
) -> Outcome:
    """Run baselines and submissions on all networks.

    Args:
        submissions: From :func:`collect_submissions`; the baselines are added.
        controls: From :func:`networks`.
        work: The study's folder, where trained networks and controls are kept for the next run.
        baselines: Some of ``BASELINES``.
        limits: What a submission may use for one network.
        jobs: Processes; each computes on one thread.
        progress: Whether to say on standard error what is done.

    Returns:
        The :class:`Outcome`. A submission that fails is among its problems and keeps no other
        from being run.

    Raises:
        ImportError: if joblib is not installed.
    """
    runner.require("scoring submissions", "joblib", extra="study")
    import joblib

    work, everyone = Path(work).resolve(), {**baseline_submissions(baselines), **submissions}
    runner.run(controls, work, jobs=jobs, progress=progress)
    parts = joblib.Parallel(n_jobs=jobs)(
        joblib.delayed(_run_network)(cell, everyone, work, limits or Limits(), progress)
        for cell in controls
    )
    return Outcome(
        [json.loads(runner.cell_path(cell, work).read_text(encoding="utf-8")) for cell in controls],
        [row for rows, _ in parts for row in rows],
        [row for _, problems in parts for row in problems],
        {name: hashlib.sha256(content).hexdigest() for name, content in everyone.items()},
    )


def _run_network(
    control: Cell, submissions: Mapping[str, bytes], work: Path, limits: Limits, progress: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and problems of all submissions on one network."""
    rows, problems = [], []
    with runner.one_thread():
        bench = Bench(control, work)
        recipe = network_recipe(control, bench.split)
        packed = pack(bench.model, recipe, bench.split, random_seed(control, bench.graph))
        for number, (name, content) in enumerate(submissions.items(), 1):
            start = time.monotonic()
            answer = ask(content, packed, bench.graph, limits=limits, forbidden=[work])
            base = {**asdict(control), "criterion": name, "pruning_ratio": RATIO}
            if answer.scores is None:
                told = {key: base[key] for key in ("criterion", "test_env", "seed")}
                problems.append({**told, "problem": answer.problem, "printed": answer.printed})
            else:
                rows.append({**base, **_measure(control, bench, answer)})
            if progress:
                _say(control, f"{name} ({number} of {len(submissions)})", answer, start)
    return rows, problems


def _measure(control: Cell, bench: Bench, answer: Answer) -> dict[str, Any]:
    scores = answer.scores
    assert scores is not None

    def plan(model: nn.Module, graph: ChannelGraph, number: int) -> PruningPlan:
        return plan_pruning(graph, scores, RATIO)

    measured = prune_and_measure(control, bench, plan)
    return {**measured, "scoring_seconds": answer.seconds}


def _say(control: Cell, what: str, answer: Answer, start: float) -> None:
    state = "not ranked" if answer.problem else "done"
    where = f"{control.test_env}, seed {control.seed}"
    print(f"{where}: {what} {state}, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
