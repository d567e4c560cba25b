"""What scoring costs, against bare forward and backward passes over the same images.

Prints tables: medians over rounds in which all rows are measured in turn, so that a machine that
slows down slows them all. Then how the cost grows with images, domains and filters: estimated
scores, like bare passes, with the images alone; the exact ablation also with the filters. Nothing
is asserted.

    python benchmarks/scoring.py [--rounds 5] [--images 128] [--networks digits_cnn resnet18]
    python benchmarks/scoring.py --device cuda --precision bfloat16 --networks resnet50 --images 512
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

import dgprune_lite as dg
from dgprune_lite.running import check_precision, evaluating, layout_for, logits_of

SIDE = {"digits_cnn": 28, "digits_resnet": 28}
ABLATION_IMAGES = 64  # the naive loop takes a minute on these
GROWTH_IMAGES = 32  # the smallest setting of the growth tables
Rows = dict[str, Callable[[], object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=128, help="images in each of two domains")
    parser.add_argument("--batch-size", type=int, default=128)
    networks = ["digits_cnn", "digits_resnet", "resnet18"]
    parser.add_argument("--networks", nargs="+", default=networks)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", default="float32", help="float32, bfloat16 or float16")
    settings = parser.parse_args()
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {settings.device}: PyTorch finds no CUDA device")
    check_precision(settings.precision, settings.device)
    on_gpu = settings.device.startswith("cuda")
    place = torch.cuda.get_device_name(settings.device) if on_gpu else "CPU"
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} thread(s), {place}, {settings.precision}")
    for name in settings.networks:
        print(f"\n{name}, 2 domains of {settings.images} images, median of {settings.rounds}")
        show(table(name, settings))
    print(f"\nexact ablation of digits_cnn (width 32), {ABLATION_IMAGES} images, float32")
    show(ablation_table(settings))
    print("\ngrowth, digits_cnn: seconds; the ratio is that of Fisher order to bare passes")
    show(growth_table(settings))


def show(frame: pd.DataFrame) -> None:
    print(frame.to_string(float_format="{:.3f}".format))


def domains(side: int, images: int, count: int, device: str) -> dict[str, TensorDataset]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"domain {d}": TensorDataset(
            torch.rand(images, 3, side, side, generator=generator).to(device),
            torch.randint(0, 10, (images,), generator=generator).to(device),
        )
        for d in range(count)
    }


def table(name: str, settings: argparse.Namespace) -> pd.DataFrame:
    """Seconds of the bare passes and of each order of statistics, and their ratio."""
    side = SIDE.get(name, 224 if settings.device.startswith("cuda") else 64)
    model = dg.build_model(name).to(settings.device)
    rows = runs(model, domains(side, settings.images, 2, settings.device), settings)
    return compare(rows, settings.rounds)


def runs(
    model: nn.Module,
    data: dict[str, TensorDataset],
    settings: argparse.Namespace,
) -> Rows:
    """Bare forward and backward passes over all images, and both orders of estimated scores."""
    graph = dg.trace_channels(model, data["domain 0"].tensors[0][:1])
    layout = layout_for(model, settings.precision)

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
                    x = x.contiguous(memory_format=layout)  # as the scoring does
                    F.cross_entropy(logits_of(model, x, settings.precision), y).backward()

    def statistics(order: str) -> Callable[[], object]:
        return lambda: dg.domain_statistics(
            model,
            graph,
            data,
            order=order,
            batch_size=settings.batch_size,
            precision=settings.precision,
        )

    return {
        "bare forward and backward": bare,
        "first order, all filters": statistics("first"),
        "Fisher order, all filters": statistics("fisher"),
    }


def ablation_table(settings: argparse.Namespace) -> pd.DataFrame:
    """Seconds of the exact ablation and of a loop that runs the gated network M times."""
    model = dg.build_model("digits_cnn", width=32).eval().to(settings.device)
    data = domains(28, ABLATION_IMAGES, 1, settings.device)
    graph = dg.trace_channels(model, data["domain 0"].tensors[0][:1])

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

    rows = {"naive loop": naive, "exact ablation": exact(model, data, settings)}
    return compare(rows, max(2, settings.rounds // 2))


def exact(
    model: nn.Module, data: dict[str, TensorDataset], settings: argparse.Namespace
) -> Callable[[], object]:
    graph = dg.trace_channels(model, data["domain 0"].tensors[0][:1])
    size = settings.batch_size
    return lambda: dg.domain_statistics(model, graph, data, order="exact", batch_size=size)


def growth_table(settings: argparse.Namespace) -> pd.DataFrame:
    """Seconds with more images, more domains of the same size, and more filters."""
    least = GROWTH_IMAGES
    grid = [
        *(("images", 16, 2, images) for images in (least, 2 * least, 4 * least)),
        *(("domains", 16, count, least) for count in (2, 4, 8)),
        *(("filters", width, 2, least) for width in (8, 16, 32)),
    ]
    lines = []
    for grows, width, count, images in grid:
        model = dg.build_model("digits_cnn", width=width).to(settings.device)
        data = domains(28, images, count, settings.device)
        rows = runs(model, data, settings)
        estimated = compare(rows, settings.rounds)
        once = {"exact ablation": exact(model, data, settings)}
        lines.append(
            {
                "grows": grows,
                "domains": count,
                "images": count * images,
                "filters": 5 * width,
                "bare passes": estimated["seconds"].iloc[0],
                "Fisher order": estimated["seconds"].iloc[2],
                "ratio": estimated["ratio to the first row"].iloc[2],
                "exact ablation": compare(once, 1)["seconds"].iloc[0],
            }
        )
    return pd.DataFrame(lines).set_index("grows")


def compare(rows: Rows, rounds: int) -> pd.DataFrame:
    """Median seconds of each row, and the median over rounds of its ratio to the first."""
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for number in range(rounds + 1):
        for name, run in rows.items():
            finish()
            start = time.perf_counter()
            run()
            finish()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    frame = pd.DataFrame(seconds)
    base = frame.iloc[:, 0]
    return pd.DataFrame(
        {"seconds": frame.median(), "ratio to the first row": frame.div(base, axis=0).median()}
    )


def finish() -> None:
    """Wait for what a GPU has yet to compute."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
