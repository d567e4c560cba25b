"""The grids of PACS: EfficientNet-Lite0 from ImageNet weights, for a CPU and for a GPU.

Cells stand in the order in which they matter: a run that is stopped has whole, balanced stages.
"""

from __future__ import annotations

from typing import Any

from dgprune_book.study.cells import Cell, cross
from dgprune_book.study.criteria import (
    BASELINES,
    BN_SCALE,
    FISHER,
    FPGM,
    GEOMETRIC,
    HELD_OUT_FISHER,
    L1,
    MASKED,
    MEAN_AND_STD,
    PRIOR,
    REVERSED,
    SCALED,
    SECOND,
    SPREAD_REVERSED,
    STD,
    TAYLOR,
    VIRTUAL,
    WORST_DOMAIN,
    Criterion,
    on_held_out_images,
)

NETWORK = {"network": "efficientnet_lite0", "width": 0, "weights": "DEFAULT", "round_to": 8}
# By the grid "pacs64_rates", on held-out images of source domains.
TRAINING = {"dense_lr": 2e-3, "finetune_lr": 1e-3}
SMALL: dict[str, Any] = {
    **NETWORK, **TRAINING, "dataset": "PACS64", "dense_steps": 150, "finetune_steps": 30,
}  # fmt: skip
LARGE: dict[str, Any] = {
    **NETWORK, **TRAINING, "dataset": "PACS128", "dense_steps": 500, "finetune_steps": 120,
    "precision": "bfloat16",
}  # fmt: skip
RATES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)


def on_training_images(criterion: Criterion) -> Criterion:
    """The same on images that were learnt from, of each domain as many as others hold out."""
    return {**criterion, "scored_on": "train", "images_per_domain": 400}


# The ladder, by what the score knows, but for the last, which tells what held-out images do.
MAIN: tuple[Criterion, ...] = (
    BASELINES[0],
    L1,
    BN_SCALE,
    on_training_images(TAYLOR),
    HELD_OUT_FISHER,
    STD,
    MEAN_AND_STD,
    on_training_images(FISHER),
)
CORE = (BASELINES[0], L1, HELD_OUT_FISHER, STD, MEAN_AND_STD)
# With these, {mean, spread, both, reversed} on training and on held-out images are complete.
LIKE_FOR_LIKE: tuple[Criterion, ...] = (
    REVERSED,
    *map(on_training_images, (STD, MEAN_AND_STD, REVERSED)),
)
# What the search below found on source domains alone, to be judged on the unseen domain.
FOUND = (GEOMETRIC,)
REST: tuple[Criterion, ...] = (
    FPGM,
    on_held_out_images(TAYLOR),
    SECOND,
    WORST_DOMAIN,
    SPREAD_REVERSED,
    *map(on_training_images, (SECOND, WORST_DOMAIN, SPREAD_REVERSED)),
)


def small() -> list[Cell]:
    """For a CPU, at 64 pixels: one seed with the criteria that the question is about, then more."""
    return [
        *cross(CORE, (0.4,), seeds=(0,), **SMALL),
        *cross(MAIN, (0.4,), seeds=(0, 1), **SMALL),
        *cross(LIKE_FOR_LIKE, (0.4,), seeds=(0, 1), **SMALL),
        *cross(MAIN, (0.2,), seeds=(0, 1), **SMALL),
        *cross(FOUND, (0.4,), seeds=(0, 1), **SMALL),
        *cross([*MAIN, *LIKE_FOR_LIKE, *FOUND], (0.4,), seeds=(2, 3, 4), **SMALL),
        *cross(MAIN, (0.2,), seeds=(2, 3, 4), **SMALL),
    ]


# The search for a better score: what a score is averaged over, and what it is measured with.
SEARCH: tuple[Criterion, ...] = (
    REVERSED,
    SCALED,
    GEOMETRIC,
    {"criterion": "mean_rank", "scored_on": "val"},
    PRIOR,
    HELD_OUT_FISHER | {"statistics": "virtual"},
    VIRTUAL,
    VIRTUAL | {"options": REVERSED["options"]},
    MASKED,
)
# Two networks leave out every domain once.
PAIRS = ((("A", "C"), ("P", "S")), (("A", "P"), ("C", "S")), (("A", "S"), ("C", "P")))


def nested() -> list[Cell]:
    """The search, judged on domains left out beside the unseen one: for a CPU, at 64 pixels."""
    settings: dict[str, Any] = {**SMALL, "measure": "left-out", "seeds": [0]}
    rounds = {"schedule": "iterative", "schedule_steps": 4}
    cells = []
    for pairs in PAIRS:
        for env, other in pairs:
            each = settings | {"test_envs": [env], "without": other}
            criteria = [HELD_OUT_FISHER, MEAN_AND_STD, STD, *SEARCH, L1, BASELINES[0]]
            cells += cross(criteria, (0.4,), **each)
            cells += cross([HELD_OUT_FISHER], (0.4,), **(each | rounds))
    return cells


def rates() -> list[Cell]:
    """Rates of the dense network and of fine-tuning, judged in-domain; on a seed of their own."""
    settings: dict[str, Any] = {**SMALL, "seeds": [9], "test_envs": ["S"], "dense_steps": 100}
    dense = [
        settings | {"dense_lr": rate, "finetune_steps": 0, "finetune_lr": 5e-4} for rate in RATES
    ]
    tuned = [settings | {"finetune_lr": rate} for rate in RATES[:-1]]
    return [
        *(cell for each in tuned for cell in cross([L1], [0.4], **each)),
        *(cell for each in dense for cell in cross([], [], **each)),
    ]


def large() -> list[Cell]:
    """For a GPU, at 128 pixels: all criteria and ratios, in rounds, ranked globally, tuned longer.

    All of `MAIN` at one ratio is there first, for five seeds: one network is one process's task.
    """
    rounds = {"schedule": "iterative", "schedule_steps": 4}
    ranked = (L1, BN_SCALE, HELD_OUT_FISHER, MEAN_AND_STD)
    return [
        *cross(MAIN, (0.4,), **LARGE),
        *cross([*LIKE_FOR_LIKE, *FOUND], (0.4,), **LARGE),
        *cross(MAIN, (0.1, 0.2, 0.3), **LARGE),
        *cross([*REST, *({**one, "scope": "global"} for one in ranked)], (0.4,), **LARGE),
        *cross(MAIN, (0.4,), **(LARGE | rounds)),
        *cross(MAIN, (0.4,), **(LARGE | {"finetune_steps": 480})),
        *cross([*LIKE_FOR_LIKE, *REST], (0.1, 0.2, 0.3), **LARGE),
    ]
