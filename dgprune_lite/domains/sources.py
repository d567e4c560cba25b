"""MNIST and SVHN as torchvision keeps them on disk, downloaded only when that is asked for."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dgprune_lite.domains.digits import Bytes, embedded_arrays

Folder = str | os.PathLike[str]


def mnist_scans(root: Folder, download: bool = False) -> tuple[Bytes, Bytes]:
    """Read torchvision's MNIST, training and test part: scans (70000, 28, 28) and digits."""
    from torchvision.datasets import MNIST

    parts = [_read("MNIST", MNIST, root, download, train=part) for part in (True, False)]
    scans = np.concatenate([part.data.numpy() for part in parts])
    return scans, np.concatenate([part.targets.numpy() for part in parts]).astype(np.uint8)


def svhn_images(root: Folder, download: bool = False) -> tuple[Bytes, Bytes]:
    """Read the training part of torchvision's SVHN: images (73257, 32, 32, 3) and digits."""
    from torchvision.datasets import SVHN

    part = _read("SVHN", SVHN, root, download, split="train")
    return part.data.transpose(0, 2, 3, 1), part.labels.astype(np.uint8)


def embedded_scans() -> tuple[Bytes, Bytes]:
    """Return the 4800 MNIST scans of ``DigitsLite``, uint8 (4800, 28, 28), and their digits."""
    arrays = embedded_arrays()
    scans = np.concatenate([arrays["mnist_scans"], arrays["mnist_m_scans"]])
    return scans, np.concatenate([arrays["mnist_labels"], arrays["mnist_m_labels"]])


def mnist_or_embedded(root: Folder | None, download: bool) -> tuple[Bytes, NDArray, str]:
    """Scans, digits, and in words whose they are: MNIST's in ``root``, or the embedded ones."""
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


def _read(
    name: str, dataset: Callable[..., Any], root: Folder, download: bool, **options: Any
) -> Any:
    """Open a data set of torchvision, with an error of its own for each thing that is wrong."""
    try:
        return dataset(root, download=download, **options)
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
