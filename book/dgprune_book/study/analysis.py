"""What the results of the study say: losses, curves and paired comparisons.

A *pair* is a (test domain, seed): the same trained network and the same fine-tuning batches for
every method, so methods are compared by their differences within pairs. Losses are in percentage
points of accuracy, positive where accuracy is lost, against the unpruned network with the same
fine-tuning.

What this file is *not*: intervals (``intervals.py``) or verdicts (``claims.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dgprune_book.study.cells import CONTROL, LATER
from dgprune_book.study.intervals import bootstrap_interval
from dgprune_lite.checks import nearest_name, require

BASELINES = ("l1", "bn_scale", "fpgm", "taylor", "fisher")
"""The standard criteria; "random" is a floor, not a standard."""

PAIR = ("test_env", "seed")
# Settings that must not be mixed in one comparison.
SETTINGS = (*(name for name in CONTROL if name not in (*PAIR, "without")), "sources")
_SCORED_ON = {"taylor": "train", "fisher": "train"}  # by default; all others "val"


def method_name(row: Mapping[str, Any]) -> str:
    """Name the way a cell's filters were chosen, leaving out what is usual.

    >>> method_name({"criterion": "fisher", "options": {}, "scored_on": "train"})
    'fisher'
    >>> options = {"order": "exact", "mean_weight": 1.0, "variance_weight": 1.0}
    >>> method_name({"criterion": "risk_variance", "options": options, "scored_on": "train"})
    'risk_variance mean=1 order=exact on train'
    """
    criterion, options = row["criterion"], row.get("options") or {}
    usual = {"order": "fisher", "mean_weight": 0, "variance_weight": 1}
    short = {"mean_weight": "mean", "variance_weight": "variance"}
    parts = [criterion]
    for name, value in sorted(options.items()):
        if usual.get(name) != value:
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            parts.append(f"{short.get(name, name)}={shown}")
    scored_on = row.get("scored_on")  # in a table, what is missing may be NaN
    if isinstance(scored_on, str) and scored_on != _SCORED_ON.get(criterion, "val"):
        parts.append(f"on {scored_on}")
    if pd.notna(row.get("images_per_domain")):
        parts.append(f"images={int(row['images_per_domain'])}")
    if row.get("statistics", "plain") != "plain":
        parts.append(str(row["statistics"]))
    if row.get("scope", "uniform") != "uniform":
        parts.append(str(row["scope"]))
    return " ".join(parts)


def balanced(frame: pd.DataFrame) -> pd.DataFrame:
    """Keep at every ratio the seeds whose cells are all there: a study in progress can be read.

    Args:
        frame: From :func:`~dgprune_book.study.results.read_results`.

    Returns:
        The rows of those seeds for which every test domain has as many cells at the ratio as any
        has; no controls without a pruned network.
    """
    by = ["pruning_ratio", "seed"]
    table = frame.pivot_table(index=by, columns="test_env", values="criterion", aggfunc="size")
    most = table.max(axis=1).groupby(level="pruning_ratio").transform("max")
    full = table.eq(most, axis=0).all(axis=1)
    rows = pd.MultiIndex.from_frame(frame[by])
    kept = frame[rows.isin(full.index[full])]
    pruned = kept[kept["pruning_ratio"] > 0]
    return kept[kept["seed"].isin((kept if pruned.empty else pruned)["seed"])].reset_index(
        drop=True
    )


def losses(frame: pd.DataFrame) -> pd.DataFrame:
    """What every pruned cell loses against its control, in points.

    Args:
        frame: From :func:`~dgprune_book.study.results.read_results`, controls (criterion "none")
            among its rows.

    Returns:
        The pruned rows with ``method``, ``sources`` (how many source domains) and, in points,
        ``loss_in_domain``, ``loss_unseen`` and ``loss_worst`` (of the accuracy in the worst
        domain, source or not), and the same before fine-tuning with ``_before`` at the end.
        "Before" is against the control before fine-tuning, too.

    Raises:
        ValueError: A missing column, a cell without its control (names both), a cell twice.
    """
    frame = frame.assign(**{n: frame[n].fillna(v) if n in frame else v for n, v in LATER.items()})
    _check_columns(frame, [*CONTROL, "criterion", "accuracy_unseen", "accuracy_by_domain"])
    frame["method"] = [method_name(row) for row in frame.to_dict("records")]
    frame["sources"] = [len(domains) - 1 for domains in frame["accuracy_by_domain"]]
    ends = [end for end in ("", "_before") if f"accuracy_by_domain{end}" in frame]
    for end in ends:
        frame[f"accuracy_worst{end}"] = [
            min(domains.values()) for domains in frame[f"accuracy_by_domain{end}"]
        ]
    keys = list(CONTROL)
    twice = frame.duplicated([*keys, "method", "pruning_ratio"])
    if twice.any():
        row = frame[twice].iloc[0]
        raise ValueError(
            f"method {row['method']!r} at ratio {row['pruning_ratio']} is there twice for test "
            f"domain {row['test_env']!r}, seed {row['seed']}: leave one out"
        )
    values = [f"accuracy_{what}{end}" for end in ends for what in ("in_domain", "unseen", "worst")]
    control = frame.loc[frame["criterion"] == "none", keys + values]
    pruned = frame[frame["criterion"] != "none"]
    merged = pruned.merge(control, on=keys, how="left", suffixes=("", "_control"))
    missing = merged[f"{values[0]}_control"].isna()
    if missing.any():
        row = merged[missing].iloc[0]
        raise ValueError(
            f"no control (criterion 'none') for method {row['method']!r}, test domain "
            f"{row['test_env']!r}, seed {row['seed']}, finetune_steps {row['finetune_steps']}"
        )
    for value in values:
        name = value.replace("accuracy", "loss")
        merged[name] = 100 * (merged[f"{value}_control"] - merged[value])
    return merged


def _check_columns(frame: pd.DataFrame, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise ValueError(f"the table has no column {missing[0]!r}, only {list(frame.columns)}")


def standard_error(values: Sequence[float]) -> float:
    """Sample standard deviation over √n; NaN for fewer than two values.

    >>> standard_error([1.0, 2.0, 3.0, 4.0]).__round__(4)
    0.6455
    """
    array = np.asarray(values, dtype=float)
    return float(array.std(ddof=1) / np.sqrt(len(array))) if len(array) > 1 else float("nan")


def curves(
    lost: pd.DataFrame, values: Sequence[str] = ("loss_in_domain", "loss_unseen", "loss_worst")
) -> pd.DataFrame:
    """Mean and standard error over pairs, by method and ratio: what the figures draw.

    Args:
        lost: From :func:`losses`; cells of different settings (width, fine-tuning, ...) are
            kept apart.
        values: Columns to average.

    Returns:
        One row a (method, pruning_ratio, settings): pairs, then for every value its mean under
        its own name and its standard error with ``_se`` at the end.
    """
    by = ["method", "pruning_ratio", *(name for name in SETTINGS if name in lost)]
    groups = lost.groupby(by, sort=True)
    table = groups.size().rename("pairs").to_frame()
    for value in values:
        table[value] = groups[value].mean()
        table[f"{value}_se"] = groups[value].agg(standard_error)
    return table.reset_index()


def by_test_domain(lost: pd.DataFrame, value: str = "loss_unseen") -> pd.DataFrame:
    """Mean ± standard error over seeds, for each test domain, on average and for the worst.

    Args:
        lost: From :func:`losses`.
        value: A column of it.

    Returns:
        One row a (method, pruning_ratio, test_env) with mean, se, seeds. Test domain "average":
        each seed's mean over test domains, then mean and standard error over seeds, as in
        DomainBed. "worst": the test domain with the largest mean, named in ``domain``.
    """

    def describe(series: pd.Series) -> dict[str, Any]:
        return {"mean": series.mean(), "se": standard_error(series), "seeds": len(series)}

    rows = []
    for (method, ratio), part in lost.groupby(["method", "pruning_ratio"], sort=True):
        base = {"method": method, "pruning_ratio": ratio}
        domains = [
            {**base, "test_env": env, "domain": env, **describe(series)}
            for env, series in part.groupby("test_env")[value]
        ]
        average = describe(part.groupby("seed")[value].mean())
        worst = max(domains, key=lambda row: row["mean"])
        rows += [
            *domains,
            {**base, "test_env": "average", "domain": "", **average},
            {**worst, "test_env": "worst"},
        ]
    return pd.DataFrame(rows)


def average_of_methods(
    lost: pd.DataFrame, methods: Sequence[str] = BASELINES, name: str = "standard"
) -> pd.DataFrame:
    """Average the losses of several methods within every pair, as if they were one method.

    Args:
        lost: From :func:`losses`.
        methods: Theirs; each must be there for every pair and ratio.
        name: ``method`` of the average.

    Returns:
        Rows as in ``lost``, one per pair, ratio and settings, with the columns that identify it and
        its mean losses; for :func:`curves`, :func:`by_test_domain` and :func:`compare`.

    Raises:
        ValueError: A method that is missing for some pair.
    """
    by = [*PAIR, "pruning_ratio", *(column for column in SETTINGS if column in lost)]
    groups = lost[lost["method"].isin(methods)].groupby(by)
    if groups.ngroups == 0 or (groups.size() != len(methods)).any():
        raise ValueError(f"not every pair and ratio has all methods of {', '.join(methods)}")
    means = groups[[column for column in lost if column.startswith("loss_")]].mean()
    return means.reset_index().assign(method=name)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for several tests. Source: Holm 1979.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def wilcoxon_p(differences: Sequence[float]) -> float:
    """Two-sided p-value of the Wilcoxon signed-rank test; 1 if no pair differs."""
    require("the Wilcoxon test", "scipy", extra="study")
    from scipy import stats

    array = np.round(np.asarray(differences, dtype=float), 9)  # ties must be ties
    return float(stats.wilcoxon(array).pvalue) if array.any() else 1.0


def compare(
    lost: pd.DataFrame,
    method: str,
    baselines: Sequence[str] = BASELINES,
    *,
    pruning_ratio: float | Sequence[float] = 0.5,
    value: str = "loss_unseen",
    seed: int = 0,
) -> pd.DataFrame:
    """Paired differences of a method against each baseline at the same ratio and budget.

    Args:
        lost: From :func:`losses`, of one network and one fine-tuning.
        method: Its ``method``.
        baselines: Theirs.
        pruning_ratio: At which to compare; of several, each pair's mean over them.
        value: Column of losses.
        seed: Of the bootstrap.

    Returns:
        One row a baseline: pairs, ``difference`` (mean over pairs of the baseline's loss minus
        the method's, in points: positive where the method is better), ``low`` and ``high``
        (bootstrap 95 % interval over pairs), ``p`` (Wilcoxon signed-rank, two-sided), ``p_holm``
        (Holm's correction over the baselines) and ``d_z`` (Cohen's: mean over sample standard
        deviation of the differences; infinite where they are all equal).

    Raises:
        ValueError: An unknown method or baseline, a ratio that is not there, no common pair, or
            cells of several settings at once.
    """
    table = table_of_pairs(lost, pruning_ratio, value)
    rows = []
    for baseline in baselines:
        both = table[[known_method(method, table), known_method(baseline, table)]].dropna()
        if both.empty:
            raise ValueError(f"{method!r} and {baseline!r} have no pair in common")
        difference = (both[baseline] - both[method]).to_numpy()
        low, high = bootstrap_interval(difference, seed=seed)
        spread = difference.std(ddof=1) if len(difference) > 1 else float("nan")
        with np.errstate(divide="ignore", invalid="ignore"):
            d_z = float(np.float64(difference.mean()) / spread) if difference.any() else 0.0
        rows.append(
            {
                "method": method,
                "baseline": baseline,
                "pruning_ratio": pruning_ratio,
                "pairs": len(difference),
                "difference": float(difference.mean()),
                "low": low,
                "high": high,
                "p": wilcoxon_p(difference),
                "d_z": d_z,
            }
        )
    result = pd.DataFrame(rows)
    result.insert(result.columns.get_loc("p") + 1, "p_holm", holm(result["p"].tolist()))
    return result


def table_of_pairs(lost: pd.DataFrame, ratio: float | Sequence[float], value: str) -> pd.DataFrame:
    """One row per pair, one column per method; means over ratios, NaN where one is missing."""
    _check_columns(lost, ["method", "pruning_ratio", value])
    mixed = [name for name in SETTINGS if name in lost and len(set(lost[name])) > 1]
    if mixed:
        raise ValueError(
            f"the table mixes cells of different {mixed[0]}: "
            f"{sorted(lost[mixed[0]].unique().tolist())}; compare one at a time"
        )
    ratios = [ratio] if isinstance(ratio, float | int) else list(ratio)
    known = sorted(set(lost["pruning_ratio"]))
    if missing := [each for each in ratios if each not in known]:
        raise ValueError(f"pruning_ratio={missing[0]!r} is not among the results: {known}")
    part = lost[lost["pruning_ratio"].isin(ratios)]
    by_ratio = part.set_index([*PAIR, "method", "pruning_ratio"])[value].unstack()  # noqa: PD010
    return by_ratio.mean(axis=1, skipna=False).unstack()  # noqa: PD010


def known_method(method: str, table: pd.DataFrame) -> str:
    if method not in table.columns:
        raise ValueError(
            f"method {method!r} is not among the results.{nearest_name(method, table.columns)} "
            f"There are: {', '.join(table.columns)}"
        )
    return method


def largest_free_ratio(curve: pd.DataFrame, limit: float = 1.0) -> pd.DataFrame:
    """The largest ratio that costs at most ``limit`` points in-domain, and what it costs unseen.

    Args:
        curve: From :func:`curves`.
        limit: In points, on the mean in-domain loss.

    Returns:
        For every method that has such a ratio, its row of ``curve``.
    """
    free = curve[curve["loss_in_domain"] <= limit]
    rows = free.loc[free.groupby("method")["pruning_ratio"].idxmax()]
    return rows.sort_values("method").reset_index(drop=True)
