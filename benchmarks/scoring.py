"""What scoring costs, against bare forward and backward passes over the same images.

Prints a table: medians over rounds in which all rows are measured in turn, so that a machine that
slows down slows them all. Nothing is asserted.

    python benchmarks/scoring.py [--rounds 5] [--images 128] [--networks digits_cnn resnet18]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import pandas as pd
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

import dgprune_lite as dg
from dgprune_lite.running import evaluating, layout_for

SIDE = {"digits_cnn": 28, "digits_resnet": 28}
ABLATION_IMAGES = 64  # the naive loop takes a minute on these


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=128, help="images in each of two domains")
    parser.add_argument("--batch-size", type=int, default=128)
    networks = ["digits_cnn", "digits_resnet", "resnet18"]
    parser.add_argument("--networks", nargs="+", default=networks)
    settings = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), CPU")
    for name in settings.networks:
        print(f"\n{name}, 2 domains of {settings.images} images, median of {settings.rounds}")
        print(table(name, settings).to_string(float_format="{:.3f}".format))
    print(f"\nexact ablation of digits_cnn (width 32), {ABLATION_IMAGES} images")
    print(ablation_table(settings).to_string(float_format="{:.3f}".format))


def domains(side: int, images: int, count: int) -> dict[str, TensorDataset]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"domain {d}": TensorDataset(
            torch.rand(images, 3, side, side, generator=generator),
            torch.randint(0, 10, (images,), generator=generator),
        )
        for d in range(count)
    }


def table(name: str, settings: argparse.Namespace) -> pd.DataFrame:
    """Seconds of the bare passes and of each order of statistics, and their ratio."""
    side = SIDE.get(name, 64)
    model = dg.build_model(name)
    data = domains(side, settings.images, 2)
    graph = dg.trace_channels(model, torch.zeros(1, 3, side, side))

    def bare() -> None:
        with evaluating(model):
            for dataset in data.values():
                images, labels = dataset.tensors
                for x, y in zip(
                    images.split(settings.batch_size),
                    labels.split(settings.batch_size),
                    strict=True,
                ):
                    model.zero_grad()
                    x = x.contiguous(memory_format=layout_for(model))  # as the scoring does
                    F.cross_entropy(model(x), y).backward()

    def statistics(order: str) -> Callable[[], object]:
        return lambda: dg.domain_statistics(
            model, graph, data, order=order, batch_size=settings.batch_size
        )

    rows = {
        "bare forward and backward": bare,
        "first order, all filters": statistics("first"),
        "Fisher order, all filters": statistics("fisher"),
    }
    return compare(rows, settings.rounds)


def ablation_table(settings: argparse.Namespace) -> pd.DataFrame:
    """Seconds of the exact ablation and of a loop that runs the gated network M times."""
    model = dg.build_model("digits_cnn", width=32).eval()
    data = domains(28, ABLATION_IMAGES, 1)
    graph = dg.trace_channels(model, torch.zeros(1, 3, 28, 28))

    def naive() -> None:
        images, labels = next(iter(data.values())).tensors
        with torch.no_grad():
            for m in range(graph.num_filters):
                gates = torch.ones(graph.num_filters)
                gates[m] = 0
                with dg.gated(model, graph, gates):
                    for x, y in zip(
                        images.split(settings.batch_size),
                        labels.split(settings.batch_size),
                        strict=True,
                    ):
                        F.cross_entropy(model(x), y, reduction="sum")

    def cached() -> None:
        dg.domain_statistics(model, graph, data, order="exact", batch_size=settings.batch_size)

    return compare({"naive loop": naive, "exact ablation": cached}, max(3, settings.rounds // 2))


def compare(rows: dict[str, Callable[[], object]], rounds: int) -> pd.DataFrame:
    """Median seconds of each row, and the median over rounds of its ratio to the first."""
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for number in range(rounds + 1):
        for name, run in rows.items():
            start = time.perf_counter()
            run()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    frame = pd.DataFrame(seconds)
    base = frame.iloc[:, 0]
    return pd.DataFrame(
        {"seconds": frame.median(), "ratio to the first row": frame.div(base, axis=0).median()}
    )


if __name__ == "__main__":
    main()
