"""Which experiments there are: the cells of the study, and its grids by name.

What this file is *not*: the code that runs one (``experiment.py``) or many (``study.py``).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from dgprune_lite.scores.criteria import CRITERIA, NEEDS_STATISTICS

RATIOS = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8)
SEEDS = (0, 1, 2, 3, 4)
ENVIRONMENTS = {
    "DigitsLite": ("mnist", "mnist_m", "optdigits", "syn"),
    "RotatedMNIST": ("0", "15", "30", "45", "60", "75"),
    "ColoredMNIST": ("+90%", "+80%", "-90%"),
    "PACS64": ("A", "C", "P", "S"),
    "PACS128": ("A", "C", "P", "S"),
}

# What decides the dense network that a cell prunes.
DENSE = (
    "dataset", "test_env", "without", "seed", "network", "width", "algorithm", "vrex_lambda",
    "dense_steps", "weights", "dense_lr", "precision",
)  # fmt: skip
# Settings that older results do not name, with the value that they had; nor do names of networks.
LATER = {
    "without": "", "vrex_lambda": 1.0, "weights": "", "dense_lr": 4e-3, "precision": "float32",
}  # fmt: skip
# What a cell shares with the unpruned network that it is compared to.
CONTROL = (*DENSE, "finetune_steps", "finetune_lr", "schedule", "schedule_steps")
# The settings that are one of a few words.
CHOICES = {
    "scope": ("uniform", "global", "global-normalized"),
    "schedule": ("one-shot", "iterative"),
    "statistics": ("plain", "masked", "virtual"),
    "measure": ("accuracy", "ranking"),
}


@dataclass(frozen=True)
class Cell:
    """One network, pruned one way and fine-tuned: all that decides the outcome.

    Attributes:
        dataset: "DigitsLite", "RotatedMNIST", "ColoredMNIST", or PACS at 64 or 128 pixels,
            "PACS64", "PACS128".
        test_env: The unseen domain.
        seed: Decides the division of the sources, the initialisation, the batches.
        criterion: As in :func:`~dgprune_lite.scores.criteria.score`; "none" prunes nothing.
        options: Passed to the criterion. ("random" has a seed made of the cell's.)
        scored_on: Part of the source domains that the statistics are measured on, "train" or
            "val"; None for criteria that need none.
        images_per_domain: Images of each domain measured for the score; None for all.
        statistics: "plain"; "masked", with random shares of the filters gone; "virtual", with
            changed copies of the source domains as further domains (both: ``variants.py``).
        pruning_ratio: In [0, 1).
        scope: "uniform" removes the same share of every layer, "global" ranks all filters,
            "global-normalized" does so after dividing each layer's scores by their length.
        schedule: "one-shot" or "iterative".
        schedule_steps: Rounds of scoring, removing and fine-tuning; 1 for "one-shot".
        finetune_steps: Updates after pruning, over all rounds.
        finetune_lr: Their largest learning rate, chosen by a trial by hand on held-out images of
            source domains; the grid "rates" shows what others would give there.
        network: Name for :func:`~dgprune_lite.networks.models.build_model`.
        width: Likewise; 0 for the network's own.
        algorithm: "ERM" or "VREx", for the dense network (fine-tuning is ERM).
        dense_steps: Updates of the dense network.
        without: A source domain left out of everything; "" for none.
        vrex_lambda: Weight of the variance of risks in V-REx's objective; the grid "lambdas" shows
            what others would give on source domains.
        measure: "accuracy", or "ranking": nothing is pruned, the scores themselves are kept, and
            the control keeps what each filter's exact ablation costs every domain.
        weights: What the dense network starts from, for
            :func:`~dgprune_lite.networks.models.build_model`; "" for random weights.
        dense_lr: The largest learning rate of the dense network.
        precision: Of training and of the statistics, see :func:`~dgprune_lite.networks.training.fit`.
        round_to: Kept widths are multiples of it.
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
    vrex_lambda: float = 1.0
    statistics: str = "plain"
    measure: str = "accuracy"
    weights: str = ""
    dense_lr: float = 4e-3
    precision: str = "float32"
    round_to: int = 1

    def __post_init__(self) -> None:
        self._normalize()
        known = ["none", *CRITERIA]
        if self.criterion not in known:
            raise ValueError(f"criterion={self.criterion!r} is not one of {', '.join(known)}")
        if self.criterion == "none" and self.pruning_ratio != 0:
            raise ValueError(f"criterion 'none' prunes nothing, got ratio {self.pruning_ratio!r}")
        parts = ("train", "val") if self.criterion in NEEDS_STATISTICS else (None,)
        if self.scored_on not in parts:
            raise ValueError(
                f"scored_on={self.scored_on!r} does not go with criterion {self.criterion!r}: "
                "'train' or 'val' for criteria that need statistics, None for the others"
            )
        for name, allowed in CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}")
        if (self.schedule == "one-shot") != (self.schedule_steps == 1):
            raise ValueError(f"schedule={self.schedule!r} has {self.schedule_steps} steps")
        if self.measure == "ranking" and (self.pruning_ratio or self.finetune_steps):
            raise ValueError(
                "measure='ranking' neither prunes nor fine-tunes, got "
                f"ratio {self.pruning_ratio!r} and {self.finetune_steps!r} steps"
            )

    def _normalize(self) -> None:
        """Make equal settings one: a number of NumPy's is Python's, 1 is 1.0 where it is a share.

        Names of cells hold the numbers as they are written.
        """
        for each in fields(self):
            value = getattr(self, each.name)
            value = value.item() if isinstance(value, np.generic) else value
            value = float(value) if each.type == "float" else value
            object.__setattr__(self, each.name, value)

    @property
    def dense_id(self) -> str:
        """Names the dense network; usable as a file name."""
        values = {name: getattr(self, name) for name in DENSE}
        return "-".join(str(v) for name, v in values.items() if LATER.get(name, ...) != v)

    @property
    def cell_id(self) -> str:
        """Names the cell; usable as a file name. A new setting leaves older names as they are."""
        unusual = {
            each.name: value
            for each in fields(self)
            if (value := getattr(self, each.name)) != each.default and value != {}
        }
        text = json.dumps(unusual, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return f"{self.criterion}-{self.pruning_ratio:g}-{digest}"

    @property
    def control(self) -> Cell:
        """The unpruned network with the same fine-tuning."""
        same = {name: getattr(self, name) for name in (*CONTROL, "measure")}
        return Cell(criterion="none", pruning_ratio=0, **same)


def cell_of(row: Mapping[str, Any]) -> Cell:
    """The cell that a row of results is about.

    Args:
        row: A line of a results file, also as a row of a table, where what is missing is NaN.
            Settings that the row does not have are at their defaults.

    >>> cell = Cell("DigitsLite", "syn", 0, "l1")
    >>> cell_of(vars(cell) | {"images_per_domain": float("nan"), "accuracy": 0.5}) == cell
    True
    """
    found = {name: row[name] for name in Cell.__dataclass_fields__ if name in row}
    known = {name: value for name, value in found.items() if value == value and value is not None}
    if "images_per_domain" in known:
        known["images_per_domain"] = int(known["images_per_domain"])
    return Cell(**known)


Criterion = dict[str, Any]  # the fields of a cell that say how filters are scored

BASELINES: tuple[Criterion, ...] = (
    {"criterion": "random"},
    {"criterion": "l1"},
    {"criterion": "bn_scale"},
    {"criterion": "fpgm"},
    {"criterion": "taylor", "scored_on": "train"},
    {"criterion": "fisher", "scored_on": "train"},
)
_, L1, BN_SCALE, FPGM, TAYLOR, FISHER = BASELINES


def variance_score(scored_on: str = "val", statistics: str = "plain", **options: Any) -> Criterion:
    """The risk-variance score with options of its own."""
    return {
        "criterion": "risk_variance",
        "scored_on": scored_on,
        "statistics": statistics,
        "options": options,
    }


STD = variance_score(order="fisher", mean_weight=0.0, variance_weight=1.0)
MEAN_AND_STD = variance_score(order="fisher", mean_weight=1.0, variance_weight=1.0)
WORST_DOMAIN: Criterion = {"criterion": "worst_domain", "scored_on": "val"}
OURS: tuple[Criterion, ...] = (
    STD,
    MEAN_AND_STD,
    variance_score(order="second"),
    WORST_DOMAIN,
    {"criterion": "risk_gradient", "scored_on": "val"},
)


def objective_score(order: str, variance_weight: float) -> Criterion:
    """The signed score: what V-REx's objective loses when the filter goes."""
    options = {"order": order, "variance_weight": variance_weight}
    return {"criterion": "risk_objective", "scored_on": "val", "options": options}


# The search for a better score. Each goes back to a reason why the plain one may fall short.
SEARCH: tuple[Criterion, ...] = (
    # three risks give a poor variance: lean on their mean, or make more domains
    variance_score(mean_weight=1.0, variance_weight=3.0),
    variance_score(mean_weight=1.0, variance_weight=10.0),
    variance_score(mean_weight=1.0, statistics="virtual"),
    # ½F is a poor estimate: measure better
    variance_score(order="second", mean_weight=1.0),
    variance_score(order="exact", mean_weight=1.0),
    # a domain with large risks outweighs the others
    variance_score(mean_weight=1.0, normalize=True),
    # filters do not go alone
    variance_score(order="first", mean_weight=1.0, statistics="masked"),
    variance_score(order="fisher", mean_weight=1.0, statistics="masked"),
    # a prior that needs no data
    {"criterion": "bn_scale_and_risk", "scored_on": "val"},
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
    return cross([*BASELINES, *OURS], RATIOS, width=8)


MAIN = (L1, BN_SCALE, FISHER, STD, MEAN_AND_STD)


def _resnet() -> list[Cell]:
    return cross([*BASELINES, *OURS], (0.3, 0.5, 0.7), network="digits_resnet")


def _variants() -> list[Cell]:
    uniform = [
        *SEARCH,
        *({**c, "scored_on": "val"} for c in (TAYLOR, FISHER)),
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
    envs = ("0", "30", "75")  # both ends, and one between the angles learnt from
    criteria = [*BASELINES, *OURS]
    return cross(criteria, (0.3, 0.5, 0.7), seeds=SEEDS[:3], dataset="RotatedMNIST", test_envs=envs)


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


# PACS from ImageNet weights. The rates are the best on source domains of the grid "pacs64_rates".
PACS: dict[str, Any] = {
    "network": "efficientnet_lite0", "width": 0, "weights": "DEFAULT", "dense_lr": 5e-4,
    "finetune_lr": 5e-4, "round_to": 8,
}  # fmt: skip
PACS64: dict[str, Any] = {**PACS, "dataset": "PACS64", "dense_steps": 250, "finetune_steps": 60}
PACS128: dict[str, Any] = {
    **PACS, "dataset": "PACS128", "dense_steps": 500, "finetune_steps": 120,
    "precision": "bfloat16",
}  # fmt: skip
FISHER_VAL: Criterion = {**FISHER, "scored_on": "val"}
REVERSED = variance_score(order="fisher", mean_weight=1.0, variance_weight=1.0, reverse=True)


def on_training_images(criterion: Criterion) -> Criterion:
    """The same on training images, of each domain as many as are held out of most."""
    return {**criterion, "scored_on": "train", "images_per_domain": 400}


# In the order of the ladder: what the score knows.
PACS_MAIN: tuple[Criterion, ...] = (
    BASELINES[0],
    L1,
    BN_SCALE,
    on_training_images(TAYLOR),
    FISHER_VAL,
    STD,
    MEAN_AND_STD,
    on_training_images(FISHER),
)
PACS_LIKE: tuple[Criterion, ...] = (  # {mean, spread, both, reversed} on either images
    REVERSED,
    *(on_training_images(criterion) for criterion in (STD, MEAN_AND_STD, REVERSED)),
)
PACS_REST: tuple[Criterion, ...] = (
    FPGM,
    *({**criterion, "scored_on": "val"} for criterion in (TAYLOR,)),
    variance_score(order="second"),
    variance_score(order="fisher", reverse=True),
    WORST_DOMAIN,
    *map(on_training_images, (variance_score(order="second"), WORST_DOMAIN)),
)


def _pacs64() -> list[Cell]:
    return [
        *cross(PACS_MAIN, (0.4,), seeds=(0, 1), **PACS64),
        *cross(PACS_LIKE, (0.4,), seeds=(0, 1), **PACS64),
        *cross(PACS_MAIN, (0.2,), seeds=(0, 1), **PACS64),
        *cross(PACS_MAIN, (0.4,), seeds=(2, 3, 4), **PACS64),
        *cross(PACS_LIKE, (0.4,), seeds=(2, 3, 4), **PACS64),
    ]


def _pacs64_rates() -> list[Cell]:
    short = {**PACS64, "dense_steps": 100, "finetune_steps": 0}
    dense = [
        cross([], [], seeds=[9], test_envs=["S"], **(short | {"dense_lr": lr})) for lr in RATES
    ]
    tuned = [
        cross([L1], [0.4], seeds=[9], test_envs=["S"],
              **(short | {"finetune_steps": 40, "finetune_lr": lr}))
        for lr in RATES
    ]  # fmt: skip
    return [cell for cells in (*dense, *tuned) for cell in cells]


RATES = (2.5e-4, 5e-4, 1e-3)


def _pacs() -> list[Cell]:
    iterative = {"schedule": "iterative", "schedule_steps": 4}
    ranked = [{**c, "scope": "global"} for c in (L1, BN_SCALE, FISHER_VAL, MEAN_AND_STD)]
    return [
        *cross(PACS_MAIN, (0.4,), **PACS128),
        *cross(PACS_LIKE, (0.4,), **PACS128),
        *cross(PACS_MAIN, (0.1, 0.2, 0.3), **PACS128),
        *cross([*PACS_REST, *ranked], (0.4,), **PACS128),
        *cross(PACS_MAIN, (0.4,), **(PACS128 | iterative)),
        *cross(PACS_MAIN, (0.4,), **(PACS128 | {"finetune_steps": 480})),
        *cross([*PACS_LIKE, *PACS_REST], (0.1, 0.2, 0.3), **PACS128),
    ]


def _smoke() -> list[Cell]:
    settings: dict[str, Any] = {"width": 4, "dense_steps": 30, "finetune_steps": 4}
    return cross([L1, FISHER, STD], (0.5,), seeds=(0,), test_envs=("mnist", "syn"), **settings)


def _by_seed(cells: Iterable[Cell]) -> list[Cell]:
    """In the order that keeps a study in progress balanced."""
    return sorted(cells, key=lambda cell: cell.seed)


GRIDS: dict[str, tuple[str, Callable[[], list[Cell]]]] = {
    "book": ("digits_cnn of width 16: all criteria, six ratios", _book),
    "widths": ("the same with width 8", _widths),
    "resnet": ("digits_resnet: all criteria, three ratios", _resnet),
    "variants": ("variants of the score, and global ranking", _variants),
    "settings": ("shorter and longer fine-tuning, iterative pruning, V-REx", _settings),
    "nested": ("a second domain left out: what to choose by sources alone", _nested),
    "rates": ("learning rates of fine-tuning, judged on source domains", _rates),
    "lambdas": ("weights of the variance in V-REx, unpruned networks", _lambdas),
    "ranking": ("how each score ranks filters, and their exact ablation", _ranking),
    "rotated": ("RotatedMNIST: all criteria, three ratios, three test angles", _rotated),
    "colored": ("ColoredMNIST, whose colours mislead: all criteria, three ratios", _colored),
    "cue": ("ColoredMNIST without fine-tuning: can pruning remove a misleading cue?", _cue),
    "pacs": ("PACS at 128 pixels from ImageNet weights: for a GPU", _pacs),
    "pacs64": ("PACS at 64 pixels, the criteria that matter most: for a CPU", _pacs64),
    "pacs64_rates": ("its learning rates, judged on source domains", _pacs64_rates),
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
    for cell in cells:
        known = {other.dense_id for other in parts[-1]}
        if cell.dense_id in known and cell.dense_id != parts[-1][-1].dense_id:
            parts.append([])
        parts[-1].append(cell)
    return parts


def grid_cells(names: Iterable[str]) -> list[Cell]:
    """The cells of several grids, each once.

    >>> len(grid_cells(["smoke"]))
    8
    """
    cells = (cell for name in names for cell in GRIDS[name][1]())
    return list({(cell.dense_id, cell.cell_id): cell for cell in cells}.values())
