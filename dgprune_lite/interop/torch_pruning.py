"""Scores of this package as the importance of a pruner of torch-pruning, which is not imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dgprune_lite.channels.graph import ChannelGraph
from dgprune_lite.pruning.selection import check_scores
from dgprune_lite.scores.gates import check_graph


def as_importance(
    model: nn.Module, graph: ChannelGraph, scores: Mapping[str, Tensor]
) -> Callable[[Any], Tensor]:
    """Make an ``importance`` for torch-pruning's pruners (``pip install "dgprune-lite[interop]"``).

    Args:
        model: The network that the pruner gets.
        graph: From :func:`~dgprune_lite.channels.graph.trace_channels`, of this model.
        scores: From :func:`~dgprune_lite.scores.criteria.score`.

    Returns:
        A function from a group of torch-pruning to the scores of its root layer's channels,
        float32 (channels,), inf where the graph holds them to be fixed. They fit the network for
        one step of the pruner; for a further one trace and score anew.

    Raises:
        TypeError: Something else than a network, a graph and scores.
        ValueError: A graph of another model, or scores of another graph. When called: a layer
            that is not in the graph or whose width has changed.

    Source: the protocol of ``torch_pruning.importance.Importance``, torch-pruning 1.6.1.

    >>> import dgprune_lite as dg, torch_pruning as tp
    >>> model, images = dg.build_model("digits_cnn", width=8), torch.rand(1, 3, 28, 28)
    >>> graph = dg.trace_channels(model, images)
    >>> importance = as_importance(model, graph, dg.score("l1", model, graph))
    >>> pruner = tp.pruner.BasePruner(
    ...     model, images, importance, pruning_ratio=0.5, ignored_layers=[model.fc])
    >>> pruner.step()                          # in place, as torch-pruning does
    >>> model.conv1.weight.shape
    torch.Size([4, 3, 3, 3])
    """
    check_graph(model, graph)
    flat = check_scores(graph, scores).float()
    names = {module: name for name, module in model.named_modules()}
    padded = torch.cat([flat, torch.tensor([torch.inf])])  # unit -1 is a fixed channel

    def importance(group: Any) -> Tensor:
        dependency, channels = group[0]
        name = names.get(dependency.target.module)
        layer = graph.layers.get(name or "")
        if layer is None:
            raise ValueError(
                f"the root of the group, {dependency.target.name}, is no layer of the graph: "
                "put it into ignored_layers"
            )
        width = len(dependency.target.module.weight)
        if width != len(layer.out_units):
            raise ValueError(
                f"layer {name!r} has {width} channels, it had {len(layer.out_units)} when it was "
                "scored: trace and score anew after each step"
            )
        return padded[torch.from_numpy(layer.out_units)[torch.as_tensor(channels)]]

    return importance
