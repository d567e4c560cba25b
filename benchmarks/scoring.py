"""What scoring costs, against bare forward and backward passes over the same images.

Tables of medians over interleaved rounds: on the CPU in CPU seconds of one thread (which other work
on the machine disturbs less than the clock on the wall), on a GPU in seconds.

- cost: both orders of estimated scores, of all filters, in units of the bare passes; on a GPU also
  the most memory that each needs;
- growth: the same with more images, domains and filters, and the exact ablation;
- ablation: the exact ablation against a loop that runs the whole gated network once a filter;
- memory: the most that each adds to a process that has loaded the network, one process each.

On a GPU the first table alone, of the book's section on cost:

    python benchmarks/scoring.py [--rounds 5] [--images 64] [--networks ...] [--output FILE.json]
    python benchmarks/scoring.py --device cuda --output book/results/scoring_cuda_benchmark.json
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from measured import most_added, write
from torch import nn
from torch.utils.data import TensorDataset

import dgprune_lite as dg
from dgprune_lite.running import check_precision, evaluating, layout_for, logits_of

SIDE = {"digits_cnn": 28, "digits_resnet": 28}
CPU = {
    "networks": ["digits_cnn", "digits_resnet", "resnet18"],
    "images": 64,
    "batch_sizes": [128],
    "precisions": ["float32"],
}
GPU = {
    "networks": ["resnet50"],
    "images": 512,
    "batch_sizes": [64, 256],
    "precisions": ["float32", "bfloat16"],
}
ABLATION_IMAGES = 64  # the naive loop takes seconds on these
GROWTH_IMAGES = 128  # in a domain, at least: whole batches, whose fixed costs then grow alike
BARE, FIRST, FISHER, EXACT = "bare passes", "first order", "Fisher order", "exact ablation"
Rows = dict[str, Callable[[], object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, help="in each of two domains; 64, on a GPU 512")
    parser.add_argument("--batch-sizes", nargs="+", type=int, help="128; on a GPU 64 and 256")
    parser.add_argument("--networks", nargs="+")
    parser.add_argument("--widths", nargs="+", type=int, default=[8, 16, 32], help="of digits_cnn")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precisions", nargs="+", help="float32; on a GPU bfloat16, too")
    parser.add_argument("--output", type=Path, help="write the tables and how they were made")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)  # network, what
    settings = parser.parse_args()
    if on_gpu(settings) and not torch.cuda.is_available():
        parser.error(f"--device {settings.device}: PyTorch finds no CUDA device")
    for name, value in (GPU if on_gpu(settings) else CPU).items():
        if getattr(settings, name) is None:
            setattr(settings, name, value)
    for precision in settings.precisions:
        check_precision(precision, settings.device)
    torch.set_num_threads(1)
    if settings.memory_of:
        name, what = settings.memory_of
        model, data = network(name, settings)
        few = {env: TensorDataset(*part[:2]) for env, part in data.items()}
        size = settings.batch_sizes[0]
        runs(model, few, size)[what]()  # what is loaded on first use is not counted
        print(most_added(runs(model, data, size)[what]))
        return
    tables = {"cost": cost_table(settings)}
    if not on_gpu(settings):
        tables["growth"] = growth_table(settings)
        tables["ablation"] = ablation_table(settings)
        tables["memory"] = memory_table(settings)
    gpu = torch.cuda.get_device_name(settings.device) if on_gpu(settings) else None
    place = gpu or "1 thread, CPU"
    print(f"torch {torch.__version__}, {place}")
    print(f"median of {settings.rounds}, 2 domains of {settings.images} images unless it grows")
    for title, table in tables.items():
        print(f"\n{title}\n{table.to_string(float_format='{:.3f}'.format)}")
    if settings.output:
        names = ("rounds", "images", "device")
        shape = {name: getattr(settings, name) for name in names}
        # The GPU that was used need not be the first.
        shape |= {"gpu": gpu} if gpu else {"batch_size": settings.batch_sizes[0]}
        write(settings.output, tables, ablation_images=ABLATION_IMAGES, seed=0, **shape)


def on_gpu(settings: argparse.Namespace) -> bool:
    return settings.device.startswith("cuda")


def network(name: str, settings: argparse.Namespace) -> tuple[nn.Module, dict[str, TensorDataset]]:
    """A network with random weights, and random images of two domains."""
    side = SIDE.get(name, 224 if on_gpu(settings) else 64)
    model = dg.build_model(name, seed=0).to(settings.device)
    return model, domains(side, settings.images, 2, settings.device)


def domains(side: int, images: int, count: int, device: str) -> dict[str, TensorDataset]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"domain {d}": TensorDataset(
            torch.rand(images, 3, side, side, generator=generator).to(device),
            torch.randint(0, 10, (images,), generator=generator).to(device),
        )
        for d in range(count)
    }


def runs(
    model: nn.Module, data: dict[str, TensorDataset], size: int, precision: str = "float32"
) -> Rows:
    """Bare forward and backward passes over all images, and each order of statistics."""
    graph = dg.trace_channels(model, data["domain 0"].tensors[0][:1])
    layout = layout_for(model, precision)

    def bare() -> None:
        with evaluating(model):
            for dataset in data.values():
                pairs = zip(*(tensor.split(size) for tensor in dataset.tensors), strict=True)
                for images, labels in pairs:
                    model.zero_grad()
                    images = images.contiguous(memory_format=layout)  # as the scoring does
                    F.cross_entropy(logits_of(model, images, precision), labels).backward()
        model.zero_grad()

    def statistics(order: str, precision: str) -> Callable[[], object]:
        return lambda: dg.domain_statistics(
            model, graph, data, order=order, batch_size=size, precision=precision
        )

    return {
        BARE: bare,
        FIRST: statistics("first", precision),
        FISHER: statistics("fisher", precision),
        EXACT: statistics("exact", "float32"),
    }


def cost_table(settings: argparse.Namespace) -> pd.DataFrame:
    """Seconds of the bare passes, and of both orders of estimated scores in units of them."""
    lines = []
    for name in settings.networks:
        model, data = network(name, settings)
        for precision, size in itertools.product(settings.precisions, settings.batch_sizes):
            all_runs = runs(model, data, size, precision)
            calls = {what: all_runs[what] for what in (BARE, FIRST, FISHER)}
            seconds = measure(calls, settings)
            line = {"network": name, "precision": precision, "images a batch": size}
            line[f"{BARE} (s)"] = seconds[BARE].median()
            for what in (FIRST, FISHER):
                line[f"{what} / bare"] = (seconds[what] / seconds[BARE]).median()
            if on_gpu(settings):
                line |= {f"{what} (MiB)": peak_on_gpu(run) for what, run in calls.items()}
            lines.append(line)
    return pd.DataFrame(lines).set_index("network")


def peak_on_gpu(run: Callable[[], object]) -> float:
    """MiB that a run allocates at most, over what lies there before."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def growth_table(settings: argparse.Namespace) -> pd.DataFrame:
    """Seconds of digits_cnn with more images, more domains of the same size, and more filters."""
    least, width = GROWTH_IMAGES, settings.widths[0]
    grid = [
        *(("images", width, 2, images) for images in (least, 2 * least, 4 * least)),
        *(("domains", width, count, least) for count in (2, 4, 8)),
        *(("filters", width, 2, least) for width in settings.widths),
    ]
    lines, rows = [], {}
    for place, (grows, width, count, images) in enumerate(grid):
        model = dg.build_model("digits_cnn", width=width, seed=0).to(settings.device)
        data = domains(28, images, count, settings.device)
        filters = dg.trace_channels(model, data["domain 0"].tensors[0][:1]).num_filters
        lines.append(
            {"grows": grows, "images": count * images, "domains": count, "filters": filters}
        )
        all_runs = runs(model, data, settings.batch_sizes[0])
        rows |= {f"{place} {what}": all_runs[what] for what in (BARE, FISHER, EXACT)}
    seconds = measure(rows, settings)
    for place, line in enumerate(lines):
        parts = {what: seconds[f"{place} {what}"] for what in (BARE, FISHER, EXACT)}
        line |= {f"{what} (s)": part.median() for what, part in parts.items()}
        line |= {f"{what} / bare": (parts[what] / parts[BARE]).median() for what in (FISHER, EXACT)}
    return pd.DataFrame(lines).set_index("grows")


def ablation_table(settings: argparse.Namespace) -> pd.DataFrame:
    """Seconds of the exact ablation and of a loop that runs the gated network M times."""
    width = settings.widths[-1]
    model = dg.build_model("digits_cnn", width=width, seed=0).eval().to(settings.device)
    data = domains(28, ABLATION_IMAGES, 1, settings.device)
    graph = dg.trace_channels(model, data["domain 0"].tensors[0][:1])

    def naive() -> None:
        images, labels = next(iter(data.values())).tensors
        with torch.no_grad():
            for m in range(graph.num_filters):
                gates = torch.ones(graph.num_filters)
                gates[m] = 0
                with dg.gated(model, graph, gates):
                    F.cross_entropy(model(images), labels)

    rounds = max(2, settings.rounds // 2)  # the loop takes its time
    both = {"naive loop": naive, EXACT: runs(model, data, settings.batch_sizes[0])[EXACT]}
    seconds = measure(both, settings, rounds)
    line = {"filters": graph.num_filters}
    line |= {f"{what} (s)": part.median() for what, part in seconds.items()}
    line["times as fast"] = (seconds["naive loop"] / seconds[EXACT]).median()
    return pd.DataFrame([line]).set_index("filters")


def memory_table(settings: argparse.Namespace) -> pd.DataFrame:
    """MiB by which a process grows at most, on the images of the first table."""
    lines = []
    for name in settings.networks:
        lines.append({"network": name})
        for what in (BARE, FISHER):
            lines[-1][f"{what} (MiB)"] = peak(
                "--memory-of", name, what, "--images", settings.images,
                "--batch-sizes", settings.batch_sizes[0],
            )  # fmt: skip
    return pd.DataFrame(lines).set_index("network")


def peak(*arguments: object) -> float:
    command = [sys.executable, __file__, *map(str, arguments)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(rows: Rows, settings: argparse.Namespace, rounds: int | None = None) -> pd.DataFrame:
    """Seconds of every run: a column a run, a row a round, in which all are run in turn."""
    clock = time.perf_counter if on_gpu(settings) else time.process_time

    def finish() -> None:
        if on_gpu(settings):
            torch.cuda.synchronize(settings.device)

    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for number in range((rounds or settings.rounds) + 1):
        for name, run in rows.items():
            finish()
            start = clock()
            run()
            finish()
            if number:  # the first round warms up
                seconds[name].append(clock() - start)
    return pd.DataFrame(seconds)


if __name__ == "__main__":
    main()
