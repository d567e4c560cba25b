"""Images of a domain decoded once, kept as bytes, and augmented a whole batch at a time."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

# Mean and standard deviation of ImageNet's channels, which torchvision's networks are trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
GREY = (0.299, 0.587, 0.114)  # how bright red, green and blue look (ITU-R BT.601)


def to_device(tensor: Tensor, device: torch.device | str | None) -> Tensor:
    """Copy a tensor to a device; to a GPU by way of pinned memory, without waiting for it."""
    if is_gpu(device) and not tensor.is_cuda:
        pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
        return pinned.to(device, non_blocking=True)
    return tensor.to(device)


def is_gpu(device: torch.device | str | None) -> bool:
    """Whether it is a CUDA device."""
    return device is not None and torch.device(device).type == "cuda"


@dataclass(frozen=True, eq=False)
class ImageTensors(Dataset):
    """The images of one domain as one tensor of bytes, on any device: a map-style dataset.

    Samples are float32, in [0, 1] and then normalised with ImageNet's mean and standard deviation.
    An augmented domain changes a batch in a few operations where the images are.

    Attributes:
        name: The domain.
        images: uint8 (n, 3, size, size), on any device.
        labels: int64 (n,), on the CPU, where they are checked.
        augmented: Whether images are augmented, as in training.

    >>> images, labels = torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.arange(3)
    >>> domain = ImageTensors("photo", images, labels)
    >>> images, labels = domain.batch([2, 0])
    >>> images.shape, images.dtype, labels
    (torch.Size([2, 3, 8, 8]), torch.float32, tensor([2, 0]))
    """

    name: str
    images: Tensor
    labels: Tensor
    augmented: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        images, labels = self.batch([index])
        return images[0], int(labels[0])

    def batch(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Return images (n, 3, size, size), where they are kept, and labels (n,), on the CPU."""
        indices = torch.as_tensor(indices, dtype=torch.long)
        device = self.images.device
        images = self.images[to_device(indices, device)].float().div_(255.0)
        if self.augmented:
            generator = torch.Generator().manual_seed(batch_seed(self.name, indices.tolist()))
            images = augment(images, generator)
        mean, std = (constant(values, device).view(3, 1, 1) for values in (MEAN, STD))
        return images.sub_(mean).div_(std), self.labels[indices]


def batch_seed(name: str, indices: Sequence[int]) -> int:
    """The seed of a batch's augmentation: of its domain and its indices, and of nothing else."""
    # A cryptographic digest, since `hash` changes by process.
    digest = hashlib.sha256(f"{name}/{[int(index) for index in indices]}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """A tensor that is made once for a device: making one there would wait for its queue."""
    return torch.tensor(values, device=device)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change every image of a batch in its own way, as DomainBed does in training."""
    # What is drawn is that of `draw_augmentation`, on the CPU for any device, but hue is turned in
    # the plane of equal brightness, not in HSV: so one linear map of colours serves an image.
    number = len(images)

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(number, generator=generator)

    area, ratio = draw(0.7, 1.0), draw(math.log(3 / 4), math.log(4 / 3)).exp()
    # Shares of the sides, and a corner that leaves the crop within the image.
    wide, high = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    across, down = (1 - wide) * draw(-1, 1), (1 - high) * draw(-1, 1)
    wide = torch.where(draw(0, 1) < 0.5, -wide, wide)
    zero = torch.zeros(number)
    crop = torch.stack([wide, zero, across, zero, high, down], 1).view(number, 2, 3)
    grid = F.affine_grid(to_device(crop, images.device), list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)

    bright, contrast, saturation = draw(0.7, 1.3), draw(0.7, 1.3), draw(0.7, 1.3)
    saturation = torch.where(draw(0, 1) < 0.1, zero, saturation)
    colours = to_device(colour_maps(bright, saturation, draw(-0.3, 0.3)), images.device)
    images = (colours @ images.flatten(2)).view_as(images).clamp_(0, 1)
    grey = constant(GREY, images.device)
    mean = torch.einsum("nchw,c->nhw", images, grey).mean((1, 2)).view(-1, 1, 1, 1)
    factors = to_device(contrast, images.device).view(-1, 1, 1, 1)
    return (mean + factors * (images - mean)).clamp_(0, 1)


def colour_maps(bright: Tensor, saturation: Tensor, turn: Tensor) -> Tensor:
    """Matrices (n, 3, 3) on red, green, blue: brightness × saturation × a turn of the hue."""
    # In brightness and two differences of colour (YIQ), hue is an angle and saturation a length.
    to_yiq = torch.tensor([GREY, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])
    cos, sin = saturation * (2 * math.pi * turn).cos(), saturation * (2 * math.pi * turn).sin()
    maps = torch.zeros(len(turn), 3, 3)
    maps[:, 0, 0] = 1
    maps[:, 1, 1], maps[:, 1, 2], maps[:, 2, 1], maps[:, 2, 2] = cos, -sin, sin, cos
    return bright.view(-1, 1, 1) * (torch.linalg.inv(to_yiq) @ maps @ to_yiq)
