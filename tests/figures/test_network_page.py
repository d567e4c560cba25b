"""The data file of the page: what it holds, that it reads back the same, what it must not know."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dgprune_book.figures import network_page
from dgprune_book.study import cells, datasets
from dgprune_book.study.experiment import Bench
from torch.utils.data import TensorDataset

import dgprune_lite as dg
from dgprune_lite.pruning.pruning import make_plan
from dgprune_lite.scores.criteria import NEEDS_STATISTICS

SHIPPED = Path(__file__).parents[2] / network_page.FILE
NAMES = ("a", "b", "c", "d")


def toy_domains(spoiled: str = "") -> dg.MultipleDomainDataset:
    """Four small domains of noise, the first one grey; `spoiled` has other images and labels."""
    domains = {}
    for number, name in enumerate(NAMES):
        generator = torch.Generator().manual_seed(number + 100 * (name == spoiled))
        images = torch.randint(256, (50, 3, 28, 28), generator=generator).float() / 255
        if name == "a":
            images = images[:, :1].repeat(1, 3, 1, 1)
        labels = torch.randint(10, (50,), generator=generator)
        domains[name] = TensorDataset(images, labels)
    return dg.MultipleDomainDataset(domains, [str(i) for i in range(10)], (3, 28, 28))


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    for name, spoiled in (("Toy", ""), ("ToySpoiled", "b")):
        monkeypatch.setitem(datasets.DATASETS, name, lambda spoiled=spoiled: toy_domains(spoiled))
        monkeypatch.setitem(cells.ENVIRONMENTS, name, NAMES)


TOY = replace(network_page.NETWORK, dataset="Toy", test_env="a", width=4, dense_steps=3)
SIZES = {"images": 8, "calibration": 6}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def path(tmp_path, work):
    return network_page.export(tmp_path / "data.js", work, TOY, **SIZES)


@pytest.fixture
def page(path):
    return network_page.read(path)


def bench(work, unseen):
    return Bench(replace(TOY, test_env=unseen), work)


# --- What the file holds --------------------------------------------------------------------


def test_networks_are_those_of_the_study(page, work):
    for unseen in NAMES:
        expected, found = bench(work, unseen).model.state_dict(), page.networks[unseen].state_dict()
        assert {name for name in expected if not torch.equal(expected[name], found[name])} <= {
            f"bn{number}.num_batches_tracked" for number in (1, 2, 3)
        }
        assert not page.networks[unseen].training


def test_test_images_are_held_out_and_the_same_for_all_networks(page, work):
    for unseen in NAMES:
        split = bench(work, unseen).split
        for name, held_out in split.val.items():
            for found, expected in zip(page.images[name].tensors, held_out.tensors, strict=True):
                assert torch.equal(found, expected[:8])
            for found, expected in zip(
                page.calibration[name].tensors, split.train[name].tensors, strict=True
            ):
                assert torch.equal(found, expected[:6])
            trained_on = {image.numpy().tobytes() for image in split.train[name].tensors[0]}
            shown = {image.numpy().tobytes() for image in page.images[name].tensors[0]}
            assert not trained_on & shown


def test_grey_images_are_stored_once(page):
    shapes = {name: domain["images"]["shape"] for name, domain in page.content["domains"].items()}
    assert shapes["a"] == [8, 1, 28, 28]
    assert shapes["b"] == [8, 3, 28, 28]


@pytest.mark.parametrize("criterion", network_page.CRITERIA)
def test_removed_filters_are_those_of_the_study(page, work, criterion):
    here = bench(work, "c")
    part = "train" if criterion in NEEDS_STATISTICS else None
    cell = replace(TOY, test_env="c", criterion=criterion, scored_on=part)
    scores = here.scores(cell, here.model, here.graph)
    for ratio in network_page.RATIOS:
        plan = dg.plan_pruning(here.graph, scores, ratio)
        found = page.removed("c", criterion, ratio)
        gone = {layer: (gates == 0).nonzero()[:, 0] for layer, gates in plan.kept_gates.items()}
        assert {k: sorted(v) for k, v in found.items()} == {k: v.tolist() for k, v in gone.items()}


def test_provenance_says_how_to_make_it_again(page):
    provenance = page.content["provenance"]
    assert (
        provenance["command"]
        == "python -m dgprune_book.figures.network_page --seed 0 --width 4 --steps 3"
    )
    assert {"torch", "python", "system", "device", "date", "dgprune_lite"} <= {*provenance}
    assert {
        "seed": 0,
        "width": 4,
        "dense_steps": 3,
        "algorithm": "ERM",
    }.items() <= provenance.items()
    assert "test_env" not in provenance


# --- The same as pruning for real -------------------------------------------------------------


@pytest.mark.parametrize("recalibrate", [False, True])
@pytest.mark.parametrize(
    "removed", [{}, {"conv2": [0, 5]}, {"conv1": [1], "conv2": [2, 3, 4], "conv3": [0]}]
)
def test_predictions_are_those_of_the_pruned_network(page, removed, recalibrate):
    model = page.networks["d"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = dg.trace_channels(model, torch.zeros(1, 3, 28, 28))
    gone = np.zeros(graph.num_filters, dtype=bool)
    for layer, filters in removed.items():
        gone[[graph.groups[layer].start + number for number in filters]] = True
    small = make_plan(graph, gone, 0.0).apply(model)
    if recalibrate:
        sources = {name: data for name, data in page.calibration.items() if name != "d"}
        dg.recalibrate_batchnorm(small, sources, images_per_domain=6, batch_size=18)
    small.eval()
    found = page.predict("d", removed, recalibrate=recalibrate)
    for name, data in page.images.items():
        images, labels = data.tensors
        with torch.no_grad():
            assert torch.equal(found[name], small(images).argmax(1))
        share = page.accuracy("d", removed, recalibrate=recalibrate)[name]
        assert share == float((found[name] == labels).double().mean())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_layer_without_filters_gives_one_answer(page):
    classes = torch.cat([*page.predict("a", {"conv3": range(8)}).values()])
    assert len(classes.unique()) == 1


# --- What it must not know --------------------------------------------------------------------


def test_the_unseen_domain_decides_no_weight_and_no_score(page, tmp_path, work):
    spoiled = replace(TOY, dataset="ToySpoiled")
    other = network_page.read(network_page.export(tmp_path / "other.js", work, spoiled, **SIZES))
    orders = {name: [p.content["networks"][name]["order"] for p in (page, other)] for name in NAMES}
    weights = {
        name: [p.content["networks"][name]["weights"] for p in (page, other)] for name in NAMES
    }
    del orders["b"][0]["random"], orders["b"][1]["random"]  # its seed is made of the names
    assert orders["b"][0] == orders["b"][1]
    assert weights["b"][0] == weights["b"][1]
    assert weights["a"][0] != weights["a"][1]  # there it is a source
    shown = [p.content["domains"]["b"]["images"]["pixels"] for p in (page, other)]
    assert shown[0] != shown[1]


# --- Files ------------------------------------------------------------------------------------


def test_two_exports_are_equal_to_the_byte(path, tmp_path):
    again = network_page.export(tmp_path / "again.js", tmp_path / "other_work", TOY, **SIZES)
    assert again.read_bytes() == path.read_bytes()


def test_an_interrupted_write_leaves_the_old_file(path, work, monkeypatch):
    before = path.read_bytes()

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        network_page.export(path, work, TOY, images=3, calibration=3)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["data.js"]


def test_it_makes_its_folder(tmp_path, work):
    path = network_page.export(tmp_path / "new" / "data.js", work, TOY, criteria=["l1"], **SIZES)
    assert network_page.read(path).content["criteria"] == {"l1": "L1"}


def test_read_refuses_what_is_not_whole(path, tmp_path):
    whole = path.read_text()
    for text in ("", whole[:-100], "var x;", whole.replace("dgpruneData", "other")):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"data\.js' is not whole: run python -m dgprune_book"):
            network_page.read(path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.js': run python -m dgprune_book"):
        network_page.read(tmp_path / "nowhere.js")


# --- Errors repeat the value ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": 11}, r"11 images of domain '\w': expected 1 to 10"),
        ({"images": 0}, r"0 images of domain '\w': expected 1 to 10"),
        ({"calibration": 41}, r"41 images of domain '\w': expected 1 to 40"),
        ({"criteria": ["l7"]}, "'l7'"),
    ],
)
def test_export_refuses(tmp_path, work, settings, message):
    with pytest.raises(ValueError, match=message):
        network_page.export(tmp_path / "data.js", work, TOY, **SIZES | settings)
    assert not (tmp_path / "data.js").exists()


def test_export_refuses_an_unknown_data_set(tmp_path, work):
    with pytest.raises(ValueError, match=r"dataset='DigitsLight'.*Did you mean 'DigitsLite'\?"):
        network_page.export(tmp_path / "data.js", work, replace(TOY, dataset="DigitsLight"))


def test_questions_about_what_is_not_there_are_refused(page):
    with pytest.raises(ValueError, match="unseen='e': expected a, b, c, d"):
        page.removed("e", "l1", 0.5)
    with pytest.raises(ValueError, match=r"criterion='l2': expected l1, .*Did you mean 'l1'\?"):
        page.removed("a", "l2", 0.5)
    with pytest.raises(ValueError, match=r"ratio=0\.33: expected 0\.0, 0\.05, "):
        page.removed("a", "l1", 0.33)
    with pytest.raises(ValueError, match="unseen='e': expected a, b, c, d"):
        page.predict("e", {})
    with pytest.raises(ValueError, match=r"layer='conv4': expected conv1, conv2, conv3\. Did"):
        page.predict("a", {"conv4": [0]})


# --- The command, and the file that is shipped ------------------------------------------------


def test_help_is_shown(capsys):
    with pytest.raises(SystemExit, match="0"):
        network_page.main(["--help"])
    shown = capsys.readouterr().out
    for option in ("--output", "--work", "--seed", "--width", "--steps"):
        assert option in shown
    assert str(network_page.FILE) in shown.replace("\n", "")


def test_main_says_what_it_made(tmp_path, work, monkeypatch, capsys):
    monkeypatch.setattr(network_page, "NETWORK", TOY)
    monkeypatch.setattr(network_page.export, "__kwdefaults__", {"criteria": ("l1",), **SIZES})
    path = tmp_path / "data.js"
    options = ["--output", str(path), "--work", str(work), "--width", "4", "--steps", "3"]
    assert network_page.main(options) == 0
    shown = capsys.readouterr().out
    assert "d unseen: a " in shown
    assert f"{path}: 0." in shown


def test_the_shipped_file_is_small_and_its_networks_can_read():
    assert SHIPPED.stat().st_size < 1_500_000
    page = network_page.read(SHIPPED)
    assert tuple(page.networks) == cells.ENVIRONMENTS["DigitsLite"]
    assert page.content["ratios"] == list(network_page.RATIOS)
    assert tuple(page.content["criteria"]) == network_page.CRITERIA
    for unseen in page.networks:
        assert all(len(data) == 100 for data in page.images.values())
        accuracy = page.accuracy(unseen, {})
        assert accuracy.pop(unseen) > 0.3  # of ten classes
        assert min(accuracy.values()) > 0.85
