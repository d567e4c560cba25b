"""Choosing on source domains alone, on made-up losses whose outcome is known."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest
from dgprune_book.study.choice import advantages, choose_on_sources, chosen

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
    with pytest.raises(ValueError, match="no results of 'l3'; there are: fpgm, l1"):
        advantages(nested(), ["l3"], "l1")
