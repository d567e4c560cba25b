"""Which experiments there are: the cells of the study, and its grids by name.

What this file is *not*: the code that runs them (``study.py``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dgprune_lite.scores import CRITERIA, NEEDS_STATISTICS

RATIOS = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8)
SEEDS = (0, 1, 2, 3, 4)
ENVIRONMENTS = {
    "DigitsLite": ("mnist", "mnist_m", "optdigits", "syn"),
    "RotatedMNIST": ("0", "15", "30", "45", "60", "75"),
    "ColoredMNIST": ("+90%", "+80%", "-90%"),
}

# What decides the dense network that a cell prunes.
DENSE = ("dataset", "test_env", "without", "seed", "network", "width", "algorithm", "dense_steps")
# What a cell shares with the unpruned network that it is compared to.
CONTROL = (*DENSE, "finetune_steps", "finetune_lr", "schedule", "schedule_steps")


@dataclass(frozen=True)
class Cell:
    """One network, pruned one way and fine-tuned: all that decides the outcome.

    Attributes:
        dataset: "DigitsLite", "RotatedMNIST" or "ColoredMNIST".
        test_env: The unseen domain.
        seed: Decides the division of the sources, the initialisation, the batches.
        criterion: As in :func:`~dgprune_lite.scores.score`; "none" prunes nothing.
        options: Passed to the criterion. ("random" has a seed made of the cell's.)
        scored_on: Part of the source domains that the statistics are measured on, "train" or
            "val"; None for criteria that need none.
        images_per_domain: Images of each domain measured for the score; None for all.
        pruning_ratio: In [0, 1).
        scope: "uniform" removes the same share of every layer, "global" ranks all filters.
        schedule: "one-shot" or "iterative".
        schedule_steps: Rounds of scoring, removing and fine-tuning; 1 for "one-shot".
        finetune_steps: Updates after pruning, over all rounds.
        finetune_lr: Their largest learning rate, chosen by a trial by hand on held-out images of
            source domains (L1, seed 0, two domains left out).
        network: Name for :func:`~dgprune_lite.models.build_model`.
        width: Likewise.
        algorithm: "ERM" or "VREx", for the dense network (fine-tuning is ERM).
        dense_steps: Updates of the dense network.
        without: A source domain left out of everything; "" for none.
    """

    dataset: str
    test_env: str
    seed: int
    criterion: str
    options: dict[str, Any] = field(default_factory=dict)
    scored_on: str | None = None
    images_per_domain: int | None = None
    pruning_ratio: float = 0.5
    scope: str = "uniform"
    schedule: str = "one-shot"
    schedule_steps: int = 1
    finetune_steps: int = 60
    finetune_lr: float = 4e-3
    network: str = "digits_cnn"
    width: int = 16
    algorithm: str = "ERM"
    dense_steps: int = 800
    without: str = ""

    def __post_init__(self) -> None:
        known = ["none", *CRITERIA]
        if self.criterion not in known:
            raise ValueError(f"criterion={self.criterion!r} is not one of {', '.join(known)}")
        if self.criterion == "none" and self.pruning_ratio != 0:
            raise ValueError(f"criterion 'none' prunes nothing, got ratio {self.pruning_ratio!r}")
        if (self.scored_on in ("train", "val")) != (self.criterion in NEEDS_STATISTICS):
            raise ValueError(
                f"scored_on={self.scored_on!r} does not go with criterion {self.criterion!r}: "
                "'train' or 'val' for criteria that need statistics, None for the others"
            )
        if (self.schedule == "one-shot") != (self.schedule_steps == 1):
            raise ValueError(f"schedule={self.schedule!r} has {self.schedule_steps} steps")
        for name, value, allowed in (
            ("scope", self.scope, ("uniform", "global")),
            ("schedule", self.schedule, ("one-shot", "iterative")),
        ):
            if value not in allowed:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}")

    @property
    def dense_id(self) -> str:
        """Names the dense network; usable as a file name."""
        return "-".join(str(getattr(self, name)) for name in DENSE if getattr(self, name) != "")

    @property
    def cell_id(self) -> str:
        """Names the cell; usable as a file name."""
        text = json.dumps(asdict(self), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return f"{self.criterion}-{self.pruning_ratio:g}-{digest}"

    @property
    def control(self) -> Cell:
        """The unpruned network with the same fine-tuning."""
        same = {name: getattr(self, name) for name in CONTROL}
        return Cell(criterion="none", pruning_ratio=0, **same)


Criterion = dict[str, Any]  # the fields of a cell that say how filters are scored

BASELINES: tuple[Criterion, ...] = (
    {"criterion": "random"},
    {"criterion": "l1"},
    {"criterion": "bn_scale"},
    {"criterion": "fpgm"},
    {"criterion": "taylor", "scored_on": "train"},
    {"criterion": "fisher", "scored_on": "train"},
)


def variance_score(scored_on: str = "val", **options: Any) -> Criterion:
    """The risk-variance score with options of its own."""
    return {"criterion": "risk_variance", "scored_on": scored_on, "options": options}


MEAN_AND_STD = variance_score(order="fisher", mean_weight=1.0, variance_weight=1.0)
STD = variance_score(order="fisher", mean_weight=0.0, variance_weight=1.0)
OURS: tuple[Criterion, ...] = (
    STD,
    MEAN_AND_STD,
    variance_score(order="second"),
    {"criterion": "worst_domain", "scored_on": "val"},
    {"criterion": "risk_gradient", "scored_on": "val"},
)


def cross(
    criteria: Iterable[Criterion],
    ratios: Iterable[float],
    *,
    seeds: Iterable[int] = SEEDS,
    dataset: str = "DigitsLite",
    test_envs: Iterable[str] | None = None,
    **settings: Any,
) -> list[Cell]:
    """All criteria at all ratios for every test domain and seed, each with its control.

    Seeds come first, so that a study in progress is balanced over the test domains.

    >>> cells = cross([{"criterion": "l1"}], [0.5, 0.7], seeds=[0], width=4)
    >>> len(cells), cells[0].criterion, cells[1].pruning_ratio
    (12, 'none', 0.5)
    """
    criteria, ratios = list(criteria), list(ratios)
    cells = []
    for seed in seeds:
        for env in test_envs or ENVIRONMENTS[dataset]:
            base = Cell(dataset, env, seed, "none", pruning_ratio=0, **settings)
            cells.append(base.control)
            for ratio in ratios:
                cells += [replace(base, pruning_ratio=ratio, **criterion) for criterion in criteria]
    return cells


def _book() -> list[Cell]:
    return cross([*BASELINES, *OURS], RATIOS)


def _widths() -> list[Cell]:
    return cross([*BASELINES, *OURS], RATIOS, width=32)


def _resnet() -> list[Cell]:
    return cross([*BASELINES, *OURS], (0.3, 0.5, 0.7), network="digits_resnet")


def _ablations() -> list[Cell]:
    ratios = (0.5, 0.7)
    on_val = [{**c, "scored_on": "val"} for c in BASELINES if "scored_on" in c]
    orders = [variance_score(order=order) for order in ("first", "exact")]
    weights = [
        variance_score(order="fisher", mean_weight=a, variance_weight=b)
        for a, b in ((1.0, 0.0), (1.0, 0.3), (1.0, 3.0), (1.0, 10.0))
    ]
    on_train = [{**c, "scored_on": "train"} for c in OURS]
    few = [{**c, "images_per_domain": n} for c in (STD, MEAN_AND_STD) for n in (10, 30, 100)]
    main = [BASELINES[1], BASELINES[2], BASELINES[5], STD, MEAN_AND_STD]
    everywhere = [{**c, "scope": "global"} for c in (*BASELINES[1:], STD, MEAN_AND_STD)]
    cells = cross([*on_val, *orders, *weights, *on_train, *few, *everywhere], ratios)
    for settings in (
        {"finetune_steps": 20},
        {"finetune_steps": 240},
        {"schedule": "iterative", "schedule_steps": 4},
        {"algorithm": "VREx"},
    ):
        cells += cross(main, ratios, **settings)
    for env in ENVIRONMENTS["DigitsLite"]:  # two sources: leave out the next domain as well
        names = ENVIRONMENTS["DigitsLite"]
        other = names[(names.index(env) + 1) % len(names)]
        cells += cross(main, ratios, test_envs=[env], without=other)
    return sorted(cells, key=lambda cell: cell.seed)


def _rotated() -> list[Cell]:
    envs = ("0", "30", "75")  # both ends, and one between the angles learnt from
    criteria = [*BASELINES, *OURS]
    return cross(criteria, (0.3, 0.5, 0.7), seeds=SEEDS[:3], dataset="RotatedMNIST", test_envs=envs)


def _colored() -> list[Cell]:
    # The other two environments cost little, and show what the colour brings where it helps.
    return cross([*BASELINES, *OURS], (0.3, 0.5, 0.7), seeds=SEEDS[:3], dataset="ColoredMNIST")


def _smoke() -> list[Cell]:
    settings: dict[str, Any] = {"width": 4, "dense_steps": 30, "finetune_steps": 4}
    criteria = [BASELINES[1], BASELINES[5], STD]
    return cross(criteria, (0.5,), seeds=(0,), test_envs=("mnist", "syn"), **settings)


GRIDS: dict[str, tuple[str, Callable[[], list[Cell]]]] = {
    "book": ("digits_cnn of width 16: all criteria, six ratios", _book),
    "widths": ("the same with width 32", _widths),
    "resnet": ("digits_resnet: all criteria, three ratios", _resnet),
    "ablations": ("variants of the score, schedules, budgets, V-REx, two sources", _ablations),
    "rotated": ("RotatedMNIST: all criteria, three ratios, three test angles", _rotated),
    "colored": ("ColoredMNIST, whose colours mislead: all criteria, three ratios", _colored),
    "smoke": ("a tiny network, to see whether everything works", _smoke),
}
"""Name to (what it is, a function that lists its cells)."""


def grid_cells(names: Iterable[str]) -> list[Cell]:
    """The cells of several grids, each once.

    >>> len(grid_cells(["smoke"]))
    8
    """
    return list({cell.cell_id: cell for name in names for cell in GRIDS[name][1]()}.values())
