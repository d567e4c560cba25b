"""The book's answer: two intervals, which results it rests on, and the rule behind its advice."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dgprune_book.figures import answer_words
from dgprune_book.figures.answer_words import advice_table, answer, evidence, misleading_cue
from dgprune_book.figures.loss_explorer import describe_losses, loss_explorer, loss_figure
from dgprune_book.figures.plots import plt
from dgprune_book.study import answer as rules
from dgprune_book.study.analysis import BASELINES
from dgprune_book.study.answer import (
    CURVES,
    SITUATIONS,
    advice,
    all_results,
    default_criterion,
    found_by_search,
    judge,
    saved_with_a_misleading_cue,
)
from dgprune_book.study.intervals import Estimate, estimate
from dgprune_book.study.results import read_rows, write_results
from made_results import ENVS, row
from scipy import stats

import dgprune_lite as dg

RESULTS = Path(__file__).parents[2] / "book/results"
# What each method loses on the source domains and on the unseen one, in hundredths.
LOSSES = {
    "random": (9, 12), "l1": (7, 11), "bn_scale": (6, 10), "fpgm": (8, 9), "taylor": (7, 9),
    "fisher": (3, 7), "risk_variance": (4, 2),
}  # fmt: skip


def write(folder, name, losses=None, noise=0.0, dataset="DigitsLite", seeds=3, ratios=(0.4, 0.5)):
    """A file of results in which every method loses what LOSSES says, but for noise."""
    rng, rows = np.random.default_rng(0), []
    for seed in range(seeds):
        for env in ENVS:
            rows.append(row("none", env, seed, 0.95, 0.80, 0.80, dataset=dataset))
            for method, (inside, unseen) in (losses or LOSSES).items():
                a, b = rng.normal(0, noise, 2)
                shown = (0.95 - inside / 100 + a, 0.80 - unseen / 100 + b, 0.5)
                for ratio in ratios:
                    scored_on = {"taylor": "train", "fisher": "train", "risk_variance": "val"}
                    kind, _, part = method.partition(" on ")
                    more = {"ratio": ratio, "dataset": dataset}
                    more |= {"scored_on": part or scored_on.get(kind)}
                    rows.append(row(kind, env, seed, *shown, **more))
    write_results(folder / f"{name}.jsonl", rows, {"command": "made up"})


def by_domain(**values):
    index = [(env, seed) for env in values for seed in range(len(values[env]))]
    names = pd.MultiIndex.from_tuples(index, names=["test_env", "seed"])
    return pd.Series(np.concatenate(list(values.values())), names)


def test_interval_over_domains_is_students_over_their_means():
    values = by_domain(a=[1.0, 2.0], b=[2.0, 4.0], c=[7.0, 9.0])
    found = estimate(values)
    means = [1.5, 3.0, 8.0]
    expected = stats.t.interval(0.95, 2, np.mean(means), stats.sem(means))
    np.testing.assert_allclose(found.domains, expected)
    assert found.mean == pytest.approx(np.mean(means))
    assert found.networks[0] > found.domains[0]


def test_one_domain_is_never_sure_however_many_networks():
    found = estimate(by_domain(a=np.full(50, 3.0)))
    assert found.networks == (3.0, 3.0)
    assert not found.sure


def test_many_seeds_do_not_make_sure_of_domains_that_disagree():
    apart = estimate(by_domain(a=np.full(50, 0.1), b=np.full(50, 6.0)))
    assert apart.networks[0] > 0 > apart.domains[0]
    assert not apart.sure
    assert estimate(by_domain(a=[2.0, 2.1], b=[2.0, 2.1], c=[2.1, 2.0])).sure


def test_pacs_takes_the_first_place_as_soon_as_its_file_is_there(tmp_path):
    write(tmp_path, "book")
    assert [each.name for each in all_results(tmp_path)] == ["digits"]
    write(tmp_path, "pacs64", dataset="PACS64")
    assert [each.title for each in all_results(tmp_path)] == ["PACS at 64 pixels", "digits"]
    write(tmp_path, "pacs", dataset="PACS128")
    assert [each.title for each in all_results(tmp_path)] == ["PACS", "digits"]


def test_advice_is_what_loses_least_on_the_sources(tmp_path):
    write(tmp_path, "book", noise=1e-4)
    found = advice(all_results(tmp_path)[0])
    assert [each.method for each in found] == ["bn_scale", "fisher", "fisher"]
    assert [each.have for each in found] == [SITUATIONS[place][0] for place in (0, 1, 3)]
    assert found[0].in_domain.mean == pytest.approx(3, abs=0.1)
    assert found[0].unseen.mean == pytest.approx(2, abs=0.1)


def test_the_unseen_domain_advises_nothing(tmp_path):
    write(tmp_path, "book", noise=1e-4)
    before = [each.method for each in advice(all_results(tmp_path)[0])]
    other = {name: (inside, 20 - unseen) for name, (inside, unseen) in LOSSES.items()}
    write(tmp_path, "book", other, noise=1e-4)
    assert [each.method for each in advice(all_results(tmp_path)[0])] == before


def test_what_asks_for_more_must_be_clearly_better(tmp_path):
    write(tmp_path, "book", LOSSES | {"fisher": (5.9, 0)}, noise=0.02)
    found = advice(all_results(tmp_path)[0])
    assert found[1].method == found[0].method == "bn_scale"


def test_advice_of_the_committed_results_follows_from_their_in_domain_losses():
    """The rule once more, by hand, on the results that the first page shows."""
    for results in all_results(RESULTS):
        inside = results.by_network("loss_in_domain")
        for each in advice(results):
            assert each.method in inside
            if each.method != "random":
                gain = (inside["random"] - inside[each.method]).dropna()
                means = gain.groupby(level="test_env").mean()
                assert stats.ttest_1samp(means, 0).pvalue < 0.05
                assert means.mean() > 0


def test_the_default_follows_from_the_results(tmp_path):
    write(tmp_path, "book", noise=1e-4)
    assert default_criterion(all_results(tmp_path)) == "fisher"
    write(tmp_path, "book", LOSSES | {"fisher": (9, 0)}, noise=1e-4)
    assert default_criterion(all_results(tmp_path)) == "risk_variance"
    more = LOSSES | {"fisher on val": (1, 0)}  # of other images, and still the same criterion
    write(tmp_path, "pacs64", more, noise=1e-4, dataset="PACS64")  # tells more
    assert default_criterion(all_results(tmp_path)) == "fisher"


@pytest.mark.parametrize("function", [dg.prune, dg.prune_iteratively])
def test_the_package_takes_the_default_that_the_committed_results_give(function):
    default = inspect.signature(function).parameters["criterion"].default
    assert default == default_criterion(all_results(RESULTS))


def test_what_the_search_found_is_the_default_only_if_better_on_the_unseen_domain(monkeypatch):
    measured = all_results(RESULTS)
    pacs = next(each for each in measured if each.name == "PACS")
    method, _ = found_by_search(pacs)
    assert method in set(pacs.more["method"])
    for gain, expected in ((2.0, method), (-2.0, "fisher")):
        found = method, Estimate(gain, (gain, gain), (gain, gain), 8)
        monkeypatch.setattr(rules, "found_by_search", lambda _, found=found: found)
        assert default_criterion([pacs]) == expected


def test_what_the_search_found_is_judged_once(tmp_path):
    for name in ("pacs64", "pacs64_nested"):
        (tmp_path / f"{name}.jsonl").write_bytes((RESULTS / f"{name}.jsonl").read_bytes())
    (pacs,) = all_results(tmp_path)
    found = found_by_search(pacs)
    rows, header = read_rows(tmp_path / "pacs64.jsonl")
    more = [one | {"seed": 99} for one in rows if one["seed"] == 0]  # it would be far ahead there
    more = [one | {"accuracy_unseen": float(one["criterion"] == found[0])} for one in more]
    write_results(tmp_path / "pacs64.jsonl", [*rows, *more], header)
    (pacs,) = all_results(tmp_path)
    assert 99 in pacs.more["seed"].to_numpy()
    assert found_by_search(pacs) == found


def test_sentences_rest_on_all_networks_at_their_ratio_and_curves_on_the_same_at_all(tmp_path):
    write(tmp_path, "book", noise=1e-4)
    (few,) = all_results(tmp_path)
    assert len(few.losses_at()) == len(few.losses_at(0.5)) == 12
    other = LOSSES | {"risk_variance": (1, 9), "fisher": (3, 3)}  # better on the sources alone
    write(tmp_path, "hundred", other, noise=1e-4, seeds=9, ratios=(0.5,))
    (many,) = all_results(tmp_path)
    pd.testing.assert_frame_equal(many.lost, few.lost)
    for ratio in (0.4, 0.5):
        pd.testing.assert_frame_equal(many.losses_at(ratio), few.losses_at(ratio))
    assert len(many.losses_at()) == 36
    unseen = many.by_network("loss_unseen").mean()  # a third of the networks are those of before
    assert unseen["risk_variance"] == pytest.approx(2 / 3 + 9 * 2 / 3, abs=0.1)
    before, after = judge(few), judge(many)
    assert (before["pairs"].unique(), after["pairs"].unique()) == (12, 36)
    assert before["verdict"][3] == "supported"
    assert after["verdict"][3] == "not supported"
    assert [advice(each)[-1].method for each in (few, many)] == ["fisher", "risk_variance"]
    assert [default_criterion([each]) for each in (few, many)] == ["fisher", "risk_variance"]
    assert "is better than Fisher" in answer([few])[2]
    assert "Choose the filters by risk variance" in answer([many])[1]


def test_of_further_networks_whole_seeds_count_alone(tmp_path):
    write(tmp_path, "book")
    write(tmp_path, "hundred", seeds=5, ratios=(0.5,))
    rows, _ = read_rows(tmp_path / "hundred.jsonl")
    write_results(tmp_path / "hundred.jsonl", rows[:-1], {})  # seed 4 is still at work
    assert set(all_results(tmp_path)[0].losses_at().index.unique("seed")) == {0, 1, 2, 3}


def test_losses_are_means_of_the_standard_criteria(tmp_path):
    write(tmp_path, "book")
    (results,) = all_results(tmp_path)
    assert set(results.standard) == set(BASELINES)
    lost = results.losses_at().mean()
    assert lost["in_domain"] == pytest.approx(np.mean([7, 6, 8, 7, 3]))
    assert lost["extra"] == pytest.approx(np.mean([11, 10, 9, 9, 7]) - lost["in_domain"])


def test_a_changed_file_is_refused(tmp_path):
    write(tmp_path, "book")
    rows, header = read_rows(tmp_path / "book.jsonl")
    assert len(rows) == header["lines"]
    text = (tmp_path / "book.jsonl").read_text()
    (tmp_path / "book.jsonl").write_text(text.replace("0.88", "0.99", 1))
    with pytest.raises(ValueError, match="was changed after it was written"):
        all_results(tmp_path)


def test_shares_are_of_what_lies_above_chance(tmp_path):
    write(tmp_path, "book")
    (results,) = all_results(tmp_path)
    kept, shown = results.kept_at().mean(), results.accuracies_at().mean()
    assert shown["in_domain_control"] == pytest.approx(95)
    assert shown["unseen"] == pytest.approx(80 - np.mean([11, 10, 9, 9, 7]))
    assert kept["in_domain"] == pytest.approx(100 * (shown["in_domain"] - 10) / (95 - 10))
    assert kept["unseen"] == pytest.approx(100 * (shown["unseen"] - 10) / (80 - 10))
    assert kept["extra"] == pytest.approx(kept["unseen"] - kept["in_domain"])


# The words


def test_answer_says_what_was_measured(tmp_path):
    write(tmp_path, "book", noise=1e-4)
    cost, choice, score = answer(all_results(tmp_path))
    assert "keeps a smaller share of its accuracy" in cost
    assert "fell by 9 points on the unseen domain, from 80 % to 71 %, and by 6 on the" in cost
    assert "87 % against 93 % on digits (clear over networks and over domains)" in cost
    assert "average over L1, BN scale, FPGM, Taylor and Fisher" in cost
    assert "Choose the filters by Fisher" in choice
    assert "asks for training images" in choice
    assert "5.0 points less than random choice and 4.0 points less than L1 (clear" in choice
    assert "is better than Fisher on digits" in score
    assert "loses 5.0 points less on digits (clear over networks and over domains)" in score


def test_each_gain_has_its_own_grade_where_they_differ(tmp_path):
    write(tmp_path, "book", LOSSES | {"l1": (7, 7)}, noise=1e-4)
    choice = answer(all_results(tmp_path))[1]
    assert (
        "5.0 points less than random choice (clear over networks and over domains) and " in choice
    )
    assert re.search(r"points less than L1 \([^)]*(open|chance)[^)]*\)\.", choice)


def test_answer_turns_with_the_results(tmp_path):
    other = {name: (inside, inside / 4) for name, (inside, _) in LOSSES.items()}
    write(tmp_path, "book", other | {"risk_variance": (4, 9)}, noise=1e-4)
    cost, _, score = answer(all_results(tmp_path))
    assert "keeps a larger share" in cost
    assert "is worse than Fisher on digits" in score
    assert "points more on digits (clear over networks and over domains)" in score
    mixed = LOSSES | {"l1": (7, 11)}
    write(tmp_path, "pacs64", mixed, noise=1e-4, dataset="PACS64")
    assert "depends on the data" in answer(all_results(tmp_path))[0]


def test_same_advice_is_not_repeated_in_the_table(tmp_path):
    write(tmp_path, "book", noise=1e-4)
    table = advice_table(all_results(tmp_path)[0])
    assert table.count("**Fisher**") == 1
    assert "| Fisher all the same | as above | as above |" in table


def test_intervals_stand_in_the_evidence(tmp_path):
    write(tmp_path, "book", noise=1e-4)
    table = evidence(all_results(tmp_path))
    (row,) = [line for line in table.splitlines() if "risk variance less Fisher" in line]
    assert "| digits, 50 % | −5.0 | −5.0 to −5.0 | −5.0 to −5.0 |" in row


# The slider


def test_slider_offers_every_domain_of_every_data_set_at_its_own_ratios(tmp_path):
    write(tmp_path, "book")
    write(tmp_path, "pacs64", dataset="PACS64")
    explorer = loss_explorer(all_results(tmp_path))
    names = [shown for shown, _ in explorer.criterion.options]
    assert names[0] == "PACS at 64 pixels: average of all"
    assert "digits: mnist_m" in names
    assert len(names) == 2 * (len(ENVS) + 1)
    assert explorer.ratio.value == 0.4


def test_figure_has_a_curve_and_a_mark_for_each_criterion(tmp_path):
    write(tmp_path, "book")
    lost = all_results(tmp_path)[0].lost
    figure = loss_figure(lost, 0.5)
    inside, unseen, beside = figure.axes
    measured = [name for name in CURVES if name in LOSSES]
    curves = [line for line in unseen.lines if len(line.get_xdata()) == 2 and line.get_marker()]
    assert sum(list(line.get_xdata()) == [0.4, 0.5] for line in curves) == len(measured)
    assert len(beside.get_yticklabels()) == len(measured)
    assert inside.get_ylim() == unseen.get_ylim(), "one axis, so that losses can be compared"
    plt.close(figure)
    with pytest.raises(ValueError, match=r"ratio=0\.3 was not measured: \[0\.4, 0\.5\]"):
        loss_figure(lost, 0.3)


def test_the_sentence_below_the_figure_has_its_numbers(tmp_path):
    write(tmp_path, "book")
    lost = all_results(tmp_path)[0].lost
    text = describe_losses(lost, 0.5, "digits: average of all")
    assert "50 % of the filters removed. Points lost: in-domain 3.0 to 9.0, unseen 2.0 to " in text
    assert "risk variance loses least (2.0 ± 0.0) and random pruning loses 12.0 ± 0.0" in text
    assert text.endswith("over 12 networks.")


def test_the_exception_of_a_misleading_cue_stands_only_where_it_helps(monkeypatch):
    inside, unseen = saved_with_a_misleading_cue(RESULTS)
    for cost, gain, helps in ((-7.25, 25.5, True), (-7.25, -1.0, False), (2.0, 25.5, False)):
        made_up = replace(inside, mean=cost), replace(unseen, mean=gain)
        monkeypatch.setattr(answer_words, "saved_with_a_misleading_cue", lambda _, m=made_up: m)
        said = misleading_cue()
        assert ("saved 25.5 points on the unseen domain" in said) == bool(said) == helps
