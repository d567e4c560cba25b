"""Training steps a second on a GPU: the plain loop, and a captured step that is replayed.

Of random images that lie on the GPU, medians over interleaved rounds. Small networks wait for
launches, so they gain most; a figure near 1 says that the GPU is kept busy as it is. The second
network trains as in the book's study of PACS.

    python benchmarks/training.py [--rounds 5] [--steps 200] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import pandas as pd
import torch
from measured import write
from torch.utils.data import TensorDataset

import dgprune_lite as dg

# network, side of its images, images of each of three domains in a step, precision
ROWS = (
    ("digits_cnn", 28, 32, "float32"),
    ("efficientnet_lite0", 128, 32, "bfloat16"),
    ("resnet18", 128, 32, "bfloat16"),
)
PLAIN, REPLAYED = "plain (steps/s)", "replayed (steps/s)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, help="write the table and how it was made")
    settings = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(message="PyTorch finds no CUDA device, on which alone a step is captured\n")
    torch.set_num_threads(1)
    lines = [line(row, settings.steps, settings.rounds, settings.device) for row in ROWS]
    table = pd.DataFrame(lines).set_index("network")
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name(settings.device)}")
    print(f"{settings.steps} steps, median of {settings.rounds}\n")
    print(table.to_string(float_format="{:.1f}".format))
    if settings.output:
        shape = {"rounds": settings.rounds, "steps": settings.steps}
        write(settings.output, {"training": table}, **shape)


def line(row: tuple[str, int, int, str], steps: int, rounds: int, device: str) -> dict[str, object]:
    """Of one network, steps a second both ways; warm-up and capture included."""
    name, side, batch_size, precision = row
    data = domains(side, device)
    model = dg.build_model(name, 10, seed=0).to(device)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds + 1):
        for captured, taken in seconds.items():
            start = time.perf_counter()
            dg.fit(  # which ends by waiting for the GPU
                model,
                data,
                steps=steps,
                batch_size=batch_size,
                precision=precision,
                max_shift=0,
                cuda_graph=captured,
            )
            if number:  # the first round warms up
                taken.append(time.perf_counter() - start)
    plain, replayed = (steps / median(taken) for taken in seconds.values())
    return {
        "network": name,
        "side": side,
        "images a step": len(data) * batch_size,
        "precision": precision,
        PLAIN: plain,
        REPLAYED: replayed,
        "times as fast": replayed / plain,
    }


def domains(side: int, device: str) -> dict[str, TensorDataset]:
    """Random images of three domains, on the device."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: TensorDataset(
            torch.rand(96, 3, side, side, generator=generator).to(device),
            torch.randint(0, 10, (96,), generator=generator).to(device),
        )
        for name in "abc"
    }


if __name__ == "__main__":
    main()
