"""Whether a pruned network computes what the whole one does with the same filters masked.

That is what removing filters *exactly* means, and it is cheap to see for oneself: run both on one
batch. What this file is *not*: accuracy (``evaluation.py``), which pruning does change.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dgprune_lite.channels.graph import ChannelGraph
from dgprune_lite.exactness import full_float32
from dgprune_lite.pruning.plans import PruningPlan
from dgprune_lite.running import evaluating
from dgprune_lite.scores.gates import gated

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
"""How far outputs may differ by rounding, as a share of the largest output."""


def check_exact(
    model: nn.Module,
    small: nn.Module,
    plan: PruningPlan,
    graph: ChannelGraph,
    example_inputs: Tensor | tuple[Tensor, ...],
) -> float:
    """Compare a pruned network with the whole one whose filters are masked, on one batch.

    Both run in eval mode, in full float32 (on a GPU without TF32), and are left as found.

    Args:
        model: The whole network, from which ``graph`` was traced.
        small: What ``plan.apply(model)`` gave, before any fine-tuning.
        plan: The plan that was applied.
        graph: From :func:`~dgprune_lite.channels.graph.trace_channels`.
        example_inputs: A batch for the network, or a tuple of several inputs, where and as
            precise as the network is. Real images tell more than zeros.

    Returns:
        The largest difference of two outputs over the largest output, 0 for equal networks.

    Raises:
        ValueError: They differ by more than rounding (see ``TOLERANCE``), or in shape.

    >>> import dgprune_lite as dg
    >>> model, images = dg.build_model("digits_cnn", width=4), torch.rand(2, 3, 28, 28)
    >>> graph = dg.trace_channels(model, images)
    >>> plan = dg.plan_pruning(graph, dg.score("l1", model, graph), pruning_ratio=0.5)
    >>> dg.check_exact(model, plan.apply(model), plan, graph, images) < 1e-5
    True
    """
    batch = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    with full_float32(), torch.no_grad(), evaluating(model), evaluating(small):
        with gated(model, graph, plan.kept_gates):
            masked = tree_leaves(model(*(value.clone() for value in batch)))
        pruned = tree_leaves(small(*(value.clone() for value in batch)))
    error = 0.0
    for one, other in zip(masked, pruned, strict=True):
        if not isinstance(one, Tensor) or not one.is_floating_point():
            continue
        if one.shape != other.shape:
            raise ValueError(
                f"the pruned network gives shape {tuple(other.shape)}, the masked one "
                f"{tuple(one.shape)}{_ADVICE}"
            )
        scale = max(1.0, float(one.abs().max())) if one.numel() else 1.0
        found = float((one - other).abs().max()) / scale if one.numel() else 0.0
        if not found <= TOLERANCE.get(one.dtype, 1e-4):
            raise ValueError(
                f"the pruned network does not compute what the masked one does: outputs differ by "
                f"{found * scale:.3g}, the largest is {scale:.3g}{_ADVICE}"
            )
        error = max(error, found)
    return error


_ADVICE = (
    ". Some operation uses channels in a way that trace_channels does not follow: leave the layers "
    "before it out with ignored_layers, and please report the network"
)
