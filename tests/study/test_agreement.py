"""Rank correlations and disagreements on made-up scores whose outcome is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from dgprune_book.study import agreement
from scipy import stats

SIZES = {"conv1": 4, "conv2": 6}


def ranking(seeds=2):
    """Scores that follow the unseen domain's ablation, the sources' mean, or neither."""
    rng, rows = np.random.default_rng(0), []
    for env in ("c", "d"):
        for seed in range(seeds):
            exact = {name: rng.normal(size=10) for name in ("a", "b", env)}
            common = {"test_env": env, "seed": seed, "sizes": SIZES, "options": {}}
            rows.append({**common, "criterion": "none", "values": exact})
            sources = np.abs((exact["a"] + exact["b"]) / 2)
            for name, values in (
                ("l1", np.exp(np.abs(exact[env]))),
                ("fpgm", sources * 3),
                ("random", rng.normal(size=10)),
            ):
                rows.append({**common, "criterion": name, "values": values})
    rows = [{**row, "values": _plain(row["values"])} for row in rows]
    return pd.DataFrame(rows).assign(scored_on=None, images_per_domain=None)


def _plain(values):
    if isinstance(values, dict):
        return {name: each.tolist() for name, each in values.items()}
    return values.tolist()


def test_rank_correlations_are_taken_within_groups_and_averaged():
    frame = ranking()
    found = (
        agreement.rank_correlations(frame).set_index(["method", "test_env", "seed"]).sort_index()
    )
    assert (found.loc["l1", "unseen"] == 1).all()
    assert (found.loc["fpgm", "sources"] == 1).all()
    assert (found.loc["exact, unseen", "unseen"] == 1).all()
    control = frame[frame["criterion"] == "none"].iloc[0]
    values = frame[frame["criterion"] == "random"].iloc[0]["values"]
    exact = {name: np.array(each) for name, each in control["values"].items()}
    spread = np.std([exact["a"], exact["b"]], axis=0)
    expected = [
        stats.spearmanr(values[part], spread[part]).statistic for part in (slice(4), slice(4, 10))
    ]
    assert found.loc[("random", "c", 0), "spread"] == pytest.approx(np.mean(expected))


def test_a_partial_correlation_holds_the_third_fixed():
    rng = np.random.default_rng(1)
    network = {"sizes": {"conv1": 400, "conv2": 400}}
    third = rng.normal(size=800)
    one, other = third + rng.normal(size=(2, 800))  # alike through the third alone
    assert agreement.rank_correlation(network, one, other) > 0.4
    assert abs(agreement.rank_correlation(network, one, other, given=third)) < 0.1
    # what the ranks of the third leave over, by least squares
    found = []
    for part in (slice(400), slice(400, 800)):
        ranks = [stats.rankdata(values[part]) for values in (one, other, third)]
        left = [y - np.polyval(np.polyfit(ranks[2], y, 1), ranks[2]) for y in ranks[:2]]
        found.append(np.corrcoef(*left)[0, 1])
    result = agreement.rank_correlation(network, one, other, given=third)
    assert result == pytest.approx(np.mean(found))


def test_disagreements_compare_what_only_one_keeps():
    frame = ranking()
    found = agreement.disagreements(frame, "l1", ["fpgm", "l1"])
    same = found[found["other"] == "l1"]
    assert (same["shared"] == 1).all()
    assert same["unseen"].isna().all()
    other = found[(found["other"] == "fpgm") & (found["shared"] < 1)]
    assert len(other) > 1
    assert (other["unseen"] > 0).all()  # each keeps what costs most by its own measure
    assert (other["sources"] < 0).all()
    assert found["shared"].between(0, 1).all()


def test_unknown_methods_and_missing_ablations():
    frame = ranking()
    with pytest.raises(ValueError, match="'l9' is not in the ranking: l1, fpgm, random"):
        agreement.disagreements(frame, "l1", ["l9"])
    with pytest.raises(ValueError, match="no exact ablation for test domain 'c', seed 0"):
        agreement.rank_correlations(frame.drop(frame.index[0]))
