"""A check for chapter 9: what pruning saves in a chain of convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from dgprune_book.exercises.checking import Exercise, Mistake, Verdict, check

Widths = tuple[int, ...]


def _cost(widths: Sequence[float], positions: Widths) -> float:
    """MACs of 3 × 3 convolutions; the first width is that of the input."""
    return sum(9 * a * b * n for (a, b), n in zip(pairwise(widths), positions, strict=True))


def _macs_left(widths: Widths, positions: Widths, kept: Widths) -> float:
    return _cost((widths[0], *kept), positions) / _cost(widths, positions)


def _outputs_only(widths: Widths, positions: Widths, kept: Widths) -> float:
    layers = zip(widths[:-1], kept, positions, strict=True)
    return sum(9 * a * b * n for a, b, n in layers) / _cost(widths, positions)


def _pruned_input(widths: Widths, positions: Widths, kept: Widths) -> float:
    share = kept[0] / widths[1]
    return _cost((widths[0] * share, *kept), positions) / _cost(widths, positions)


def _filters_left(widths: Widths, positions: Widths, kept: Widths) -> float:
    return sum(kept) / sum(widths[1:])


def _parameters_left(widths: Widths, positions: Widths, kept: Widths) -> float:
    once = (1,) * len(positions)
    return _cost((widths[0], *kept), once) / _cost(widths, once)


def _mean_of_layers(widths: Widths, positions: Widths, kept: Widths) -> float:
    after, before = pairwise((widths[0], *kept)), pairwise(widths)
    shares = [a * b / (c * d) for (a, b), (c, d) in zip(after, before, strict=True)]
    return sum(shares) / len(shares)


def _saved(widths: Widths, positions: Widths, kept: Widths) -> float:
    return 1 - _macs_left(widths, positions, kept)


MACS_LEFT = Exercise(
    reference=_macs_left,
    cases=lambda: [
        ((3, 8, 16, 16), (784, 196, 49), (4, 8, 8)),
        ((3, 16, 32, 32), (784, 196, 49), (12, 30, 5)),
        ((1, 10, 20), (1024, 256), (9, 2)),
    ],
    mistakes=(
        Mistake(
            _outputs_only,
            "Every layer loses outputs here, but none its inputs: what the layer before no longer "
            "makes is no longer read.",
        ),
        Mistake(
            _pruned_input,
            "The image keeps its colours: no filter makes the first layer's inputs, so it loses "
            "outputs only.",
        ),
        Mistake(_filters_left, "This is the share of filters, which do not all cost the same."),
        Mistake(
            _parameters_left,
            "This is the share of parameters. A weight is used once for every position of the "
            "output: multiply by `positions`.",
        ),
        Mistake(
            _mean_of_layers,
            "Every layer counts alike here. Add up the operations of all layers, and divide once.",
        ),
        Mistake(_saved, "This is what is saved; asked for is what is left."),
    ),
    praise="Outputs, inputs and positions, all of them.",
)


def check_macs_left(function: Callable[..., Any]) -> Verdict:
    """Check ``macs_left(widths, positions, kept)``, what pruning leaves to compute.

    Args:
        function: Takes ``widths``, a tuple with the channels of the image and then the filters of
            each 3 × 3 convolution; ``positions``, a tuple with the pixels of each convolution's
            output; and ``kept``, a tuple with the filters that each convolution keeps. Gives the
            share of the MACs that is left, a float in (0, 1].

    Returns:
        A :class:`~dgprune_book.exercises.checking.Verdict`.

    Source: chapter 9, "Predict, then do", number 5; chapter 3, "A plan".

    >>> check_macs_left(_filters_left).message[:39]
    'This is the share of filters, which do '
    """
    return check(MACS_LEFT, function)
