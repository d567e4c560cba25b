"""The self-checks' machinery: what it says of every kind of function, and what it leaves alone."""

from __future__ import annotations

import random

import numpy as np
import pandas as pd
import pytest
import torch
from dgprune_book.exercises.checking import Exercise, Mistake, Verdict, check, difference


def _cases():
    generator = torch.Generator().manual_seed(0)
    small = torch.arange(6, dtype=torch.float64).view(2, 3)
    return [(small, 2), (torch.rand(4, 5, generator=generator, dtype=torch.float64), 3)]


COLUMNS = Exercise(
    reference=lambda table, factor: factor * table.sum(0),
    cases=_cases,
    mistakes=(
        Mistake(lambda table, factor: factor * table.sum(1), "Those are the rows."),
        Mistake(lambda table, factor: table.sum(0), "The factor is missing."),
        Mistake(lambda table, factor: table @ table, "That is a product of matrices."),
    ),
)


def right(table, factor):
    return factor * table.sum(0)


def unwritten(table, factor):
    raise NotImplementedError


def in_place(table, factor):
    table += 1
    return right(table - 1, factor)


def drawing(table, factor):
    torch.rand(1)
    return right(table, factor)


def seeding(table, factor):
    np.random.seed(1)  # noqa: NPY002
    return right(table, factor)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (None, "This is `None`, not a function"),
        (right(torch.ones(2, 2), 1), "a tensor of shape (2,), not a function"),
        (lambda table, factor: right(table, factor).float(), "of float32, expected float64"),
        (lambda table, factor: right(table, factor)[None], "shape (1, 3), expected (3,)"),
        (lambda table, factor: right(table, factor) * torch.nan, "`nan` at [0], expected `6`"),
        (lambda table, factor: right(table, factor).tolist(), "the list `[6.0, 10.0, 14.0]`"),
        (lambda table, factor: "six", "the str `'six'`, expected a tensor of shape (3,)"),
        (lambda table, factor: None, "it gives `None`"),
        (lambda table, factor: table.numpy(), "the ndarray `array([[0., 1., 2.], [3., 4., 5.]])`"),
        (lambda table, factor: (_ for _ in table), "the generator `<generator object"),
        (lambda table, factor: right(table, factor).to("meta"), "not what was asked for"),
        (lambda table, factor: table / 0 / [], "it raises `TypeError"),
        (lambda: 0, "takes 0 positional arguments but 2 were given"),
        (in_place, "it changes its input in place"),
        (drawing, "it changes the global random state"),
        (seeding, "it changes the global random state"),
        (lambda table, factor: table.sum(1) * factor, "Those are the rows. For `table="),
        (lambda table, factor: table.sum(0), "The factor is missing. For"),
        # The same error as a mistake's is that mistake.
        (lambda table, factor: table.mm(table), "it raises `RuntimeError"),
        (lambda table, factor: table @ table, "That is a product of matrices. For"),
    ],
)
def test_a_wrong_function_is_told_what_is_wrong(function, words):
    verdict = check(COLUMNS, function)
    assert not verdict
    assert words in verdict.message
    assert repr(verdict) == f"Not yet. {verdict.message}"
    assert verdict._repr_markdown_() == f"**Not yet.** {verdict.message}"
    assert verdict == check(COLUMNS, function)


def test_a_stub_is_no_mistake_yet():
    verdict = check(COLUMNS, unwritten)
    assert not verdict
    assert "not written yet" in verdict.message
    assert "Not yet" not in verdict._repr_markdown_()


@pytest.mark.parametrize(
    "function",
    [right, lambda table, factor: (table * factor).sum(0).requires_grad_()],
)
def test_a_right_function_passes(function):
    verdict = check(COLUMNS, function)
    assert verdict
    assert repr(verdict).startswith("Passed.")


def test_the_input_that_shows_the_mistake_is_in_the_message():
    verdict = check(COLUMNS, lambda table, factor: 2 * table.sum(0))
    assert "`table=<tensor of shape (4, 5)>, factor=3`" in verdict.message
    verdict = check(COLUMNS, lambda table, factor: 3 * table.sum(0))
    assert "`table=tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]), factor=2`" in verdict.message


def test_the_global_random_state_is_left_as_found():
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    expected = random.random(), np.random.random(), torch.rand(1).item()  # noqa: NPY002
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    for function in (right, drawing, seeding, unwritten, lambda: 0):
        check(COLUMNS, function)
    assert (random.random(), np.random.random(), torch.rand(1).item()) == expected  # noqa: NPY002


def test_a_function_cannot_spoil_the_inputs_for_the_next():
    kept = _cases()
    exercise = Exercise(COLUMNS.reference, lambda: kept, COLUMNS.mistakes)
    check(exercise, in_place)
    assert check(exercise, right)
    assert torch.equal(kept[0][0], _cases()[0][0])


@pytest.mark.parametrize(
    ("value", "expected", "words"),
    [
        (0.1 + 0.2, 0.3, None),
        (2, 2.0, None),
        (np.int64(1), 1, None),
        (1.0, 1, "the float `1`, expected a whole number"),
        (np.float64(0.5), 0.5, None),
        (torch.tensor(0.5), 0.5, "`.item()` makes one"),
        (True, 1.0, "the bool `True`, expected a number"),
        (1.5, 1, "it gives `1.5`, expected `1`"),
        (float("nan"), 0.0, "it gives `nan`, expected `0`"),
        ([1, 2], (1, 2), "the list `[1, 2]`, expected a tuple"),
        ((1, 2), (1, 2, 3), "2 values, expected 3"),
        ((1, 4), (1, 2), "in place 1 it gives `4`, expected `2`"),
        ({"a": 1}, {"b": 1}, "a dict of `['a']`, expected one of `['b']`"),
        ({"a": {"b": 2}}, {"a": {"b": 1}}, "at `'a'` at `'b'` it gives `2`"),
        ({"b": 1, "a": 2}, {"a": 2, "b": 1}, None),
        ({1}, {1, 2}, "it gives `{1}`, expected `{1, 2}`"),
        ("ERM", "VREx", "it gives `'ERM'`, expected `'VREx'`"),
        (pd.DataFrame({"a": [1, 2]}), 1.0, "<table of 2 rows>"),
        (torch.ones(2, dtype=torch.bool), torch.tensor([True, False]), "`True` at [1]"),
    ],
)
def test_differences_in_words(value, expected, words):
    found = difference(value, expected)
    assert found is None if words is None else words in found


def test_a_verdict_is_true_where_it_passed():
    assert Verdict(True, "")
    assert not Verdict(False, "")


def test_several_calls_are_looked_at_together():
    twice = Exercise(
        reference=lambda seed: seed,
        cases=lambda: [(1, 2)],
        mistakes=(Mistake(lambda seed: 0, "The seed does nothing."),),
        use=lambda function, first, second: [function(first), function(second)],
        judge=lambda given, first, second: "it gives the same twice" if len({*given}) < 2 else None,
    )
    assert check(twice, lambda seed: -seed)
    found = check(twice, lambda seed: 0)
    assert (
        found.message == "The seed does nothing. For `first=1, second=2` it gives the same twice."
    )
    assert check(twice, lambda seed: 5).message.startswith("For")
    assert "not what was asked for" in check(twice, lambda seed: []).message
