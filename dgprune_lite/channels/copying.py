"""Copy a network, with other tensors in place of its own where one likes.

What this file is *not*: surgery, or tracing. Both start from such a copy and say which tensors.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

from torch import nn

_ATOMS = frozenset([type(None), bool, int, float, str])
_EMPTY = frozenset([dict, OrderedDict, set])
_PROTOCOL = ("__deepcopy__", "__getstate__", "__reduce__", "__reduce_ex__")


def copy_network(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """What ``copy.deepcopy(model, memo)`` makes, several times as fast.

    A module has some thirty attributes, most of them numbers and empty dicts that ``deepcopy``
    asks one by one how they are copied.

    Args:
        model: Untouched.
        memo: id of an object of the model to what the copy has in its place. All that is copied is
            added to it.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> bias = nn.Parameter(net[0].bias.detach() + 1)
    >>> twin = copy_network(net, {id(net[0].bias): bias})
    >>> twin[0].bias is bias, twin[0].weight is net[0].weight
    (True, False)
    """
    plain = [module for module in model.modules() if _copied_as_usual(type(module))]
    twins = {id(module): object.__new__(type(module)) for module in plain}
    memo |= twins
    for module in plain:
        for name, own in vars(module).items():
            if type(own) in _ATOMS:
                new = own
            elif type(own) in _EMPTY and not own:
                new = memo.setdefault(id(own), type(own)())
            else:
                new = copy.deepcopy(own, memo)
            twins[id(module)].__dict__[name] = new
    return copy.deepcopy(model, memo)


def _copied_as_usual(kind: type[nn.Module]) -> bool:
    """Whether a copy is a new object with copies of the attributes, and no more than that."""
    return (
        all(getattr(kind, name, None) is getattr(nn.Module, name, None) for name in _PROTOCOL)
        and kind.__setstate__.__module__.startswith("torch.nn.")  # fills in what old files lack
        and kind.__basicsize__ == nn.Module.__basicsize__  # no slots, no list or dict beside
    )
