"""Find the rule of a call, and what to do where there is none."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.utils._pytree import tree_map_only

from dgprune_lite.channels.ids import Value, Width, in_short, written_out

if TYPE_CHECKING:
    from dgprune_lite.channels.tape import Tape

Rule = Callable[["Tape", "Call"], Any]
RULES: dict[str, tuple[Rule | None, Collection[str]]] = {}
"""The rule of each function, by its name, and in which ways it is out of the ordinary.

"always": it also acts where no input carries channels; "sizes": it knows what to do with a size
that shrinks; "measures": it gives the network another result, sizes.
"""
NUMBERS = frozenset(
    ["bool", "float", "int", "index", "item", "tolist", "numpy", "array", "equal", "allclose",
     "is_nonzero", "complex", "nonzero", "unique", "argwhere", "masked_select"]
)  # fmt: skip
"""Calls whose results say what the code does next."""
COUNTED = "depends on how many they are"


class Call:
    """One call of PyTorch: the function, its name without underscores, arguments and result."""

    def __init__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tape: Any = None):
        self.func, self.args, self.kwargs, self.tape = func, args, kwargs, tape
        self.name = name_of(func)
        self.result: Any = None

    @cached_property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, also those inside lists, in order."""
        return of_kind((*self.args, *self.kwargs.values()), Tensor)

    @cached_property
    def values(self) -> list[Value]:
        """Those of the tensors."""
        return [self.tape.value(tensor) for tensor in self.tensors]

    @property
    def pairs(self) -> list[tuple[Tensor, Value]]:
        """The tensors with their values."""
        return list(zip(self.tensors, self.values, strict=True))

    @property
    def title(self) -> str:
        """How a reason names it: by the module whose parameters it reads, if any."""
        for tensor in self.tensors:
            for name, _ in self.tape.owners.get(id(tensor), [])[:1]:
                return f"{name} ({type(self.tape.modules[name]).__name__})"
        return self.name

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """An argument of the call, given by place or by name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)

    def swapped(self, replace: Callable[[Any], Any], kind: type = Tensor) -> Call:
        """The same call with something else in place of the tensors among its arguments."""
        args, kwargs = tree_map_only(kind, replace, (self.args, self.kwargs))
        return Call(self.func, args, kwargs)

    def with_tensors(self, replace: Callable[[Tensor], Any]) -> Any:
        """What the function gives for other tensors in place of the call's."""
        other = self.swapped(replace)
        return self.func(*other.args, **other.kwargs)

    def lock(self, why: str, *values: Value) -> Any:
        """Lock what it cannot do to fewer channels; the value of its result is then None."""
        for value in values:
            self.tape.lock(value.ids, f"{self.title} {why}")

    def lock_sizes(self, items: Any, why: str) -> Any:
        """Lock the channels that are counted by the sizes among some arguments."""
        for width in of_kind(items, Width):
            self.tape.follow_later(None, width, why)

    def united(self, values: list[Value]) -> np.ndarray:
        """Ids of values whose elements meet, such as those of a sum."""
        ids, *others = (value.ids for value in values)
        for other in others:
            if other is not ids:
                self.tape.unite(ids, other, f"{self.title} with values that no filter makes")
                ids = in_short(np.maximum(ids, other))
        return ids

    def done_to_ids(self) -> Any:
        """What the call does to the elements of its tensors, done to their ids."""
        ids = [written_out(value.ids, tensor.shape) for tensor, value in self.pairs]
        left = iter(ids)
        return tree_map_only(Tensor, in_short, self.with_tensors(lambda tensor: next(left)))


@lru_cache(1000)
def name_of(func: Any) -> str:
    """A function's name without underscores; an attribute's begins with a dot."""
    name = getattr(func, "__name__", str(func))
    return f".{func.__self__.__name__}" if name == "__get__" else str(name).strip("_")


def rule(names: str, *ways: str) -> Callable[[Rule], Rule]:
    """Register a rule for functions and methods of these names, between spaces."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names.split(), (function, ways)))
        return function

    return register


def rule_of(call: Call) -> tuple[Rule | None, Collection[str]]:
    """Its rule, None where there is none, and in which ways that is out of the ordinary."""
    return RULES.get(call.name, (None, ()))


def apply_rule(tape: Tape, call: Call) -> Any:
    """Note the values of a call's results by its rule; returns what the network is to get."""
    (rule, ways), value = rule_of(call), None
    if rule is not None and "measures" in ways:
        return rule(tape, call)
    if rule is not None and "always" in ways:
        value = rule(tape, call)
    else:
        widths = of_kind((*call.args, *call.kwargs.values()), Width)
        if widths and "sizes" not in ways:
            call.lock_sizes(widths, f"{call.title} {COUNTED}")
            widths = []
        carrying = [value for value in call.values if value.carries]
        if rule is not None and (carrying or widths):
            value = rule(tape, call)
        elif call.name in NUMBERS:
            tape.asked_for_numbers()
        asks = call.name in NUMBERS and (rule is None or not isinstance(call.result, Tensor))
        if asks or (rule is None and of_kind([call.result], Tensor)):
            call.lock("is an operation without a channel rule", *carrying)
    results = call.result if isinstance(call.result, (tuple, list)) else [call.result]
    values = value if isinstance(value, tuple) else [value] * len(results)
    for part, one in zip(results, values, strict=True):
        if isinstance(part, Tensor):
            tape.note(part, one)
    return call.result


def of_kind(items: Any, kind: type) -> list[Any]:
    """All entries of one kind, also those inside tuples, lists and slices."""
    found = []
    for item in items:
        if isinstance(item, kind):
            found.append(item)
        elif isinstance(item, (tuple, list)):
            found += of_kind(item, kind)
        elif isinstance(item, slice) and kind is Width:
            found += of_kind((item.start, item.stop, item.step), kind)
    return found
