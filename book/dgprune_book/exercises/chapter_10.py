"""Checks for chapter 10: which filters go together, and how wide a layer stays."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from dgprune_book.exercises.checking import Exercise, Mistake, Verdict, check
from dgprune_lite.pruning.limits import Limits

Block = tuple[str, str, str | None]  # first and second convolution, convolution of the shortcut
Groups = set[frozenset[str]]


def _collect(stem: str, blocks: list[Block], *, inner: bool = True) -> Groups:
    """Follow the sum through the blocks; a convolution on the shortcut starts it anew."""
    groups, stream = [], [stem]
    for first, second, shortcut in blocks:
        groups.append([first])
        if shortcut is not None:
            groups.append(stream)
            stream = [shortcut]
        stream.append(second)
        if not inner:
            stream += groups.pop() if shortcut is None else groups.pop(-2)
    return {frozenset(group) for group in [*groups, stream]}


def _tied_layers(stem: str, blocks: list[Block]) -> Groups:
    return _collect(stem, blocks)


def _whole_blocks(stem: str, blocks: list[Block]) -> Groups:
    return _collect(stem, blocks, inner=False)


def _last_forgotten(stem: str, blocks: list[Block]) -> Groups:
    return {group for group in _collect(stem, blocks) if blocks[-1][1] not in group}


def _without_stem(stem: str, blocks: list[Block]) -> Groups:
    return {group - {stem} for group in _collect(stem, blocks)} - {frozenset()} | {
        frozenset([stem])
    }


def _one_block_at_a_time(stem: str, blocks: list[Block]) -> Groups:
    groups = [[stem]]
    for first, second, shortcut in blocks:
        groups += [[first], [second] if shortcut is None else [shortcut, second]]
    return {frozenset(group) for group in groups}


def _across_stages(stem: str, blocks: list[Block]) -> Groups:
    stream = [stem]
    for _, second, shortcut in blocks:
        stream += [second] if shortcut is None else [shortcut, second]
    return {frozenset(stream), *(frozenset([first]) for first, _, _ in blocks)}


def _free_shortcut(stem: str, blocks: list[Block]) -> Groups:
    shortcuts = {shortcut for _, _, shortcut in blocks if shortcut is not None}
    groups = {group - shortcuts for group in _collect(stem, blocks)}
    return groups | {frozenset([name]) for name in shortcuts}


def _networks() -> list[tuple[Any, ...]]:
    small = [("stage1.conv1", "stage1.conv2", None), ("stage2.conv1", "stage2.conv2", "skip2")]
    deep = [
        (f"{stage}.{block}.conv1", f"{stage}.{block}.conv2", f"{stage}.skip")
        if stage != "a" and block == 0
        else (f"{stage}.{block}.conv1", f"{stage}.{block}.conv2", None)
        for stage in "abc"
        for block in range(2)
    ]
    return [("stem", small), ("stem", deep), ("stem", small[:1])]


TIED_LAYERS = Exercise(
    reference=_tied_layers,
    cases=_networks,
    mistakes=(
        Mistake(
            _whole_blocks,
            "The first convolution of a block is tied to nothing: what it makes is read by the "
            "second one alone, and added to nothing.",
        ),
        Mistake(
            _last_forgotten,
            "The group that is open when the blocks end is missing: the last block's output is "
            "tied, too.",
        ),
        Mistake(
            _without_stem,
            "The stem is left alone, but what it makes is what the first block's output is added "
            "to.",
        ),
        Mistake(
            _one_block_at_a_time,
            "Blocks are tied to each other: a block without a shortcut convolution adds to what "
            "came in, which the block before has made.",
        ),
        Mistake(
            _across_stages,
            "A convolution on the shortcut reads the old channels and makes new ones: the tie "
            "ends there and another begins.",
        ),
        Mistake(
            _free_shortcut,
            "The convolution on a shortcut is added to the block's second one: these two are tied.",
        ),
    ),
    praise="You followed every sum.",
)


def check_tied_layers(function: Callable[..., Any]) -> Verdict:
    """Check ``tied_layers(stem, blocks)``, which convolutions lose the same channels.

    Args:
        function: Takes ``stem``, the name of the first convolution, and ``blocks``, a list of
            (first, second, shortcut): the names of a block's two convolutions, and of the one on
            its shortcut, or None where the input is added as it is. A block gives
            second(first(x)) + shortcut(x). Gives a set of frozensets of names: convolutions that
            lose the same channels are in one of them, every convolution is in exactly one.

    Returns:
        A :class:`~dgprune_book.exercises.checking.Verdict`.

    Source: chapter 10, "What can go, and what cannot"; chapter 3, "Filters that are tied together".

    >>> check_tied_layers(_across_stages).message[:47]
    'A convolution on the shortcut reads the old cha'
    """
    return check(TIED_LAYERS, function)


def _by_ratio(filters: int, ratio: float) -> int:
    return max(1, round(filters * (1 - ratio)))


def _least(filters: int, max_ratio: float) -> int:
    return Limits(max_pruning_ratio=max_ratio).least(filters)


def _kept_width(filters: int, ratio: float, round_to: int, max_ratio: float) -> int:
    limits = Limits(round_to=round_to, max_pruning_ratio=max_ratio)
    return limits.rounded(max(_by_ratio(filters, ratio), limits.least(filters)), filters)


def _nearest(width: int, round_to: int) -> int:
    return round_to * math.floor(width / round_to + 0.5)


def _rounds_down(filters: int, ratio: float, round_to: int, max_ratio: float) -> int:
    least = _least(filters, max_ratio)
    width = max(_by_ratio(filters, ratio), least) // round_to * round_to
    return width if width >= least else filters


def _rounds_up(filters: int, ratio: float, round_to: int, max_ratio: float) -> int:
    least = _least(filters, max_ratio)
    width = math.ceil(max(_by_ratio(filters, ratio), least) / round_to) * round_to
    return width if width <= filters else filters


def _below_the_bound(least_width: Callable[[int, int], int]) -> Callable[..., int]:
    """Round to the nearest multiple, whatever the bound; where that is 0, what is given."""

    def width(filters: int, ratio: float, round_to: int, max_ratio: float) -> int:
        least = _least(filters, max_ratio)
        found = _nearest(max(_by_ratio(filters, ratio), least), round_to)
        return found or least_width(filters, round_to)

    return width


def _bound_last(filters: int, ratio: float, round_to: int, max_ratio: float) -> int:
    least = _least(filters, max_ratio)
    return max(_nearest(_by_ratio(filters, ratio), round_to), least)


def _no_bound(filters: int, ratio: float, round_to: int, max_ratio: float) -> int:
    return _kept_width(filters, ratio, round_to, 1.0)


def _rounds_what_goes(filters: int, ratio: float, round_to: int, max_ratio: float) -> int:
    least = _least(filters, max_ratio)
    return filters - _nearest(filters - max(_by_ratio(filters, ratio), least), round_to)


KEPT_WIDTH = Exercise(
    reference=_kept_width,
    cases=lambda: [
        (64, 0.5, 8, 1.0),
        (64, 0.3, 8, 1.0),
        (60, 0.5, 8, 1.0),
        (64, 0.7, 8, 0.6),
        (64, 0.9, 16, 0.65),
        (20, 0.9, 8, 1.0),
        (6, 0.5, 8, 1.0),
        (64, 0.73, 8, 1.0),
        (64, 0.6875, 8, 1.0),
        (63, 0.7, 1, 1.0),
        (16, 0.95, 1, 1.0),
    ],
    mistakes=(
        Mistake(_rounds_down, "The width is rounded down; asked for is the nearest multiple."),
        Mistake(_rounds_up, "The width is rounded up; asked for is the nearest multiple."),
        *(
            Mistake(
                _below_the_bound(least_width),
                "Rounding goes below the bound: of the multiples, only those that keep at least a "
                "share of 1 − `max_ratio` are allowed.",
            )
            for least_width in (
                lambda filters, round_to: filters,
                lambda filters, round_to: 0,
                lambda filters, round_to: round_to,
                lambda filters, round_to: min(filters, round_to),
            )
        ),
        Mistake(
            _bound_last,
            "The bound is put on after rounding, so the width need not be a multiple any more: "
            "choose among the multiples that the bound allows.",
        ),
        Mistake(_no_bound, "`max_ratio` is not heeded: no layer may lose a larger share."),
        Mistake(
            _rounds_what_goes,
            "The number of filters that *go* is rounded. The hardware sees those that stay.",
        ),
    ),
    praise="The wish, the bound and the multiple are all heeded.",
)


def check_kept_width(function: Callable[..., Any]) -> Verdict:
    """Check ``kept_width(filters, ratio, round_to, max_ratio)``, how many filters a layer keeps.

    Args:
        function: Takes ``filters`` (how many there are), ``ratio`` in [0, 1), ``round_to``, a
            whole number, and ``max_ratio`` in [0, 1]. Gives the whole number that stays: of the
            multiples of ``round_to`` that are at most ``filters`` and lose no larger share than
            ``max_ratio``, the one nearest to round(filters·(1 − ratio)), the larger of two; all
            filters where there is none.

    Returns:
        A :class:`~dgprune_book.exercises.checking.Verdict`.

    Source: chapter 10, "Say what you want".

    >>> check_kept_width(_rounds_down).message[:25]
    'The width is rounded down'
    """
    return check(KEPT_WIDTH, function)
