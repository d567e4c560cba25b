"""Results as words and Markdown: how the book says a number, a list or a table.

What this file is *not*: statistics (``analysis.py``), which it only calls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dgprune_book.study.analysis import PAIR
from dgprune_book.study.intervals import Estimate, bootstrap_interval

_WITH_ERROR = re.compile(r"[\d.]+ (± [\d.]+|\(-?[\d.]+ to -?[\d.]+\))")


def markdown_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """A Markdown table; the first row's keys are its head.

    A number is not parted from its error or interval at the end of a line: no-break spaces.

    >>> print(markdown_table([{"seed": 0, "loss": "1.2"}, {"seed": 1, "loss": "0.9"}]))
    | seed | loss |
    | --- | --- |
    | 0 | 1.2 |
    | 1 | 0.9 |
    """
    rows = list(rows)
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *[[_unbroken(row[name]) for name in head] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cost_on_gpu(path: str | Path) -> str:
    """What scoring costs on a GPU, as a table with a sentence; empty until it has been measured.

    Args:
        path: Of the file that ``benchmarks/scoring.py --device cuda --output`` writes.

    >>> cost_on_gpu("no such file")
    ''
    """
    if not Path(path).exists():
        return ""
    made = json.loads(Path(path).read_text(encoding="utf-8"))
    passes, scores = "bare passes", ("first order", "Fisher order")
    table = markdown_table(
        {
            "network": row["network"],
            "precision": row["precision"],
            "images a batch": row["images a batch"],
            "one pass": f"{row[f'{passes} (s)']:.2f} s, {row[f'{passes} (MiB)']:.0f} MiB",
        }
        | {
            what: f"{row[f'{what} / bare']:.2f} passes, {row[f'{what} (MiB)']:.0f} MiB"
            for what in scores
        }
        for row in made["cost"]
    )
    return f"\n\nOn a GPU ({made['gpu']}; made by `{made['command']}`):\n\n{table}"


def _unbroken(cell: Any) -> str:
    return _WITH_ERROR.sub(lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), str(cell))


def enumerate_names(names: Iterable[str]) -> str:
    """Join names as a sentence does.

    >>> enumerate_names(["a", "b", "c"]), enumerate_names(["a"]), enumerate_names([])
    ('a, b and c', 'a', 'none')
    """
    items = list(names)
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]])) if items else "none"


def with_interval(mean: float, low: float, high: float) -> str:
    """A mean with its interval in brackets.

    >>> with_interval(1.23, 0.5, 2)
    '1.2 (0.5 to 2.0)'
    """
    return f"{mean:z.1f} ({low:z.1f} to {high:z.1f})"


def p_value(p: float) -> str:
    """A p-value as tables give it.

    >>> p_value(0.0004), p_value(0.04)
    ('< 0.001', '0.040')
    """
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def describe_pairs(lost: pd.DataFrame) -> str:
    """Say how many networks a table is about.

    >>> pairs = pd.DataFrame({"test_env": ["a", "a", "b", "b"], "seed": [0, 1, 0, 1]})
    >>> describe_pairs(pairs)
    '4 networks (2 test domains, 2 seeds)'
    """

    def count(number: int, what: str) -> str:
        return f"{number} {what}{'' if number == 1 else 's'}"

    domains, seeds = lost["test_env"].nunique(), lost["seed"].nunique()
    networks = len(lost[list(PAIR)].drop_duplicates())
    return f"{count(networks, 'network')} ({count(domains, 'test domain')}, {count(seeds, 'seed')})"


def describe_mean(values: Sequence[float]) -> str:
    """Write the mean over pairs, in points, with its bootstrap interval.

    >>> describe_mean([2.0, 2.0, 2.0])
    '2.0 points (95 % interval 2.0 to 2.0)'
    """
    low, high = bootstrap_interval(values)
    return f"{np.mean(values):z.1f} points (95 % interval {low:z.1f} to {high:z.1f})"


def plus_minus(mean: float, error: float) -> str:
    """Write a mean with its standard error, where there is one.

    >>> plus_minus(3.14, 0.5), plus_minus(3.14, float("nan"))
    ('3.1 ± 0.5', '3.1')
    """
    return f"{mean:z.1f}" if np.isnan(error) else f"{mean:z.1f} ± {error:.1f}"


_DOMAINS = {"P": "photo", "A": "art painting", "C": "cartoon", "S": "sketch"}


def domain_name(name: str) -> str:
    """A domain as a reader knows it: PACS has letters.

    >>> domain_name("C"), domain_name("mnist_m")
    ('cartoon', 'mnist_m')
    """
    return _DOMAINS.get(name, name)


def with_both(found: Estimate) -> str:
    """A mean in points, with its intervals over networks and over domains.

    >>> with_both(Estimate(1.0, (0.5, 1.5), (-0.2, 2.2), 20))
    '1.0 points (95 % intervals: over networks 0.5 to 1.5, over domains -0.2 to 2.2)'
    """
    (low, high), (least, most) = found.networks, found.domains
    return (
        f"{found.mean:z.1f} points (95 % intervals: over networks {low:z.1f} to {high:z.1f}, "
        f"over domains {least:z.1f} to {most:z.1f})"
    )
