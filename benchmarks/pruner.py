"""How long pruning takes, side by side with torch-pruning 1.6.1 in one process.

Three tables, of medians over interleaved rounds, in CPU seconds of one thread (which
other work on the machine disturbs less than the clock on the wall):

- pruning: trace, score, plan and apply against DependencyGraph and step, half of the filters going
  by their weights' norms; and the same with the check of the smaller network, which torch-pruning
  does not make;
- scoring: a backward pass and first-order scores against a backward pass and torch-pruning's Taylor
  importance, on an analysis of the network that both have made before;
- memory: the most that pruning adds to a process that has loaded the network, one process each.

    python benchmarks/pruner.py [--rounds 7] [--networks resnet18 ...] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import copy
import gc
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
import torch_pruning as tp
from measured import most_added, network, write
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import dgprune_lite as dg

NETWORKS = ["resnet18", "resnet50", "mobilenet_v2", "vgg16_bn", "densenet121"]
OURS, THEIRS = "dgprune_lite", "torch-pruning"
CHECKED = "dgprune_lite with its check"
TORCH_PRUNING = version("torch-pruning")  # its own __version__ says 1.6.0 in 1.6.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--side", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--images", type=int, default=8, help="to score with")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--output", type=Path, help="write the tables and how they were made")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)  # who, network
    settings = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="torch_pruning")
    if settings.memory_of:
        print(added_memory(*settings.memory_of, settings.side))
        return
    rows: dict[str, list[dict[str, object]]] = {"pruning": [], "scoring": [], "memory": []}
    for name in settings.networks:
        model, images = network(name, settings.side)
        pruning = prune_calls(model, images)
        rows["pruning"].append({"network": name, **compare(pruning, settings.rounds)})
        scoring = score_calls(model, images.repeat(settings.images, 1, 1, 1))
        rows["scoring"].append({"network": name, **compare(scoring, settings.rounds)})
        memory = {f"{who} (MiB)": peak(who, name, settings.side) for who in (OURS, THEIRS)}
        rows["memory"].append({"network": name, **memory})
        print(f"{name} is measured", file=sys.stderr)
    print(f"torch {torch.__version__}, torch-pruning {TORCH_PRUNING}, 1 thread, CPU")
    tables = {title: pd.DataFrame(part).set_index("network") for title, part in rows.items()}
    for title, table in tables.items():
        print(f"\n{title}\n{table.to_string(float_format='{:.3f}'.format)}")
    if settings.output:
        how = {"torch-pruning": TORCH_PRUNING, "rounds": settings.rounds, "side": settings.side}
        write(settings.output, tables, **how)


def prune_calls(model: nn.Module, images: Tensor) -> dict[str, Callable[[], Callable[[], object]]]:
    """What prepares each run and gives what is timed: torch-pruning changes what it gets."""
    return {
        OURS: lambda: lambda: ours(model, images),
        CHECKED: lambda: lambda: ours(model, images, check=True),
        THEIRS: lambda: (fresh := copy.deepcopy(model)) and (lambda: theirs(fresh, images)),
    }


def ours(model: nn.Module, images: Tensor, check: bool = False) -> nn.Module:
    graph = dg.trace_channels(model, images)
    plan = dg.plan_pruning(graph, dg.score("l2", model, graph), 0.5)
    return plan.apply(model, check=check)


def theirs(model: nn.Module, images: Tensor) -> nn.Module:
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    outputs = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    tp.pruner.BasePruner(
        model, images, importance, pruning_ratio=0.5, ignored_layers=[outputs]
    ).step()
    return model


def score_calls(model: nn.Module, images: Tensor) -> dict[str, Callable[[], Callable[[], object]]]:
    labels = torch.arange(len(images))
    graph = dg.trace_channels(model, images[:1])
    data = {"a": TensorDataset(images, labels)}
    other = copy.deepcopy(model)
    groups = list(tp.DependencyGraph().build_dependency(other, images[:1]).get_all_groups())
    taylor = tp.importance.GroupTaylorImportance()

    def backward() -> None:
        other.zero_grad()
        F.cross_entropy(other(images), labels).backward()

    def our_scores() -> None:
        dg.score("taylor", model, graph, dg.domain_statistics(model, graph, data, order="first"))

    def their_scores() -> None:
        backward()
        for group in groups:
            taylor(group)

    return {
        OURS: lambda: our_scores,
        THEIRS: lambda: their_scores,
        "backward alone": lambda: backward,
    }


def compare(calls: dict[str, Callable[[], Callable[[], object]]], rounds: int) -> dict[str, float]:
    """Median seconds of each call, and the median over rounds of the second over the first."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, prepare in calls.items():
            run = prepare()
            gc.collect()  # what the other left behind
            start = time.process_time()
            run()
            if number:  # the first round warms up
                seconds[name].append(time.process_time() - start)
    frame = pd.DataFrame(seconds)
    times = {f"{name} (s)": float(median) for name, median in frame.median().items()}
    return times | {"times as fast": float((frame[THEIRS] / frame[OURS]).median())}


def peak(who: str, name: str, side: int) -> float:
    command = [sys.executable, __file__, "--side", str(side), "--memory-of", who, name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def added_memory(who: str, name: str, side: int) -> float:
    """MiB by which this process grows at most while it prunes."""
    prune = ours if who == OURS else theirs
    prune(*network("resnet18", side))  # what is loaded on first use is not counted
    model, images = network(name, side)
    return most_added(lambda: prune(model, images))


if __name__ == "__main__":
    main()
