"""DigitsLite: four domains of digits, embedded in the package (no download).

The data file holds what cannot be computed; its card is ``data/README.md``. The images are composed
of it here, to the same bytes on every platform.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

from dgprune_lite.domains.base import MultipleDomainDataset

Bytes = NDArray[np.uint8]

DATA_FILE = Path(str(resources.files("dgprune_lite.domains"))) / "data" / "digits_lite.npz"
CHECKSUM_FILE = DATA_FILE.with_name("checksums.json")

NOISE_SEED = 20221  # of the raw PCG64 stream, which NumPy promises never to change
NOISE_NUMERATOR = 21  # four random bytes have a standard deviation of 147.8; times 21 / 256: 12.1


class DigitsLite(MultipleDomainDataset):
    """Ten digits in four domains: 8940 colour images of 28×28, embedded in the package.

    - mnist: MNIST scans, 2400 images
    - mnist_m: other MNIST scans, blended with photo patches: abs(patch − digit), 2400
    - optdigits: 8×8 scans of other writers, upsampled and centred as in MNIST, 1740
    - syn: printed digits, many typefaces, rotated, coloured, noisy, 2400

    Each domain is a ``TensorDataset`` of images float32 (n, 3, 28, 28) in [0, 1] and labels int64
    (n,), balanced over the classes and in shuffled order. No image appears in two domains.

    Raises:
        FileNotFoundError: The package lacks its data file.
        ValueError: The data file is damaged.

    Source: MNIST (LeCun et al. 1998), MNIST-M (Ganin et al., JMLR 2016), optdigits (Alpaydin and
    Kaynak 1998), Synth Digits (Ganin and Lempitsky, ICML 2015); see data/README.md.

    >>> digits = DigitsLite()
    >>> digits
    DigitsLite(mnist, mnist_m, optdigits, syn; 10 classes, images 3×28×28)
    >>> images, labels = digits["optdigits"].tensors
    >>> images.shape, images.dtype, labels.bincount().tolist()[:3]
    (torch.Size([1740, 3, 28, 28]), torch.float32, [174, 174, 174])
    """

    ENVIRONMENTS = ("mnist", "mnist_m", "optdigits", "syn")
    class_names = tuple("0123456789")
    input_shape = (3, 28, 28)

    def __init__(self) -> None:
        embedded_arrays()  # a damaged file is reported here, not at first use of a domain

    def open_domain(self, name: str) -> TensorDataset:
        """Compose one domain into tensors of its own."""
        images, labels = composed(name)
        return as_tensors(images.transpose(0, 3, 1, 2), labels)


def as_tensors(images: Bytes, labels: NDArray) -> TensorDataset:
    """Bytes (n, channels, height, width) as float32 in [0, 1], labels as int64, in fresh memory."""
    pixels = torch.from_numpy(images.copy()).float().div_(255.0)
    return TensorDataset(pixels, torch.from_numpy(labels.astype(np.int64)))


def read_arrays(path: Path) -> dict[str, NDArray]:
    """Read the arrays of a .npz file, whose own checksums tell whether it is whole; no pickles."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no data file {str(path)!r}; expected it inside the package: reinstall dgprune_lite"
        ) from error
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{str(path)!r} is damaged ({error}); reinstall dgprune_lite (or run "
            f"tools/build_digits.py in a checkout)"
        ) from error


@lru_cache(maxsize=1)
def embedded_arrays() -> dict[str, NDArray]:
    """The arrays of the package's data file, by name, read once."""
    return read_arrays(DATA_FILE)


@lru_cache(maxsize=4)
def composed(name: str) -> tuple[Bytes, Bytes]:
    """Images (n, 28, 28, 3) and labels (n,) of one domain, composed once and not writeable."""
    images, labels = compose(name, embedded_arrays())
    images.flags.writeable = labels.flags.writeable = False
    return images, labels


def compose(name: str, arrays: Mapping[str, NDArray]) -> tuple[Bytes, Bytes]:
    """Compose images (n, 28, 28, 3) and labels (n,) of a domain from the arrays of a data file."""
    if name == "mnist":
        images = grey_to_colour(arrays["mnist_scans"])
    elif name == "mnist_m":
        images = blend_with_photos(arrays["mnist_m_scans"], arrays["mnist_m_patches"], arrays)
    elif name == "optdigits":
        images = grey_to_colour(centre(upsample(arrays["optdigits_scans"])))
    elif name == "syn":
        images = colour_glyphs(arrays["syn_masks"], arrays["syn_colours"])
    else:
        raise ValueError(
            f"DigitsLite has no domain {name!r}; "
            f"expected one of {', '.join(DigitsLite.ENVIRONMENTS)}"
        )
    return images, arrays[f"{name}_labels"].copy()


def grey_to_colour(grey: Bytes) -> Bytes:
    """Repeat grey images (n, height, width) on three channels: (n, height, width, 3)."""
    return np.repeat(grey[..., None], 3, axis=3)


def blend_with_photos(scans: Bytes, patches: NDArray, photos: Mapping[str, NDArray]) -> Bytes:
    """Blend scans (n, side, side) with patches, rows of (photo, top, left): abs(patch − digit)."""
    side = scans.shape[1]
    behind = np.empty((*scans.shape, 3), dtype=np.int16)
    for i, (photo, top, left) in enumerate(patches.tolist()):
        behind[i] = photos[f"photo_{photo}"][top : top + side, left : left + side]
    return np.abs(behind - scans[..., None].astype(np.int16)).astype(np.uint8)


def upsample(scans: Bytes) -> Bytes:
    """Upsample scans (n, 8, 8) of 0 to 16 to (n, 20, 20) of 0 to 255, overshoots clipped."""
    # Bicubic with repeated edges. Exact values are multiples of 4e-6, so a far smaller addition
    # makes rounding the same on every platform.
    framed = F.pad(torch.from_numpy(scans)[:, None].double(), (2,) * 4, mode="replicate")
    large = F.interpolate(framed, 30, mode="bicubic", antialias=True)[:, 0, 5:25, 5:25]
    return (large * (255 / 16) + (0.5 + 1e-7)).floor().clamp(0, 255).byte().numpy()


def centre(images: Bytes) -> Bytes:
    """Put images (n, 20, 20) in (n, 28, 28), the centre of mass in the middle where it fits."""
    framed = np.zeros((len(images), 28, 28), dtype=np.uint8)
    mass = images.astype(np.int64)
    total = np.maximum(mass.sum(axis=(1, 2)), 1)
    pixel = np.arange(20)
    # Offset = round(13.5 − centre of mass), in whole numbers.
    rows = (27 * total - 2 * (mass.sum(axis=2) @ pixel) + total) // (2 * total)
    columns = (27 * total - 2 * (mass.sum(axis=1) @ pixel) + total) // (2 * total)
    for i, (top, left) in enumerate(zip(rows.clip(0, 8), columns.clip(0, 8), strict=True)):
        framed[i, top : top + 20, left : left + 20] = images[i]
    return framed


def colour_glyphs(masks: Bytes, colours: Bytes) -> Bytes:
    """Paint glyphs in front on back colours (n, 2, 3), with noise of 12 grey levels."""
    # Sixteen bits hold every intermediate value: 255 · 255 + 127 < 2^16.
    coverage = masks[..., None].astype(np.uint16)  # (n, 28, 28, 1)
    front = colours[:, 0, None, None, :].astype(np.uint16)  # (n, 1, 1, 3)
    back = colours[:, 1, None, None, :].astype(np.uint16)
    painted = (coverage * front + (255 - coverage) * back + 127) // 255
    # Eight random bytes a draw make the noise of two values: sums of four, nearly Gaussian.
    raw = np.random.PCG64(NOISE_SEED).random_raw(painted.size // 2)
    octets = raw.astype("<u8", copy=False).view(np.uint8).reshape(-1, 4).astype(np.int16)
    noise = (octets.sum(1, dtype=np.int16) - 510) * NOISE_NUMERATOR + 128 >> 8
    return (painted.astype(np.int16) + noise.reshape(painted.shape)).clip(0, 255).astype(np.uint8)
