"""Take channels out of a copy: the only place where a network's tensors change their shape."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dgprune_lite.channels.graph import filters_first


@dataclass(frozen=True)
class Cut:
    """What one module loses: indices on its output axis and on its weight's input axis."""

    out: tuple[int, ...]
    into: tuple[int, ...]
    weight_shape: tuple[int, ...]  # before


BLOCK = 2**18
"""How many weights are gathered at a time: few enough for the cache, and to need little memory."""


def smaller_copy(model: nn.Module, cuts: Mapping[str, Cut]) -> nn.Module:
    """A copy of ``model``, which has these layers, without what ``cuts`` take away from them.

    Raises:
        ValueError: A layer has no entry that it is to lose.
    """
    modules = dict(model.named_modules())
    memo: dict[int, Any] = {}  # the copy takes the smaller tensors in place of the whole ones
    for name, cut in cuts.items():
        try:
            memo.update((id(whole), part) for whole, part in _smaller(modules, name, cut))
        except IndexError as error:
            raise ValueError(f"{name!r} has {error}") from None
    small = copied(model, memo)
    modules = dict(small.named_modules())
    for name, cut in cuts.items():
        if name in modules:
            _set_sizes(modules[name], cut)
        elif isinstance(getattr(owner := modules[name.rpartition(".")[0]], "channels", None), int):
            owner.channels -= len(cut.out)
    return small


def copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy, with ``memo[id(tensor)]`` in place of a tensor; activations come detached."""
    for module in model.modules():  # deepcopy takes long to see that a dict of hooks is empty
        own = [part for part in vars(module).values() if type(part) in (dict, OrderedDict, set)]
        memo |= {id(part): type(part)() for part in own if not part}
    try:
        with _Detaching():
            return copy.deepcopy(model, memo)
    except Exception as error:
        raise ValueError(f"{type(model).__name__} cannot be copied: {error}") from error


class _Detaching(TorchFunctionMode):
    """Lets ``deepcopy`` copy the values of a tensor that autograd made, which it refuses alone."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))


def _smaller(
    modules: Mapping[str, nn.Module], name: str, cut: Cut
) -> Iterator[tuple[Tensor, Tensor]]:
    """The tensors of a layer, each with a copy of what the cut leaves of it."""
    if name not in modules:  # a parameter of its own, with one axis along channels
        owner, _, key = name.rpartition(".")
        tensor = getattr(modules[owner], key)
        axis = next(axis for axis, size in enumerate(tensor.shape) if size > 1)
        stay = _others(cut.out, tensor.shape[axis], tensor.device)
        yield tensor, _like(tensor, tensor.detach().index_select(axis, stay))
        return
    module = modules[name]
    rows: Tensor | None = None
    for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        tensor = getattr(module, key, None)
        if not isinstance(tensor, Tensor):
            continue
        whole = filters_first(module, tensor.detach())
        if whole.ndim == 0:  # a number of batches
            part = whole.clone()
        else:
            rows = _others(cut.out, whole.shape[0], whole.device) if rows is None else rows
            part = _entries(whole, rows, cut.into if key == "weight" else ())
        if key == "weight" and isinstance(module, nn.modules.conv._ConvTransposeNd):
            groups = _groups_left(module, cut)
            part = part.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).contiguous()
        yield tensor, _like(tensor, part)


def _like(tensor: Tensor, part: Tensor) -> Tensor:
    """A part of a tensor as a parameter, if that is one."""
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(part, requires_grad=tensor.requires_grad)
    return part


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


def _entries(tensor: Tensor, rows: Tensor, without: Sequence[int]) -> Tensor:
    """A copy of some rows, without some columns: entries of the first and the second axis."""
    if not without:
        return tensor.index_select(0, rows)
    columns = _others(without, tensor.shape[1] if tensor.ndim > 1 else 0, tensor.device)
    part = tensor.new_empty(len(rows), len(columns), *tensor.shape[2:])
    step = max(1, BLOCK // tensor[0].numel())
    # One piece of memory for all: asked for block by block, three times as much stays taken.
    room = tensor.new_empty(min(step, len(rows)), *tensor.shape[1:])
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        block = torch.index_select(tensor, 0, some, out=room[: len(some)])
        torch.index_select(block, 1, columns, out=part[start : start + step])
    return part


def _others(indices: Sequence[int], size: int, device: torch.device) -> Tensor:
    """All of ``size`` indices but these, or an IndexError."""
    if indices and not 0 <= min(indices) <= max(indices) < size:
        wrong = next(index for index in indices if not 0 <= index < size)
        raise IndexError(f"{size} entries along an axis that is to lose number {wrong}")
    keep = np.ones(size, dtype=bool)
    keep[list(indices)] = False
    return torch.from_numpy(np.flatnonzero(keep)).to(device)
