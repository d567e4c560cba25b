"""RotatedMNIST and ColoredMNIST as DomainBed defines them, of MNIST or of the embedded scans.

Random choices come from NumPy's raw PCG64 stream, and no rounding depends on the platform: all get
the same bytes, which are not DomainBed's to the byte.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

from dgprune_lite.checks import whole_number
from dgprune_lite.domains.base import MultipleDomainDataset
from dgprune_lite.domains.digits import Bytes, as_tensors
from dgprune_lite.domains.sources import Folder, mnist_or_embedded

LABEL_NOISE = 25  # per cent of ColoredMNIST's labels that are flipped


class _MNISTVariant(MultipleDomainDataset):
    """MNIST scans, in random order, dealt out to the environments like cards."""

    def __init__(
        self, seed: int = 0, *, root: Folder | None = None, download: bool = False
    ) -> None:
        self.seed = whole_number("seed", seed)
        # Damaged files are reported here, not at first use of a domain.
        self._scans, self._digits, self.source = mnist_or_embedded(root, download)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, {self.source})"

    def _random(self, stream: int, number: int) -> NDArray[np.uint64]:
        # A stream for each use: an environment is the same whichever were opened before.
        return np.random.PCG64([self.seed, stream]).random_raw(number)

    def _deal(self, index: int) -> tuple[Bytes, Bytes]:
        """Return the scans (n, 28, 28) and digits (n,) of an environment."""
        order = np.argsort(self._random(0, len(self._scans)), kind="stable")
        mine = order[index :: len(self.ENVIRONMENTS)]
        return self._scans[mine], self._digits[mine]


class RotatedMNIST(_MNISTVariant):
    """MNIST digits in six environments that differ by an angle: 0, 15, 30, 45, 60, 75 degrees.

    Each environment is a ``TensorDataset`` of images float32 (n, 1, 28, 28) in [0, 1] and labels
    int64 (n,), n = 800 (of all of MNIST: 11 666 or 11 667), in random order, rotated
    counter-clockwise, bilinear, on black. No scan appears in two environments.

    Args:
        seed: Decides which scan goes to which environment, and in which order; at least 0.
        root: Folder with torchvision's MNIST, all 70 000 scans of which are then used; None, or
            with a warning a folder without MNIST, for 4800 embedded scans. The attribute
            ``source`` says which.
        download: Fetch MNIST to ``root`` (12 MB) if it is not there.

    Raises:
        ConnectionError: MNIST cannot be downloaded.
        ValueError: ``seed`` is negative, a file is damaged, or there is no ``root`` to download to.

    Source: Ghifary et al., "Domain generalization for object recognition with multi-task
    autoencoders", ICCV 2015; environments, channel and interpolation as in DomainBed.

    >>> data = RotatedMNIST()
    >>> data
    RotatedMNIST(0, 15, 30, 45, 60, 75; 10 classes, images 1×28×28, 4800 embedded scans)
    >>> images, labels = data["45"].tensors
    >>> images.shape, images.dtype, labels[:5].tolist()
    (torch.Size([800, 1, 28, 28]), torch.float32, [2, 0, 1, 1, 6])
    """

    ENVIRONMENTS = ("0", "15", "30", "45", "60", "75")
    class_names = tuple("0123456789")
    input_shape = (1, 28, 28)

    def open_domain(self, name: str) -> TensorDataset:
        """Rotate one environment's scans into tensors of its own."""
        scans, digits = self._deal(self.ENVIRONMENTS.index(name))
        parts = np.array_split(scans, 1 + len(scans) // 1000)  # rotating takes 100 times the space
        turned = np.concatenate([rotate(part, int(name)) for part in parts])
        return as_tensors(turned[:, None], digits)


class ColoredMNIST(_MNISTVariant):
    """Is the digit below 5? Its colour often tells, but not to the same degree everywhere.

    The label of an image is 1 for the digits 0 to 4 and 0 for 5 to 9, flipped by chance for 25 % of
    the images. Its colour is the label, flipped again for 10 % of the images in the environment
    "+90%", 20 % in "+80%" and 90 % in "-90%". So the shape predicts 75 % of the labels everywhere,
    the colour more in the first two environments, and in the third it misleads.

    Each environment is a ``TensorDataset`` of images float32 (n, 2, 28, 28) in [0, 1] and labels
    int64 (n,), n = 1600 (of all of MNIST: 23 333 or 23 334), in random order. The digit stands in
    channel 1 ("green") if its colour is 1, else in channel 0 ("red"); the other channel is black.

    Args:
        seed: Decides which scan goes to which environment, and which labels and colours are
            flipped; at least 0.
        root: As for ``RotatedMNIST``, also ``download`` and the errors.

    Source: Arjovsky et al., "Invariant risk minimization", 2019, section 5.2; environments and
    image size (28×28, not 14×14) as in DomainBed.

    >>> data = ColoredMNIST()
    >>> data
    ColoredMNIST(+90%, +80%, -90%; 2 classes, images 2×28×28, 4800 embedded scans)
    >>> images, labels = data["-90%"].tensors
    >>> colours = images[:, 1].amax((1, 2)) > 0
    >>> round((colours == labels).float().mean().item(), 2)
    0.12
    """

    ENVIRONMENTS = ("+90%", "+80%", "-90%")
    class_names = ("5 to 9", "0 to 4")
    input_shape = (2, 28, 28)
    COLOUR_FLIPS = (10, 20, 90)  # per cent, in the order of the environments

    def open_domain(self, name: str) -> TensorDataset:
        """Label and colour one environment's scans into tensors of its own."""
        index = self.ENVIRONMENTS.index(name)
        scans, digits = self._deal(index)
        noise, flips = self._random(1 + index, 2 * len(scans)).reshape(2, -1) % 100
        labels = (digits < 5) ^ (noise < LABEL_NOISE)
        colours = labels ^ (flips < self.COLOUR_FLIPS[index])
        images = np.zeros((len(scans), *self.input_shape), dtype=np.uint8)
        images[np.arange(len(scans)), colours.astype(int)] = scans
        return as_tensors(images, labels)


def rotate(images: Bytes, degrees: int) -> Bytes:
    """Rotate images (n, 28, 28) counter-clockwise about their middle, bilinear, on black."""
    # Rounded so, the coordinates are exact, and grey levels multiples of 2^-42: a larger addition
    # makes rounding them the same on every platform.
    cosine, sine = (round(f(math.radians(degrees)) * 2**20) / 2**20 for f in (math.cos, math.sin))
    turn = torch.tensor([[cosine, -sine, 0], [sine, cosine, 0]], dtype=torch.float64)
    frames = torch.from_numpy(images)[:, None].double()
    grid = F.affine_grid(turn.expand(len(frames), 2, 3), list(frames.shape), align_corners=False)
    turned = F.grid_sample(frames, grid, align_corners=False)[:, 0]
    return (turned + (0.5 + 1e-9)).floor().byte().numpy()
