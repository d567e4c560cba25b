"""Verdicts on made-up results whose outcome is known."""

from __future__ import annotations

import pytest
from dgprune_book.study import claims
from dgprune_book.study.analysis import losses
from made_results import study


@pytest.mark.parametrize(
    ("settings", "verdicts"),
    [
        ({}, ["supported"] * 4),
        ({"lost_inside": 0.03}, ["not supported", "supported", "supported", "supported"]),
        ({"lost_unseen": 0.007, "ours_unseen": 0.05}, ["supported", "partly"] + 2 * ["not"]),
        ({"lost_unseen": 0.05, "ours_unseen": 0.05}, ["supported", "supported", "?", "not"]),
    ],
)
def test_verdicts_follow_the_rule(settings, verdicts):
    table = claims.claims_table(losses(study(**settings)))
    assert len(table) == 4
    for found, expected in zip(table["verdict"], verdicts, strict=True):
        assert expected == "?" or found.startswith(expected), table
    assert (table["pairs"] == 20).all()
    assert (table["low"] <= table["effect"]).all()
    assert (table["effect"] <= table["high"]).all()


def test_the_fourth_claim_is_partly_true_of_a_score_that_beats_some():
    frame = study(noise=0.002)
    good = frame["criterion"] == "bn_scale"
    frame.loc[good, "accuracy_unseen"] = 0.68 + frame.loc[good, "seed"] * 1e-3 - 2e-3
    ours = frame["criterion"] == "risk_variance"
    frame.loc[ours, "accuracy_unseen"] = 0.68 - frame.loc[ours, "seed"] * 1e-3 + 2e-3
    last = claims.claims_table(losses(frame)).iloc[3]
    assert last["verdict"] == "partly"
    assert "bn_scale" in last["measured"]


def test_one_changed_line_changes_the_outcome():
    frame = study()
    before = claims.claims_table(losses(frame))
    changed = frame.copy()
    line = changed.index[changed["criterion"] == "risk_variance"][7]
    changed.loc[line, "accuracy_unseen"] -= 0.01
    after = claims.claims_table(losses(changed))
    assert after.loc[3, "effect"] == pytest.approx(before.loc[3, "effect"] - 1 / 20)


def test_the_third_claim_asks_for_more_than_the_gain_in_domain():
    frame = study()
    before = claims.claims_table(losses(frame)).iloc[2]
    assert before["verdict"] == "supported"
    # The same gain in-domain explains it all.
    ours = frame["criterion"] == "risk_variance"
    frame.loc[~ours & (frame["criterion"] != "none"), "accuracy_in_domain_before"] -= 0.06
    after = claims.claims_table(losses(frame)).iloc[2]
    assert after["effect"] == pytest.approx(before["effect"] - 6)
    assert after["verdict"] != "supported"


def test_one_test_domain_does_not_carry_a_verdict():
    frame = study(ours_unseen=0.05)
    lucky = (frame["criterion"] == "risk_variance") & (frame["test_env"] == "mnist")
    frame.loc[lucky, "accuracy_unseen_before"] += 0.14
    row = claims.claims_table(losses(frame)).iloc[2]
    assert row["low"] > 0 > row["domain_low"]
    assert row["verdict"] == "partly"
