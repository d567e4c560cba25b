"""PACS.from_hub on parquet files of the hub's schema that the test writes; no network."""

import io
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import dgprune_lite as dg
from dgprune_lite.domains import fetch

datasets = pytest.importorskip("datasets")
FOLDERS = tuple(dg.PACS.FOLDERS.values())
SHADES = {folder: 40 * (k + 1) for k, folder in enumerate(FOLDERS)}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no network in tests")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def encoded(shade: int, label: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L" if label % 2 else "RGB", (9, 9), shade if label % 2 else (shade,) * 3).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def rows(images: int = 2) -> list[dict[str, Any]]:
    return [
        {
            "image": {"bytes": encoded(SHADES[folder], label), "path": None},
            "domain": folder,
            "label": label,
        }
        for number in range(images)
        for folder in reversed(FOLDERS)
        for label in range(7)
    ]


def write(folder: Path, table: list[dict[str, Any]], label: Any = None) -> Path:
    names = dg.PACS.class_names
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "domain": datasets.Value("string"),
            "label": datasets.ClassLabel(names=list(names)) if label is None else label,
        }
    )
    path = folder / "hub" / "data" / "train-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(table, features=features).to_parquet(str(path))
    return folder / "hub"


def opened(folder: Path, **settings: Any) -> dg.PACS:
    return dg.PACS.from_hub(folder, cache_dir=folder.parent / "cache", image_size=8, **settings)


def test_domains_labels_and_pixels(tmp_path: Path) -> None:
    pacs = opened(write(tmp_path, rows()))
    assert isinstance(pacs, dg.PACS)
    assert repr(pacs) == "PACS(A 14, C 14, P 14, S 14; 7 classes, images 3×8×8)"
    assert (pacs.class_names, pacs.left_out) == (dg.PACS.class_names, ())
    for env, folder in pacs.FOLDERS.items():
        images, labels = fetch(pacs[env], range(14))
        assert labels.tolist() == list(range(7)) * 2
        red = images[:, 0] * 0.229 + 0.485
        assert torch.allclose(red, torch.full_like(red, SHADES[folder] / 255), atol=1e-5)


def test_it_works_as_from_a_folder(tmp_path: Path) -> None:
    pacs = opened(write(tmp_path, rows()), limit=7)
    assert sorted(label for _, label in pacs["photo"]) == list(range(7))
    split = dg.leave_one_domain_out(pacs, "sketch", seed=0)
    assert split.train["A"].dataset.augmented  # type: ignore[attr-defined]
    again = pickle.loads(pickle.dumps(split))
    assert torch.equal(fetch(again.val["A"], [0])[0], fetch(split.val["A"], [0])[0])


def test_classes_in_another_order_keep_their_names(tmp_path: Path) -> None:
    names = list(reversed(dg.PACS.class_names))
    pacs = opened(write(tmp_path, rows(), datasets.ClassLabel(names=names)))
    assert fetch(pacs["A"], range(7))[1].tolist() == [6, 5, 4, 3, 2, 1, 0]


def test_labels_without_names_are_taken_in_order(tmp_path: Path) -> None:
    pacs = opened(write(tmp_path, rows(), datasets.Value("int64")))
    assert fetch(pacs["A"], range(7))[1].tolist() == list(range(7))
    table = rows()
    table[3]["label"] = 7
    with pytest.raises(ValueError, match="has the label 7; expected 0 to 6"):
        opened(write(tmp_path / "other", table, datasets.Value("int64")))


def test_wrong_tables_are_named(tmp_path: Path) -> None:
    table = rows()
    table[5]["domain"] = "sketches"
    with pytest.raises(ValueError, match=r"domain 'sketches' in row 5; .*Did you mean 'sketch'"):
        opened(write(tmp_path / "a", table))
    table = [row for row in rows() if row["domain"] != "photo"]
    with pytest.raises(ValueError, match="has no images of photo"):
        opened(write(tmp_path / "b", table))
    cats = datasets.ClassLabel(names=["cat", *dg.PACS.class_names[1:]])
    with pytest.raises(
        ValueError, match=r"has the classes cat, elephant.*; expected dog, elephant"
    ):
        opened(write(tmp_path / "c", rows(), cats))
    path = write(tmp_path / "d", rows())
    file = next(path.rglob("*.parquet"))
    datasets.Dataset.from_parquet(str(file)).remove_columns("domain").to_parquet(str(file))
    with pytest.raises(ValueError, match="has no column 'domain', only"):
        opened(path)


def test_without_network_the_error_says_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match=r"'nobody/pacs'.*give a local folder"):
        dg.PACS.from_hub("nobody/pacs", cache_dir=tmp_path)


def test_without_the_library_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r'needs datasets: .*"dgprune-lite\[hub\]"'):
        dg.PACS.from_hub()
