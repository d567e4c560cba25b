"""Chapter 3: the importance of filters that are tied together, and what is left after pruning."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dgprune_book.exercises.checking import Exercise, Mistake, Verdict, check
from dgprune_lite.pruning.selection import kept_filters


def _l1(weights: list[Tensor]) -> Tensor:
    return torch.stack([weight.abs().sum((1, 2, 3)) for weight in weights]).sum(0)


def _l1_inputs(weights: list[Tensor]) -> Tensor:
    return torch.stack([weight.abs().sum((0, 2, 3)) for weight in weights]).sum(0)


def _l1_signed(weights: list[Tensor]) -> Tensor:
    return torch.stack([weight.sum((1, 2, 3)) for weight in weights]).sum(0)


def _l1_signed_late(weights: list[Tensor]) -> Tensor:
    return torch.stack([weight.sum((1, 2, 3)).abs() for weight in weights]).sum(0)


def _l1_mean(weights: list[Tensor]) -> Tensor:
    return torch.stack([weight.abs().mean((1, 2, 3)) for weight in weights]).sum(0)


def _l1_mean_of_layers(weights: list[Tensor]) -> Tensor:
    return _l1(weights) / len(weights)


def _l1_first_layer(weights: list[Tensor]) -> Tensor:
    return _l1(weights[:1])


def _l2(weights: list[Tensor]) -> Tensor:
    return torch.stack([weight.square().sum((1, 2, 3)) for weight in weights]).sum(0).sqrt()


def _tied_weights() -> list[tuple[list[Tensor]]]:
    generator = torch.Generator().manual_seed(4)

    def layer(filters: int, channels: int, kernel: int) -> Tensor:
        shape = (filters, channels, kernel, kernel)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    single = torch.tensor([[1.0, -2.0], [0.5, 0.25]], dtype=torch.float64)[:, :, None, None]
    return [([single],), ([layer(6, 3, 3), layer(6, 6, 3), layer(6, 2, 1)],)]


_SIGNED = "Weights of opposite sign cancel here: the ℓ₁ norm takes the magnitude of every weight."

L1_IMPORTANCE = Exercise(
    reference=_l1,
    cases=_tied_weights,
    mistakes=(
        Mistake(
            _l1_inputs,
            "That sums over the wrong axis: a score for each input channel. The first axis of a "
            "convolution's weight numbers its filters.",
        ),
        Mistake(_l1_signed, _SIGNED),
        Mistake(_l1_signed_late, _SIGNED),
        Mistake(_l1_mean, "That is the mean over a filter's weights. The ℓ₁ norm is their sum."),
        Mistake(_l1_mean_of_layers, "That is the mean over the tied layers, not their sum."),
        Mistake(
            _l1_first_layer,
            "Only the first layer counts here. Tied filters go together, so all their weights do.",
        ),
        Mistake(_l2, "That is the Euclidean norm, ℓ₂."),
    ),
    praise="It is what `dg.score('l1', ...)` gives for a group.",
)


def check_l1_importance(function: Callable[..., Any]) -> Verdict:
    """Check ``l1_importance(weights)``, the ℓ₁ norm of filters that are tied together.

    Args:
        function: Takes ``weights``, a list of the weights of the convolutions whose channels are
            added, each float64 (M, C, k, k) with the same M but its own C and k. Gives float64
            (M,): for every filter the sum of the magnitudes of all weights that make it.

    Returns:
        A :class:`~dgprune_book.exercises.checking.Verdict`.

    Source: Li et al. 2017; chapter 3, "Filters that are tied together" and "A plan".

    >>> check_l1_importance(lambda weights: weights[0].abs().sum((1, 2, 3))).passed
    False
    """
    return check(L1_IMPORTANCE, function)


def _layers(channels: tuple[int, ...], kernel: int) -> int:
    """Weights of a chain of convolutions, and scale and shift of the BatchNorm behind each."""
    return sum(a * b * kernel**2 + 2 * b for a, b in itertools.pairwise(channels))


def _left(channels: tuple[int, ...], kernel: int, ratio: float) -> int:
    kept = (channels[0], *(kept_filters(filters, ratio) for filters in channels[1:]))
    return _layers(kept, kernel)


def _left_share(channels: tuple[int, ...], kernel: int, ratio: float) -> int:
    return round((1 - ratio) * _layers(channels, kernel))


def _left_outputs_only(channels: tuple[int, ...], kernel: int, ratio: float) -> int:
    kept = [kept_filters(filters, ratio) for filters in channels[1:]]
    pairs = zip(channels, kept, strict=False)
    return sum(before * after * kernel**2 + 2 * after for before, after in pairs)


def _left_image_too(channels: tuple[int, ...], kernel: int, ratio: float) -> int:
    return _layers(tuple(kept_filters(filters, ratio) for filters in channels), kernel)


def _left_no_norm(channels: tuple[int, ...], kernel: int, ratio: float) -> int:
    kept = (channels[0], *(kept_filters(filters, ratio) for filters in channels[1:]))
    return _layers(kept, kernel) - 2 * sum(kept[1:])


def _left_with_statistics(channels: tuple[int, ...], kernel: int, ratio: float) -> int:
    kept = (channels[0], *(kept_filters(filters, ratio) for filters in channels[1:]))
    return _layers(kept, kernel) + 2 * sum(kept[1:])


def _left_whole_norm(channels: tuple[int, ...], kernel: int, ratio: float) -> int:
    return _left_no_norm(channels, kernel, ratio) + 2 * sum(channels[1:])


def _left_empty(channels: tuple[int, ...], kernel: int, ratio: float) -> int:
    kept = (channels[0], *(round(filters * (1 - ratio)) for filters in channels[1:]))
    return _layers(kept, kernel)


def _left_rounding(to_whole: Callable[[float], int]) -> Callable[..., int]:
    def left(channels: tuple[int, ...], kernel: int, ratio: float) -> int:
        kept = (max(1, to_whole(filters * (1 - ratio))) for filters in channels[1:])
        return _layers((channels[0], *kept), kernel)

    return left


PARAMETERS_LEFT = Exercise(
    reference=_left,
    cases=lambda: [
        ((3, 16, 32, 32), 3, 0.5),
        ((3, 16, 24), 3, 0.3),
        ((1, 10, 20), 5, 0.3),
        ((3, 2, 8, 4), 3, 0.8),
    ],
    mistakes=(
        Mistake(
            _left_share,
            "That takes the same share of the parameters as of the filters. An inner layer loses "
            "outputs and inputs.",
        ),
        Mistake(
            _left_outputs_only,
            "The convolutions keep all their inputs here. Nobody reads a channel that is gone.",
        ),
        Mistake(
            _left_image_too,
            "The colours of the image are pruned here, too. The first layer keeps its inputs.",
        ),
        Mistake(_left_no_norm, "The BatchNorms are missing: a scale and a shift for each channel."),
        Mistake(
            _left_with_statistics,
            "The running means and variances are counted, too. They are buffers: nothing trains "
            "them by its gradient, and `dg.count_parameters` leaves them out.",
        ),
        Mistake(_left_whole_norm, "The BatchNorms keep the entries of the filters that went."),
        Mistake(_left_rounding(int), "The number of filters is cut off (`int`), not rounded."),
        Mistake(_left_rounding(math.ceil), "The number of filters is rounded up here."),
        Mistake(_left_empty, "A layer keeps no filter here: one has to stay."),
    ),
    praise="It is what a plan counts.",
)


def check_parameters_left(function: Callable[..., Any]) -> Verdict:
    """Check ``parameters_left(channels, kernel, ratio)``, the parameters of a pruned chain.

    Args:
        function: Takes ``channels``, a tuple of int: the channels of the image, then the filters
            of each convolution; ``kernel``, int, the height and width of every filter; and
            ``ratio``, the pruning ratio in [0, 1). Gives an int: the parameters left in the
            convolutions (which have no bias) and the BatchNorm behind each, if every layer of M
            filters keeps round(M·(1 - ratio)) of them, and at least one.

    Returns:
        A :class:`~dgprune_book.exercises.checking.Verdict`.

    Source: chapter 3, "What stands and falls with a filter".

    >>> check_parameters_left(lambda channels, kernel, ratio: 0).passed
    False
    """
    return check(PARAMETERS_LEFT, function)
