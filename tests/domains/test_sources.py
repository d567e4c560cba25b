"""MNIST and SVHN from torchvision's files, and what is said where they are not there."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from digit_files import write_mnist, write_svhn
from torchvision.datasets import MNIST, SVHN

from dgprune_lite.domains import ColoredMNIST, RotatedMNIST
from dgprune_lite.domains.mnist import rotate
from dgprune_lite.domains.sources import embedded_scans, mnist_scans, svhn_images


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def test_mnist_is_read_whole_and_in_order(tmp_path: Path) -> None:
    expected = write_mnist(tmp_path)
    for found, wanted in zip(mnist_scans(tmp_path), expected, strict=True):
        assert found.dtype == np.uint8
        assert np.array_equal(found, wanted)


def test_svhn_is_read_upright_with_zero_as_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = write_svhn(tmp_path, monkeypatch)
    for found, wanted in zip(svhn_images(tmp_path), expected, strict=True):
        assert found.dtype == np.uint8
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize(("read", "name"), [(mnist_scans, "MNIST"), (svhn_images, "SVHN")])
@pytest.mark.usefixtures("no_network")
def test_nothing_there(tmp_path: Path, read: Any, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"no {name} in .*or download=True"):
        read(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConnectionError, match=f"cannot download {name} to .*put the files there"):
        read(tmp_path, download=True)


def test_damaged_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"files of MNIST in .* are damaged.*download them anew"):
        mnist_scans(tmp_path)
    write_svhn(tmp_path, monkeypatch)
    path = tmp_path / "train_32x32.mat"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FileNotFoundError, match=r"no SVHN in .*not found or corrupted"):
        svhn_images(tmp_path)


def test_svhn_needs_scipy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_svhn(tmp_path, monkeypatch)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match="reading SVHN needs SciPy: pip install scipy"):
        svhn_images(tmp_path)


# --- RotatedMNIST and ColoredMNIST --------------------------------------------------------


def test_rotated_is_made_of_all_scans_at_root(tmp_path: Path) -> None:
    scans, digits = write_mnist(tmp_path, train=50, test=16)
    data = RotatedMNIST(root=tmp_path)
    assert data.source == "66 scans of torchvision's MNIST"
    assert repr(data).endswith("10 classes, images 1×28×28, 66 scans of torchvision's MNIST)")
    assert [len(data[env]) for env in data] == [11] * 6  # type: ignore[arg-type]
    images, labels = data["0"].tensors  # type: ignore[attr-defined]
    known = {scan.tobytes(): digit for scan, digit in zip(scans, digits, strict=True)}
    pixels = images[:, 0].mul(255).round().byte().numpy()
    assert [known[image.tobytes()] for image in pixels] == labels.tolist()


def test_a_large_environment_is_rotated_like_a_small_one(tmp_path: Path) -> None:
    scans, digits = write_mnist(tmp_path, train=6000, test=600)
    images, labels = RotatedMNIST(root=tmp_path)["45"].tensors  # type: ignore[attr-defined]
    assert len(images) == 1100
    turned = np.concatenate([rotate(part, 45) for part in np.split(scans, 66)])
    known = {scan.tobytes(): digit for scan, digit in zip(turned, digits, strict=True)}
    pixels = images[:, 0].mul(255).round().byte().numpy()
    assert [known[image.tobytes()] for image in pixels] == labels.tolist()


def test_coloured_is_made_of_all_scans_at_root(tmp_path: Path) -> None:
    scans, _ = write_mnist(tmp_path)
    data = ColoredMNIST(root=str(tmp_path))
    found = [image for env in data for image in data[env].tensors[0].sum(1)]  # type: ignore[attr-defined]
    expected = {scan.tobytes() for scan in scans}
    assert {image.mul(255).round().byte().numpy().tobytes() for image in found} == expected


@pytest.mark.parametrize("variant", [RotatedMNIST, ColoredMNIST])
@pytest.mark.usefixtures("no_network")
def test_without_mnist_the_embedded_scans_are_used_and_it_is_said(
    variant: type[RotatedMNIST], tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="using the 4800 embedded scans: no MNIST in") as caught:
        data = variant(root=tmp_path)
    assert Path(caught[0].filename) == Path(__file__)  # it points to the caller
    assert data.source == "4800 embedded scans"
    assert data.source in repr(data)
    env = data.ENVIRONMENTS[0]
    for one, two in zip(data[env].tensors, variant()[env].tensors, strict=True):  # type: ignore[attr-defined]
        assert torch.equal(one, two)
    with pytest.raises(ConnectionError, match="cannot download MNIST"):
        variant(root=tmp_path, download=True)
    with pytest.raises(ValueError, match="download is True, but root is None"):
        variant(download=True)


def test_a_download_is_torchvisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(self: MNIST) -> None:
        if not (tmp_path / "MNIST").exists():
            write_mnist(tmp_path)

    monkeypatch.setattr(MNIST, "download", download)
    assert len(mnist_scans(tmp_path, download=True)[0]) == 120
    monkeypatch.setattr(SVHN, "download", lambda self: write_svhn(tmp_path, monkeypatch))
    write_svhn(tmp_path / "sum", monkeypatch)  # the checksum that torchvision expects
    assert len(svhn_images(tmp_path, download=True)[0]) == 60


def test_embedded_scans_are_distinct() -> None:
    assert len({scan.tobytes() for scan in embedded_scans()[0]}) == 4800
