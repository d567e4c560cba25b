"""Statistics of the study on made-up results whose outcome is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from dgprune_book.study import analysis
from dgprune_book.study.cells import Cell
from dgprune_book.study.criteria import BASELINES, OURS
from dgprune_book.study.results import read_results, write_results
from made_results import row, study
from scipy import stats


def test_losses_are_points_against_the_control_of_the_same_pair():
    rows = [
        row("none", "syn", 0, 0.95, 0.40, 0.30),
        row("none", "syn", 1, 0.90, 0.50, 0.50),
        row("l1", "syn", 0, 0.94, 0.35, 0.10),
        row("l1", "syn", 1, 0.92, 0.45, 0.40),
    ]
    lost = analysis.losses(pd.DataFrame(rows))
    assert lost["loss_in_domain"].tolist() == pytest.approx([1.0, -2.0])
    assert lost["loss_unseen"].tolist() == pytest.approx([5.0, 5.0])
    assert lost["loss_unseen_before"].tolist() == pytest.approx([20.0, 10.0])
    assert lost["loss_worst"].tolist() == pytest.approx([5.0, 5.0])
    assert lost["method"].tolist() == ["l1", "l1"]


def test_control_must_have_the_same_budget():
    rows = [row("none", finetune_steps=60), row("l1", finetune_steps=20)]
    with pytest.raises(ValueError, match=r"no control.*'l1'.*'mnist'.*finetune_steps 20"):
        analysis.losses(pd.DataFrame(rows))


def test_a_cell_twice_is_refused():
    with pytest.raises(ValueError, match=r"'l1' at ratio 0\.5 is there twice .*seed 0"):
        analysis.losses(pd.DataFrame([row("none"), row("l1"), row("l1")]))


def test_methods_have_different_names():
    names = [
        analysis.method_name(vars(Cell("DigitsLite", "syn", 0, pruning_ratio=0.5, **criterion)))
        for criterion in (*BASELINES, *OURS)
    ]
    assert len(set(names)) == len(names)
    assert names[: len(BASELINES)] == ["random", "l1", "bn_scale", "fpgm", "taylor", "fisher"]
    assert names[6:8] == ["risk_variance", "risk_variance mean=1"]
    few = Cell("DigitsLite", "syn", 0, "fisher", {}, "val", 10, scope="global")
    assert analysis.method_name(vars(few)) == "fisher on val images=10 global"


def test_names_survive_the_file(tmp_path):
    """A column that some cells leave empty comes back with NaN in it."""
    rows = [row("none"), row("l1"), row("fisher", scored_on="train", images_per_domain=10)]
    write_results(tmp_path / "r.jsonl", rows, {})
    lost = analysis.losses(read_results(tmp_path / "r.jsonl")[0])
    assert lost["method"].tolist() == ["l1", "fisher images=10"]


def test_two_sources_are_one_setting_whichever_they_are():
    frame = study(seeds=1)
    lost = analysis.losses(frame.assign(without="x" + frame["test_env"]))
    assert len(analysis.compare(lost, "risk_variance")) == len(analysis.BASELINES)
    assert (analysis.curves(lost)["pairs"] == 4).all()


def test_balanced_keeps_whole_seeds():
    frame = study(seeds=3)
    cut = frame.drop(frame[(frame.seed == 2) & (frame.test_env == "syn")].index[-1])
    assert sorted(analysis.balanced(cut)["seed"].unique()) == [0, 1]
    assert len(analysis.balanced(frame)) == len(frame)


def test_balanced_goes_ratio_by_ratio():
    frame = study(seeds=2)
    more = frame[(frame.criterion != "none") & (frame.seed == 0)].assign(pruning_ratio=0.7)
    kept = analysis.balanced(pd.concat([frame, more, more.assign(seed=1).iloc[:3]]))
    assert sorted(kept[kept.pruning_ratio == 0.7]["seed"].unique()) == [0]
    assert sorted(kept[kept.pruning_ratio == 0.5]["seed"].unique()) == [0, 1]


def test_curves_give_mean_and_standard_error_over_pairs():
    lost = analysis.losses(study())
    curve = analysis.curves(lost).set_index("method")
    values = lost.loc[lost["method"] == "fisher", "loss_unseen"]
    assert curve.loc["fisher", "pairs"] == 20
    assert curve.loc["fisher", "loss_unseen"] == pytest.approx(values.mean())
    assert curve.loc["fisher", "loss_unseen_se"] == pytest.approx(stats.sem(values))


def test_by_test_domain_averages_each_seed_first():
    rows = []
    for seed, env, lost in ((0, "mnist", 0.1), (0, "syn", 0.3), (1, "mnist", 0.2), (1, "syn", 0.6)):
        rows += [row("none", env, seed, unseen=0.9), row("l1", env, seed, unseen=0.9 - lost)]
    table = analysis.by_test_domain(analysis.losses(pd.DataFrame(rows))).set_index("test_env")
    assert table["mean"].round(6).to_dict() == {
        "mnist": 15.0,
        "syn": 45.0,
        "average": 30.0,
        "worst": 45.0,
    }
    assert table.loc["average", "se"] == pytest.approx(10.0)  # of 20 and 40
    assert table.loc["mnist", "se"] == pytest.approx(5.0)
    assert table.loc["worst", "domain"] == "syn"


def test_average_of_methods_is_taken_within_pairs():
    rows = []
    for seed, lost in ((0, (0.1, 0.3)), (1, (0.2, 0.6))):
        rows.append(row("none", seed=seed, unseen=0.9))
        for name, points in zip(("l1", "fpgm"), lost, strict=True):
            rows.append(row(name, seed=seed, unseen=0.9 - points))
    lost = analysis.losses(pd.DataFrame(rows))
    average = analysis.average_of_methods(lost, ["l1", "fpgm"])
    assert average["loss_unseen"].tolist() == pytest.approx([20.0, 40.0])
    curve = analysis.curves(average).iloc[0]
    assert (curve["method"], curve["pairs"]) == ("standard", 2)
    assert curve["loss_unseen_se"] == pytest.approx(10.0)
    both = pd.concat([lost, average])
    assert analysis.compare(both, "l1", ["standard"]).loc[0, "difference"] == pytest.approx(15.0)
    with pytest.raises(ValueError, match="has all methods of l1, fpgm"):
        analysis.average_of_methods(lost.iloc[1:], ["l1", "fpgm"])
    with pytest.raises(ValueError, match="has all methods of l9"):
        analysis.average_of_methods(lost, ["l9"])


def test_bootstrap_interval_agrees_with_scipy():
    values = np.random.default_rng(1).normal(1, 2, 20)
    ours = analysis.bootstrap_interval(values)
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(5)
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.05)
    assert ours == analysis.bootstrap_interval(values)
    assert ours != analysis.bootstrap_interval(values, seed=1)
    with pytest.raises(ValueError, match="no pairs"):
        analysis.bootstrap_interval([])


def test_holm_known_values():
    # Holm 1979 by hand: 4 × 0.005, 3 × 0.01, 2 × 0.03, then never below the one before.
    assert analysis.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert analysis.holm([0.6, 0.9]) == [1.0, 1.0]
    assert analysis.holm([]) == []


def test_wilcoxon_agrees_with_scipy_and_survives_equality():
    values = np.random.default_rng(2).normal(0.5, 1, 20)
    assert analysis.wilcoxon_p(values) == pytest.approx(stats.wilcoxon(values).pvalue)
    assert analysis.wilcoxon_p([0.0, 0.0]) == 1.0
    assert analysis.wilcoxon_p([1, 2, 3, 4, 5]) == pytest.approx(2 / 2**5)


def test_compare_pairs_by_domain_and_seed():
    frame = study()
    lost = analysis.losses(frame)
    table = analysis.compare(lost, "risk_variance").set_index("baseline")
    wide = lost.pivot_table(index=["test_env", "seed"], columns="method", values="loss_unseen")
    difference = wide["l1"] - wide["risk_variance"]
    assert table.loc["l1", "pairs"] == 20
    assert table.loc["l1", "difference"] == pytest.approx(difference.mean())
    assert table.loc["l1", "d_z"] == pytest.approx(difference.mean() / difference.std())
    assert table.loc["l1", "p"] == pytest.approx(stats.wilcoxon(difference).pvalue)
    assert table["p_holm"].tolist() == pytest.approx(analysis.holm(table["p"].tolist()))
    assert (table["low"] < table["difference"]).all()
    assert (table["difference"] < table["high"]).all()
    # Rows in another order are the same pairs.
    shuffled = analysis.losses(frame.sample(frac=1, random_state=0))
    again = analysis.compare(shuffled, "risk_variance").set_index("baseline")
    pd.testing.assert_frame_equal(table, again)


def test_compare_over_several_ratios_takes_each_pairs_mean():
    frame = study()
    pruned = frame[frame["criterion"] != "none"]
    deeper = pruned.assign(pruning_ratio=0.7, accuracy_unseen=pruned["accuracy_unseen"] ** 2)
    lost = analysis.losses(pd.concat([frame, deeper]))
    both = analysis.compare(lost, "risk_variance", pruning_ratio=(0.5, 0.7))
    each = [analysis.compare(lost, "risk_variance", pruning_ratio=r) for r in (0.5, 0.7)]
    mean = (each[0]["difference"] + each[1]["difference"]) / 2
    assert both["difference"].tolist() == pytest.approx(mean.tolist())
    assert (both["pairs"] == 20).all()
    missing = lost.drop(lost.index[(lost["pruning_ratio"] == 0.7) & (lost["method"] == "l1")][0])
    fewer = analysis.compare(missing, "risk_variance", pruning_ratio=(0.5, 0.7))
    assert fewer.set_index("baseline")["pairs"].to_dict() == {
        **dict.fromkeys(analysis.BASELINES, 20),
        "l1": 19,
    }


def test_compare_with_itself_finds_nothing():
    lost = analysis.losses(study())
    same = analysis.compare(lost, "l1", ["l1"]).iloc[0]
    assert (same["difference"], same["p"], same["d_z"]) == (0, 1, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "risk_varianse"}, "'risk_varianse' is not among the results.*risk_variance"),
        ({"baselines": ["l9"]}, "'l9' is not among"),
        ({"pruning_ratio": 0.45}, r"pruning_ratio=0\.45 is not among the results: \[0\.5\]"),
    ],
)
def test_compare_refuses_what_is_not_there(change, message):
    lost = analysis.losses(study(seeds=1))
    with pytest.raises(ValueError, match=message):
        analysis.compare(lost, **{"method": "risk_variance", **change})


def test_compare_refuses_a_mixture_of_settings():
    wide = study(seeds=1).assign(width=32)
    lost = analysis.losses(pd.concat([study(seeds=1), wide]))
    with pytest.raises(ValueError, match=r"different width: \[16, 32\]"):
        analysis.compare(lost, "risk_variance")
    assert set(analysis.curves(lost)["width"]) == {16, 32}


def test_largest_free_ratio():
    curve = pd.DataFrame(
        {
            "method": ["l1", "l1", "l1", "fpgm"],
            "pruning_ratio": [0.1, 0.3, 0.5, 0.1],
            "loss_in_domain": [0.2, 1.0, 1.1, 3.0],
            "loss_unseen": [1.0, 2.0, 3.0, 4.0],
        }
    )
    found = analysis.largest_free_ratio(curve)
    assert found[["method", "pruning_ratio", "loss_unseen"]].to_numpy().tolist() == [
        ["l1", 0.3, 2.0]
    ]


def test_one_changed_line_in_the_file_is_refused(tmp_path):
    path = tmp_path / "results.jsonl"
    write_results(path, study(seeds=1).to_dict("records"), {"command": "x"})
    frame, header = read_results(path)
    pd.testing.assert_frame_equal(frame, study(seeds=1), check_dtype=False)
    assert header["command"] == "x"
    path.write_text(path.read_text().replace('"accuracy_unseen": 0.7,', '"accuracy_unseen": 0.8,'))
    with pytest.raises(ValueError, match="changed after it was written"):
        read_results(path)


def test_an_older_table_without_a_column_is_named():
    with pytest.raises(ValueError, match="no column 'width'"):
        analysis.losses(study().drop(columns="width"))
