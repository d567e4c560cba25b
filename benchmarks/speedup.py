"""MACs removed against time gained: fewer operations are not always as much less time.

For every ratio the pruned network beside one with `round_to=8`, whose widths suit the processor's
vector units: the share of MACs and of the time of one pass that is left. Medians of interleaved
rounds on one thread of the CPU, and on the GPU where there is one.

    python benchmarks/speedup.py [--networks resnet18 resnet50] [--ratios 0.3 ...] [--output FILE]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
from measured import network, write

import dgprune_lite as dg
from dgprune_lite.pruning.timing import median_latency

RATIOS = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--side", type=int, default=128, help="of the images, in pixels")
    parser.add_argument("--images", type=int, default=1, help="in a batch")
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--ratios", nargs="+", type=float, default=RATIOS)
    parser.add_argument("--output", type=Path, help="write the table and how it was made")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    tables = {
        f"{name} on {device}": table(name, device, settings)
        for name in settings.networks
        for device in devices
    }
    print(f"torch {torch.__version__}, {settings.images} image(s) of {settings.side} x ", end="")
    print(f"{settings.side} pixels, 1 thread, median of {settings.rounds}")
    for title, part in tables.items():
        print(f"\n{title}\n{part.to_string(float_format='{:.3f}'.format)}")
    if settings.output:
        shape = {"images": settings.images, "side": settings.side, "rounds": settings.rounds}
        write(settings.output, tables, **shape)


def table(name: str, device: str, settings: argparse.Namespace) -> pd.DataFrame:
    """One row a ratio: what is left of MACs and time, with and without rounding."""
    model, image = network(name, settings.side)
    graph = dg.trace_channels(model, image)
    scores = dg.score("l2", model, graph)
    inputs = (image.repeat(settings.images, 1, 1, 1).to(device),)
    rows = []
    for ratio in settings.ratios:
        plans = {
            "": dg.plan_pruning(graph, scores, ratio),
            ", round_to=8": dg.plan_pruning(graph, scores, ratio, round_to=8),
        }
        networks = [model, *(plan.apply(model) for plan in plans.values())]
        networks = [part.to(device) for part in networks]
        whole, *times = median_latency(networks, inputs, settings.rounds)
        row = {"ratio": ratio, "whole (ms)": 1000 * whole}
        for (title, plan), seconds in zip(plans.items(), times, strict=True):
            row[f"MACs left{title}"] = plan.macs[1] / plan.macs[0]
            row[f"time left{title}"] = seconds / whole
        rows.append(row)
    return pd.DataFrame(rows).set_index("ratio")


if __name__ == "__main__":
    main()
