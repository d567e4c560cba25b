"""The command line: ``python -m dgprune_book.assignment --help``."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dgprune_book.assignment.board import Board, make_board
from dgprune_book.assignment.protocol import (
    RATIO,
    Outcome,
    collect_submissions,
    networks,
    run,
)
from dgprune_book.assignment.runner import Limits
from dgprune_book.study.cells import ENVIRONMENTS, Cell
from dgprune_book.study.runner import environment
from dgprune_lite.checks import require
from dgprune_lite.files import write_atomically

TEMPLATE = Path(__file__).with_name("template.py")
# To see whether a submission runs: seconds instead of minutes, and numbers that mean nothing.
QUICK: dict[str, Any] = {"width": 8, "dense_steps": 40, "finetune_steps": 5}


def write_template(path: Path) -> None:
    """Write the file that students start from.

    Raises:
        FileExistsError: There is a file already; it may be somebody's work.
        FileNotFoundError: The folder does not exist.
    """
    if path.exists():
        raise FileExistsError(f"{str(path)!r} is there already: give another name, or remove it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {str(path)!r}: make the folder {path.parent}")
    write_atomically(path, TEMPLATE.read_text(encoding="utf-8"))


def to_json(
    board: Board,
    outcome: Outcome,
    controls: Sequence[Cell],
    command: str,
    limits: Limits,
    *,
    sources_only: bool,
) -> dict[str, Any]:
    """The board with where it comes from and, unless the unseen domain is hidden, all rows."""
    hidden = {} if sources_only else {"controls": outcome.controls, "rows": outcome.rows}
    shared = [k for k, v in asdict(controls[0]).items() if all(asdict(c)[k] == v for c in controls)]
    return {
        "provenance": {
            "command": command,
            "made_with": environment(),
            "seeds": sorted({cell.seed for cell in controls}),
            "networks": [cell.dense_id for cell in controls],
            "protocol": {name: asdict(controls[0])[name] for name in shared}
            | {"criterion": "the submission's", "pruning_ratio": RATIO},
            "limits": asdict(limits),
            "threads": 1,
            "submissions": outcome.submissions,
        },
        "leaderboard": board.to_dict(),
        "problems": outcome.problems,
        **hidden,
    }


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m dgprune_book.assignment",
        description="Score criteria of your own by the book's protocol, against the baselines.\n"
        "A submission is one Python file with a function score(model, graph, domains).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("submissions", nargs="*", metavar="FILE_OR_FOLDER", help="none: the baselines alone")
    add("--template", type=Path, metavar="FILE", help="write a file to start from, and stop")
    add("--quick", action="store_true", help="only see whether everything runs (tiny networks)")
    add("--sources-only", action="store_true", help="show no result of an unseen domain")
    add("--jobs", type=int, default=2, help="processes (%(default)s)")
    add("--time-limit", type=float, default=60, metavar="S", help="per network (%(default)s s)")
    add("--memory-limit", type=float, default=4, metavar="GIB", help="(%(default)s GiB)")
    add("--seeds", type=int, nargs="+", default=[0], help="of the networks (%(default)s)")
    add("--dataset", default="DigitsLite", choices=ENVIRONMENTS, help="(%(default)s)")
    add("--test-envs", nargs="+", metavar="DOMAIN", help="left out in turn (all)")
    add("--work", type=Path, default=Path(".study"), help="for trained networks (%(default)s)")
    add("--output", type=Path, metavar="FILE", help="write the board and all results as JSON")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)
    try:
        if options.template:
            write_template(options.template)
            print(f"wrote {options.template}; run it by: {parser().prog} {options.template}")
            return 0
        # Before hours of work, not after them: the board needs SciPy.
        require("scoring submissions", "joblib", "scipy", extra="study")
        submissions = collect_submissions(options.submissions)
        limits = Limits(options.time_limit, options.memory_limit)
        settings = QUICK if options.quick else {}
        unknown = set(options.test_envs or ()) - set(ENVIRONMENTS[options.dataset])
        if unknown or options.jobs < 1 or min(options.seeds) < 0:
            parser().error(
                f"--test-envs {sorted(unknown)} unknown; expected some of "
                f"{', '.join(ENVIRONMENTS[options.dataset])}"
                if unknown
                else "--jobs must be at least 1 and --seeds at least 0"
            )
    except (ImportError, OSError, ValueError) as error:
        parser().error(str(error))
    controls = networks(
        dict.fromkeys(options.seeds), dataset=options.dataset, test_envs=options.test_envs,
        **settings,
    )  # fmt: skip
    outcome = run(
        submissions, controls, options.work, limits=limits, jobs=options.jobs, progress=True
    )
    board = make_board(outcome, sources_only=options.sources_only)
    print(board)
    if options.quick:
        print("\n--quick: these networks are hardly trained. The numbers mean nothing.")
    if options.output:
        command = f"{parser().prog} {shlex.join(given)}"
        content = to_json(
            board, outcome, controls, command, limits, sources_only=options.sources_only
        )
        write_atomically(options.output, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return 0


if __name__ == "__main__":
    # As a module of its name, so that other processes can import what they are to run.
    from dgprune_book.assignment import __main__ as command_line

    sys.exit(command_line.main())
