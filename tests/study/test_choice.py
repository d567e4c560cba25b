"""Choosing on source domains alone, on made-up losses whose outcome is known."""

from __future__ import annotations

import itertools
from dataclasses import asdict

import pandas as pd
import pytest
from dgprune_book.study.cells import Cell
from dgprune_book.study.choice import (
    advantages,
    choose_on_sources,
    chosen,
    found_better,
    losses_left_out,
)
from dgprune_book.study.results import write_results
from scipy import stats

DOMAINS = ("a", "b", "c")


def nested():
    """On domain a alone, fpgm loses less than l1."""
    return pd.DataFrame(
        {
            "test_env": env,
            "without": without,
            "seed": seed,
            "method": method,
            "pruning_ratio": ratio,
            "loss_unseen": {"l1": 2.0, "fpgm": -9.0 if env == "a" else 3.0}[method] + seed,
        }
        for env, without in itertools.permutations(DOMAINS, 2)
        for seed in (0, 1)
        for method in ("l1", "fpgm")
        for ratio in (0.5, 0.7)
    )


def test_the_unseen_domain_has_no_part_in_the_choice():
    table = choose_on_sources(nested(), ["l1", "fpgm"])
    assert table.idxmin().to_dict() == {"a": "l1", "b": "fpgm", "c": "fpgm"}
    assert table.loc["l1", "a"] == 2.5
    # whatever happens on a domain, the choice for it stays
    changed = nested()
    changed.loc[changed["test_env"] == "a", "loss_unseen"] *= -100
    assert choose_on_sources(changed, ["l1", "fpgm"])["a"].equals(table["a"])


def test_the_chosen_methods_become_one():
    frame = nested()
    lost = frame[frame["without"] == "b"].assign(without="")
    rows = chosen(lost, pd.Series({"a": "l1", "c": "fpgm"}))
    assert set(zip(rows["test_env"], rows["loss_unseen"], strict=True)) == {
        ("a", 2.0),
        ("a", 3.0),
        ("c", 3.0),
        ("c", 4.0),
    }
    assert set(rows["method"]) == {"chosen on sources"}


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="'l9' is not in every part"):
        choose_on_sources(nested(), ["l1", "l9"])
    with pytest.raises(ValueError, match="leave out no source domain"):
        choose_on_sources(nested().assign(without=""), ["l1"])
    with pytest.raises(ValueError, match="no results of 'l9' on 'a'"):
        chosen(nested(), pd.Series({"a": "l9"}))


def test_advantages_are_those_of_the_same_networks():
    found = advantages(nested(), ["l1", "fpgm"], "l1")
    assert found.index.tolist() == ["fpgm"]
    # fpgm is 11 points better where domain a is left out (2 of 6 pairs), 1 point worse elsewhere
    assert found.loc["fpgm", "points"] == pytest.approx((2 * 11 - 4) / 6)
    assert found.loc["fpgm", "networks"] == 6  # each is measured on two domains
    assert found.loc["fpgm", "low"] < found.loc["fpgm", "points"] < found.loc["fpgm", "high"]
    domains = stats.t.interval(0.95, 2, loc=3, scale=stats.sem([11, -1, -1]))
    assert found.loc["fpgm", ["domain_low", "domain_high"]].tolist() == pytest.approx(domains)
    with pytest.raises(ValueError, match="no results of 'l3'; there are: fpgm, l1"):
        advantages(nested(), ["l3"], "l1")


def test_a_search_finds_only_what_is_better_in_both_intervals():
    assert found_better(advantages(nested(), ["fpgm"], "l1")) is None  # on one domain of three
    everywhere = nested()
    everywhere.loc[everywhere["method"] == "fpgm", "loss_unseen"] = 0.5 + everywhere["seed"]
    ahead = advantages(everywhere, ["fpgm"], "l1")
    assert found_better(ahead) == "fpgm"
    assert found_better(ahead.assign(low=-0.1)) is None
    assert found_better(ahead.assign(domain_low=-0.1)) is None


def test_a_cell_that_measured_both_domains_counts_for_both(tmp_path):
    """a and b left out together: on a the pruned network loses 10 points, on b 30."""
    settings = {"scored_on": "val", "without": "b", "pruning_ratio": 0.4, "measure": "left-out"}
    rows = []
    for steps, gain in ((1, 0.0), (4, 0.05)):
        schedule = "iterative" if steps > 1 else "one-shot"
        cell = Cell("T", "a", 0, "fisher", schedule=schedule, schedule_steps=steps, **settings)
        for each, lost in ((cell.control, 0.0), (cell, 0.1)):
            unseen, other = 0.9 - lost + gain * (lost > 0), 0.8 - 3 * lost
            domains = {"c": 0.95, "d": 0.95, "a": unseen}
            rows.append(
                asdict(each)
                | {"accuracy_unseen": unseen, "accuracy_without": other}
                | {"accuracy_in_domain": 0.95, "accuracy_by_domain": domains}
            )
    write_results(tmp_path / "nested.jsonl", rows, {})
    lost = losses_left_out(tmp_path / "nested.jsonl").set_index(["method", "test_env", "without"])
    assert lost["loss_unseen"].round(6).to_dict() == {
        ("fisher on val", "a", "b"): 10.0,
        ("fisher on val", "b", "a"): 30.0,
        ("fisher on val in 4 rounds", "a", "b"): 5.0,
        ("fisher on val in 4 rounds", "b", "a"): 30.0,
    }
    worst = lost["loss_worst"].round(6)  # the unseen one is the worst in every row
    assert worst.tolist() == lost["loss_unseen"].round(6).tolist()
    assert set(lost["sources"]) == {2}
