"""draw_tiny_pacs: PACS's tree, the same every time, domains that look different."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dgprune_lite as dg


def pixels(root: Path) -> dict[str, np.ndarray]:
    return {
        path.relative_to(root).as_posix(): np.asarray(Image.open(path))
        for path in sorted(root.rglob("*.*"))
    }


def test_a_seed_decides_every_pixel(tmp_path: Path) -> None:
    one, two, other = (
        pixels(dg.draw_tiny_pacs(tmp_path / str(k), images_per_class=1, size=16, seed=seed))
        for k, seed in enumerate([1, 1, 2])
    )
    assert len(one) == 28
    assert one.keys() == two.keys() == other.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert not any(np.array_equal(one[name], other[name]) for name in one)


def test_domains_differ_in_style(tmp_path: Path) -> None:
    found = pixels(dg.draw_tiny_pacs(tmp_path, images_per_class=2, size=32))
    styles: dict[str, list[tuple[float, float]]] = {}
    for name, image in found.items():
        colour = image.max(axis=2).astype(float) - image.min(axis=2)
        styles.setdefault(name.split("/")[0], []).append((colour.mean(), (image > 250).mean()))
    colourful = {domain: np.mean(values, axis=0)[0] for domain, values in styles.items()}
    white = {domain: np.mean(values, axis=0)[1] for domain, values in styles.items()}
    assert colourful["sketch"] == 0
    assert white["sketch"] > 0.5 > white["cartoon"] > white["photo"]
    assert colourful["cartoon"] > 100 > colourful["photo"]
    assert 0 < colourful["photo"] < colourful["art_painting"]


def test_nothing_is_drawn_over_an_existing_folder(tmp_path: Path) -> None:
    (tmp_path / "PACS").mkdir()
    with pytest.raises(FileExistsError, match="PACS' exists already; give another folder"):
        dg.draw_tiny_pacs(tmp_path)
    assert list((tmp_path / "PACS").iterdir()) == []


@pytest.mark.parametrize("setting", [{"images_per_class": 0}, {"size": 7}, {"seed": -1}])
def test_bad_settings(tmp_path: Path, setting: dict[str, int]) -> None:
    (name, value), *_ = setting.items()
    with pytest.raises(ValueError, match=f"{name} is {value}; expected a whole number of at least"):
        dg.draw_tiny_pacs(tmp_path, **setting)
    assert not (tmp_path / "PACS").exists()
