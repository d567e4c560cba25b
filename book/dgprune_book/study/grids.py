"""The study's grids by name: which cells each has, in the order in which they are run.

What this file is *not*: what a cell is (``cells.py``), or the code that runs one
(``experiment.py``) or many (``runner.py``). The grids of PACS are in ``pacs.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

from dgprune_book.study import pacs
from dgprune_book.study.cells import ENVIRONMENTS, SEEDS, Cell, cross
from dgprune_book.study.criteria import (
    BASELINES,
    BN_SCALE,
    FISHER,
    HELD_OUT_FISHER,
    L1,
    MASKED,
    MEAN_AND_STD,
    OURS,
    PRIOR,
    REVERSED,
    SCALED,
    SECOND,
    STD,
    TAYLOR,
    VIRTUAL,
    WORST_DOMAIN,
    Criterion,
    objective_score,
    on_held_out_images,
    variance_score,
)

RATIOS = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8)
MAIN = (L1, BN_SCALE, FISHER, STD, MEAN_AND_STD)
SEARCH: tuple[Criterion, ...] = (
    variance_score(mean_weight=1.0, variance_weight=3.0),
    variance_score(mean_weight=1.0, variance_weight=10.0),
    VIRTUAL,
    SECOND,
    variance_score(order="exact", mean_weight=1.0),
    SCALED,
    variance_score(order="first", mean_weight=1.0, statistics="masked"),
    MASKED,
    PRIOR,
)


def _book() -> list[Cell]:
    return cross([*BASELINES, *OURS], RATIOS)


def _hundred() -> list[Cell]:
    like = [STD, MEAN_AND_STD, REVERSED]
    criteria = [
        *BASELINES,
        *map(on_held_out_images, (TAYLOR, FISHER)),
        *like,
        *({**criterion, "scored_on": "train"} for criterion in like),
        WORST_DOMAIN,
    ]
    return cross(criteria, (0.5,), seeds=range(25))


def _widths() -> list[Cell]:
    return cross([*BASELINES, *OURS], RATIOS, width=8)


def _resnet() -> list[Cell]:
    return cross([*BASELINES, *OURS], (0.3, 0.5, 0.7), network="digits_resnet")


def _variants() -> list[Cell]:
    uniform = [
        *SEARCH,
        on_held_out_images(TAYLOR),
        HELD_OUT_FISHER,
        *(variance_score(order=order) for order in ("first", "exact")),
        *({**c, "scored_on": "train"} for c in (STD, MEAN_AND_STD)),
        *({**STD, "images_per_domain": images} for images in (10, 30, 100)),
        variance_score(normalize=True),
        variance_score(statistics="virtual"),
        objective_score("exact", 1.0),
    ]
    ranked = [{**c, "scope": "global"} for c in (*BASELINES[1:], STD, MEAN_AND_STD)]
    normalized = [{**c, "scope": "global-normalized"} for c in (L1, BN_SCALE, FISHER, STD)]
    return cross([*uniform, *ranked, *normalized], (0.5, 0.7))


def _settings() -> list[Cell]:
    settings: tuple[dict[str, Any], ...] = (
        {"finetune_steps": 20},
        {"finetune_steps": 240},
        {"schedule": "iterative", "schedule_steps": 4},
        {"algorithm": "VREx"},
    )
    cells = [cell for each in settings for cell in cross(MAIN, (0.5, 0.7), seeds=SEEDS[:3], **each)]
    return _by_seed(cells)


def _nested() -> list[Cell]:
    pairs = itertools.permutations(ENVIRONMENTS["DigitsLite"], 2)
    criteria = [*MAIN, OURS[2], WORST_DOMAIN, *SEARCH]
    return _by_seed(
        cell
        for env, other in pairs
        for cell in cross(criteria, (0.5, 0.7), seeds=SEEDS[:3], test_envs=[env], without=other)
    )


def _rates() -> list[Cell]:
    rates = (1e-3, 2e-3, 4e-3, 8e-3)
    return [c for lr in rates for c in cross([L1], (0.5, 0.7), seeds=[0], finetune_lr=lr)]


def _lambdas() -> list[Cell]:
    weights = (0.1, 1.0, 10.0, 100.0)
    settings: dict[str, Any] = {"algorithm": "VREx", "finetune_steps": 0}
    return _by_seed(
        cell
        for dataset in ("DigitsLite", "ColoredMNIST")
        for weight in weights
        for cell in cross([], [], seeds=[0], dataset=dataset, vrex_lambda=weight, **settings)
    )


def _ranking() -> list[Cell]:
    exact = variance_score(order="exact")
    first = variance_score(order="first")
    criteria = [*BASELINES, *OURS, first, exact, *SEARCH]
    return cross(criteria, (0.0,), measure="ranking", finetune_steps=0)


def _rotated() -> list[Cell]:
    return cross([*BASELINES, *OURS], (0.3, 0.5, 0.7), seeds=SEEDS[:3], dataset="RotatedMNIST")


def _colored() -> list[Cell]:
    # The other two environments cost little, and show what the colour brings where it helps.
    return cross([*BASELINES, *OURS], (0.3, 0.5, 0.7), seeds=SEEDS[:3], dataset="ColoredMNIST")


def _cue() -> list[Cell]:
    # Nothing is fine-tuned: on these sources that would teach the cue again.
    scores = [
        objective_score(order, w) for order in ("second", "exact") for w in (1.0, 10.0, 100.0)
    ]
    settings: dict[str, Any] = {"dataset": "ColoredMNIST", "test_envs": ["-90%"]}
    criteria = [*BASELINES, STD, MEAN_AND_STD, *scores]
    return cross(criteria, (0.05, 0.1, 0.2, 0.3, 0.5), finetune_steps=0, **settings)


def _smoke() -> list[Cell]:
    settings: dict[str, Any] = {"width": 4, "dense_steps": 30, "finetune_steps": 4}
    return cross([L1, FISHER, STD], (0.5,), seeds=(0,), test_envs=("mnist", "syn"), **settings)


def _by_seed(cells: Iterable[Cell]) -> list[Cell]:
    """In the order that keeps a study in progress balanced."""
    return sorted(cells, key=lambda cell: cell.seed)


GRIDS: dict[str, tuple[str, Callable[[], list[Cell]]]] = {
    "book": ("digits_cnn of width 16: all criteria, six ratios", _book),
    "hundred": ("the same and eighty more networks at one ratio: what the text compares", _hundred),
    "widths": ("the same with width 8", _widths),
    "resnet": ("digits_resnet: all criteria, three ratios", _resnet),
    "variants": ("variants of the score, and global ranking", _variants),
    "settings": ("shorter and longer fine-tuning, iterative pruning, V-REx", _settings),
    "nested": ("a second domain left out: what to choose by sources alone", _nested),
    "rates": ("learning rates of fine-tuning, judged on source domains", _rates),
    "lambdas": ("weights of the variance in V-REx, unpruned networks", _lambdas),
    "ranking": ("how each score ranks filters, and their exact ablation", _ranking),
    "rotated": ("RotatedMNIST: all criteria, three ratios", _rotated),
    "colored": ("ColoredMNIST, whose colours mislead: all criteria, three ratios", _colored),
    "cue": ("ColoredMNIST without fine-tuning: can pruning remove a misleading cue?", _cue),
    "pacs": ("PACS at 128 pixels from ImageNet weights: for a GPU", pacs.large),
    "pacs64": ("PACS at 64 pixels, the criteria that matter most: for a CPU", pacs.small),
    "pacs64_nested": ("the search for a better score there, by sources alone", pacs.nested),
    "pacs64_rates": ("its learning rates, judged on source domains", pacs.rates),
    "smoke": ("a tiny network, to see whether everything works", _smoke),
}
"""Name to (what it is, a function that lists its cells)."""


def stages(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cut a list of cells where a dense network comes back after others.

    What is listed first is then done first: a run that is stopped has whole stages.

    >>> cells = grid_cells(["smoke"])
    >>> [len(stage) for stage in stages([*cells, cells[0]])]
    [8, 1]
    """
    parts: list[list[Cell]] = [[]]
    known: set[str] = set()
    last = ""
    for cell in cells:
        name = cell.dense_id
        if name in known and name != last:
            parts.append([])
            known.clear()
        parts[-1].append(cell)
        known.add(name)
        last = name
    return parts


def grid_cells(names: Iterable[str]) -> list[Cell]:
    """The cells of several grids, each once.

    >>> len(grid_cells(["smoke"]))
    8
    """
    cells = (cell for name in names for cell in GRIDS[name][1]())
    return list({(cell.dense_id, cell.cell_id): cell for cell in cells}.values())
