"""Digits-DG: four domains of digits in colour, of MNIST, SVHN and this package's own generators.

The published files no longer have a lasting address. Domains, sizes and numbers are the same;
mnist_m and syn are composed here as in ``digits.py``, so that every platform gets the same bytes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

from dgprune_lite.checks import whole_number
from dgprune_lite.domains.base import MultipleDomainDataset
from dgprune_lite.domains.digits import (
    Bytes,
    as_tensors,
    blend_with_photos,
    colour_glyphs,
    embedded_arrays,
    grey_to_colour,
)
from dgprune_lite.domains.mnist import rotate
from dgprune_lite.domains.sources import Folder, mnist_scans, svhn_images

SIDE = 32
CONTRAST = 50  # grey levels by which the two colours of a printed digit differ on average, or more
STREAMS = ("mnist", "svhn", "patches", "glyphs", "order", "angles", "places", "colours")


class DigitsDG(MultipleDomainDataset):
    """Ten digits in four domains, 6000 colour images of 32×32 in each.

    - mnist: MNIST scans, in the middle of a black frame
    - mnist_m: other MNIST scans, blended with photo patches: abs(patch − digit)
    - svhn: house numbers cut from street photos (SVHN's training part), neighbours and all
    - syn: printed digits; the embedded glyphs, turned, moved, coloured and with noise

    Each domain is a ``TensorDataset`` of images float32 (n, 3, 32, 32) in [0, 1] and labels int64
    (n,), balanced over the classes and in random order. No MNIST scan appears in two domains; of
    the 240 glyphs of a class and the five photos some do twice or more, changed.

    Args:
        root: The folder with torchvision's MNIST (``MNIST/raw/``) and SVHN
            (``train_32x32.mat``).
        download: Fetch what is not there (12 MB and 180 MB); without it, nothing is downloaded.
        images_per_class: Images of every class in every domain, at least 1; 600 in Digits-DG.
        seed: Seed of all that is drawn; at least 0.

    Raises:
        FileNotFoundError: MNIST or SVHN is not there and ``download`` is False.
        ConnectionError: It cannot be downloaded.
        ImportError: SciPy is missing, with which torchvision reads SVHN.
        ValueError: A class has too few images, a file is damaged, or a number is out of range.

    Source: Zhou et al., "Deep domain-adversarial image generation for domain generalisation", AAAI
    2020; MNIST-M and Synthetic Digits after Ganin and Lempitsky, ICML 2015; SVHN: Netzer et al.,
    "Reading digits in natural images with unsupervised feature learning", 2011.

    ``digits = DigitsDG("data", download=True)``
    """

    ENVIRONMENTS = ("mnist", "mnist_m", "svhn", "syn")
    class_names = tuple("0123456789")
    input_shape = (3, SIDE, SIDE)

    def __init__(
        self, root: Folder, *, download: bool = False, images_per_class: int = 600, seed: int = 0
    ) -> None:
        self.images_per_class = whole_number("images_per_class", images_per_class, 1)
        self.seed = whole_number("seed", seed)
        folder = Path(root).expanduser()
        scans, digits = mnist_scans(folder, download)
        # The first half of what is drawn of every class is mnist, the other half mnist_m.
        both = _choose("MNIST", digits, 2 * images_per_class, self._random("mnist", len(digits)))
        self._scans = {
            name: (frame(scans[half.ravel()], 2, 2), digits[half.ravel()])
            for name, half in zip(("mnist", "mnist_m"), np.split(both, 2), strict=True)
        }
        images, digits = svhn_images(folder, download)
        random = self._random("svhn", len(digits))
        chosen = _choose("SVHN", digits, images_per_class, random).ravel()
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
        return as_tensors(images.transpose(0, 3, 1, 2), labels)

    def _random(self, stream: str, number: int) -> NDArray[np.uint64]:
        # A stream for each use: a domain is the same whichever were opened before.
        return np.random.PCG64([self.seed, STREAMS.index(stream)]).random_raw(number)

    def _blended(self, scans: Bytes) -> Bytes:
        """Put each scan before a patch of a photo."""
        arrays = embedded_arrays()
        photos = [name for name in arrays if name.startswith("photo_")]
        sizes = np.array([arrays[f"photo_{k}"].shape[:2] for k in range(len(photos))])
        random = self._random("patches", 3 * len(scans)).reshape(-1, 3)
        which = (random[:, 0] % len(photos)).astype(int)
        corners = random[:, 1:] % (sizes[which] - SIDE + 1).astype(np.uint64)  # top, left
        return blend_with_photos(scans, np.column_stack([which, corners.astype(int)]), arrays)

    def _printed(self) -> tuple[Bytes, Bytes]:
        """Turn, move and colour glyphs."""
        arrays = embedded_arrays()
        masks, labels = arrays["syn_masks"], arrays["syn_labels"]
        order = np.argsort(self._random("glyphs", len(labels)), kind="stable")
        # Rows of (10,): one glyph of every class, each of a class once before any comes again.
        each = np.stack([order[labels[order] == k] for k in range(10)], axis=1)
        chosen = each[np.arange(self.images_per_class) % len(each)].ravel()
        number = len(chosen)
        chosen = chosen[np.argsort(self._random("order", number), kind="stable")]
        masks, labels = masks[chosen], labels[chosen]
        angles = self._random("angles", number) % 21
        turned = np.empty_like(masks)
        for angle in set(angles.tolist()):
            turned[angles == angle] = rotate(masks[angles == angle], angle - 10)
        corners = (self._random("places", 2 * number) % 5).reshape(-1, 2).tolist()
        framed = [frame(one[None], *at) for one, at in zip(turned, corners, strict=True)]
        # Five in six pairs of colours differ enough, so four times as many leave some to spare.
        pairs = (self._random("colours", 4 * 6 * number) % 256).astype(int).reshape(-1, 2, 3)
        pairs = pairs[np.abs(pairs[:, 0] - pairs[:, 1]).mean(axis=1) > CONTRAST][:number]
        return colour_glyphs(np.concatenate(framed), pairs.astype(np.uint8)), labels


def frame(images: Bytes, top: int, left: int) -> Bytes:
    """Put images (n, height, width) in black frames (n, 32, 32)."""
    _, height, width = images.shape
    rest = (top, SIDE - height - top), (left, SIDE - width - left)
    return np.pad(images, ((0, 0), *rest))


def _choose(source: str, labels: Bytes, per_class: int, random: NDArray) -> NDArray[np.intp]:
    """Draw indices (per_class, 10): each column of one class, and each row in random order."""
    order = np.argsort(random, kind="stable")
    columns = [order[labels[order] == k][:per_class] for k in range(10)]
    if few := [k for k, column in enumerate(columns) if len(column) < per_class]:
        raise ValueError(
            f"{source} has {len(columns[few[0]])} images of the digit {few[0]}, and {per_class} "
            f"are needed; expected torchvision's whole {source}, or a smaller images_per_class"
        )
    indices = np.stack(columns, axis=1)
    shuffled = np.argsort(random[indices], axis=1, kind="stable")
    return np.take_along_axis(indices, shuffled, axis=1)
