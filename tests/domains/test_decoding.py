"""Images as viewers show them; what is cut is found, what is merely unusual is not reported."""

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dgprune_lite.domains.decoding import as_rgb, load_rgb, unreadable_images

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
    assert all(found.values())  # with reasons
    assert list(found) == [str(half), str(nothing), str(gone)]


def test_bytes_after_the_end_are_no_damage(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes() + b"\0" * 1000)
    assert unreadable_images([path]) == {}


def test_damage_in_the_middle_needs_a_thorough_look(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png")
    content = bytearray(path.read_bytes())
    start = len(content) // 2
    content[start : start + 200] = random.Random(0).randbytes(200)
    path.write_bytes(content)
    assert unreadable_images([path]) == {}
    assert list(unreadable_images([path], thorough=True)) == [str(path)]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_eight_bits_are_converted_as_pillow_does(mode: str) -> None:
    image = Image.fromarray(NOISE).convert(mode)
    assert as_rgb(image.copy()).tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize(("ending", "order"), [("png", "<"), ("tiff", "<"), ("tiff", ">")])
def test_sixteen_bits_of_grey_are_scaled_by_their_range(
    tmp_path: Path, ending: str, order: str
) -> None:
    grey = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64).astype(f"{order}u2")
    Image.fromarray(grey).save(tmp_path / f"a.{ending}")
    found = np.asarray(load_rgb(tmp_path / f"a.{ending}"))
    assert np.array_equal(found, np.round(grey / 257)[..., None].repeat(3, 2))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(NOISE).save(tmp_path / "a.png", exif=exif)
    turns = {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}[orientation]
    expected = np.fliplr(NOISE) if orientation in (2, 4, 5, 7) else NOISE
    expected = np.rot90(expected, turns)
    assert np.array_equal(np.asarray(load_rgb(tmp_path / "a.png")), expected)


def test_broken_exif_data_is_no_damage(tmp_path: Path) -> None:
    Image.fromarray(NOISE).save(tmp_path / "a.png", exif=b"Exif\0\0no such thing")
    assert np.array_equal(np.asarray(load_rgb(tmp_path / "a.png")), NOISE)
    assert unreadable_images([tmp_path / "a.png"], thorough=True) == {}


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_values_of_an_unknown_range_are_refused(tmp_path: Path, kind: type) -> None:
    Image.fromarray(NOISE[..., 0].astype(kind)).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match=r"unknown range; save it with 8 or 16 bits"):
        load_rgb(tmp_path / "a.tiff")
    assert "unknown range" in unreadable_images([tmp_path / "a.tiff"])[str(tmp_path / "a.tiff")]
