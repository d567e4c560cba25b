"""A small stand-in for PACS, drawn: results on it say nothing about PACS."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dgprune_lite.checks import whole_number

if TYPE_CHECKING:
    from PIL.Image import Image

Part = tuple[str, tuple[int, ...]]  # a method of the pen; x, y, x, y, ... in hundredths


def _legs(top: int, *lefts: int) -> list[Part]:
    return [("polygon", (left, top, left + 7, top, left + 7, 90, left, 90)) for left in lefts]


FIGURES: dict[str, list[Part]] = {
    "dog": [
        ("ellipse", (25, 48, 75, 72)), ("ellipse", (65, 33, 90, 56)),
        ("polygon", (12, 38, 18, 35, 32, 55, 28, 60)), *_legs(62, 30, 40, 56, 65),
    ],
    "elephant": [
        ("ellipse", (10, 28, 70, 78)), ("ellipse", (58, 25, 90, 60)),
        ("polygon", (80, 45, 90, 45, 94, 88, 87, 88)), *_legs(65, 18, 30, 46, 58),
    ],
    "giraffe": [
        ("ellipse", (25, 52, 68, 70)), ("polygon", (58, 58, 67, 62, 78, 14, 70, 12)),
        ("ellipse", (68, 8, 90, 20)), *_legs(62, 28, 36, 52, 60),
    ],
    "guitar": [
        ("ellipse", (10, 52, 50, 92)), ("ellipse", (32, 42, 62, 72)),
        ("polygon", (48, 52, 54, 58, 92, 16, 86, 10)),
    ],
    "horse": [
        ("ellipse", (20, 45, 72, 68)), ("polygon", (60, 52, 72, 56, 84, 28, 74, 24)),
        ("polygon", (72, 22, 80, 18, 96, 36, 90, 42)),
        ("polygon", (14, 72, 20, 74, 26, 52, 21, 50)), *_legs(60, 24, 33, 55, 64),
    ],
    "house": [
        ("polygon", (22, 48, 78, 48, 78, 90, 22, 90)), ("polygon", (14, 50, 50, 14, 86, 50)),
    ],
    "person": [
        ("ellipse", (41, 8, 59, 28)), ("polygon", (40, 30, 60, 30, 58, 60, 42, 60)),
        ("polygon", (40, 31, 44, 36, 28, 58, 24, 54)),
        ("polygon", (60, 31, 56, 36, 72, 58, 76, 54)), *_legs(58, 42, 51),
    ],
}  # fmt: skip


def draw_tiny_pacs(
    path: str | os.PathLike[str], *, images_per_class: int = 4, size: int = 64, seed: int = 0
) -> Path:
    """Draw a small stand-in for PACS: ``path/PACS/domain/class/image``, ready for ``PACS(path)``.

    Figures with the names of PACS's classes, in the styles of its domains; each image differs by
    position, size, angle and colours.

    Args:
        path: The folder to make the folder ``PACS`` in; made if it is not there.
        images_per_class: Images of every class in every domain, at least 1.
        size: Height and width of the images in pixels, at least 8.
        seed: Seed of all that is random; at least 0.

    Returns:
        The folder ``path/PACS``.

    Raises:
        FileExistsError: There is a folder ``PACS`` already (it could hold the real images).
        ValueError: A number is out of range.

    >>> import tempfile
    >>> root = draw_tiny_pacs(tempfile.mkdtemp(), images_per_class=1, size=16)
    >>> sorted(folder.name for folder in root.iterdir())
    ['art_painting', 'cartoon', 'photo', 'sketch']
    """
    whole_number("images_per_class", images_per_class, 1)
    whole_number("size", size, 8)
    whole_number("seed", seed)
    root = Path(path).expanduser() / "PACS"
    if root.exists():
        raise FileExistsError(f"{str(root)!r} exists already; give another folder to draw in")
    for index, (domain, (style, ending)) in enumerate(STYLES.items()):
        rng = np.random.Generator(np.random.PCG64([seed, index]))
        for name in FIGURES:
            folder = root / domain / name
            folder.mkdir(parents=True)
            for number in range(1, images_per_class + 1):
                pixels = style(np.asarray(_mask(name, 2 * size, rng)) / 255.0, rng)
                _as_image(pixels).resize((size, size)).save(folder / f"pic_{number:03}.{ending}")
    return root


def _mask(name: str, size: int, rng: np.random.Generator) -> Image:
    """Draw a figure white on black, in a random position, size and angle."""
    from PIL import Image, ImageDraw

    mask = Image.new("L", (size, size))
    pen = ImageDraw.Draw(mask)
    scale = size / 100 * rng.uniform(0.75, 1.0)
    left, top = (size - 100 * scale) * rng.uniform(0, 1, size=2)
    for kind, numbers in FIGURES[name]:
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        points = [(left + scale * x, top + scale * y) for x, y in pairs]
        getattr(pen, kind)(points, fill=255)
    return mask.rotate(rng.uniform(-10, 10), Image.Resampling.BILINEAR)


Pixels = NDArray[np.floating]  # (size, size) or (size, size, 3), from 0 to 1


def _photo(mask: Pixels, rng: np.random.Generator) -> Pixels:
    """Muted colours that fade from top to bottom, a soft outline, noise."""
    front, back = rng.uniform(0.15, 0.45, 3), rng.uniform(0.5, 0.85, 3)
    light = np.linspace(1.15, 0.75, len(mask))[:, None, None]
    soft = _blurred(mask, len(mask) // 60)[..., None]
    return light * (soft * front + (1 - soft) * back) + rng.normal(0, 0.08, (*mask.shape, 3))


def _art_painting(mask: Pixels, rng: np.random.Generator) -> Pixels:
    """Slanting strokes of the brush in warm colours on blue-green, or the other way round."""
    warm, cold = np.array([0.85, 0.5, 0.15]), np.array([0.15, 0.4, 0.5])
    front, back = (warm, cold) if rng.random() < 0.5 else (cold, warm)
    down, right = np.indices(mask.shape)
    waves = rng.uniform(0.25, 0.4) * np.sin((down + 2 * right) / len(mask) * rng.uniform(40, 70))
    blotches = _blurred(rng.random(mask.shape), len(mask) // 30) - 0.5
    strokes = (0.5 * waves + 3 * blotches)[..., None]
    return (mask[..., None] * front + (1 - mask[..., None]) * back) * (1 + strokes)


def _cartoon(mask: Pixels, rng: np.random.Generator) -> Pixels:
    """Two bright flat colours and a thick black outline."""
    order = rng.permutation(3)
    front, back = np.array([1.0, 0.75, 0.1])[order], np.array([0.3, 0.95, 1.0])[order]
    line = _outline(mask, len(mask) // 36)
    return (mask[..., None] * front + (1 - mask[..., None]) * back) * (1 - line)


def _sketch(mask: Pixels, rng: np.random.Generator) -> Pixels:
    """A thin grey line on white."""
    line = _outline(mask, len(mask) // 90)
    return np.broadcast_to(1 - rng.uniform(0.6, 0.95) * line, (*mask.shape, 3))


# Domain to its style and, as in PACS, the kind of its files.
STYLES: dict[str, tuple[Callable[[Pixels, np.random.Generator], Pixels], str]] = {
    "art_painting": (_art_painting, "jpg"),
    "cartoon": (_cartoon, "jpg"),
    "photo": (_photo, "jpg"),
    "sketch": (_sketch, "png"),
}


def _outline(mask: Pixels, width: int) -> Pixels:
    # Blurred, a figure reaches beyond its edge; ten times brighter, that is the figure grown.
    return ((10 * _blurred(mask, width)).clip(0, 1) - mask)[..., None]


def _blurred(pixels: Pixels, radius: int) -> Pixels:
    from PIL import ImageFilter

    blur = ImageFilter.GaussianBlur(max(1, radius))
    return np.asarray(_as_image(pixels).filter(blur)) / 255.0


def _as_image(pixels: Pixels) -> Image:
    from PIL import Image

    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))
