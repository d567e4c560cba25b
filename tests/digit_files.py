"""Small files in the formats that torchvision keeps MNIST and SVHN in; no download."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import SVHN


def write_mnist(root: Path, train: int = 80, test: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Write MNIST of so many scans in the idx format; return scans and digits, as read."""
    rng = np.random.default_rng(0)
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    kept = []
    for name, number in (("train", train), ("t10k", test)):
        scans = rng.integers(0, 256, (number, 28, 28), dtype=np.uint8)
        digits = np.arange(number, dtype=np.uint8) % 10
        header = struct.pack(">IIII", 0x803, number, 28, 28)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + scans.tobytes())
        header = struct.pack(">II", 0x801, number)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(header + digits.tobytes())
        kept.append((scans, digits))
    return np.concatenate([s for s, _ in kept]), np.concatenate([d for _, d in kept])


def write_svhn(
    root: Path, monkeypatch: pytest.MonkeyPatch, number: int = 60
) -> tuple[np.ndarray, np.ndarray]:
    """Write SVHN's training part of so many images; return images and digits, as read."""
    from scipy.io import savemat

    root.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(1).integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)
    digits = np.arange(number) % 10
    path = root / "train_32x32.mat"
    labels = np.where(digits == 0, 10, digits)  # SVHN calls the digit zero 10
    savemat(path, {"X": images.transpose(1, 2, 3, 0), "y": labels[:, None].astype(np.uint8)})
    entry = ["http://nowhere.invalid/", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setitem(SVHN.split_list, "train", entry)
    return images, digits
