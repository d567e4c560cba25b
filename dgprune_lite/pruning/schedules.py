"""Prune in several steps, with room for fine-tuning between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from dgprune_lite.channels.graph import ChannelGraph, trace_channels
from dgprune_lite.checks import whole_number
from dgprune_lite.domains.splits import Split
from dgprune_lite.pruning.limits import Inputs, Layers, Limits, Ratio, make_limits
from dgprune_lite.pruning.plans import PruningPlan, make_plan
from dgprune_lite.pruning.pruning import score_on, traced
from dgprune_lite.pruning.targets import plan_within
from dgprune_lite.running import Logits
from dgprune_lite.scores.risks import Reading


def prune_iteratively(
    model: nn.Module,
    data: Split | Mapping[str, Dataset[Any]],
    criterion: str = "fisher",
    pruning_ratio: Ratio | None = None,
    *,
    steps: int = 4,
    example_inputs: Inputs | None = None,
    global_pruning: bool = False,
    ignored_layers: Layers = (),
    round_to: int = 1,
    max_pruning_ratio: float = 1.0,
    target_macs: float | None = None,
    target_parameters: float | None = None,
    batch_size: int | None = None,
    precision: str = "float32",
    workers: int = 0,
    logits: Logits | None = None,
    progress: bool = False,
    **options: Any,
) -> Iterator[tuple[nn.Module, PruningPlan]]:
    """Prune a network step by step; fine-tune it in the loop's body.

    Args:
        model: The trained network; untouched.
        data: See :func:`~dgprune_lite.pruning.pruning.prune`, also for all arguments below.
        criterion: The network is scored anew in each step.
        pruning_ratio: What the last step reaches. Step k of n goes to k/n of it.
        steps: n, at least 1.

    Returns:
        An iterator over (smaller network, plan) of each step. Change the weights of the network
        in place, such as by :func:`~dgprune_lite.networks.training.fit`: the next step starts from
        it. The plan is that from the *original* network to this one, and fits
        :func:`~dgprune_lite.pruning.checkpoints.save`.

    Raises:
        TypeError: Arguments of another kind.
        ValueError: As :func:`~dgprune_lite.pruning.pruning.prune`.

    Source: Molchanov et al. 2017, "Pruning convolutional neural networks for resource efficient
    inference", section 2: alternate pruning and fine-tuning.

    >>> import dgprune_lite as dg
    >>> model, images = dg.build_model("digits_cnn", width=4), torch.rand(8, 3, 28, 28)
    >>> data = {"a": torch.utils.data.TensorDataset(images, torch.arange(8))}
    >>> for small, plan in dg.prune_iteratively(model, data, "taylor", 0.5, steps=2):
    ...     print(plan.widths)    # and here: dg.fit(small, data, ...)
    {'conv1': (4, 3), 'conv2': (8, 6), 'conv3': (8, 6)}
    {'conv1': (4, 2), 'conv2': (8, 4), 'conv3': (8, 4)}
    """
    steps = whole_number("steps", steps, 1)
    domains, inputs, graph = traced(model, data, example_inputs)
    targets = {"macs": target_macs, "parameters": target_parameters}
    bounds = (global_pruning, ignored_layers, round_to, max_pruning_ratio)
    limits = make_limits(graph, pruning_ratio, targets, *bounds, model, inputs)
    reading = Reading(batch_size, precision, workers, logits, progress)

    def walk() -> Iterator[tuple[nn.Module, PruningPlan]]:
        small = model
        removed = np.zeros(graph.num_filters, dtype=bool)
        for number in range(1, steps + 1):
            part = trace_channels(small, inputs) if number > 1 else graph
            places = _places(graph, part, removed)
            # What the smaller network cannot lose any more, a group's last filter, stays.
            scores = torch.full((graph.num_filters,), torch.inf, dtype=torch.float64)
            scores[torch.from_numpy(removed)] = -torch.inf
            found = score_on(small, part, domains, criterion, options, reading)
            scores[places] = part.join(found).to(scores)
            plan = plan_within(graph, scores, _on_the_way(limits, number / steps))
            removed = graph.join(plan.kept_gates).numpy() == 0
            small = make_plan(part, removed[places], 0.0).apply(small)
            yield small, plan

    return walk()


def _on_the_way(limits: Limits, share: float) -> Limits:
    """The same limits with a ratio or target that goes ``share`` of the way."""
    if share == 1:
        return limits
    if limits.target is not None:
        measure, left = limits.target
        return replace(limits, target=(measure, 1 - share * (1 - left)))
    if isinstance(limits.ratio, Mapping):
        return replace(limits, ratio={key: value * share for key, value in limits.ratio.items()})
    return replace(limits, ratio=limits.ratio * share)


def _places(graph: ChannelGraph, part: ChannelGraph, removed: np.ndarray) -> np.ndarray:
    """For each filter of the smaller network's graph its number in the whole one's."""
    whole = {group.producers: group for group in graph.groups.values()}
    found = []
    for group in part.groups.values():
        origin = whole[group.producers]
        found.append(origin.start + np.flatnonzero(~removed[origin.span]))
    return np.concatenate(found) if found else np.zeros(0, dtype=int)
