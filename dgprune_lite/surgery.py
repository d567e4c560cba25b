"""Take channels out of modules: the only place where a network's tensors change their shape.

What goes is decided in ``pruning.py``; here it is done, on a copy or in place.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dgprune_lite.channels import misfit


@dataclass(frozen=True)
class Cut:
    """What one module loses: indices on its output axis and on its weight's input axis."""

    out: tuple[int, ...]
    into: tuple[int, ...]
    weight_shape: tuple[int, ...]  # before


def smaller_copy(model: nn.Module, cuts: Mapping[str, Cut]) -> nn.Module:
    """A copy of ``model`` without what ``cuts`` (module name to :class:`Cut`) take away.

    Raises:
        ValueError: A layer is missing or its weight has another shape.
    """
    shapes = {name: cut.weight_shape for name, cut in cuts.items()}
    if problem := misfit(model, shapes):
        raise ValueError(
            f"the plan is for another model: {problem}. Make the plan with the graph of this model"
        )
    modules = dict(model.named_modules())
    memo: dict[int, Any] = {}  # the copy takes the smaller tensors in place of the whole ones
    for name, cut in cuts.items():
        memo.update((id(whole), part) for whole, part in _smaller(modules[name], cut))
    small = copy.deepcopy(model, memo)
    for name in cuts:
        _set_sizes(small.get_submodule(name))
    for parameter in small.parameters():
        parameter.grad = None
    return small


def shrink(module: nn.Module, cut: Cut) -> None:
    """Take the entries of ``cut`` out of one convolution, linear layer or BatchNorm, in place."""
    smaller = {id(whole): part for whole, part in _smaller(module, cut)}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if id(tensor) in smaller:
            setattr(module, name, smaller[id(tensor)])
    _set_sizes(module)


def _smaller(module: nn.Module, cut: Cut) -> Iterator[tuple[Tensor, Tensor]]:
    """The module's tensors that have a channel axis, each with what the cut leaves of it."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = getattr(module, name, None)
        if isinstance(tensor, Tensor):
            part = _without(tensor, cut.out, 0)
            if name == "weight" and cut.into:
                part = _without(part, cut.into, 1)
            if isinstance(tensor, nn.Parameter):
                part = nn.Parameter(part, requires_grad=tensor.requires_grad)
            yield tensor, part


def _set_sizes(module: nn.Module) -> None:
    """Make the sizes that a module states fit its tensors."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.conv._ConvNd):
        if module.groups > 1 and module.groups == module.in_channels:  # depthwise
            module.groups = len(module.weight) // (module.out_channels // module.groups)
        module.out_channels = module.weight.shape[0]
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        sized = module.weight if module.weight is not None else module.running_mean
        module.num_features = module.num_features if sized is None else len(sized)


def _without(tensor: Tensor, indices: Sequence[int], axis: int) -> Tensor:
    keep = torch.ones(tensor.shape[axis], dtype=torch.bool)
    keep[list(indices)] = False
    return tensor.detach().index_select(axis, keep.nonzero()[:, 0].to(tensor.device)).contiguous()
