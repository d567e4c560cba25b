"""The ladder, and what the unseen domain gains beyond."""

from __future__ import annotations

import pandas as pd
import pytest
from dgprune_book.study import headlines
from dgprune_book.study.analysis import losses
from dgprune_book.study.results import write_results
from made_results import ENVS, row

METHODS = {
    "random": {"criterion": "random"},
    "l1": {"criterion": "l1"},
    "bn_scale": {"criterion": "bn_scale"},
    "fisher on val": {"criterion": "fisher", "scored_on": "val"},
}


def rows(seeds=(0, 1), skip=(), lost=lambda name, env: (0.02, 0.04)):
    found = []
    for seed in seeds:
        for env in ENVS:
            found.append(row("none", env, seed, 0.9, 0.7, 0.6))
            for name, settings in METHODS.items():
                if (name, env, seed) in skip:
                    continue
                inside, unseen = lost(name, env)
                settings = {"images_per_domain": None, **settings}
                found.append(row("l1", env, seed, 0.9 - inside, 0.7 - unseen, 0.5) | settings)
    return found


def test_the_ladder_takes_only_networks_that_have_all_rungs():
    skip = {("fisher on val", "syn", 1)}  # so seed 1 is not whole
    cost = {"random": 0.3, "l1": 0.2, "bn_scale": 0.1, "fisher on val": 0.05}
    lost = losses(pd.DataFrame(rows(skip=skip, lost=lambda name, _: (cost[name] / 2, cost[name]))))
    table = headlines.ladder(lost, 0.5).set_index(["role", "rung"])
    assert (table["networks"] == 4).all()
    unseen = table.loc["unseen", "mean"]
    assert list(unseen.index) == [
        "nothing: random",
        "weights: L1, BN scale",
        "the same on held-out images",
    ]
    assert unseen.to_list() == pytest.approx([30, 15, 5])
    assert table.loc["in-domain", "mean"].to_list() == pytest.approx([15, 7.5, 2.5])


def test_beyond_is_what_the_gain_in_domain_does_not_explain():
    def lost(name, env):
        return (0.10, 0.20) if name == "random" else (0.04, 0.11)

    table = losses(pd.DataFrame(rows(lost=lost)))
    found = headlines.advantage(table, "fisher on val", ["random"], 0.5).iloc[0]
    beyond = headlines.advantage(table, "fisher on val", ["random"], 0.5, "beyond").iloc[0]
    assert found["mean"] == pytest.approx(9)
    assert beyond["mean"] == pytest.approx(9 - 6)
    assert (beyond["low"], beyond["domain_high"]) == pytest.approx((3, 3))


def test_files_of_the_same_networks_are_one_table(tmp_path):
    held = [each for each in rows() if each["criterion"] in ("none", "fisher")]
    write_results(tmp_path / "a.jsonl", rows(), {})
    write_results(tmp_path / "b.jsonl", held, {})
    lost = headlines.lost_points(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert len(lost) == len([each for each in rows() if each["criterion"] != "none"])
    some = [each | {"images_per_domain": 400} if each["criterion"] == "fisher" else each
            for each in rows()]  # fmt: skip
    write_results(tmp_path / "c.jsonl", some, {})
    assert "fisher on val" in set(headlines.lost_points(tmp_path / "c.jsonl")["method"])
