"""How a self-check works: run the reader's function on inputs, compare, name the mistake.

An :class:`Exercise` holds a right implementation, inputs, and wrong implementations with the
sentence that names each. A function that is wrong is compared with the wrong ones, so that the
verdict says what it looks like rather than only that two numbers differ.

What this file is *not*: a grader. It trusts the function it runs, and waits for one that hangs.
"""

from __future__ import annotations

import copy
import inspect
import numbers
import random
import re
import reprlib
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Judge = Callable[..., str | None]


@dataclass(frozen=True, repr=False)
class Verdict:
    """What a self-check found; true where the function passed.

    Attributes:
        passed: Whether the function does what the exercise asks.
        message: What is wrong, or a sentence on what was right; Markdown.

    >>> Verdict(False, "It gives `3`, expected `4`.")
    Not yet. It gives `3`, expected `4`.
    """

    passed: bool
    message: str
    written: bool = True  # no longer the stub that the chapter gives

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return f"{'Passed.' if self.passed else 'Not yet.'} {self.message}"

    def _repr_markdown_(self) -> str:
        """The same for notebooks; of a stub, as in the built pages, only what to do."""
        if not self.written:
            return "*Write the function, then run its cell and this one.*"
        return f"**{'Passed.' if self.passed else 'Not yet.'}** {self.message}"


@dataclass(frozen=True)
class Mistake:
    """A wrong implementation that readers write, and the sentence that names it."""

    function: Callable[..., Any]
    says: str


@dataclass(frozen=True)
class Exercise:
    """A function to write, and how to tell whether it is right.

    Attributes:
        reference: A right implementation; its parameters' names appear in the messages.
        cases: Makes the inputs, a tuple of positional arguments each. Every call must give the
            same ones, from a generator of its own if they are random.
        mistakes: What readers get wrong. Each must fail in at least one of the cases.
        praise: What the verdict says of a function that passes.
        judge: For exercises with many right answers: takes the result and then the arguments,
            returns a phrase that says what is wrong, such as "it gives no filters", or None. By
            default the result must equal the reference's.
        use: Takes the function and then the arguments of a case, and gives the result that is
            looked at: for what shows in several calls only. By default one call.
    """

    reference: Callable[..., Any]
    cases: Callable[[], Sequence[tuple[Any, ...]]]
    mistakes: tuple[Mistake, ...]
    praise: str = "It agrees with the reference on every input tried."
    judge: Judge | None = None
    use: Callable[..., Any] | None = None


def check(exercise: Exercise, function: Any) -> Verdict:
    """Run a function on the inputs of an exercise and say what is wrong with it.

    It never raises because of what the function does. The global random state of torch, NumPy
    and Python is left as found, and the function starts from the same one in every check.

    Args:
        exercise: What is asked.
        function: What the reader wrote; anything.

    Returns:
        A verdict on the first input that shows something wrong.

    >>> double = Exercise(
    ...     reference=lambda x: 2 * x,
    ...     cases=lambda: [(2,), (3,)],
    ...     mistakes=(Mistake(lambda x: x**2, "That is the square."),),
    ... )
    >>> check(double, lambda x: x + x)
    Passed. It agrees with the reference on every input tried.
    >>> check(double, lambda x: x * x)
    Not yet. That is the square. For `x=3` it gives `9`, expected `6`.
    >>> check(double, lambda x: x / 0)
    Not yet. For `x=2` it raises `ZeroDivisionError: division by zero`.
    """
    if not callable(function):
        given = _describe(function)
        return Verdict(False, f"This is {given}, not a function: pass it by its name, without ().")
    cases = exercise.cases()
    asked = _in_use(exercise, exercise.reference)
    names = list(inspect.signature(asked).parameters)
    outcomes = [_run(exercise, function, arguments) for arguments in cases]
    for arguments, outcome in zip(cases, outcomes, strict=True):
        if outcome.unwritten:
            message = "It is not written yet: replace `raise NotImplementedError`."
            return Verdict(False, message, written=False)
        complaint = outcome.complaint or _judge(exercise, outcome.value, arguments)
        if complaint:
            given = ", ".join(
                f"{name}={_short(value)}" for name, value in zip(names, arguments, strict=False)
            )
            found = f"For {_code(given)} {complaint}."
            return Verdict(False, _name(exercise, cases, outcomes) + found)
    return Verdict(True, exercise.praise)


def _name(
    exercise: Exercise, cases: Sequence[tuple[Any, ...]], outcomes: Sequence[_Outcome]
) -> str:
    """The sentence of the mistake that has the same outcomes on all inputs, or nothing."""
    for mistake in exercise.mistakes:
        theirs = (_run(exercise, mistake.function, arguments) for arguments in cases)
        if all(_alike(a, b) for a, b in zip(outcomes, theirs, strict=True)):
            return f"{mistake.says} "
    return ""


# --- Running a function ------------------------------------------------------------------


@dataclass(frozen=True)
class _Outcome:
    value: Any = None
    complaint: str | None = None
    unwritten: bool = False


def _alike(one: _Outcome, other: _Outcome) -> bool:
    if one.complaint or other.complaint:
        return one.complaint == other.complaint
    try:
        return difference(one.value, other.value) is None
    except Exception:  # something that torch cannot compare is like nothing
        return False


def _in_use(exercise: Exercise, function: Callable[..., Any]) -> Callable[..., Any]:
    """What takes the arguments of a case and gives the result that is looked at."""
    return function if exercise.use is None else partial(exercise.use, function)


def _run(exercise: Exercise, function: Callable[..., Any], arguments: tuple[Any, ...]) -> _Outcome:
    """Use a function on copies of the arguments."""
    given = copy.deepcopy(arguments)
    with _own_random_state() as before:
        try:
            value = _in_use(exercise, function)(*given)
        except NotImplementedError:
            return _Outcome(unwritten=True)
        except Exception as error:  # whatever the reader's function does is reported, not raised
            text = textwrap.shorten(_line(f"{type(error).__name__}: {error}"), 300)
            return _Outcome(complaint=f"it raises {_code(text)}")
        drew = not _same_state(before, _random_state())
    if drew:
        return _Outcome(
            complaint="it changes the global random state (use a `torch.Generator` of its own)"
        )
    for original, after in zip(arguments, given, strict=True):
        if not _unchanged(original, after):
            return _Outcome(complaint="it changes its input in place (work on a copy)")
    return _Outcome(value)


def _random_state() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002


def _same_state(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    (a, (_, b, *c), d), (e, (_, f, *g), h) = one, other
    return a == e and bool((b == f).all()) and c == g and torch.equal(d, h)


@contextmanager
def _own_random_state() -> Iterator[tuple[Any, ...]]:
    """Start from a fixed global random state; put the caller's back."""
    python, numpy, pytorch = _random_state()
    try:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.random.default_generator.manual_seed(0)  # the CPU's alone, as that is put back
        yield _random_state()
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(pytorch)


def _unchanged(before: Any, after: Any) -> bool:
    if isinstance(before, nn.Module):
        return before.training == after.training and _unchanged(
            dict(before.state_dict()), dict(after.state_dict())
        )
    if isinstance(before, Tensor):
        return before.shape == after.shape and bool(
            torch.equal(before.nan_to_num(), after.nan_to_num())
        )
    if isinstance(before, Mapping):
        return list(before) == list(after) and all(_unchanged(before[k], after[k]) for k in before)
    if isinstance(before, (list, tuple)):
        return len(before) == len(after) and all(map(_unchanged, before, after))
    if isinstance(before, np.ndarray):
        return np.array_equal(before, after)
    if hasattr(before, "equals"):  # tables of pandas
        return bool(before.equals(after))
    return True  # what cannot change, or an object that is not looked into


# --- Comparing what it gives -------------------------------------------------------------


def _judge(exercise: Exercise, value: Any, arguments: tuple[Any, ...]) -> str | None:
    try:
        if exercise.judge is not None:
            return exercise.judge(value, *copy.deepcopy(arguments))
        expected = _in_use(exercise, exercise.reference)(*copy.deepcopy(arguments))
        return difference(value, expected)
    except Exception:  # a result so unlike what was asked that looking at it fails
        return f"it gives {_describe(value)}, which is not what was asked for"


def difference(value: Any, expected: Any) -> str | None:
    """Say how a result differs from the expected one.

    Args:
        value: What a function gave.
        expected: A number, string, None, tensor, or a tuple, list, set or dict of such.

    Returns:
        A phrase such as "it gives `3`, expected `4`", or None where they are equal. Floating-point
        numbers may differ by rounding: by one in a million, or one in ten thousand for float32.

    >>> difference(torch.ones(2), torch.ones(2, 1))
    'it gives a tensor of shape (2,), expected (2, 1)'
    """
    if isinstance(expected, Tensor):
        return _tensor_difference(value, expected)
    if isinstance(expected, Mapping):
        if not isinstance(value, Mapping):
            return f"it gives {_describe(value)}, expected a dict"
        if set(value) != set(expected):
            keys = [_code(_short(list(mapping))) for mapping in (value, expected)]
            return f"it gives a dict of {keys[0]}, expected one of {keys[1]}"
        parts = ((f"at {_code(repr(key))} ", value[key], expected[key]) for key in expected)
        return _first_difference(parts)
    if isinstance(expected, (tuple, list)):
        if type(value) is not type(expected):
            return f"it gives {_describe(value)}, expected a {type(expected).__name__}"
        if len(value) != len(expected):
            return f"it gives {len(value)} values, expected {len(expected)}"
        pairs = enumerate(zip(value, expected, strict=True))
        return _first_difference((f"in place {place} ", a, b) for place, (a, b) in pairs)
    return _scalar_difference(value, expected)


def _first_difference(parts: Iterator[tuple[str, Any, Any]]) -> str | None:
    for where, value, expected in parts:
        found = difference(value, expected)
        if found:
            return where + found
    return None


def _scalar_difference(value: Any, expected: Any) -> str | None:
    if isinstance(expected, numbers.Real) and not isinstance(expected, (bool, np.bool_)):
        kind = "a whole number" if isinstance(expected, numbers.Integral) else "a number"
        if isinstance(value, Tensor):
            return f"it gives {_describe(value)}, expected {kind}: `.item()` makes one"
        if not isinstance(value, numbers.Real) or isinstance(value, (bool, np.bool_)):
            return f"it gives {_describe(value)}, expected {kind}"
        if np.isclose(float(value), float(expected), rtol=1e-6, atol=1e-9, equal_nan=True):
            if kind == "a number" or isinstance(value, numbers.Integral):
                return None
            return f"it gives {_describe(value)}, expected {kind}"
    elif type(value) is not type(expected):
        return f"it gives {_describe(value)}, expected {_describe(expected)}"
    elif value == expected:
        return None
    return f"it gives {_code(_short(value))}, expected {_code(_short(expected))}"


def _tensor_difference(value: Any, expected: Tensor) -> str | None:
    if not isinstance(value, Tensor):
        return f"it gives {_describe(value)}, expected a tensor of shape {tuple(expected.shape)}"
    if value.shape != expected.shape:
        return f"it gives a tensor of shape {tuple(value.shape)}, expected {tuple(expected.shape)}"
    if value.dtype != expected.dtype:
        kinds = [str(kind).removeprefix("torch.") for kind in (value.dtype, expected.dtype)]
        return f"it gives a tensor of {kinds[0]}, expected {kinds[1]}"
    rtol = 1e-4 if expected.dtype == torch.float32 else 1e-6
    value = value.detach().cpu()
    wrong = ~torch.isclose(value, expected, rtol=rtol, atol=1e-9, equal_nan=True)
    if not bool(wrong.any()):
        return None
    place = tuple(wrong.nonzero()[0].tolist())
    where = f" at {list(place)}" if place else ""
    return (
        f"it gives {_code(_short(value[place].item()))}{where}, "
        f"expected {_code(_short(expected[place].item()))}"
    )


# --- Words -------------------------------------------------------------------------------

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 60
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = _REPR.maxset = 8


def _short(value: Any) -> str:
    """A value in at most about a line."""
    if isinstance(value, bool) or value is None:
        return repr(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Tensor):
        if value.numel() <= 6 and value.device.type != "meta":
            return f"tensor({_rounded(value.tolist())})"
        return f"<tensor of shape {tuple(value.shape)}>"
    if isinstance(value, nn.Module):
        return f"<{type(value).__name__}>"
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return f"[{', '.join(map(_short, value[:4]))}{', ...' if len(value) > 4 else ''}]"
    if isinstance(value, Mapping):
        inside = ", ".join(f"{key!r}: {_short(part)}" for key, part in list(value.items())[:4])
        return f"{{{inside}{', ...' if len(value) > 4 else ''}}}"
    if hasattr(value, "columns"):  # tables of pandas
        return f"<table of {len(value)} rows>"
    if isinstance(value, np.ndarray) and value.size > 6:
        return f"<array of shape {value.shape}>"
    return _line(_REPR.repr(value))


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _describe(value: Any) -> str:
    """A value with its type, as in "the str `'a'`"."""
    if value is None:
        return "`None`"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"the {type(value).__name__} {_code(_short(value))}"


def _line(text: str) -> str:
    """Text in one line, without addresses in memory, which change from run to run."""
    return re.sub(r" at 0x[0-9A-Fa-f]+", "", " ".join(text.split()))


def _code(text: str) -> str:
    return f"`{text.replace('`', chr(39))}`"
