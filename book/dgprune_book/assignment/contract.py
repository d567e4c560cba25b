"""What a submission gets, and what it must give back.

What this file is *not*: a tutorial. That is ``template.py``, the file that students start from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dgprune_lite.channels.graph import ChannelGraph
from dgprune_lite.pruning.selection import check_scores


@dataclass(frozen=True)
class Sources:
    """The source domains, as a submission gets them; there is no unseen one in it.

    Attributes:
        train: Domain name to the images and labels that the network was trained on: images float32
            (n, channels, height, width) in [0, 1], labels int64 (n,).
        val: The same for the held-out images.
        seed: For whatever a submission draws; another one for every network.
        num_classes: How many classes there are.
        example_inputs: One black image (1, channels, height, width), to trace with.
    """

    train: dict[str, Dataset]
    val: dict[str, Dataset]
    seed: int
    num_classes: int
    example_inputs: Tensor


def as_scores(answer: Any, graph: ChannelGraph) -> dict[str, Tensor]:
    """Check what a submission gave back, and make it scores of the usual kind.

    Args:
        answer: Should be a mapping from every group's name to real numbers (filters,): a tensor, an
            array or a list.
        graph: Of the network that was to be scored.

    Returns:
        Group name to float64 (filters,), detached, in the graph's order.

    Raises:
        TypeError: Something else than a mapping of numbers.
        ValueError: Missing or further groups, another shape, numbers that are not finite.

    >>> import dgprune_lite as dg
    >>> model = dg.build_model("digits_cnn", width=4)
    >>> graph = dg.trace_channels(model, torch.zeros(1, 3, 28, 28))
    >>> answer = {"conv1": [3, 1, 2, 0], "conv2": torch.ones(8), "conv3": torch.ones(8)}
    >>> as_scores(answer, graph)["conv1"]
    tensor([3., 1., 2., 0.], dtype=torch.float64)
    >>> as_scores({**answer, "conv3": torch.ones(2)}, graph)
    Traceback (most recent call last):
        ...
    ValueError: group 'conv3' has 8 filters, its scores have shape (2,); expected (8,)
    """
    sizes = {name: group.size for name, group in graph.groups.items()}
    if not isinstance(answer, Mapping):
        raise TypeError(
            f"score returned {_short(answer)}; expected a dict from each of "
            f"{', '.join(sizes)} to a tensor with one number per filter"
        )
    if set(answer) != set(sizes):
        raise ValueError(
            f"score returned the groups {', '.join(map(str, answer)) or 'none'}; "
            f"expected {', '.join(sizes)}"
        )
    scores = {name: _numbers(name, answer[name], size) for name, size in sizes.items()}
    return graph.split(check_scores(graph, scores))


def _numbers(name: str, value: Any, size: int) -> Tensor:
    try:
        tensor = torch.as_tensor(value).detach().cpu().to_dense()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"the scores of group {name!r} are {_short(value)}; expected a tensor of {size} "
            "real numbers"
        ) from error
    if tensor.is_complex():
        raise TypeError(f"the scores of group {name!r} are complex; expected real numbers")
    if tensor.shape != (size,):
        raise ValueError(
            f"group {name!r} has {size} filters, its scores have shape {tuple(tensor.shape)}; "
            f"expected ({size},)"
        )
    wrong = int((~tensor.double().isfinite()).sum())
    if wrong:
        raise ValueError(
            f"{wrong} of the {size} scores of group {name!r} are NaN or infinite; expected finite "
            "numbers (look for a division by zero or the logarithm of zero)"
        )
    return tensor.double()


def _short(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
