"""Chapter 2: the objective of V-REx, and calibration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dgprune_book.exercises.checking import Exercise, Mistake, Verdict, check, difference
from dgprune_lite.networks.evaluation import expected_calibration_error


def _risks(losses: Tensor, domains: Tensor) -> Tensor:
    """The mean loss of every domain (D,)."""
    return torch.stack([losses[domains == d].mean() for d in domains.unique()])


def _vrex(losses: Tensor, domains: Tensor, weight: float) -> Tensor:
    risks = _risks(losses, domains)
    return risks.mean() + weight * risks.var(correction=0)


def _vrex_sample(losses: Tensor, domains: Tensor, weight: float) -> Tensor:
    risks = _risks(losses, domains)
    return risks.mean() + weight * risks.var()


def _vrex_penalty(losses: Tensor, domains: Tensor, weight: float) -> Tensor:
    return weight * _risks(losses, domains).var(correction=0)


def _vrex_pooled(losses: Tensor, domains: Tensor, weight: float) -> Tensor:
    return losses.mean() + weight * _risks(losses, domains).var(correction=0)


def _vrex_images(losses: Tensor, domains: Tensor, weight: float) -> Tensor:
    return _risks(losses, domains).mean() + weight * losses.var(correction=0)


def _vrex_deviation(losses: Tensor, domains: Tensor, weight: float) -> Tensor:
    risks = _risks(losses, domains)
    return risks.mean() + weight * risks.std(correction=0)


def _vrex_sums(losses: Tensor, domains: Tensor, weight: float) -> Tensor:
    risks = torch.stack([losses[domains == d].sum() for d in domains.unique()])
    return risks.mean() + weight * risks.var(correction=0)


def _batches() -> list[tuple[Tensor, Tensor, float]]:
    generator = torch.Generator().manual_seed(2)
    small = torch.tensor([2.0, 3.0, 0.5, 1.0, 1.5, 4.0], dtype=torch.float64)
    large = torch.rand(60, generator=generator, dtype=torch.float64)
    places = torch.randint(4, (60,), generator=generator)
    return [(small, torch.tensor([0, 0, 1, 1, 1, 2]), 1.0), (large * (1 + places), places, 10.0)]


def _with_gradient(
    function: Callable[..., Any], losses: Tensor, domains: Tensor, weight: float
) -> tuple[Any, bool]:
    """The objective, and whether a network could learn from it."""
    value = function(losses.requires_grad_(), domains, weight)
    if not isinstance(value, Tensor):
        return value, False
    return value.detach(), value.requires_grad


def _judge_objective(
    found: tuple[Any, bool], losses: Tensor, domains: Tensor, weight: float
) -> str | None:
    value, learns = found
    wrong = difference(value, _vrex(losses, domains, weight))
    if wrong or learns:
        return wrong
    return (
        "it gives the right number, but no gradient, so nothing can be learnt from it: `.item()`, "
        "`.detach()` and `torch.tensor(...)` cut the graph"
    )


VREX_OBJECTIVE = Exercise(
    reference=_vrex,
    cases=_batches,
    mistakes=(
        Mistake(
            _vrex_sample,
            "That is the sample variance. V-REx divides by D, the number of domains, not by D - 1 "
            "(`correction=0`).",
        ),
        Mistake(_vrex_penalty, "The mean risk is missing: this is the penalty alone."),
        Mistake(
            _vrex_pooled,
            "That is the mean over images, in which a domain counts more if it has more of them. "
            "The mean risk is the mean over domains.",
        ),
        Mistake(
            _vrex_images,
            "That is the variance of the losses over images. The penalty is on the variance of "
            "the risks over domains.",
        ),
        Mistake(_vrex_sums, "The losses of a domain are added up. Its risk is their mean."),
        Mistake(_vrex_deviation, "That is the standard deviation of the risks, not the variance."),
    ),
    praise="It is the objective of V-REx, also where the domains have unequal numbers of images.",
    judge=_judge_objective,
    use=_with_gradient,
)


def check_vrex_objective(function: Callable[..., Any]) -> Verdict:
    """Check ``vrex_objective(losses, domains, weight)``, the objective of V-REx on one batch.

    Args:
        function: Takes ``losses``, float64 (n,), in nats; ``domains``, int64 (n,), the number of
            each image's domain; and ``weight``, λ. Gives a float64 tensor of shape (), with the
            graph of its gradient: the mean over domains of the risks plus λ times their
            population variance.

    Returns:
        A :class:`~dgprune_book.exercises.checking.Verdict`.

    Source: chapter 2, the objective of V-REx; Krueger et al. 2021, equation 8.

    >>> check_vrex_objective(lambda losses, domains, weight: losses.mean()).passed
    False
    """
    return check(VREX_OBJECTIVE, function)


def _bins(confidence: Tensor, bins: int) -> Tensor:
    """The number of each confidence's bin (n,), from 0 to bins - 1."""
    return (confidence * bins).ceil().long().clamp(1, bins) - 1


def _gaps(confidence: Tensor, correct: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Accuracy minus confidence in every bin that is not empty, and its share of the images."""
    number = _bins(confidence, bins)
    members = [number == b for b in number.unique()]
    gaps = torch.stack([correct[m].double().mean() - confidence[m].mean() for m in members])
    return gaps, torch.stack([m.double().mean() for m in members])


def _ece(probabilities: Tensor, labels: Tensor, bins: int) -> float:
    confidence, predicted = probabilities.max(1)
    return expected_calibration_error(confidence, predicted == labels, bins)


def _ece_unweighted(probabilities: Tensor, labels: Tensor, bins: int) -> float:
    confidence, predicted = probabilities.max(1)
    return _gaps(confidence, predicted == labels, bins)[0].abs().mean().item()


def _ece_signed(probabilities: Tensor, labels: Tensor, bins: int) -> float:
    confidence, predicted = probabilities.max(1)
    gaps, shares = _gaps(confidence, predicted == labels, bins)
    return (gaps * shares).sum().item()


def _ece_over(probabilities: Tensor, labels: Tensor, bins: int) -> float:
    return -_ece_signed(probabilities, labels, bins)


def _ece_one_bin(probabilities: Tensor, labels: Tensor, bins: int) -> float:
    return abs(_ece_signed(probabilities, labels, bins))


def _ece_true_class(probabilities: Tensor, labels: Tensor, bins: int) -> float:
    confidence = probabilities[torch.arange(len(labels)), labels]
    return expected_calibration_error(confidence, probabilities.argmax(1) == labels, bins)


def _ece_edges(probabilities: Tensor, labels: Tensor, bins: int) -> float:
    confidence, predicted = probabilities.max(1)
    nudged = confidence + 1e-9 * (confidence < 1)  # what lies on an edge belongs to the bin above
    return expected_calibration_error(nudged, predicted == labels, bins)


_SIGNED = "The differences cancel between bins: take the magnitude in each bin before the sum."


def _predictions() -> list[tuple[Tensor, Tensor, int]]:
    generator = torch.Generator().manual_seed(3)
    few = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.35, 0.65], [0.7, 0.3]], dtype=torch.float64)
    logits = 2 * torch.randn(80, 5, generator=generator, dtype=torch.float64)
    labels = torch.where(
        torch.rand(80, generator=generator) < 0.5,
        logits.argmax(1),
        torch.randint(5, (80,), generator=generator),
    )
    edges = torch.tensor([[1, 0, 0], [1, 0, 0], [0.3, 0.5, 0.2], [0.6, 0.3, 0.1]]).double()
    return [
        (few, torch.tensor([0, 1, 1, 1]), 2),
        (edges, torch.tensor([0, 1, 1, 1]), 2),
        (logits.softmax(1), labels, 10),
    ]


CALIBRATION_ERROR = Exercise(
    reference=_ece,
    cases=_predictions,
    mistakes=(
        Mistake(
            _ece_unweighted,
            "Every bin counts the same here. A bin counts by its share of the images.",
        ),
        Mistake(_ece_signed, _SIGNED),
        Mistake(_ece_over, _SIGNED),
        Mistake(_ece_one_bin, _SIGNED),
        Mistake(
            _ece_edges,
            "A confidence on the edge of two bins is in the upper one here. A bin goes from above "
            "its lower edge up to its upper edge.",
        ),
        Mistake(
            _ece_true_class,
            "That is the probability of the true class. The confidence is the probability of the "
            "predicted one, which is known without the label.",
        ),
    ),
    praise="It is the last column of `dg.evaluate`, which uses 15 bins.",
)


def check_calibration_error(function: Callable[..., Any]) -> Verdict:
    """Check ``calibration_error(probabilities, labels, bins)``, the expected calibration error.

    Args:
        function: Takes ``probabilities``, float64 (n, classes), each row with sum 1; ``labels``,
            int64 (n,); and ``bins``, how many bins of equal width divide the confidences from 0
            to 1. Gives a float: the mean over images of the magnitude of accuracy minus mean
            confidence in the image's bin.

    Returns:
        A :class:`~dgprune_book.exercises.checking.Verdict`.

    Source: Guo et al. 2017, equation 3; chapter 2, "Measuring".

    >>> check_calibration_error(lambda probabilities, labels, bins: 0.0).passed
    False
    """
    return check(CALIBRATION_ERROR, function)
