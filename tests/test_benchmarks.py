"""The committed tables of the benchmarks: made by the commands they name, and of today's shape."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from dgprune_book.figures import wording

ROOT = Path(__file__).parent.parent
RESULTS = sorted((ROOT / "book" / "results").glob("*_benchmark.json"))
HOW = {"command", "torch", "torchvision", "dgprune_lite", "python", "machine", "gpu", "threads"}


def shape_of(record: dict[str, object]) -> dict[str, object]:
    """The names in a file: of its settings, its tables, and the columns of these."""
    return {
        name: sorted({column for row in value for column in row}) if type(value) is list else None
        for name, value in record.items()
    }


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_file_says_how_it_was_made(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record.keys() >= HOW
    assert record["threads"] == 1
    script = f"benchmarks/{path.stem.removesuffix('_benchmark').removesuffix('_cuda')}.py"
    assert (ROOT / script).is_file()
    assert record["command"].startswith(f"python {script} ")
    assert record["command"].endswith(f"--output book/results/{path.name}")


@pytest.mark.slow
def test_the_benchmark_of_scoring_still_makes_such_a_file(tmp_path):
    command = [sys.executable, "benchmarks/scoring.py", "--rounds", "1", "--images", "4"]
    command += ["--networks", "digits_cnn", "--widths", "2", "4", "--output", str(tmp_path / "new")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    old = json.loads((ROOT / "book/results/scoring_benchmark.json").read_text(encoding="utf-8"))
    new = json.loads((tmp_path / "new").read_text(encoding="utf-8"))
    assert shape_of(new) == shape_of(old)


def test_the_table_of_a_gpu_and_what_the_book_says_of_it(monkeypatch, tmp_path):
    """Without a GPU, and without torch-pruning, which the benchmark of scoring does not need."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    scoring = importlib.import_module("scoring")
    sizes = {"rounds": 1, "images": 4, "networks": ["digits_cnn"], "batch_sizes": [2, 4]}
    settings = argparse.Namespace(device="cpu", precisions=["float32", "bfloat16"], **sizes)
    table = scoring.cost_table(settings)
    for what in (scoring.BARE, scoring.FIRST, scoring.FISHER):
        table[f"{what} (MiB)"] = 7.0  # which the CPU does not count
    scoring.write(tmp_path / "gpu.json", {"cost": table})
    text = wording.cost_on_gpu(tmp_path / "gpu.json")
    lines = [line for line in text.splitlines() if line.startswith("| digits_cnn")]
    assert [line.split(" | ")[1:3] for line in lines] == [
        [precision, size] for precision in settings.precisions for size in ("2", "4")
    ]
    assert all(line.count("passes, 7 MiB") == 2 for line in lines)


def test_the_benchmark_of_training_measures_both_loops(monkeypatch):
    """Without a GPU: which calls it makes, and that a step's time becomes steps a second."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    training = importlib.import_module("training")
    clock, asked = [0.0], []

    def fit(model, data, *, steps, cuda_graph, **settings):
        asked.append(cuda_graph)
        clock[0] += steps * (0.25 if cuda_graph else 1.0) + (len(asked) < 3)  # one warms up

    monkeypatch.setattr(training.dg, "fit", fit)
    monkeypatch.setattr(training.time, "perf_counter", lambda: clock[0])
    found = training.line(("digits_cnn", 28, 2, "float32"), 10, 1, "cpu")
    assert asked == 2 * [False, True]
    assert (found["images a step"], found["times as fast"]) == (6, 4.0)
    assert (found[training.PLAIN], found[training.REPLAYED]) == (1.0, 4.0)


def test_the_benchmark_of_scoring_waits_for_the_gpu_that_it_uses(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    scoring = importlib.import_module("scoring")
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: waited.append(device))
    settings = argparse.Namespace(device="cuda:1", rounds=1)
    assert len(scoring.measure({"nothing": lambda: None}, settings)) == 1
    assert set(waited) == {"cuda:1"}


def test_what_the_book_says_about_the_growth_of_costs_holds():
    record = json.loads((ROOT / "book/results/scoring_benchmark.json").read_text(encoding="utf-8"))
    growth = pd.DataFrame(record["growth"])
    filters = growth[growth["grows"] == "filters"]
    fisher, exact = filters["Fisher order / bare"], filters["exact ablation / bare"]
    assert fisher.max() < 1.5 * fisher.min(), (
        "the estimate costs as much for few filters as for many"
    )
    more = filters["filters"].iloc[-1] / filters["filters"].iloc[0]
    assert exact.iloc[-1] / exact.iloc[0] > more / 3, "the exact ablation does not"
    for what in ("images", "domains"):
        part = growth[growth["grows"] == what]
        seconds = part["Fisher order (s)"] / part[what]
        assert seconds.max() < 1.5 * seconds.min(), f"linear in {what}"
