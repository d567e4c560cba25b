"""unreadable_images: what is cut is found, what is merely unusual is not reported."""

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dgprune_lite.domains import unreadable_images

NOISE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def saved(path: Path) -> Path:
    Image.fromarray(NOISE).save(path)
    return path


@pytest.mark.parametrize("ending", ["jpg", "png", "bmp", "webp"])
@pytest.mark.parametrize("thorough", [False, True])
def test_whole_files_pass_and_cut_ones_do_not(tmp_path: Path, ending: str, thorough: bool) -> None:
    whole, half = saved(tmp_path / f"whole.{ending}"), saved(tmp_path / f"half.{ending}")
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    nothing = tmp_path / f"nothing.{ending}"
    nothing.write_bytes(b"")
    gone = tmp_path / f"gone.{ending}"
    found = unreadable_images([whole, half, nothing, gone], thorough)
    assert found == [str(half), str(nothing), str(gone)]


def test_bytes_after_the_end_are_no_damage(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes() + b"\0" * 1000)
    assert unreadable_images([path]) == []


def test_damage_in_the_middle_needs_a_thorough_look(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png")
    content = bytearray(path.read_bytes())
    start = len(content) // 2
    content[start : start + 200] = random.Random(0).randbytes(200)
    path.write_bytes(content)
    assert unreadable_images([path]) == []
    assert unreadable_images([path], thorough=True) == [str(path)]


def test_whole_jpegs_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [saved(tmp_path / f"{k}.jpg") for k in range(3)]
    monkeypatch.setattr(Image, "open", lambda _: pytest.fail("decoded"))
    assert unreadable_images(paths) == []
