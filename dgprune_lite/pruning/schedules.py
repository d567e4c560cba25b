"""Prune in several steps, with room for fine-tuning between them.

Every step scores the network as it is then, and goes on to a larger share of the *original*
network's filters, until the last step has removed what was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from dgprune_lite.channels.graph import ChannelGraph, trace_channels
from dgprune_lite.pruning.plans import PruningPlan, make_plan
from dgprune_lite.pruning.pruning import example_for, score_on
from dgprune_lite.pruning.selection import Limits, Ratio, check_ratio, make_limits
from dgprune_lite.pruning.targets import Target, check_targets, plan_for
from dgprune_lite.pruning.verification import check_exact
from dgprune_lite.running import check_model


def prune_iteratively(
    model: nn.Module,
    data: Mapping[str, Dataset[Any]],
    criterion: str = "risk_variance",
    pruning_ratio: float | Mapping[str, float] = 0.5,
    *,
    steps: int = 4,
    example_inputs: Tensor | tuple[Tensor, ...] | None = None,
    global_pruning: bool = False,
    ignored_layers: Sequence[str | nn.Module | type[nn.Module]] = (),
    round_to: int = 1,
    max_pruning_ratio: float = 1.0,
    target_macs: float | None = None,
    target_parameters: float | None = None,
    batch_size: int = 256,
    precision: str = "float32",
    workers: int = 0,
    progress: bool = False,
    **options: Any,
) -> Iterator[tuple[nn.Module, PruningPlan]]:
    """Prune a network step by step; fine-tune it in the loop's body.

    Args:
        model: The trained network; untouched.
        data: Source domain name to data set, such as ``split.train``.
        criterion: See :func:`~dgprune_lite.scores.criteria.score`; ``options`` go to it. The
            network is scored anew in each step.
        pruning_ratio: What the last step reaches, as in
            :func:`~dgprune_lite.pruning.pruning.plan_pruning`. Step k of n goes to k/n of it.
        steps: n, at least 1.
        example_inputs: One input batch, or a tuple of several inputs, which is brought where the
            model is and to its precision; by default the first image of ``data``.
        global_pruning: See :func:`~dgprune_lite.pruning.pruning.plan_pruning`, also for
            ``ignored_layers``, ``round_to``, ``max_pruning_ratio`` and the targets.
        batch_size: Images a pass while scoring; see
            :func:`~dgprune_lite.scores.risks.domain_statistics`, also for ``precision``,
            ``workers``.
        progress: Whether to show a progress bar while scoring.

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
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r} must be a whole number of at least 1")
    ratio = check_ratio(pruning_ratio)
    target = check_targets(pruning_ratio, macs=target_macs, parameters=target_parameters)
    check_model(model)
    inputs = example_for(model, data, example_inputs)
    reading = {"batch_size": batch_size, "precision": precision, "workers": workers}
    graph = trace_channels(model, inputs)
    limits = make_limits(
        graph,
        global_pruning=global_pruning,
        ignored_layers=ignored_layers,
        round_to=round_to,
        max_pruning_ratio=max_pruning_ratio,
        model=model,
    )

    def scored(network: nn.Module, part: ChannelGraph) -> dict[str, Tensor]:
        return score_on(network, part, data, criterion, options, progress=progress, **reading)

    def walk() -> Iterator[tuple[nn.Module, PruningPlan]]:
        small, part = model, graph
        removed = np.zeros(graph.num_filters, dtype=bool)
        for number in range(1, steps + 1):
            places = _places(graph, part, removed)
            # What the smaller network cannot lose any more, a group's last filter, stays.
            scores = torch.full((graph.num_filters,), torch.inf, dtype=torch.float64)
            scores[torch.from_numpy(removed)] = -torch.inf
            scores[places] = part.join(scored(small, part))
            plan = _step(graph, scores, ratio, limits, target, number / steps)
            removed = graph.join(plan.kept_gates).numpy() == 0
            small = _apply(small, part, removed[places], inputs)
            yield small, plan
            part = trace_channels(small, inputs)

    return walk()


def _step(
    graph: ChannelGraph,
    scores: Tensor,
    ratio: Ratio,
    limits: Limits,
    target: Target | None,
    share: float,
) -> PruningPlan:
    """The plan that goes ``share`` of the way."""
    if share == 1:
        return plan_for(graph, scores, ratio, limits, target)
    if target is not None:
        target = (target[0], 1 - share * (1 - target[1]))
    if isinstance(ratio, Mapping):
        ratio = {pattern: value * share for pattern, value in ratio.items()}
    else:
        ratio = ratio * share
    return plan_for(graph, scores, ratio, limits, target)


def _places(graph: ChannelGraph, part: ChannelGraph, removed: np.ndarray) -> np.ndarray:
    """For each filter of the smaller network's graph its number in the whole one's."""
    whole = {group.producers: group for group in graph.groups.values()}
    found = []
    for group in part.groups.values():
        origin = whole[group.producers]
        found.append(origin.start + np.flatnonzero(~removed[origin.span]))
    return np.concatenate(found) if found else np.zeros(0, dtype=int)


def _apply(
    model: nn.Module,
    graph: ChannelGraph,
    removed: np.ndarray,
    inputs: Tensor | tuple[Tensor, ...],
) -> nn.Module:
    """The network without the filters, checked as ``prune`` does."""

    plan = make_plan(graph, removed, 0.0)
    small = plan.apply(model)
    check_exact(model, small, plan, graph, inputs)
    return small
