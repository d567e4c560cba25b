"""What a cell of the study is, and how grids are made of cells.

What this file is *not*: the grids (``grids.py``), or the code that runs one cell
(``experiment.py``) or many (``runner.py``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from dgprune_book.study.criteria import Criterion
from dgprune_book.study.variants import SCORES
from dgprune_lite.scores.criteria import CRITERIA, NEEDS_STATISTICS

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
    "measure": ("accuracy", "ranking", "left-out"),
}


@dataclass(frozen=True)
class Cell:
    """One network, pruned one way and fine-tuned: all that decides the outcome.

    Attributes:
        dataset: "DigitsLite", "RotatedMNIST", "ColoredMNIST", or PACS at 64 or 128 pixels,
            "PACS64", "PACS128".
        test_env: The unseen domain.
        seed: Decides the division of the sources, the initialisation, the batches.
        criterion: As in :func:`~dgprune_lite.scores.criteria.score`, or of ``variants.SCORES``;
            "none" prunes nothing.
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
            the control keeps what each filter's exact ablation costs every domain. "left-out":
            ``without`` is measured as well as ``test_env``, and nothing before fine-tuning, so that
            one cell does the work of two.
        weights: What the dense network starts from, for
            :func:`~dgprune_lite.networks.models.build_model`; "" for random weights.
        dense_lr: The largest learning rate of the dense network.
        precision: Of training and of the statistics, see
            :func:`~dgprune_lite.networks.training.fit`.
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
        known = ["none", *CRITERIA, *SCORES]
        if self.criterion not in known:
            raise ValueError(f"criterion={self.criterion!r} is not one of {', '.join(known)}")
        if self.criterion == "none" and self.pruning_ratio != 0:
            raise ValueError(f"criterion 'none' prunes nothing, got ratio {self.pruning_ratio!r}")
        parts = ("train", "val") if self.criterion in (*NEEDS_STATISTICS, *SCORES) else (None,)
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
        if self.measure == "left-out" and not (self.without and self.finetune_steps):
            raise ValueError(
                "measure='left-out' needs a domain to leave out and fine-tuning, got "
                f"without={self.without!r} and {self.finetune_steps!r} steps"
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
