"""Chapter 5: the risk-variance score from gate gradients, and the score of a random mixture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dgprune_book.exercises.checking import Exercise, Mistake, Verdict, check
from dgprune_lite.scores.risks import DomainStatistics

Gradients = dict[str, Tensor]


def _statistics(gradients: Gradients, test_env: str) -> DomainStatistics:
    sources = {name: part for name, part in gradients.items() if name != test_env}
    return DomainStatistics(
        domains=tuple(sources),
        images=torch.tensor([len(part) for part in sources.values()]),
        risk_sum=torch.zeros(len(sources), dtype=torch.float64),
        gradient_sum=torch.stack([part.sum(0) for part in sources.values()]),
        fisher_sum=torch.stack([part.square().sum(0) for part in sources.values()]),
    )


def _spread(change: Tensor) -> Tensor:
    return change.std(0, correction=0)


def _score(gradients: Gradients, test_env: str) -> Tensor:
    return _spread(_statistics(gradients, test_env).risk_change("fisher"))


def _score_target(gradients: Gradients, test_env: str) -> Tensor:
    return _score(gradients, "")


def _score_squared_mean(gradients: Gradients, test_env: str) -> Tensor:
    return _spread(_statistics(gradients, test_env).gradient.square() / 2)


def _score_first_order(gradients: Gradients, test_env: str) -> Tensor:
    return _spread(_statistics(gradients, test_env).risk_change("first"))


def _score_images(gradients: Gradients, test_env: str) -> Tensor:
    sources = [part for name, part in gradients.items() if name != test_env]
    return _spread(torch.cat(sources).square() / 2)


def _score_sample(gradients: Gradients, test_env: str) -> Tensor:
    return _statistics(gradients, test_env).risk_change("fisher").std(0)


def _score_variance(gradients: Gradients, test_env: str) -> Tensor:
    return _score(gradients, test_env).square()


def _score_no_half(gradients: Gradients, test_env: str) -> Tensor:
    return 2 * _score(gradients, test_env)


def _score_mean(gradients: Gradients, test_env: str) -> Tensor:
    return _statistics(gradients, test_env).risk_change("fisher").mean(0)


def _score_sums(gradients: Gradients, test_env: str) -> Tensor:
    fisher_sum = _statistics(gradients, test_env).fisher_sum
    assert fisher_sum is not None
    return _spread(fisher_sum / 2)


def _score_filters(gradients: Gradients, test_env: str) -> Tensor:
    return _statistics(gradients, test_env).risk_change("fisher").std(1, correction=0)


def _gate_gradients() -> list[tuple[Gradients, str]]:
    generator = torch.Generator().manual_seed(5)

    def part(images: int, filters: int, scale: float) -> Tensor:
        drawn = torch.randn(images, filters, generator=generator, dtype=torch.float64)
        return scale * (drawn + 0.2)

    sizes = {"mnist": (12, 0.1), "mnist_m": (9, 0.9), "optdigits": (7, 0.2), "syn": (15, 0.4)}
    few = {
        "photo": torch.tensor([[1.0, 0.0], [3.0, 2.0]], dtype=torch.float64),
        "sketch": torch.tensor([[2.0, 2.0], [2.0, -2.0]], dtype=torch.float64),
        "cartoon": torch.tensor([[9.0, 0.0]], dtype=torch.float64),
    }
    many = {name: part(images, 5, scale) for name, (images, scale) in sizes.items()}
    return [(few, "cartoon"), (many, "mnist_m")]


RISK_VARIANCE_SCORE = Exercise(
    reference=_score,
    cases=_gate_gradients,
    mistakes=(
        Mistake(
            _score_target,
            "The unseen domain is used. It must not decide which filters stay: leave it out.",
        ),
        Mistake(
            _score_squared_mean,
            "That squares the mean gradient, J². F is the mean of the squares: square image by "
            "image, then average. Otherwise images that pull in opposite directions cancel.",
        ),
        Mistake(
            _score_first_order,
            "That is the first order, from the mean gradient. Use ½F, from the squared gradients.",
        ),
        Mistake(
            _score_images,
            "That is the spread over images. The domain axis is missing: average over the images "
            "of each domain first, then take the spread over domains.",
        ),
        Mistake(
            _score_sample,
            "That is the sample variance. The derivation divides by D, not by D - 1 "
            "(`correction=0`).",
        ),
        Mistake(_score_variance, "That is the variance. The score is its root, in nats."),
        Mistake(_score_no_half, "The factor ½ of ½F is missing."),
        Mistake(_score_mean, "That is the mean over domains, which `fisher` ranks by."),
        Mistake(
            _score_sums,
            "That sums over images, so a domain counts more if it has more of them. Risks are "
            "means.",
        ),
        Mistake(
            _score_filters,
            "That is the spread over filters, one number per domain: wrong axis.",
        ),
    ),
    praise="It is `dg.score('risk_variance', ...)`, from the same gradients.",
)


def check_risk_variance_score(function: Callable[..., Any]) -> Verdict:
    """Check ``risk_variance_score(gradients, test_env)``, the score of the chapter from scratch.

    Args:
        function: Takes ``gradients``, domain name to the gate gradients ∂ℓ_n/∂z_m of its images,
            float64 (images, M), and ``test_env``, the name of the unseen domain, which may be
            among them. Gives float64 (M,), in nats: the standard deviation over the source
            domains of Δ_dm ≈ ½F_dm.

    Returns:
        A :class:`~dgprune_book.exercises.checking.Verdict`.

    Source: chapter 5, "Estimating the change without removing anything"; V-REx's population
    variance.

    >>> check_risk_variance_score(lambda gradients, test_env: gradients[test_env].mean(0)).passed
    False
    """
    return check(RISK_VARIANCE_SCORE, function)


def _mixture(change: Tensor, sigma: float) -> Tensor:
    variance = change.var(0, correction=0)
    return (change.mean(0) ** 2 + sigma**2 * len(change) * variance).sqrt()


def _mixture_no_count(change: Tensor, sigma: float) -> Tensor:
    return (change.mean(0) ** 2 + sigma**2 * change.var(0, correction=0)).sqrt()


def _mixture_sample(change: Tensor, sigma: float) -> Tensor:
    return (change.mean(0) ** 2 + sigma**2 * len(change) * change.var(0)).sqrt()


def _mixture_sigma(change: Tensor, sigma: float) -> Tensor:
    variance = change.var(0, correction=0)
    return (change.mean(0) ** 2 + sigma * len(change) * variance).sqrt()


def _mixture_square(change: Tensor, sigma: float) -> Tensor:
    return _mixture(change, sigma).square()


def _mixture_spread(change: Tensor, sigma: float) -> Tensor:
    return (sigma**2 * len(change) * change.var(0, correction=0)).sqrt()


def _mixture_mean_square(change: Tensor, sigma: float) -> Tensor:
    return ((change**2).mean(0) + sigma**2 * len(change) * change.var(0, correction=0)).sqrt()


def _mixture_identity(change: Tensor, sigma: float) -> Tensor:
    return (change.mean(0) ** 2 + sigma**2 * change.square().sum(0)).sqrt()


def _mixture_sum(change: Tensor, sigma: float) -> Tensor:
    return change.mean(0).abs() + sigma * (len(change) * change.var(0, correction=0)).sqrt()


def _changes() -> list[tuple[Tensor, float]]:
    generator = torch.Generator().manual_seed(6)
    few = torch.tensor([[0.5, 3.0], [1.5, -1.0]], dtype=torch.float64)
    return [(few, 0.5), (torch.randn(4, 6, generator=generator, dtype=torch.float64), 2.0)]


MIXTURE_SCORE = Exercise(
    reference=_mixture,
    cases=_changes,
    mistakes=(
        Mistake(
            _mixture_no_count,
            "The factor D is missing. The derivation ends in a sum over domains, which is D times "
            "the variance.",
        ),
        Mistake(_mixture_sample, "That is the sample variance: divide by D (`correction=0`)."),
        Mistake(_mixture_sigma, "The weight of the variance is σ², not σ."),
        Mistake(_mixture_square, "That is the expected square. The score is its root, in nats."),
        Mistake(_mixture_spread, "The mean over domains is missing: this is the spread alone."),
        Mistake(
            _mixture_mean_square,
            "That is the mean of the squares. The first term is the square of the mean.",
        ),
        Mistake(
            _mixture_identity,
            "That takes σ²I for the covariance. The weights add up to 1, so it is σ²P: only what "
            "differs between domains counts.",
        ),
        Mistake(_mixture_sum, "Mean and spread are added. Their squares are added, then the root."),
    ),
    praise="It is `risk_variance` with `mean_weight=1` and `variance_weight=sigma**2 * D`.",
)


def check_mixture_score(function: Callable[..., Any]) -> Verdict:
    """Check ``mixture_score(change, sigma)``, what a random mixture of the domains loses.

    Args:
        function: Takes ``change``, Δ, float64 (D, M), in nats, and ``sigma``, σ, at least 0:
            the weights of the mixture have the covariance σ²P. Gives float64 (M,), in nats: the
            root of the expected square of the change of the mixture's risk.

    Returns:
        A :class:`~dgprune_book.exercises.checking.Verdict`.

    Source: chapter 5, "First route: an unseen domain is a mixture".

    >>> check_mixture_score(lambda change, sigma: change.std(0)).passed
    False
    """
    return check(MIXTURE_SCORE, function)
