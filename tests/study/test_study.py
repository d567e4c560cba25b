"""The study: what its grids hold, that a cell is deterministic, and that nothing is lost."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dgprune_book.study import collecting, command, datasets, experiment, runner
from dgprune_book.study.analysis import BASELINES as STANDARD
from dgprune_book.study.analysis import method_name
from dgprune_book.study.answer import SITUATIONS
from dgprune_book.study.cells import ENVIRONMENTS, Cell, cell_of
from dgprune_book.study.collecting import names_of
from dgprune_book.study.criteria import BASELINES, OURS, variance_score
from dgprune_book.study.experiment import Bench, dense_network, run_cell
from dgprune_book.study.grids import GRIDS, RATIOS, SEARCH, grid_cells, stages
from dgprune_book.study.headlines import LADDER, LIKE_FOR_LIKE
from dgprune_book.study.results import read_results, write_results
from scipy import stats
from torch.utils.data import Dataset, TensorDataset

import dgprune_lite as dg

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "book" / "results").glob("*.jsonl"))
TIMES = {"seconds", "processor_seconds", "made_with"}
TINY = Cell("Tiny", "c", 0, "l1", width=4, dense_steps=4, finetune_steps=3)
CRITERIA = [*BASELINES, *OURS]


def tiny_domains() -> dg.MultipleDomainDataset:
    generator = torch.Generator().manual_seed(0)
    domains = {
        name: TensorDataset(
            torch.rand(60, 3, 28, 28, generator=generator), torch.arange(60).remainder(10)
        )
        for name in "abcd"
    }
    return dg.MultipleDomainDataset(domains, [str(i) for i in range(10)], (3, 28, 28))


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(datasets.DATASETS, "Tiny", tiny_domains)


def without_times(row):
    return {name: value for name, value in row.items() if name not in TIMES}


def tiny_cells():
    ours = [replace(TINY, **criterion) for criterion in CRITERIA]
    return [TINY.control, *ours, replace(TINY, pruning_ratio=0.7), replace(TINY, test_env="a")]


# --- Grids --------------------------------------------------------------------------------


@pytest.mark.parametrize(("grid", "width"), [("book", 16), ("widths", 8)])
def test_the_main_grids_hold_what_the_book_needs(grid, width):
    cells = [cell for cell in grid_cells([grid]) if cell.criterion != "none"]
    assert {cell.width for cell in cells} == {width}
    assert {cell.network for cell in cells} == {"digits_cnn"}
    assert {cell.pruning_ratio for cell in cells} == {0.1, 0.3, 0.5, 0.6, 0.7, 0.8} == set(RATIOS)
    per_criterion = Counter((cell.criterion, cell.pruning_ratio) for cell in cells)
    later = {"l2", "bn_scale_and_risk", "risk_objective"}  # not, or only in the search
    assert {name for name, _ in per_criterion} == set(dg.CRITERIA) - later
    assert min(per_criterion.values()) == 20  # 5 seeds × 4 test domains


def test_a_hundred_networks_have_all_that_the_text_compares_at_its_ratio():
    cells = [cell for cell in grid_cells(["hundred"]) if cell.criterion != "none"]
    assert {cell.pruning_ratio for cell in cells} == {0.5}
    assert len({cell.dense_id for cell in cells}) == 100
    known = {name for grid in ("book", "variants") for name in map(names_of, grid_cells([grid]))}
    again = [cell for cell in cells if cell.seed < 5 and "reverse" not in cell.options]
    assert known >= set(map(names_of, again)), "the networks of the main grid are among them"
    networks = Counter(method_name(asdict(cell)) for cell in cells)
    compared = [*LADDER.values(), *LIKE_FOR_LIKE.values(), *(names for _, names in SITUATIONS)]
    assert set(networks) >= {*itertools.chain(*compared), *STANDARD}
    assert set(networks.values()) == {100}


def test_the_resnet_grid_has_three_ratios():
    cells = grid_cells(["resnet"])
    assert {cell.network for cell in cells} == {"digits_resnet"}
    assert len({cell.pruning_ratio for cell in cells if cell.criterion != "none"}) == 3


@pytest.mark.parametrize(
    ("grid", "dataset", "envs"),
    [
        ("rotated", "RotatedMNIST", {"0", "15", "30", "45", "60", "75"}),
        ("colored", "ColoredMNIST", {"+90%", "+80%", "-90%"}),
    ],
)
def test_the_grids_of_mnist_variants_have_three_seeds(grid, dataset, envs):
    cells = [cell for cell in grid_cells([grid]) if cell.criterion != "none"]
    assert {(c.dataset, c.network, c.width) for c in cells} == {(dataset, "digits_cnn", 16)}
    assert {cell.test_env for cell in cells} == envs
    assert {cell.seed for cell in cells} == {0, 1, 2}
    per_criterion = Counter((cell.criterion, cell.pruning_ratio) for cell in cells)
    assert {ratio for _, ratio in per_criterion} == {0.3, 0.5, 0.7}
    assert len(cells) == len(envs) * 3 * 3 * len(CRITERIA)


def test_the_search_on_pacs_leaves_out_every_pair_of_domains_for_every_candidate():
    cells = [cell for cell in grid_cells(["pacs64_nested"]) if cell.criterion != "none"]
    pairs = {frozenset((cell.test_env, cell.without)) for cell in cells}
    assert pairs == set(map(frozenset, itertools.combinations(ENVIRONMENTS["PACS64"], 2)))
    by_network = Counter(cell.dense_id for cell in cells)
    assert len(by_network) == len(pairs)
    assert len(set(by_network.values())) == 1
    assert {cell.pruning_ratio for cell in cells} == {0.4}
    # both networks of a stage together leave out each domain once, and stages follow each other
    order = list(dict.fromkeys((cell.test_env, cell.without) for cell in cells))
    assert all(len({*order[i], *order[i + 1]}) == 4 for i in (0, 2, 4))


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_grids_know_the_environments_of_each_dataset(name, tmp_path, monkeypatch):
    if name.startswith("PACS"):
        monkeypatch.delenv(datasets.PACS_FOLDER, raising=False)
        with pytest.raises(ValueError, match="where is PACS"):
            datasets.DATASETS[name]()
        monkeypatch.setenv(datasets.PACS_FOLDER, str(dg.draw_tiny_pacs(tmp_path)))
    assert ENVIRONMENTS[name] == datasets.DATASETS[name]().ENVIRONMENTS


@pytest.mark.parametrize("grid", GRIDS)
def test_every_cell_has_its_control_and_a_name_of_its_own(grid):
    cells = grid_cells([grid])
    assert len({(cell.dense_id, cell.cell_id) for cell in cells}) == len(cells)
    assert {cell.control for cell in map(_frozen, cells)} <= set(map(_frozen, cells))
    for stage in stages(cells):
        seeds = [cell.seed for cell in stage]
        assert seeds == sorted(seeds), "a study in progress must be balanced over test domains"


def _frozen(cell):  # options are a dict; controls have none
    return _Hashable(**asdict(cell))


class _Hashable(Cell):
    def __hash__(self):
        return hash(self.cell_id)

    def __eq__(self, other):
        return asdict(self) == asdict(other)

    @property
    def control(self):
        return _frozen(super().control)


def test_any_other_field_makes_another_cell():
    cell = Cell("DigitsLite", "syn", 0, "fisher", {}, "val")
    other = {
        "dataset": "Other",
        "test_env": "mnist",
        "seed": 1,
        "criterion": "taylor",
        "options": {"order": "exact"},
        "scored_on": "train",
        "images_per_domain": 5,
        "pruning_ratio": 0.6,
        "scope": "global",
        "finetune_steps": 61,
        "finetune_lr": 0.1,
        "network": "digits_resnet",
        "width": 8,
        "algorithm": "VREx",
        "dense_steps": 9,
        "without": "mnist",
        "vrex_lambda": 10.0,
        "statistics": "masked",
        "weights": "DEFAULT",
        "dense_lr": 1e-3,
        "precision": "bfloat16",
        "round_to": 8,
    }
    ranking = {"measure": "ranking", "pruning_ratio": 0.0, "finetune_steps": 0}
    assert set(other) | set(ranking) | {"schedule", "schedule_steps"} == {
        field.name for field in fields(Cell)
    }
    names = {cell.dense_id + cell.cell_id}
    for name, value in other.items():
        names.add(replace(cell, **{name: value}).dense_id + replace(cell, **{name: value}).cell_id)
    names.add(replace(cell, schedule="iterative", schedule_steps=2).cell_id)
    names |= {replace(cell, **ranking, **each).cell_id for each in ({}, {"scored_on": "train"})}
    assert len(names) == 4 + len(other)


def test_a_cell_is_known_by_its_row_with_or_without_later_settings():
    for cell in grid_cells(GRIDS):
        row = json.loads(json.dumps(asdict(cell)))
        assert cell_of(row) == cell
        usual = {name: value for name, value in row.items() if value not in (None, "plain", {})}
        assert cell_of(usual).cell_id == cell.cell_id


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"criterion": "l3"}, "'l3' is not one of none, random"),
        ({"criterion": "none"}, r"prunes nothing, got ratio 0\.5"),
        ({"criterion": "fisher"}, "scored_on=None does not go with criterion 'fisher'"),
        ({"scored_on": "train"}, "'train' does not go with criterion 'l1'"),
        ({"scored_on": "foo"}, "'foo' does not go with criterion 'l1'"),
        ({"criterion": "fisher", "scored_on": "foo"}, "'foo' does not go with .* 'fisher'"),
        ({"scope": "local"}, "'local' is not one of uniform, global"),
        ({"statistics": "fancy"}, "'fancy' is not one of plain, masked, virtual"),
        ({"measure": "ranking"}, r"neither prunes nor fine-tunes, got ratio 0\.5 and 3 steps"),
        ({"schedule_steps": 3}, "'one-shot' has 3 steps"),
        ({"measure": "left-out"}, "needs a domain to leave out and fine-tuning, got without=''"),
    ],
)
def test_a_cell_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_a_cell_is_known_by_a_row_of_a_table():
    for path in RESULTS[:2]:
        frame, _ = read_results(path)
        expected = [cell_of(row) for row in frame.head(3).to_dict("records")]
        rows = [cell_of(frame.iloc[i]) for i in range(3)]
        assert [(c.dense_id, c.cell_id) for c in rows] == [
            (c.dense_id, c.cell_id) for c in expected
        ]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("pruning_ratio", (0, 0.0, np.float64(0))),
        ("finetune_lr", (1, 1.0, np.int64(1))),
        ("vrex_lambda", (10, 10.0, np.float64(10))),
        ("seed", (3, np.int64(3))),
    ],
)
def test_equal_numbers_of_any_type_are_one_cell(name, values):
    cells = [replace(TINY, **{name: value}) for value in values]
    assert len({(cell.dense_id, cell.cell_id) for cell in cells}) == 1


# --- One cell -----------------------------------------------------------------------------


def test_a_cell_gives_the_same_numbers_again_and_alone(tmp_path):
    cells = tiny_cells()[:-1]
    runner.run(cells, tmp_path / "all", backend="sequential", progress=False)
    for cell in (cells[0], cells[5], cells[7], cells[-1]):  # in work folders of their own
        runner.run([cell], tmp_path / cell.cell_id, backend="sequential", progress=False)
        rows = [
            json.loads(runner.cell_path(cell, tmp_path / folder).read_text())
            for folder in ("all", cell.cell_id)
        ]
        assert without_times(rows[0]) == without_times(rows[1])


def test_a_row_holds_the_cell_and_both_measurements(tmp_path):
    cell = replace(TINY, criterion="risk_variance", scored_on="val")
    row = run_cell(cell, Bench(cell, tmp_path))
    assert {name: row[name] for name in asdict(cell)} == asdict(cell)
    for end in ("", "_before"):
        by_domain = row[f"accuracy_by_domain{end}"]
        assert list(by_domain) == ["a", "b", "d", "c"]
        assert list(row[f"risk_by_domain{end}"]) == ["a", "b", "d", "c"]
        assert row[f"accuracy_unseen{end}"] == by_domain["c"]
        inside = sum(by_domain[name] for name in "abd") / 3
        assert row[f"accuracy_in_domain{end}"] == pytest.approx(inside, abs=2e-5)
    assert row["widths"] == {"conv1": 2, "conv2": 4, "conv3": 4}
    expected = dg.build_model("digits_cnn", width=2)
    assert row["parameters"] == dg.count_parameters(expected)
    assert row["risk_by_domain"] != row["risk_by_domain_before"]
    json.dumps(row)


def test_the_control_is_the_whole_network_with_the_same_fine_tuning(tmp_path):
    row = run_cell(TINY.control, Bench(TINY, tmp_path))
    assert row["widths"] == {"conv1": 4, "conv2": 8, "conv3": 8}
    assert row["finetune_steps"] == TINY.finetune_steps
    assert row["risk_by_domain"] != row["risk_by_domain_before"]


def test_without_fine_tuning_nothing_changes(tmp_path):
    cell = replace(TINY, finetune_steps=0)
    row = run_cell(cell, Bench(cell, tmp_path))
    assert row["risk_by_domain"] == row["risk_by_domain_before"]


def test_all_criteria_prune_one_network_and_see_the_same_batches(tmp_path, monkeypatch):
    calls = []

    def spy(model, train, **settings):
        calls.append((tuple(train), [id(part) for part in train.values()], settings))
        return dg.fit(model, train, **settings)

    monkeypatch.setattr(experiment, "fit", spy)
    bench = Bench(TINY, tmp_path)
    weights = {name: value.clone() for name, value in bench.model.state_dict().items()}
    assert len(calls) == 1
    assert calls.pop()[2]["steps"] == TINY.dense_steps
    for cell in [TINY.control, *(replace(TINY, **criterion) for criterion in CRITERIA)]:
        run_cell(cell, bench)
    assert len(calls) == 1 + len(CRITERIA)
    assert all(call == calls[0] for call in calls)
    for name, value in bench.model.state_dict().items():
        assert torch.equal(value, weights[name]), name


class Forbidden(Dataset):
    """A domain that must not be looked at."""

    def __len__(self):
        raise AssertionError("the unseen domain was read")

    def __getitem__(self, index):
        raise AssertionError("the unseen domain was read")


def test_the_unseen_domain_is_read_by_the_measurements_alone(tmp_path, monkeypatch):
    measured = []

    def guarded(dataset, test_env, seed):
        return replace(dg.leave_one_domain_out(dataset, test_env, seed), target=Forbidden())

    def evaluate(model, split, **settings):
        measured.append(split.target)
        val = dg.evaluate(model, split.val, **settings)
        return val.assign(role=["in-domain"] * (len(val) - 1) + ["unseen"])

    monkeypatch.setattr(experiment, "leave_one_domain_out", guarded)
    monkeypatch.setattr(experiment, "evaluate", evaluate)
    bench = Bench(TINY, tmp_path)
    assert not measured
    iterative = {"schedule": "iterative", "schedule_steps": 2}
    for cell in [TINY.control, *(replace(TINY, **c) for c in (*CRITERIA, *SEARCH))]:
        run_cell(cell, bench)
        measured.clear()
        run_cell(replace(cell, **iterative), bench)
        assert len(measured) == 2  # once before and once after the last round
    with pytest.raises(AssertionError, match="unseen domain was read"):
        dg.evaluate(bench.model, bench.split)


@pytest.mark.parametrize("scope", ["uniform", "global"])
@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7])
def test_in_several_steps_as_many_filters_go_as_at_once(tmp_path, scope, ratio):
    bench = Bench(TINY, tmp_path)
    once = replace(TINY, criterion="taylor", scored_on="train", pruning_ratio=ratio, scope=scope)
    often = replace(once, schedule="iterative", schedule_steps=3)
    widths = [run_cell(cell, bench)["widths"] for cell in (once, often)]
    assert sum(widths[0].values()) == sum(widths[1].values())
    if scope == "uniform":
        assert widths[0] == widths[1]


def test_an_iterative_cell_spends_the_same_budget(tmp_path, monkeypatch):
    bench, steps, seeds = Bench(TINY, tmp_path), [], []
    monkeypatch.setattr(
        experiment, "fit", lambda *_, **k: (steps.append(k["steps"]), seeds.append(k["seed"]))
    )
    cell = replace(TINY, schedule="iterative", schedule_steps=4, finetune_steps=10)
    run_cell(cell, bench)
    assert steps == [2, 3, 2, 3]
    assert len(set(seeds)) == 4


def test_a_source_domain_can_be_left_out(tmp_path):
    cell = replace(TINY, without="a")
    row = run_cell(cell, Bench(cell, tmp_path))
    assert list(row["accuracy_by_domain"]) == ["b", "d", "c"]
    with pytest.raises(ValueError, match="without='c' is not a source domain: a, b, d"):
        Bench(replace(TINY, without="c"), tmp_path)


def test_one_cell_measures_both_domains_that_are_left_out(tmp_path):
    cell = replace(TINY, without="a")
    usual, both = (
        run_cell(each, Bench(each, tmp_path)) for each in (cell, replace(cell, measure="left-out"))
    )
    model = dense_network(cell, Bench(cell, tmp_path).split, tmp_path)
    dg.save_model(  # the network that leaves out the same two in the other order is the same
        model,
        tmp_path / "dense" / f"{replace(cell, test_env='a', without='c').dense_id}.safetensors",
        **experiment.network_recipe(cell, Bench(cell, tmp_path).split),
    )
    other = replace(cell, test_env="a", without="c")
    other = run_cell(other, Bench(other, tmp_path))
    assert both["accuracy_by_domain"] == usual["accuracy_by_domain"]
    assert both["accuracy_without"] == other["accuracy_unseen"]
    assert not any(name.endswith("_before") for name in both)


@pytest.mark.parametrize("scope", ["global", "global-normalized"])
def test_ranking_over_all_layers_takes_as_many_filters(tmp_path, scope):
    bench = Bench(TINY, tmp_path)
    widths = run_cell(replace(TINY, scope=scope), bench)["widths"]
    assert sum(widths.values()) == 10
    assert widths != {"conv1": 2, "conv2": 4, "conv3": 4}


def test_a_ranking_keeps_scores_and_the_exact_ablation_of_every_domain(tmp_path):
    cell = replace(TINY, measure="ranking", pruning_ratio=0, finetune_steps=0)
    bench = Bench(cell, tmp_path)
    row = run_cell(cell, bench)
    scores = dg.score("l1", bench.model, bench.graph)
    assert row["sizes"] == {"conv1": 4, "conv2": 8, "conv3": 8}
    assert row["values"] == pytest.approx(bench.graph.join(scores).tolist(), rel=1e-5)
    row = run_cell(cell.control, bench)
    assert list(row["values"]) == ["a", "b", "d", "c"]
    exact = dg.domain_statistics(
        bench.model, bench.graph, {"c": bench.split.target}, order="exact"
    ).ablation
    assert row["values"]["c"] == pytest.approx(exact[0].tolist(), rel=1e-5, abs=1e-9)
    json.dumps(row)


@pytest.mark.parametrize("statistics", ["masked", "virtual"])
def test_a_cell_can_measure_in_other_ways(tmp_path, statistics):
    cell = replace(
        TINY,
        **variance_score(mean_weight=1.0),
        measure="ranking",
        pruning_ratio=0,
        finetune_steps=0,
    )
    bench = Bench(cell, tmp_path)
    plain, other = (run_cell(replace(cell, statistics=s), bench) for s in ("plain", statistics))
    assert plain["values"] != other["values"]
    assert run_cell(replace(cell, statistics=statistics), bench)["values"] == other["values"]


def test_few_images_are_the_first_of_the_part(tmp_path):
    bench = Bench(TINY, tmp_path)
    few = bench._measure(bench.model, bench.graph, "fisher", "val", 5)
    every = bench._measure(bench.model, bench.graph, "fisher", "val", None)
    assert few.images.tolist() == [5, 5, 5]
    assert every.images.tolist() == [12, 12, 12]


@pytest.mark.parametrize("network", ["digits_cnn", "digits_resnet"])
@pytest.mark.parametrize(
    ("dataset", "test_env", "channels", "classes", "sources"),
    [("RotatedMNIST", "75", 1, 10, 5), ("ColoredMNIST", "-90%", 2, 2, 2)],
)
def test_mnist_variants_run(tmp_path, network, dataset, test_env, channels, classes, sources):
    cell = Cell(
        dataset,
        test_env,
        0,
        **variance_score(order="second"),
        network=network,
        width=4,
        dense_steps=2,
        finetune_steps=2,
    )
    runner.run([cell], tmp_path, backend="sequential", progress=False)
    row = json.loads(runner.cell_path(cell, tmp_path).read_text())
    assert list(row["accuracy_by_domain"])[-1] == test_env
    assert len(row["accuracy_by_domain"]) == 1 + sources
    model = dg.load_model(tmp_path / "dense" / f"{cell.dense_id}.safetensors")
    assert model(torch.zeros(1, channels, 28, 28)).shape == (1, classes)
    expected = dg.build_model(network, classes, width=2, in_channels=channels)
    assert row["parameters"] == dg.count_parameters(expected)
    assert runner.run([cell], tmp_path, backend="sequential", progress=False) == 0


def test_unknown_dataset_names_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"'DigitLite' is unknown.*Did you mean 'DigitsLite'"):
        Bench(replace(TINY, dataset="DigitLite"), tmp_path)


# --- Running many -------------------------------------------------------------------------


def test_what_is_done_is_skipped_and_the_dense_network_is_trained_once(tmp_path):
    cells = tiny_cells()
    assert runner.run(cells[:3], tmp_path, backend="sequential", progress=False) == 3
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*") if path.is_file()}
    assert runner.run(cells, tmp_path, backend="sequential", progress=False) == len(cells) - 3
    assert runner.run(cells, tmp_path, backend="sequential", progress=False) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2  # two test domains
    assert not list(tmp_path.rglob("*.tmp"))


def test_threads_are_left_as_found(tmp_path):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        runner.run_group([TINY], tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_collect_writes_what_is_done_in_order_with_its_provenance(tmp_path):
    cells = tiny_cells()
    runner.run(cells[4:], tmp_path, backend="sequential", progress=False)
    runner.run(cells[:2], tmp_path, backend="sequential", progress=False)
    path = tmp_path / "results" / "tiny.jsonl"
    assert collecting.collect(cells, tmp_path, path, "make it") == (len(cells) - 2, len(cells))
    frame, header = read_results(path)
    expected = [cell.criterion for cell in (*cells[:2], *cells[4:])]
    assert frame["criterion"].tolist() == expected
    assert header["command"] == "make it"
    assert header["cells"] == len(cells)
    assert header["lines"] == len(cells) - 2
    assert header["seeds"] == [0]
    assert header["threads"] == 1
    assert header["made_with"][0]["torch"] == torch.__version__
    assert header["made_with"][0]["device"] == "cpu"
    assert header["hours"] >= 0
    before = path.read_bytes()
    collecting.collect(cells, tmp_path, path, "make it")
    assert path.read_bytes() == before

    elsewhere = tmp_path / "another machine"  # knows nothing but the collected file
    assert collecting.restore(cells, elsewhere, path) == len(cells) - 2
    assert collecting.restore(cells, elsewhere, path) == 0
    assert runner.run(cells[:2], elsewhere, backend="sequential", progress=False) == 0
    collecting.collect(cells, elsewhere, path, "make it")
    assert path.read_bytes() == before


def test_a_result_that_is_not_whole_is_named(tmp_path):
    runner.run([TINY], tmp_path, backend="sequential", progress=False)
    path = runner.cell_path(TINY, tmp_path)
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match=rf"{path.name}' is not whole .* delete it"):
        collecting.collect([TINY], tmp_path, tmp_path / "r.jsonl", "")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_results_file_cut_anywhere_is_refused(tmp_path, share):
    path = tmp_path / "r.jsonl"
    write_results(path, [{"seed": i, "name": "x" * 40} for i in range(20)], {"command": "x"})
    text = path.read_text()
    path.write_text(text[: int(share * len(text))])
    with pytest.raises(ValueError, match=r"cut short: its header promises 20 lines|no header"):
        read_results(path)


def test_results_without_header_or_file(tmp_path):
    path = tmp_path / "r.jsonl"
    with pytest.raises(FileNotFoundError, match=r"r\.jsonl.*dgprune_book\.study"):
        read_results(path)
    for text in ("", "\n", '{"seed": 0}\n', "nonsense"):
        path.write_text(text)
        with pytest.raises(ValueError, match="no header"):
            read_results(path)


def test_a_broken_dense_network_is_an_error_not_a_new_one(tmp_path):
    path = tmp_path / "dense" / f"{TINY.dense_id}.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"half")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        Bench(TINY, tmp_path)


def test_the_dense_network_read_is_the_one_trained(tmp_path):
    split = dg.leave_one_domain_out(tiny_domains(), "c", 0)
    first, second = (dense_network(TINY, split, tmp_path) for _ in range(2))
    again = dense_network(TINY, split, tmp_path / "elsewhere")
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
        assert torch.equal(value, again.state_dict()[name]), name


def test_of_two_who_train_a_dense_network_both_go_on_with_the_first(tmp_path, monkeypatch, links):
    """As on two kinds of hardware: the other's weights differ, and are ready a moment before."""
    split = dg.leave_one_domain_out(tiny_domains(), "c", 0)
    path = tmp_path / "dense" / f"{TINY.dense_id}.safetensors"
    other = dg.build_model("digits_cnn", 10, width=4, seed=99)

    def fit(*arguments, **settings):
        runner.write_atomically(path.with_suffix(".json"), "the other's")
        dg.save_model(other, path, name="digits_cnn", width=4)

    monkeypatch.setattr(experiment, "fit", fit)
    model = dense_network(TINY, split, tmp_path)
    for found in (model, dg.load_model(path)):
        assert torch.equal(found.conv1.weight, other.conv1.weight)
    assert path.with_suffix(".json").read_text() == "the other's"
    assert sorted(path.parent.iterdir()) == [path.with_suffix(".json"), path]


def test_a_dense_network_is_kept_with_its_times(tmp_path, links, monkeypatch):
    """Also if the process was killed just before or after it wrote either."""
    split = dg.leave_one_domain_out(tiny_domains(), "c", 0)

    def killed(*_, **__):
        raise KeyboardInterrupt

    for name in ("write_atomically", "save_model"):
        with monkeypatch.context() as patch:
            patch.setattr(experiment, name, killed)
            with pytest.raises(KeyboardInterrupt):
                dense_network(TINY, split, tmp_path)
        assert not list(tmp_path.rglob("*.safetensors"))  # so they are made again
    dense_network(TINY, split, tmp_path)
    names = {path.suffix for path in (tmp_path / "dense").iterdir()}
    assert names == {".json", ".safetensors"}


def test_who_comes_second_begins_with_what_no_other_has_begun(tmp_path, monkeypatch):
    """While one run is at a network, another does the rest, and that network last."""
    cells = [replace(TINY, test_env=env, pruning_ratio=r) for env in "abc" for r in (0.3, 0.5)]
    order = []

    def spy(group, work, device):
        order.append(group[0].test_env)
        if order == ["a"]:  # the second run starts while the first is at its first network
            runner.run(cells, tmp_path, backend="sequential", progress=False)
        for cell in group:
            runner.write_atomically(runner.cell_path(cell, work), "{}")

    monkeypatch.setattr(runner, "run_group", spy)
    runner.run(cells, tmp_path, backend="sequential", progress=False)
    assert order[:3] == ["a", "b", "c"]
    assert "a" in order[3:]  # by the second run, which cannot know whether the first goes on
    assert all(runner.cell_path(cell, tmp_path).is_file() for cell in cells)
    assert not list((tmp_path / "claims").iterdir())


def test_a_result_is_not_replaced_by_who_comes_second(tmp_path, monkeypatch):
    path = runner.cell_path(TINY, tmp_path)

    def slower(cell, bench):
        runner.write_atomically(path, "the other's")
        return {}

    monkeypatch.setattr(runner, "run_cell", slower)
    runner.run_group([TINY], tmp_path)
    assert path.read_text() == "the other's"


def test_a_run_that_was_killed_keeps_nobody_waiting(tmp_path):
    claim = tmp_path / "claims" / TINY.dense_id
    claim.parent.mkdir()
    claim.write_text("killed long ago")
    assert runner.run([TINY], tmp_path, backend="sequential", progress=False) == 1
    assert runner.cell_path(TINY, tmp_path).is_file()
    assert not claim.exists()


def test_a_task_that_a_cluster_gives_out_again_is_done(tmp_path):
    """Its worker was lost: the claim is this run's own, and nobody else would see to it."""
    claim = tmp_path / "claims" / TINY.dense_id
    claim.parent.mkdir()
    claim.write_text("this run")
    runner._begin_group([TINY], tmp_path, "cpu", "this run")
    assert runner.cell_path(TINY, tmp_path).is_file()


def test_a_run_leaves_no_claim_and_does_not_help_itself(tmp_path, monkeypatch):
    runner.run([TINY], tmp_path, backend="sequential", progress=False)
    claim = tmp_path / "claims" / TINY.dense_id
    assert not list(claim.parent.iterdir())
    claim.write_text("this run")
    monkeypatch.setattr(runner, "run_group", lambda *_: pytest.fail("run twice"))
    runner._help_group([TINY], tmp_path, "cpu", "this run")
    assert claim.exists()


def test_runs_help_in_orders_of_their_own():
    one, other = runner._shuffled(range(100)), runner._shuffled(range(100))
    assert one != other
    assert sorted(one) == sorted(other) == list(range(100))


def test_threads_of_one_process_compute_one_after_another(tmp_path, monkeypatch):
    """As on a Dask worker with several: the number of threads is the whole process's."""
    inside, most = [], []

    def slow(cell, *_):
        inside.append(cell)
        most.append(len(inside))
        time.sleep(0.05)
        inside.remove(cell)
        raise KeyError(cell.seed)

    monkeypatch.setattr(runner, "Bench", slow)
    before = torch.get_num_threads()
    with ThreadPoolExecutor(4) as pool:
        cells = [replace(TINY, seed=seed) for seed in range(4)]
        done = [pool.submit(runner.run_group, [cell], tmp_path) for cell in cells]
    assert [type(each.exception()) for each in done] == [KeyError] * 4
    assert max(most) == 1
    assert torch.get_num_threads() == before


def test_a_cluster_is_looked_at_before_it_is_used(monkeypatch):
    class Client:
        def __init__(self, **_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def nthreads(self):
            return {"tcp://one:1": 4}

    monkeypatch.setitem(sys.modules, "distributed", SimpleNamespace(Client=Client))
    with pytest.raises(ValueError, match="has 4 threads"), command._cluster("dask", "tcp://x", 1):
        pytest.fail("used")


def test_a_cluster_with_several_threads_a_worker_is_refused():
    command._check_threads({"tcp://one:1": 1})
    with pytest.raises(ValueError, match=r"worker tcp://two:1 has 4 threads.*--nthreads 1"):
        command._check_threads({"tcp://one:1": 1, "tcp://two:1": 4})


def test_a_row_may_hold_any_character(tmp_path):
    rows = [{"name": "x\u2028y\x85z\r\n\x1e"}, {"name": "second"}]
    write_results(tmp_path / "r.jsonl", rows, {})
    assert read_results(tmp_path / "r.jsonl")[0].to_dict("records") == rows


@pytest.mark.slow
def test_a_cell_of_pacs_in_rounds_has_whole_blocks_and_the_scores_see_images_as_they_are(
    tmp_path, monkeypatch
):
    folder = dg.draw_tiny_pacs(tmp_path / "images")
    monkeypatch.setitem(datasets.DATASETS, "PACS tiny", lambda: dg.PACS(folder, image_size=32))
    settings = {"network": "efficientnet_lite0", "width": 0, "dense_steps": 1, "finetune_steps": 2}
    cell = Cell(
        "PACS tiny", "S", 0, "fisher", scored_on="train", images_per_domain=8, pruning_ratio=0.4,
        schedule="iterative", schedule_steps=2, round_to=8, **settings,
    )  # fmt: skip
    bench = Bench(cell, tmp_path)
    row = run_cell(cell, bench)
    assert all(width % 8 == 0 for width in row["widths"].values())
    assert 0.3 < row["macs"] / run_cell(cell.control, bench)["macs"] < 0.45
    learnt_from = bench.split.train["A"]
    assert learnt_from.dataset.augmented
    assert not experiment.not_augmented(learnt_from).dataset.augmented


# --- The command line ---------------------------------------------------------------------


def test_dry_run_counts_and_help_lists_the_grids(tmp_path, capsys):
    nowhere = ["--work", str(tmp_path), "--output", str(tmp_path / "results")]
    assert command.main(["book", "smoke", "--dry-run", *nowhere]) == 0
    shown = capsys.readouterr().out
    planned = len(grid_cells(["book"])) + len(grid_cells(["smoke"]))
    assert f"{planned} cells, 0 done, {planned} to do" in shown
    assert "hours" in shown
    with pytest.raises(SystemExit):
        command.main(["--help"])
    shown = capsys.readouterr().out
    for name, (about, _) in GRIDS.items():
        assert name in shown
        assert about in shown
    with pytest.raises(SystemExit):
        command.main(["bok"])
    assert "unknown grid 'bok'" in capsys.readouterr().err


def test_dry_run_writes_nothing_and_counts_what_was_collected(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(GRIDS, "smoke", ("tiny", tiny_cells))
    where = ["--output", str(tmp_path / "out")]
    runner.run(tiny_cells()[:2], tmp_path / "work", backend="sequential", progress=False)
    command.main(["smoke", "--collect", "--work", str(tmp_path / "work"), *where])
    elsewhere = tmp_path / "another machine"
    assert command.main(["smoke", "--dry-run", "--work", str(elsewhere), *where]) == 0
    count = len(tiny_cells())
    assert f"{count} cells, 2 done, {count - 2} to do" in capsys.readouterr().out
    assert not elsewhere.exists()
    nothing = ["--output", str(tmp_path / "nothing")]
    command.main(["smoke", "--dry-run", "--work", str(tmp_path / "work"), *nothing])
    assert f"{count} cells, 2 done, {count - 2} to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "jobs"),
    [([], 7), (["--device", "cuda"], 1), (["--device", "cuda:1", "--jobs", "3"], 3)],
)
def test_a_gpu_is_not_shared_unless_one_says_so(tmp_path, monkeypatch, arguments, jobs):
    asked = {}
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    monkeypatch.setattr(command, "run", lambda *_, **settings: asked.update(settings))
    where = ["--work", str(tmp_path), "--output", str(tmp_path / "out")]
    assert command.main(["smoke", *arguments, *where]) == 0
    assert asked["jobs"] == jobs
    with pytest.raises(SystemExit):
        command.main(["smoke", "--jobs", "0", *where])


def test_the_gpu_that_is_named_is_the_one_used(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"name of {device}")
    assert runner.environment("cuda:1")["device"] == "name of cuda:1"


def test_main_runs_and_collects(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(GRIDS, "smoke", ("tiny", tiny_cells))
    where = ["--work", str(tmp_path), "--output", str(tmp_path / "out"), "--jobs", "1"]
    assert command.main(["smoke", *where]) == 0
    assert len(read_results(tmp_path / "out" / "smoke.jsonl")[0]) == len(tiny_cells())
    assert command.main(["smoke", *where, "--collect"]) == 0
    assert f"{len(tiny_cells())} of {len(tiny_cells())} cells" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_at_any_point_nothing_is_lost_and_nothing_done_twice(tmp_path):
    command = [sys.executable, "-m", "dgprune_book.study", "smoke", "--jobs", "2"]
    command += ["--work", str(tmp_path / "work"), "--output", str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    chance, kept, cells = random.Random(0), {}, tmp_path / "work" / "cells"
    for wanted in (1, 4):  # kill it when so many cells are done
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(
                command, env=environment, stderr=log, start_new_session=True, cwd=ROOT
            )
        until = time.monotonic() + 240
        while len(list(cells.rglob("*.json"))) < wanted and process.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        found = {path: path.read_bytes() for path in cells.rglob("*.json")}
        assert kept.items() <= found.items()
        for text in found.values():
            json.loads(text)
        kept = found
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {path: path.read_bytes() for path in cells.rglob("*.json")}
    assert kept.items() <= found.items()
    frame, _ = read_results(tmp_path / "out" / "smoke.jsonl")
    assert len(found) == len(frame) == len(grid_cells(["smoke"])) == 8
    assert not frame.duplicated(["test_env", "criterion"]).any()
    # An uninterrupted run gives the same numbers.
    cell = grid_cells(["smoke"])[-1]
    runner.run([cell], tmp_path / "again", backend="sequential", progress=False)
    row = json.loads(runner.cell_path(cell, tmp_path / "again").read_text())
    assert without_times(row) == without_times(frame.iloc[-1].to_dict()) | {
        "images_per_domain": None
    }


@pytest.mark.slow
def test_a_dask_cluster_gives_the_same_results(tmp_path):
    import distributed

    cells = grid_cells(["smoke"])
    cells = [cell for cell in cells if cell.criterion in ("none", "l1")]
    with distributed.Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
        workers = client.run(os.getpid)
        assert len(workers) == 2
        runner.run(cells, tmp_path / "dask", jobs=2, backend="dask", progress=False)
    runner.run(cells, tmp_path / "here", backend="sequential", progress=False)
    for cell in cells:
        rows = [
            json.loads(runner.cell_path(cell, tmp_path / where).read_text())
            for where in ("dask", "here")
        ]
        assert without_times(rows[0]) == without_times(rows[1])


# --- The committed results ----------------------------------------------------------------


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_committed_results_belong_to_the_grid_of_their_name(path):
    frame, header = read_results(path)
    planned = {(cell.dense_id, cell.cell_id) for cell in grid_cells([path.stem])}
    assert header["cells"] == len(planned)
    cells = [cell_of(row) for row in frame.to_dict("records")]
    names = {(cell.dense_id, cell.cell_id) for cell in cells}
    assert names <= planned
    assert len(names) == len(cells)


def test_committed_files_agree_on_the_cells_that_they_share():
    """Whoever reads two of them as one table may take a shared cell from either."""
    seen: dict[tuple[str, str], tuple[float, float]] = {}
    for path in RESULTS:
        frame, _ = read_results(path)
        for row in frame[frame["pruning_ratio"].gt(0)].to_dict("records"):
            found = (row["accuracy_in_domain"], row["accuracy_unseen"])
            assert seen.setdefault(names_of(cell_of(row)), found) == found, path


SAMPLE = (  # of the first network of each grid
    ("book", "risk_variance", 0.5),
    ("book", "none", 0.0),
    ("cue", "risk_objective", 0.1),
    ("ranking", "bn_scale", 0.0),
)


@pytest.mark.slow
@pytest.mark.xdist_group("sample of the study")
@pytest.mark.parametrize(("grid", "criterion", "ratio"), SAMPLE)
def test_committed_cells_come_out_the_same(sample_work, grid, criterion, ratio):
    frame, _ = read_results(ROOT / "book" / "results" / f"{grid}.jsonl")
    chosen = frame[(frame["criterion"] == criterion) & (frame["pruning_ratio"] == ratio)]
    row = chosen.to_dict("records")[0]
    cell = cell_of(row)
    again = run_cell(cell, Bench(cell, sample_work))
    # On one kind of processor the numbers are the same to the last bit. On another, sums are
    # rounded in another order, which hundreds of steps of training amplify.
    if grid == "ranking":
        assert again["sizes"] == row["sizes"]
        assert stats.spearmanr(again["values"], row["values"]).statistic > 0.95
        return
    assert (again["widths"], again["parameters"]) == (row["widths"], row["parameters"])
    assert again["accuracy_in_domain"] == pytest.approx(row["accuracy_in_domain"], abs=0.015)
    close = 0.1 if grid == "cue" else 0.05  # a small data set, where a cue can tip over
    assert again["accuracy_unseen"] == pytest.approx(row["accuracy_unseen"], abs=close)


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get(datasets.PACS_FOLDER),
    reason=f"{datasets.PACS_FOLDER} does not name a folder with PACS",
)
def test_committed_cells_of_pacs_come_out_the_same(tmp_path):
    frame, _ = read_results(ROOT / "book" / "results" / "pacs64.jsonl")
    first = frame[frame["dataset"] == "PACS64"].iloc[0]
    cells = frame[(frame["test_env"] == first["test_env"]) & (frame["seed"] == first["seed"])]
    bench = None
    for criterion in ("none", "l1", "fisher"):
        row = cells[cells["criterion"] == criterion].to_dict("records")[0]
        cell = cell_of(row)
        bench = bench or Bench(cell, tmp_path)
        again = run_cell(cell, bench)
        assert (again["widths"], again["macs"]) == (row["widths"], row["macs"])
        for name in ("in_domain_before", "unseen_before", "in_domain", "unseen"):
            expected = row[f"accuracy_{name}"]
            assert again[f"accuracy_{name}"] == pytest.approx(expected, abs=0.05), (criterion, name)
