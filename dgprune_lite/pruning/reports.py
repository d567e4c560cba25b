"""What pruning saved, measured: sizes and times of two networks side by side."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dgprune_lite.checks import whole_number
from dgprune_lite.pruning.timing import check_inputs, median_latency
from dgprune_lite.running import device_of, evaluating

if TYPE_CHECKING:
    import pandas as pd


def report(
    model: nn.Module,
    small: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    *,
    rounds: int = 11,
) -> pd.DataFrame:
    """Compare two networks: parameters, MACs, file size, and median time of one pass.

    Both run in eval mode without gradients and are left as found. They and the inputs must be on
    one device.

    Args:
        model: The whole network.
        small: The pruned one.
        example_inputs: The batch to time, or a tuple of several inputs.
        rounds: Timed passes of each network, in turn; at least 1.

    Returns:
        One row a measure: ``parameters``; ``MACs`` (multiply-accumulates for the batch); ``file
        size (bytes)`` (of the state dict's tensors); ``CPU latency (ms)`` and, where there is a
        GPU, ``CUDA latency (ms)``. Columns ``model``, ``small`` and ``left``, their quotient.

    Raises:
        TypeError: Something else than networks and tensors.
        ValueError: A network that does not run on the inputs; ``rounds`` below 1.

    >>> import dgprune_lite as dg
    >>> model, images = dg.build_model("digits_cnn", width=8), torch.rand(4, 3, 28, 28)
    >>> graph = dg.trace_channels(model, images)
    >>> plan = dg.plan_pruning(graph, dg.score("l1", model, graph), pruning_ratio=0.5)
    >>> dg.report(model, plan.apply(model), images).head(3)
                         model   small      left
    parameters            5202    1742  0.334871
    MACs               2037888  680256  0.333804
    file size (bytes)    21152    7152  0.338124
    """
    import pandas as pd

    rounds = whole_number("rounds", rounds, 1)
    pair = [model, small]
    given = [check_inputs(network, example_inputs) for network in pair]
    rows: dict[str, list[int] | list[float]] = {
        "parameters": [sum(p.numel() for p in network.parameters()) for network in pair],
        "MACs": [_macs(network, inputs) for network, inputs in zip(pair, given, strict=True)],
        "file size (bytes)": [_state_bytes(network) for network in pair],
    }
    own = device_of(model)
    gpu = [own if own.type == "cuda" else torch.device("cuda")] * torch.cuda.is_available()
    for device in [torch.device("cpu"), *gpu]:
        inputs = tuple(value.to(device) for value in given[0])
        there = [net if own == device else copy.deepcopy(net).to(device) for net in pair]
        seconds = median_latency(there, inputs, rounds)
        rows[f"{device.type.upper()} latency (ms)"] = [1000 * value for value in seconds]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["model", "small"], dtype=object)
    return frame.assign(left=[after / max(before, 1e-12) for before, after in rows.values()])


def _macs(network: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    from torch.utils.flop_counter import FlopCounterMode  # takes 0.1 s

    with FlopCounterMode(display=False) as counter, torch.no_grad(), evaluating(network):
        network(*inputs)
    return counter.get_total_flops() // 2


def _state_bytes(network: nn.Module) -> int:
    tensors = [value for value in network.state_dict().values() if isinstance(value, Tensor)]
    return sum(value.numel() * value.element_size() for value in tensors)
