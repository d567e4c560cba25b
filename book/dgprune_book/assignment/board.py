"""The leaderboard: what every submission loses, and how far it is from the best baseline.

What this file is *not*: a judge of small differences. It says what the networks cannot tell.
"""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from dgprune_book.assignment.protocol import BASELINES, RATIO, Outcome
from dgprune_book.figures import wording
from dgprune_book.study import analysis

WIDTH = 100  # columns of the printed board
SHORTEST_NAME = 12  # where the other columns leave no more


@dataclass(frozen=True)
class Entry:
    """A submission that was scored on all networks; all losses in points, lower is better.

    Attributes:
        name: Of the submission or baseline.
        baseline: Whether it is one.
        unseen: Points lost on the unseen domain, mean over networks; None where that is hidden.
        in_domain: Points lost on held-out images of the sources, mean over networks.
        by_domain: Test domain to the points lost when it is left out: of the column that the board
            is sorted by, mean over seeds.
        better_by: Points by which it loses less than the best baseline, mean over networks; None
            for that baseline itself, and where there is one network.
        low: Lower end of a bootstrap 95 % interval of ``better_by``.
        high: Upper end.
        seconds: Processor time for the scores of one network, mean.
    """

    name: str
    baseline: bool
    unseen: float | None
    in_domain: float
    by_domain: dict[str, float]
    better_by: float | None
    low: float | None
    high: float | None
    seconds: float


@dataclass(frozen=True)
class Board:
    """The leaderboard.

    Attributes:
        entries: Ranked, the best first.
        not_ranked: Name to what was wrong, and on which network.
        best_baseline: Name of the baseline that the others are compared to; None if none ran.
        remarks: What a reader must know.
    """

    entries: tuple[Entry, ...]
    not_ranked: dict[str, str]
    best_baseline: str | None
    remarks: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The board as plain data, for JSON."""
        return asdict(self)

    def to_text(self, width: int = WIDTH) -> str:
        """The board as text of so many columns; with more domains than fit, it is wider."""
        return _render(self, width)

    def __str__(self) -> str:
        return self.to_text()


def make_board(outcome: Outcome, *, sources_only: bool = False) -> Board:
    """Rank submissions by the points that they lose on the unseen domain.

    Args:
        outcome: From :func:`~dgprune_book.assignment.protocol.run`.
        sources_only: Rank by in-domain loss, and leave the unseen domain out altogether.

    Returns:
        The :class:`Board`. A submission without scores for some network is not ranked.
    """
    value = "loss_in_domain" if sources_only else "loss_unseen"
    failed = _failed(outcome)
    rows = [row for row in outcome.rows if row["criterion"] not in failed]
    if not rows:
        return Board((), failed, None, ())
    lost = analysis.losses(pd.DataFrame([*outcome.controls, *rows]))
    means = lost.groupby("method")[value].mean()
    beatable = [name for name in BASELINES if name in means and name != "random"]
    best = min(beatable, key=lambda name: means[name]) if beatable else None
    order = sorted(means.index, key=lambda name: (round(means[name], 9), name))
    entries = tuple(_entry(lost, name, best, value, sources_only) for name in order)
    return Board(entries, failed, best, _remarks(lost, best, value))


def _failed(outcome: Outcome) -> dict[str, str]:
    """Name to the first problem, and on how many networks there was one."""
    failed: dict[str, str] = {}
    for row in outcome.problems:
        if row["criterion"] not in failed:
            same = [each for each in outcome.problems if each["criterion"] == row["criterion"]]
            where = f"with {row['test_env']} left out, seed {row['seed']}"
            share = f"{where}; {len(same)} of {len(outcome.controls)} networks"
            failed[row["criterion"]] = f"{row['problem']} ({share})"
    return failed


def _entry(
    lost: pd.DataFrame, name: str, best: str | None, value: str, sources_only: bool
) -> Entry:
    part = lost[lost["method"] == name]
    compared: dict[str, Any] = dict.fromkeys(("difference", "low", "high"))
    if best is not None and name != best and len(part) > 1:
        table = analysis.compare(lost, name, [best], pruning_ratio=RATIO, value=value)
        compared = table.to_dict("records")[0]
    return Entry(
        name=name,
        baseline=name in BASELINES,
        unseen=None if sources_only else float(part["loss_unseen"].mean()),
        in_domain=float(part["loss_in_domain"].mean()),
        by_domain={env: float(v) for env, v in part.groupby("test_env")[value].mean().items()},
        better_by=compared["difference"],
        low=compared["low"],
        high=compared["high"],
        seconds=float(part["scoring_seconds"].mean()),
    )


def _remarks(lost: pd.DataFrame, best: str | None, value: str) -> tuple[str, ...]:
    where = "the unseen domain" if value == "loss_unseen" else "held-out images of the sources"
    remarks = [
        f"{wording.describe_pairs(lost)}. Points of accuracy lost on {where} against the unpruned "
        f"network with the same fine-tuning, at ratio {RATIO:g}; the columns of domains say which "
        "one was left out. Lower is better.",
    ]
    table = analysis.table_of_pairs(lost, RATIO, value)
    pairs = len(table)
    if best is None or pairs < 2:
        return (*remarks, "One network says nothing about a difference between criteria.")
    if len(table.columns) < 2:
        return tuple(remarks)  # the baseline alone
    differences = table.drop(columns=best).rsub(table[best], axis=0)
    spread = float(differences.std(ddof=1).median())
    remarks.append(
        f"'better by' is the mean difference to {best}, the best baseline of this run, network by "
        "network, with a bootstrap 95 % interval. An interval that contains 0 tells nothing apart."
    )
    # Two-sided test at 5 %, power 80 %, as in chapter 7: n = ((1.96 + 0.84) s / δ)².
    seen = (1.96 + 0.84) * spread / pairs**0.5
    smallest = 2 / 2**pairs
    remarks.append(
        f"{pairs} networks cannot separate small differences: with the spread of this table "
        f"(median standard deviation {spread:.1f} points) a true difference would have to be "
        f"about {seen:.0f} points to be seen four times out of five. "
        + (
            f"No Wilcoxon test over {pairs} pairs gives a p below {smallest:.3f}, and intervals "
            "over so few come out too narrow."
            if smallest > 0.01
            else ""
        )
    )
    return tuple(remark.strip() for remark in remarks)


# --- As text --------------------------------------------------------------------------------


def _render(board: Board, width: int) -> str:
    parts = []
    if board.entries:
        parts.append(_table(board, width))
    if board.not_ranked:
        lines = ["Not ranked:"]
        for name, problem in board.not_ranked.items():
            text = f"{_clean(name)}: {problem}"
            lines += textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="    ")
        parts.append("\n".join(lines))
    parts += [textwrap.fill(remark, width) for remark in board.remarks]
    return "\n\n".join(parts)


def _table(board: Board, width: int) -> str:
    first = board.entries[0]
    domains = list(first.by_domain)
    rows = [["", "submission", *([] if first.unseen is None else ["unseen"]), "in-domain"]]
    rows[0] += [*domains, "better by (95 %)", "CPU s"]
    rank = 0
    for entry in board.entries:
        rank += not entry.baseline
        row = ["", f"[{entry.name}]"] if entry.baseline else [str(rank), _clean(entry.name)]
        row += [] if entry.unseen is None else [f"{entry.unseen:z.1f}"]
        row += [f"{entry.in_domain:z.1f}"]
        row += [f"{entry.by_domain[name]:z.1f}" for name in domains]
        rows.append([*row, _difference(entry, board.best_baseline), f"{entry.seconds:.1f}"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    room = max(SHORTEST_NAME, width - sum(widths) - 2 * len(widths) + 2 + widths[1])
    widths[1] = min(widths[1], room)
    for row in rows:
        row[1] = row[1] if len(row[1]) <= room else f"{row[1][: room - 1]}…"
    lines = [
        "  ".join(
            cell.ljust(size) if i == 1 else cell.rjust(size)
            for i, (cell, size) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _clean(name: str) -> str:
    """A name fit to be printed; file names may hold anything."""
    return "".join(c if c.isprintable() else "?" for c in name)


def _difference(entry: Entry, best: str | None) -> str:
    if entry.name == best:
        return "best baseline"
    if entry.better_by is None or entry.low is None or entry.high is None:
        return ""
    return wording.with_interval(entry.better_by, entry.low, entry.high)
