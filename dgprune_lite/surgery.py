"""Take channels out of modules: the only place where a network's tensors change their shape.

What goes is decided in ``pruning.py``; here it is done, on a copy or in place.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dgprune_lite.channels import filters_first, misfit


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
    for module in modules.values():  # a module has some ten empty dicts, slow to copy
        for own in vars(module).values():
            if type(own) in (dict, OrderedDict) and not own:
                memo[id(own)] = type(own)()
    small = copy.deepcopy(model, memo)
    for name, cut in cuts.items():
        _set_sizes(small.get_submodule(name), cut)
    for parameter in small.parameters():
        parameter.grad = None
    return small


def shrink(module: nn.Module, cut: Cut) -> None:
    """Take the entries of ``cut`` out of one layer with parameters along channels, in place."""
    smaller = {id(whole): part for whole, part in _smaller(module, cut)}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if id(tensor) in smaller:
            setattr(module, name, smaller[id(tensor)])
    _set_sizes(module, cut)


def _smaller(module: nn.Module, cut: Cut) -> Iterator[tuple[Tensor, Tensor]]:
    """The module's tensors that have a channel axis, each with what the cut leaves of it."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        tensor = getattr(module, name, None)
        if isinstance(tensor, Tensor):
            part = _without(filters_first(module, tensor.detach()), cut.out, 0)
            if name == "weight" and cut.into:
                part = _without(part, cut.into, 1)
            if name == "weight" and isinstance(module, nn.modules.conv._ConvTransposeNd):
                groups = _groups_left(module, cut)
                part = part.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
            part = part.clone() if part.data_ptr() == tensor.data_ptr() else part.contiguous()
            if isinstance(tensor, nn.Parameter):
                part = nn.Parameter(part, requires_grad=tensor.requires_grad)
            yield tensor, part


def _groups_left(module: Any, cut: Cut) -> int:
    """A convolution's groups; a depthwise one has one for each channel that stays."""
    if module.groups > 1 and module.groups == module.in_channels:
        return module.groups - len(cut.out) * module.groups // module.out_channels
    return module.groups


def _set_sizes(module: nn.Module, cut: Cut) -> None:
    """Make the sizes that a module states fit its tensors."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.conv._ConvNd):
        groups = _groups_left(module, cut)
        inputs = module.in_channels // module.groups - len(cut.into)
        module.out_channels -= len(cut.out)
        module.in_channels, module.groups = inputs * groups, groups
    elif isinstance(module, nn.GroupNorm):
        each = module.num_channels // module.num_groups
        module.num_channels -= len(cut.out)
        module.num_groups = module.num_channels // each
    elif isinstance(module, nn.PReLU):
        module.num_parameters -= len(cut.out)
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features -= len(cut.out)


def _without(tensor: Tensor, indices: Sequence[int], axis: int) -> Tensor:
    if not indices:
        return tensor
    keep = torch.ones(tensor.shape[axis], dtype=torch.bool)
    keep[list(indices)] = False
    return tensor.index_select(axis, keep.nonzero()[:, 0].to(tensor.device))
