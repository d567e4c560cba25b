"""Images of a domain, decoded when they are asked for, prepared and augmented as in DomainBed.

What this file is *not*: it finds no files. `folders.py` and `hub.py` do, and make an `ImageDomain`
of what they find.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from dgprune_lite.domains.splits import domain_permutation
from dgprune_lite.domains.tensors import MEAN, STD, batch_seed

if TYPE_CHECKING:
    from PIL.Image import Image

WORKERS = min(16, os.cpu_count() or 1)  # Pillow decodes and resizes outside Python's lock


@dataclass(frozen=True, eq=False)
class ImageDomain(Dataset):
    """The images of one domain, each decoded when it is asked for: a map-style dataset.

    A sample is (image, label): image float32 (3, size, size), resized, in [0, 1] and then
    normalised with ImageNet's mean and standard deviation; label int.

    An augmented domain changes images at random (see `draw_augmentation`). What is drawn depends on
    the domain's name and on *all* places of a batch, and on nothing else: equal batches are
    augmented equally, so training from a seed can be repeated, and an image meets another
    augmentation whenever it comes in other company. (Asked for alone, it always meets the same.)
    The global random state is neither read nor changed.

    Attributes:
        name: the domain, for error messages.
        sources: where the images are, one entry an image: paths, or rows of a table.
        labels: class index of each image.
        load: a function from an entry of `sources` to a PIL image in RGB mode.
        size: height and width of the images, in pixels.
        augmented: whether images are augmented, as in training.

    Raises:
        IndexError: for a place outside the domain.
        ValueError: on access, if an image of the batch cannot be decoded; it names all that cannot.

    Example:
        >>> from PIL import Image
        >>> blank = partial(Image.new, "RGB")
        >>> domain = ImageDomain("photo", [(9, 7), (8, 8)], [0, 1], blank, size=6)
        >>> image, label = domain[1]
        >>> image.shape, image.dtype, label, len(domain)
        (torch.Size([3, 6, 6]), torch.float32, 1, 2)
    """

    name: str
    sources: Sequence[Any]
    labels: Sequence[int]
    load: Callable[[Any], Image]
    size: int = 224
    augmented: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Return the samples of a batch; PyTorch's `DataLoader` and `Subset` ask for it, too."""
        from torchvision.transforms.v2 import functional as F

        labels = [self.labels[place] for place in places]
        batch = self.bytes(places).float().div_(255.0)
        batch = F.normalize(batch, MEAN, STD, inplace=True)
        return list(zip(batch, labels, strict=True))

    def bytes(self, places: Sequence[int]) -> Tensor:
        """Return images as they are before they are normalised, uint8 (n, 3, size, size)."""
        from torchvision.transforms.v2 import functional as F

        images = self._decode([self.sources[place] for place in places])
        if self.augmented:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(batch_seed(self.name, places))
                changes = [draw_augmentation(image, self.size) for image in images]
        else:
            changes = [partial(F.resize, size=[self.size, self.size])] * len(images)
        # Pillow in threads, PyTorch on the batch as a whole: each to where it is fast.
        pixels = _in_threads(lambda change, image: F.pil_to_tensor(change(image)), changes, images)
        return torch.stack(pixels)

    def _decode(self, sources: Sequence[Any]) -> list[Image]:
        def attempt(source: Any) -> Image | Exception:
            try:
                return self.load(source)
            except Exception as error:  # Pillow raises half a dozen kinds for damaged files
                return error

        images, failures = [], []
        for source, found in zip(sources, _in_threads(attempt, sources), strict=True):
            if isinstance(found, Exception):
                failures.append(f"{source} ({found})")
            else:
                images.append(found)
        if failures:
            raise ValueError(
                f"{len(failures)} of {len(sources)} images of domain {self.name!r} cannot be "
                f"decoded: {'; '.join(failures)}. Copy them anew. To find all such images of the "
                f"data set at once, open it with check='full'; to leave them out, also with "
                f"skip_unreadable=True"
            )
        return images


def draw_augmentation(image: Image, size: int) -> Callable[[Image], Image]:
    """Draw one random change of an image as DomainBed does in training.

    A crop of 70 to 100 % of the area, resized to the size wanted; a horizontal flip in one half of
    the cases; brightness, contrast, saturation (factors from 0.7 to 1.3) and hue (up to 0.3 of a
    turn) in random order; grey in one case of ten. Drawn with PyTorch's global generator.

    Args:
        image: decides between which sizes the crop is drawn; left alone.
        size: height and width of the result in pixels.

    Returns:
        A function from a PIL image of that size to one of (size, size), without any randomness.

    Source:
        DomainBed (Gulrajani and Lopez-Paz, "In search of lost domain generalization", ICLR 2021),
        appendix on data augmentation; drawn by `torchvision.transforms.v2`.

    Example:
        >>> from PIL import Image
        >>> image = Image.new("RGB", (30, 20))
        >>> draw_augmentation(image, size=8)(image).size
        (8, 8)
    """
    from torchvision.transforms import v2

    box = v2.RandomResizedCrop.get_params(image, scale=[0.7, 1.0], ratio=[3 / 4, 4 / 3])
    factors = [0.7, 1.3]
    order, *jitter = v2.ColorJitter.get_params(factors, factors, factors, [-0.3, 0.3])
    flipped, grey = (torch.rand(2) < torch.tensor([0.5, 0.1])).tolist()
    jitters = list(zip(JITTERS, jitter, strict=True))
    return partial(
        _augment,
        box=box,
        size=size,
        flipped=flipped,
        jitters=[jitters[place] for place in order.tolist()],
        grey=grey,
    )


JITTERS = ("adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue")


def _augment(
    image: Image,
    box: tuple[int, int, int, int],
    size: int,
    flipped: bool,
    jitters: Iterable[tuple[str, float]],
    grey: bool,
) -> Image:
    from torchvision.transforms.v2 import functional as F

    image = F.resized_crop(image, *box, size=[size, size])
    if flipped:
        image = F.horizontal_flip(image)
    for name, amount in jitters:
        image = getattr(F, name)(image, amount)
    return F.rgb_to_grayscale(image, num_output_channels=3) if grey else image


def balanced_places(labels: Sequence[int], limit: int, name: str, seed: int) -> list[int]:
    """Draw at most `limit` images, equally many of every class as far as the classes last.

    Args:
        labels: class index of every image of a domain.
        limit: how many images are wanted, at least 1.
        name: the domain; another one draws otherwise.
        seed: seed of the draw.

    Returns:
        The places drawn, in ascending order.

    Example:
        >>> balanced_places([0, 0, 0, 0, 0, 1], limit=4, name="photo", seed=0)[-1]
        5
    """
    drawn: Counter[int] = Counter()
    ranked = []
    for place in domain_permutation(f"{name}/limit", len(labels), seed).tolist():
        ranked.append((drawn[labels[place]], labels[place], place))
        drawn[labels[place]] += 1
    # First one image of every class, then a second one of every class, and so on.
    return sorted(place for _, _, place in sorted(ranked)[:limit])


def _in_threads(function: Callable, *columns: Sequence[Any]) -> list:
    # A `DataLoader` with workers has as many processes as its caller wants to be busy.
    if len(columns[0]) <= 1 or WORKERS == 1 or get_worker_info() is not None:
        return list(map(function, *columns))
    with ThreadPoolExecutor(min(WORKERS, len(columns[0]))) as pool:
        return list(pool.map(function, *columns))
