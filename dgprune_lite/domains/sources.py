"""MNIST and SVHN as torchvision keeps them on disk, downloaded only when that is asked for.

What this file is *not*: a data set of domains. `mnist_variants.py` and `digits_dg.py` make these of
the scans read here.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgprune_lite.domains.digits import Bytes, _embedded_arrays

Folder = str | os.PathLike[str]


def mnist_scans(root: Folder, download: bool = False) -> tuple[Bytes, Bytes]:
    """Read torchvision's MNIST, training and test part, in this order.

    Args:
        root: the folder that has `MNIST/raw/` in it, as for `torchvision.datasets.MNIST`.
        download: fetch the files if they are not there (about 12 MB).

    Returns:
        scans uint8 (70000, 28, 28) and digits uint8 (70000,).

    Raises:
        FileNotFoundError: if the files are not there and `download` is False.
        ConnectionError: if they cannot be downloaded.
        ValueError: if a file is damaged.
    """
    from torchvision.datasets import MNIST

    parts = [
        _read("MNIST", partial(MNIST, root, train=part, download=download), root, download)
        for part in (True, False)
    ]
    scans = np.concatenate([part.data.numpy() for part in parts])
    return scans, np.concatenate([part.targets.numpy() for part in parts]).astype(np.uint8)


def svhn_images(root: Folder, download: bool = False) -> tuple[Bytes, Bytes]:
    """Read the training part of torchvision's SVHN (cropped house numbers).

    Args:
        root: the folder that has `train_32x32.mat` in it, as for `torchvision.datasets.SVHN`.
        download: fetch the file if it is not there (about 180 MB).

    Returns:
        images uint8 (73257, 32, 32, 3) and digits uint8 (73257,).

    Raises:
        FileNotFoundError: if the file is not there, or not whole, and `download` is False.
        ConnectionError: if it cannot be downloaded.
        ImportError: without SciPy, which torchvision reads the file with.
        ValueError: if the file cannot be read.
    """
    from torchvision.datasets import SVHN

    part = _read("SVHN", partial(SVHN, root, split="train", download=download), root, download)
    return part.data.transpose(0, 2, 3, 1), part.labels.astype(np.uint8)


def embedded_scans() -> tuple[Bytes, Bytes]:
    """Return the 4800 MNIST scans of `DigitsLite`: uint8 (4800, 28, 28) and digits uint8 (4800,).

    Example:
        >>> scans, digits = embedded_scans()
        >>> scans.shape, digits.shape
        ((4800, 28, 28), (4800,))
    """
    arrays = _embedded_arrays()
    scans = np.concatenate([arrays["mnist_scans"], arrays["mnist_m_scans"]])
    return scans, np.concatenate([arrays["mnist_labels"], arrays["mnist_m_labels"]])


def mnist_or_embedded(root: Folder | None, download: bool) -> tuple[Bytes, NDArray, str]:
    """Return torchvision's MNIST where it is at hand, or else, with a warning, the embedded scans.

    Args:
        root: as for `mnist_scans`; None for the embedded scans (without a warning).
        download: as for `mnist_scans`.

    Returns:
        scans uint8 (n, 28, 28), digits uint8 (n,), and what they are, in words.

    Raises:
        ValueError: if `download` is True without a `root`, or a file is damaged.
        ConnectionError: if MNIST cannot be downloaded.
    """
    if root is None and download:
        raise ValueError("download is True, but root is None; expected a folder to download to")
    if root is not None:
        try:
            scans, digits = mnist_scans(root, download)
            return scans, digits, f"{len(scans)} scans of torchvision's MNIST"
        except FileNotFoundError as error:
            warnings.warn(f"using the 4800 embedded scans: {error}", stacklevel=3)
    scans, digits = embedded_scans()
    return scans, digits, f"{len(scans)} embedded scans"


def _read(name: str, read: Callable[[], Any], root: Folder, download: bool) -> Any:
    try:
        return read()
    except ImportError as error:
        raise ImportError(f"reading {name} needs SciPy: pip install scipy") from error
    except Exception as error:
        known = isinstance(error, OSError) or (  # torchvision's own words
            isinstance(error, RuntimeError)
            and any(word in str(error) for word in ("not found", "downloading"))
        )
        if not known:  # whatever parsing bytes that are no images leads to
            raise ValueError(
                f"the files of {name} in {str(root)!r} are damaged ({type(error).__name__}: "
                f"{error}); remove them and download them anew"
            ) from error
        if download:
            raise ConnectionError(
                f"cannot download {name} to {str(root)!r} ({error}). Try again, or put the files "
                f"there yourself, as torchvision.datasets.{name} expects them"
            ) from error
        raise FileNotFoundError(
            f"no {name} in {str(root)!r} ({error}); give the folder that has it, as for "
            f"torchvision.datasets.{name}, or download=True"
        ) from error
