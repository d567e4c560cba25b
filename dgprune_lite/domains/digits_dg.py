"""Digits-DG: four domains of digits in colour, of MNIST, SVHN and this package's own generators.

What this file is *not*: the published files of Digits-DG, which no longer have a lasting address.
Domains, sizes and numbers are the same; mnist_m and syn are composed here, with the photos, glyphs
and whole-number arithmetic of `digits.py`, so that every platform gets the same bytes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

from dgprune_lite.domains.base import MultipleDomainDataset
from dgprune_lite.domains.digits import (
    Bytes,
    _embedded_arrays,
    blend_with_photos,
    colour_glyphs,
    grey_to_colour,
)
from dgprune_lite.domains.mnist import rotate
from dgprune_lite.domains.sources import Folder, mnist_scans, svhn_images

SIDE = 32
CONTRAST = 50  # grey levels by which the two colours of a printed digit differ at least, on average
STREAMS = ("mnist", "svhn", "patches", "glyphs", "order", "angles", "places", "colours")


class DigitsDG(MultipleDomainDataset):
    """Ten digits in four domains, 6000 colour images of 32×32 in each.

    - mnist: MNIST scans, in the middle of a black frame
    - mnist_m: other MNIST scans, blended with photo patches: abs(patch − digit)
    - svhn: house numbers cut from street photos (SVHN's training part), neighbours and all
    - syn: printed digits; the embedded glyphs, turned, moved, coloured and with noise

    Each domain is a `TensorDataset` of images float32 (n, 3, 32, 32) in [0, 1] and labels int64
    (n,), balanced over the classes and in random order. No MNIST scan appears in two domains. There
    are 240 glyphs of each class and five photos, so at 600 images a class a glyph appears two or
    three times, changed, and patches overlap.

    Args:
        root: the folder with torchvision's MNIST (`MNIST/raw/`) and SVHN (`train_32x32.mat`).
        download: fetch what is not there (12 MB and 180 MB); without it, nothing is downloaded.
        images_per_class: images of every class in every domain, at least 1; 600 in Digits-DG.
        seed: seed of all that is drawn; at least 0.

    Raises:
        FileNotFoundError: if MNIST or SVHN is not there and `download` is False.
        ConnectionError: if it cannot be downloaded.
        ImportError: without SciPy, which torchvision reads SVHN with.
        ValueError: if a class has too few images, a file is damaged, or a number is out of range.

    Source:
        Zhou et al., "Deep domain-adversarial image generation for domain generalisation", AAAI
        2020; MNIST-M and Synthetic Digits after Ganin and Lempitsky, ICML 2015; SVHN: Netzer et
        al., "Reading digits in natural images with unsupervised feature learning", 2011.

    Example:
        `digits = DigitsDG("data", download=True)`
    """

    ENVIRONMENTS = ("mnist", "mnist_m", "svhn", "syn")
    class_names = tuple("0123456789")
    input_shape = (3, SIDE, SIDE)

    def __init__(
        self, root: Folder, *, download: bool = False, images_per_class: int = 600, seed: int = 0
    ) -> None:
        for name, value, least in (("images_per_class", images_per_class, 1), ("seed", seed, 0)):
            if not isinstance(value, int) or value < least:
                raise ValueError(
                    f"{name} is {value!r}; expected a whole number of at least {least}"
                )
        self.images_per_class, self.seed = images_per_class, seed
        place = Path(root).expanduser()
        scans, digits = mnist_scans(place, download)
        # The first half of what is drawn of every class is mnist, the other half mnist_m.
        both = _choose("MNIST", digits, 2 * images_per_class, self._draws("mnist", len(digits)))
        self._scans = {
            name: (frame(scans[half.ravel()], 2, 2), digits[half.ravel()])
            for name, half in zip(("mnist", "mnist_m"), np.split(both, 2), strict=True)
        }
        images, digits = svhn_images(place, download)
        chosen = _choose("SVHN", digits, images_per_class, self._draws("svhn", len(digits))).ravel()
        self._svhn = images[chosen], digits[chosen]

    def open_domain(self, name: str) -> TensorDataset:
        """Compose one domain into tensors of its own."""
        if name == "svhn":
            images, labels = self._svhn
        elif name == "syn":
            images, labels = self._printed()
        else:
            scans, labels = self._scans[name]
            images = grey_to_colour(scans) if name == "mnist" else self._blended(scans)
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())  # (n, 3, 32, 32)
        return TensorDataset(pixels.float().div_(255.0), torch.from_numpy(labels.astype(np.int64)))

    def _draws(self, stream: str, number: int) -> NDArray[np.uint64]:
        # Each stream is random on its own, so that a domain is the same in any order of opening.
        return np.random.PCG64([self.seed, STREAMS.index(stream)]).random_raw(number)

    def _blended(self, scans: Bytes) -> Bytes:
        arrays = _embedded_arrays()
        photos = {name: array for name, array in arrays.items() if name.startswith("photo_")}
        sizes = np.array([photos[f"photo_{k}"].shape[:2] for k in range(len(photos))])
        draws = self._draws("patches", 3 * len(scans)).reshape(-1, 3)
        which = (draws[:, 0] % len(photos)).astype(int)
        corners = draws[:, 1:] % (sizes[which] - SIDE + 1).astype(np.uint64)  # top, left
        patches = np.column_stack([which, corners.astype(int)])
        return blend_with_photos({"mnist_m_scans": scans, "mnist_m_patches": patches, **photos})

    def _printed(self) -> tuple[Bytes, Bytes]:
        arrays = _embedded_arrays()
        masks, labels = arrays["syn_masks"], arrays["syn_labels"]
        order = np.argsort(self._draws("glyphs", len(labels)), kind="stable")
        # Rows of (10,): one glyph of every class, each of a class once before any comes again.
        each = np.stack([order[labels[order] == k] for k in range(10)], axis=1)
        chosen = each[np.arange(self.images_per_class) % len(each)].ravel()
        number = len(chosen)
        chosen = chosen[np.argsort(self._draws("order", number), kind="stable")]
        masks, labels = masks[chosen], labels[chosen]
        angles = self._draws("angles", number) % 21
        turned = np.empty_like(masks)
        for angle in range(21):
            turned[angles == angle] = rotate(masks[angles == angle], angle - 10)
        corners = (self._draws("places", 2 * number) % 5).reshape(-1, 2).astype(int)
        framed = np.concatenate(
            [
                frame(one[None], *corner)
                for one, corner in zip(turned, corners.tolist(), strict=True)
            ]
        )
        # Five in six pairs of colours differ enough, so four times as many leave some to spare.
        pairs = (self._draws("colours", 4 * 6 * number) % 256).astype(int).reshape(-1, 2, 3)
        pairs = pairs[np.abs(pairs[:, 0] - pairs[:, 1]).mean(axis=1) > CONTRAST][:number]
        return colour_glyphs(framed, pairs.astype(np.uint8)), labels


def frame(images: Bytes, top: int, left: int) -> Bytes:
    """Place images (n, height, width) in black frames (n, 32, 32) at a place from their corner."""
    _, height, width = images.shape
    framed = np.zeros((len(images), SIDE, SIDE), dtype=np.uint8)
    framed[:, top : top + height, left : left + width] = images
    return framed


def _choose(source: str, labels: Bytes, per_class: int, draws: NDArray) -> NDArray[np.intp]:
    """Draw places (per_class, 10): each column of one class, and each row in random order."""
    order = np.argsort(draws, kind="stable")
    columns = [order[labels[order] == k][:per_class] for k in range(10)]
    few = [k for k, column in enumerate(columns) if len(column) < per_class]
    if few:
        raise ValueError(
            f"{source} has {len(columns[few[0]])} images of the digit {few[0]}, and {per_class} "
            f"are needed; expected torchvision's whole {source}, or a smaller images_per_class"
        )
    places = np.stack(columns, axis=1)
    shuffled = np.argsort(draws[places], axis=1, kind="stable")
    return np.take_along_axis(places, shuffled, axis=1)
