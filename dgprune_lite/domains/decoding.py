"""Image files as RGB images, as viewers show them, and those that cannot be decoded."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import get_worker_info

if TYPE_CHECKING:
    from PIL.Image import Image

JPEG, PNG = (b"\xff\xd8\xff", b"\xff\xd9"), (b"\x89PNG\r\n\x1a\n", b"IEND")  # first, last bytes
TAIL = 32  # bytes at the end of a file in which its end mark must stand
WORKERS = min(16, os.cpu_count() or 1)  # Pillow decodes and resizes outside Python's lock


def load_rgb(path: str | os.PathLike[str]) -> Image:
    """Decode an image file to a PIL image in RGB mode."""
    from PIL import Image

    with Image.open(path) as image:
        return as_rgb(image)


def as_rgb(image: Image) -> Image:
    """Convert a PIL image to RGB: upright, 16 bits of grey scaled to 8."""
    from PIL import Image, ImageOps

    image.load()
    with suppress(Exception):  # broken EXIF data, which viewers pass over, too
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        grey = (np.asarray(image).astype(np.int64) * 255 + 32767) // 65535
        image = Image.fromarray(grey.astype(np.uint8))
    elif image.mode in ("F", "I"):
        kind = "floats" if image.mode == "F" else "32-bit integers"
        raise ValueError(f"its values are {kind} of an unknown range; save it with 8 or 16 bits")
    return image.convert("RGB")


def unreadable_images(
    paths: Sequence[str | os.PathLike[str]], thorough: bool = False
) -> dict[str, str]:
    """Which files cannot be decoded, and why; damage in the middle only if ``thorough``."""

    # Nearly all damage in practice is a file left empty or cut short, which shows without decoding:
    # 10 000 files take a second instead of a minute. What looks odd is decoded to be sure.
    def problem(path: str | os.PathLike[str]) -> str | None:
        if not thorough and _is_whole(path):
            return None
        found = attempt(load_rgb, path)
        return f"{found}" if isinstance(found, Exception) else None

    problems = in_threads(problem, paths)
    return {str(path): why for path, why in zip(paths, problems, strict=True) if why is not None}


def attempt(function: Callable, argument: Any) -> Any:
    """Return what a function returns or raises (Pillow raises half a dozen kinds of errors)."""
    try:
        return function(argument)
    except Exception as error:
        return error


def in_threads(function: Callable, *columns: Sequence[Any]) -> list:
    """``list(map(function, *columns))`` in threads, but not in a worker of a ``DataLoader``."""
    if len(columns[0]) <= 1 or WORKERS == 1 or get_worker_info() is not None:
        return list(map(function, *columns))
    with ThreadPoolExecutor(min(WORKERS, len(columns[0]))) as pool:
        return list(pool.map(function, *columns))


def _is_whole(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins and ends as a JPEG or a PNG."""
    with suppress(OSError), open(path, "rb") as file:
        start = file.read(8)
        file.seek(max(8, os.fstat(file.fileno()).st_size - TAIL))
        end = file.read()
        return any(start.startswith(first) and last in end for first, last in (JPEG, PNG))
    return False
