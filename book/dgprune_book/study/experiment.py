"""One experiment: prune a trained network in one way, fine-tune it, and measure it twice.

Or, for a ranking, prune nothing and keep what the scores say.

What this file is *not*: the list of experiments (``grids.py``), or what runs many (``runner.py``).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from dgprune_book.study.cells import Cell
from dgprune_book.study.datasets import dataset_of
from dgprune_book.study.results import to_line
from dgprune_book.study.variants import SCORES, masked_statistics, virtual_domains
from dgprune_lite.channels.graph import ChannelGraph, trace_channels
from dgprune_lite.domains import (
    PACS,
    ImageTensors,
    Split,
    count,
    leave_one_domain_out,
)
from dgprune_lite.files import write_atomically
from dgprune_lite.networks.evaluation import evaluate, summarize
from dgprune_lite.networks.models import build_model, load_model, save_model
from dgprune_lite.networks.recalibration import recalibrate_batchnorm
from dgprune_lite.networks.training import fit
from dgprune_lite.pruning.pruning import PruningPlan, kept_filters, make_plan, plan_pruning
from dgprune_lite.running import device_of
from dgprune_lite.scores.criteria import NEEDS_STATISTICS, normalize_groups, score
from dgprune_lite.scores.risks import DomainStatistics, Order, domain_statistics

DIGITS = 5  # decimals kept of accuracies and risks


class Bench:
    """What the cells of one dense network share: data, network, graph, statistics.

    Args:
        cell: Any of them.
        work: The study's folder; the dense network is kept in its folder ``dense``.
        device: Where to compute.
    """

    def __init__(self, cell: Cell, work: Path, device: str = "cpu") -> None:
        dataset = dataset_of(cell.dataset, device)
        self.split = _without(leave_one_domain_out(dataset, cell.test_env, cell.seed), cell.without)
        self.left_out = {cell.without: dataset[cell.without]} if cell.without else {}
        self.normalized = isinstance(dataset, PACS)
        self.precision = cell.precision
        self.model = dense_network(cell, self.split, work, device)
        self.example = self.split.example_inputs.to(device)
        self.graph = trace_channels(self.model, self.example)
        self._statistics: dict[tuple[Any, ...], DomainStatistics] = {}

    def scores(self, cell: Cell, model: nn.Module, graph: ChannelGraph) -> dict[str, Tensor]:
        """The cell's scores of ``model``; statistics of the dense network are measured once."""
        if cell.criterion == "random":
            return score("random", model, graph, seed=random_seed(cell, graph))
        if cell.criterion not in (*NEEDS_STATISTICS, *SCORES):
            return score(cell.criterion, model, graph, **cell.options)
        # Never less than order "fisher": the first-order terms are then the same to the last bit
        # whichever other cells are measured, since each order computes them in its own way.
        order: Order = "exact" if cell.options.get("order") == "exact" else "fisher"
        key = (order, cell.scored_on, cell.images_per_domain, cell.statistics)
        if model is not self.model:
            stats = self._measure(model, graph, *key)
        elif key in self._statistics:
            stats = self._statistics[key]
        else:
            stats = self._statistics[key] = self._measure(model, graph, *key)
        if cell.criterion in SCORES:
            return graph.split(SCORES[cell.criterion](model, graph, stats, **cell.options))
        return score(cell.criterion, model, graph, stats, **cell.options)

    def _measure(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        order: Order,
        part: str | None,
        images: int | None,
        statistics: str = "plain",
    ) -> DomainStatistics:
        data: dict[str, Dataset] = self.split.val
        if part == "train":  # as they are: only whether they were learnt from tells them apart
            data = {domain: not_augmented(images) for domain, images in self.split.train.items()}
        if images is not None:  # the parts are in random order already
            data = {d: Subset(s, range(min(images, count(s, d)))) for d, s in data.items()}
        if statistics == "masked":
            return masked_statistics(model, graph, data, order=order)
        if statistics == "virtual":
            data = virtual_domains(data, normalized=self.normalized)
        return domain_statistics(model, graph, data, order=order, precision=self.precision)


def not_augmented(dataset: Dataset) -> Dataset:
    """The same images, as they are where training augments them."""
    if isinstance(dataset, Subset) and isinstance(dataset.dataset, ImageTensors):
        return Subset(replace(dataset.dataset, augmented=False), dataset.indices)
    return dataset


def random_seed(cell: Cell, graph: ChannelGraph) -> int:
    """What random scores are drawn with: another seed for every dense network."""
    digest = hashlib.sha256(f"{cell.dense_id}/{graph.num_filters}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _without(split: Split, domain: str) -> Split:
    if domain and domain not in split.train:
        raise ValueError(f"without={domain!r} is not a source domain: {', '.join(split.train)}")
    train, val = (
        {name: part for name, part in parts.items() if name != domain}
        for parts in (split.train, split.val)
    )
    return replace(split, train=train, val=val)


def network_recipe(cell: Cell, split: Split) -> dict[str, Any]:
    """A cell's network for :func:`~dgprune_lite.networks.models.build_model`, without a seed."""
    recipe: dict[str, Any] = {"name": cell.network, "num_classes": split.num_classes}
    return recipe | {"width": cell.width or None, "in_channels": split.input_shape[0]}


def _training(cell: Cell) -> dict[str, Any]:
    """Settings of all training: images of PACS are augmented, those of the others shifted."""
    pacs = cell.dataset.startswith("PACS")
    return {"precision": cell.precision, "max_shift": 0 if pacs else 2, "cuda_graph": pacs}


def dense_network(cell: Cell, split: Split, work: Path, device: str = "cpu") -> nn.Module:
    """The trained network that a cell prunes, from the work folder or made there.

    Where several processes train it at once, the one that is ready first decides: all of them go on
    with its file, since on other hardware the weights come out a little different.
    """
    path = work / "dense" / f"{cell.dense_id}.safetensors"
    recipe = network_recipe(cell, split)
    if not path.is_file():
        start, processor = time.perf_counter(), time.process_time()
        model = build_model(**recipe, weights=cell.weights or None, seed=cell.seed).to(device)
        fit(
            model,
            split.train,
            steps=cell.dense_steps,
            lr=cell.dense_lr,
            algorithm=cell.algorithm,
            vrex_lambda=cell.vrex_lambda,
            seed=cell.seed,
            **_training(cell),
        )
        took = _duration(start, processor)
        # The times first: a network without them would stay so for good.
        write_atomically(path.with_suffix(".json"), to_line(took), replace=False)
        save_model(model, path, **recipe, replace=False)
    return load_model(path).to(device)


def run_cell(cell: Cell, bench: Bench) -> dict[str, Any]:
    """Prune, recalibrate, measure, fine-tune and measure again.

    The unseen domain is read by the two measurements alone.

    Args:
        cell: What to do.
        bench: Of the cell's dense network, which is left as it is.

    Returns:
        The cell's fields and its results; accuracies are shares (0 to 1), risks in nats. Results
        named ``..._before`` are from before the (last round of) fine-tuning. A ranking gives the
        size of every group instead, and ``values`` (one per filter): scores or, for the control,
        the exact change of each domain's risk in nats when the filter goes, held-out images of the
        sources and all of the unseen domain.
    """
    if cell.measure == "ranking":
        return _ranking(cell, bench)
    sizes = {name: group.size for name, group in bench.graph.groups.items()}

    def plan(model: nn.Module, graph: ChannelGraph, number: int) -> PruningPlan:
        ratio = cell.pruning_ratio * (number + 1) / cell.schedule_steps
        return _plan(cell, bench, model, graph, sizes, ratio)

    return {**asdict(cell), **prune_and_measure(cell, bench, plan)}


def prune_and_measure(
    cell: Cell, bench: Bench, make: Callable[[nn.Module, ChannelGraph, int], PruningPlan]
) -> dict[str, Any]:
    """What :func:`run_cell` does, with plans from wherever one likes: the book's protocol.

    Args:
        cell: Its seed, rounds and fine-tuning count; its criterion, ratio and scope do not.
        bench: Of the cell's dense network, which is left as it is.
        make: Network, its graph and the number of the round to the plan of what goes.

    Returns:
        The results, as :func:`run_cell` gives them, without the cell's fields.
    """
    start, processor = time.perf_counter(), time.process_time()
    split, rounds = bench.split, cell.schedule_steps
    steps = [cell.finetune_steps * (i + 1) // rounds for i in range(rounds)]
    model, graph = bench.model, bench.graph
    before: dict[str, Any] = {}
    for number in range(rounds):
        if number:
            graph = trace_channels(model, bench.example)
        plan = make(model, graph, number)
        model = plan.apply(model)
        # Seeds depend on the cell's seed and the round only: every criterion sees equal batches.
        seed = 1000 * (cell.seed + 1) + number
        recalibrate_batchnorm(model, split.train, seed=seed)
        if number == rounds - 1 and cell.measure != "left-out":
            before = _measurements(model, split)
        budget = steps[number] - (steps[number - 1] if number else 0)
        if budget:
            tuning = {"lr": cell.finetune_lr, "seed": seed, **_training(cell)}
            fit(model, split.train, steps=budget, **tuning)
    after = _measurements(model, split) if cell.finetune_steps else before
    if cell.measure == "left-out":
        other = evaluate(model, bench.left_out, batch_size=_batch_size(model, split))
        after["accuracy_without"] = round(float(other["accuracy"].iloc[0]), DIGITS)
    return {
        **after,
        **{f"{name}_before": value for name, value in before.items()},
        "parameters": plan.parameters[1],
        "macs": plan.macs[1],
        "widths": {name: width for name, (_, width) in plan.widths.items()},
        **_duration(start, processor),
    }


def _ranking(cell: Cell, bench: Bench) -> dict[str, Any]:
    start, processor = time.perf_counter(), time.process_time()
    values: Any
    if cell.criterion == "none":
        data = {**bench.split.val, bench.split.test_env: bench.split.target}
        stats = domain_statistics(bench.model, bench.graph, data, order="exact")
        values = dict(zip(stats.domains, map(_short, stats.ablation), strict=True))
    else:
        values = _short(bench.graph.join(bench.scores(cell, bench.model, bench.graph)))
    return {
        **asdict(cell),
        "sizes": {name: group.size for name, group in bench.graph.groups.items()},
        "values": values,
        **_duration(start, processor),
    }


def _short(values: Tensor) -> list[float]:
    """Six significant digits of each."""
    return [float(f"{value:.6g}") for value in values.tolist()]


def _duration(start: float, processor: float) -> dict[str, float]:
    """Seconds since two clocks were read: on the wall, and of this process."""
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "processor_seconds": round(time.process_time() - processor, 2),
    }


def _plan(
    cell: Cell,
    bench: Bench,
    model: nn.Module,
    graph: ChannelGraph,
    sizes: dict[str, int],
    ratio: float,
) -> PruningPlan:
    """Go down to ``ratio`` of the *dense* network's filters; ``sizes`` are its groups' sizes."""
    if cell.criterion == "none":
        return make_plan(graph, np.zeros(graph.num_filters, dtype=bool), 0.0)
    scores = bench.scores(cell, model, graph)
    if cell.scope == "global-normalized":
        scores = normalize_groups(scores)
    if cell.scope != "uniform":
        wanted = kept_filters(sum(sizes.values()), ratio)
        share = max(0.0, 1 - wanted / graph.num_filters)
        return plan_pruning(graph, scores, share, global_pruning=True, round_to=cell.round_to)
    if model is bench.model:
        return plan_pruning(graph, scores, ratio, round_to=cell.round_to)
    if cell.round_to > 1:
        left = {name: kept_filters(sizes[name], ratio) for name in graph.groups}
        shares = {
            name: max(0.0, 1 - left[name] / group.size) for name, group in graph.groups.items()
        }
        return plan_pruning(graph, scores, shares, round_to=cell.round_to)
    removed = np.zeros(graph.num_filters, dtype=bool)
    for name, group in graph.groups.items():
        order = np.argsort(scores[name].numpy(), kind="stable")
        removed[group.start + order[: group.size - kept_filters(sizes[name], ratio)]] = True
    return make_plan(graph, removed, ratio)


def _batch_size(model: nn.Module, split: Split) -> int:
    # On a CPU, small batches stay in its cache.
    return 1024 if device_of(model).type == "cuda" else 128 if split.input_shape[1] < 64 else 64


def _measurements(model: nn.Module, split: Split) -> dict[str, Any]:
    frame = evaluate(model, split, batch_size=_batch_size(model, split))
    summary = summarize(frame)
    by_domain = frame.set_index("domain").round(DIGITS)
    return {
        "accuracy_in_domain": round(summary["in_domain"], DIGITS),
        "accuracy_unseen": round(summary["unseen"], DIGITS),
        "accuracy_by_domain": by_domain["accuracy"].to_dict(),
        "risk_by_domain": by_domain["risk"].to_dict(),
    }
