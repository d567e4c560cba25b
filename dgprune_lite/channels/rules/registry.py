"""Find the rule of a call, and what to do where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgprune_lite.channels.ids import Value, Width

if TYPE_CHECKING:
    from dgprune_lite.channels.tape import Tape

Rule = Callable[["Tape", "Call"], Any]
RULES: dict[str, Rule] = {}  # by the function's name
ALWAYS: set[Rule | None] = set()  # rules that also act where no input carries channels
SIZES: set[Rule | None] = set()  # rules that know what to do with a size that shrinks
MEASURES: set[Rule | None] = set()  # rules that give the network another result: sizes
NUMBERS = frozenset(
    ["bool", "float", "int", "index", "item", "tolist", "numpy", "array", "equal", "allclose",
     "is_nonzero", "complex", "nonzero", "unique", "argwhere", "masked_select"]
)  # fmt: skip
"""Calls whose results say what the code does next."""


class Call:
    """One call of PyTorch: the function, its name without underscores, arguments and result."""

    def __init__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]):
        self.func, self.args, self.kwargs = func, args, kwargs
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            name = "." + func.__self__.__name__
        self.name = name.strip("_")
        self.result: Any = None

    @cached_property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, also those inside lists, in order."""
        return list(of_kind((self.args, *self.kwargs.values()), Tensor))

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """An argument of the call, given by place or by name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)

    def swapped(self, replace: Callable[[Any], Any], kind: type = Tensor) -> Call:
        """The same call with something else in place of the tensors among its arguments."""

        def swap(value: Any) -> Any:
            if isinstance(value, kind):
                return replace(value)
            if type(value) in (tuple, list):
                return type(value)(map(swap, value))
            return value

        return Call(
            self.func, tuple(map(swap, self.args)), {k: swap(v) for k, v in self.kwargs.items()}
        )

    def with_tensors(self, replace: Callable[[Tensor], Any]) -> Any:
        """What the function gives for other tensors in place of the call's."""
        other = self.swapped(replace)
        return self.func(*other.args, **other.kwargs)


def rule(
    *names: str, always: bool = False, sizes: bool = False, measures: bool = False
) -> Callable[[Rule], Rule]:
    """Register a rule for functions and methods of these names."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        ALWAYS.update([function] if always else [])
        SIZES.update([function] if sizes else [])
        MEASURES.update([function] if measures else [])
        return function

    return register


def apply_rule(tape: Tape, call: Call) -> Any:
    """Note the values of a call's results by its rule; returns what the network is to get."""
    rule = RULES.get(call.name)
    if rule is not None and rule in MEASURES:
        return rule(tape, call)
    widths = list(of_kind((call.args, *call.kwargs.values()), Width))
    if rule not in SIZES:
        for width in widths if rule not in ALWAYS else ():
            tape.follow_later(None, width, f"{title(tape, call)} depends on how many they are")
        widths = []
    known = [tape.known(tensor) for tensor in call.tensors] if rule not in ALWAYS else []
    carrying = [value for value in known if value is not None and value.carries]
    value = None
    if rule is not None and (rule in ALWAYS or carrying or widths):
        value = rule(tape, call)
    elif call.name in NUMBERS:
        tape.asked_for_numbers()
    if carrying and (
        call.name in NUMBERS
        or (rule is None and next(of_kind([call.result], Tensor), None) is not None)
    ):
        for other in carrying:
            tape.lock(other.ids, f"{title(tape, call)} is an operation without a channel rule")
    if isinstance(call.result, Tensor):
        tape.note(call.result, value)
    elif isinstance(call.result, (tuple, list)):
        values = value if isinstance(value, tuple) else [value] * len(call.result)
        for part, one in zip(call.result, values, strict=True):
            if isinstance(part, Tensor):
                tape.note(part, one)
    return call.result


def of_kind(items: Any, kind: type) -> Iterator[Any]:
    """All entries of one kind, also those inside tuples, lists and slices."""
    for item in items:
        if isinstance(item, kind):
            yield item
        elif isinstance(item, (tuple, list)):
            yield from of_kind(item, kind)
        elif isinstance(item, slice) and kind is Width:
            yield from of_kind((item.start, item.stop, item.step), kind)


def fixed(result: Tensor) -> Value:
    """The value of something that holds no removable channel."""
    return Value(torch.zeros((), dtype=torch.int64).expand(result.shape))


def locked(tape: Tape, value: Value, reason: str) -> Value | None:
    """Lock what a call reads; its result is then fixed."""
    tape.lock(value.ids, reason)
    return None


def title(tape: Tape, call: Call) -> str:
    """How a reason names an operation: by the module whose parameters it reads, if any."""
    for tensor in call.tensors:
        if id(tensor) in tape.owners:
            name = tape.owners[id(tensor)][0][0]
            return f"{name} ({type(tape.modules[name]).__name__})"
    return call.name


def spread(ids: Tensor, result: Tensor, axis: int) -> Tensor:
    """ids of channels (channels,), expanded to the shape of ``result``."""
    if len(ids) != result.shape[axis]:
        raise ValueError(f"{len(ids)} channels along axis {axis} of shape {tuple(result.shape)}")
    strides = [0] * result.ndim
    strides[axis] = ids.stride(0)
    return ids.as_strided(result.shape, strides)
