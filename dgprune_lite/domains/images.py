"""Images of a domain, decoded when they are asked for, prepared and augmented as in DomainBed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dgprune_lite.domains.decoding import attempt, in_threads
from dgprune_lite.domains.splits import domain_permutation
from dgprune_lite.domains.tensors import MEAN, STD, batch_seed

if TYPE_CHECKING:
    from PIL.Image import Image

JITTERS = ("adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue")


@dataclass(frozen=True, eq=False)
class ImageDomain(Dataset):
    """The images of one domain, each decoded when it is asked for: a map-style dataset.

    A sample is (image, label): image float32 (3, size, size), resized, in [0, 1] and then
    normalised with ImageNet's mean and standard deviation; label int. A ValueError names all images
    of a batch that cannot be decoded.

    An augmented domain changes images at random, by ``draw_augmentation``. What is drawn depends
    on the domain's name and on *all* indices of a batch, and on nothing else: equal batches are
    augmented equally, so training from a seed can be repeated, and an image in another batch
    otherwise. The global random state is neither read nor changed.

    Attributes:
        name: The domain, for error messages.
        sources: Where the images are, one entry an image: paths, or rows of a table.
        labels: Class index of each image.
        load: A function from an entry of ``sources`` to a PIL image in RGB mode.
        size: Height and width of the images, in pixels.
        augmented: Whether images are augmented, as in training.

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

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Return the samples of a batch; PyTorch's ``DataLoader`` and ``Subset`` ask for it."""
        from torchvision.transforms.v2 import functional as F

        labels = [self.labels[index] for index in indices]
        batch = self.bytes(indices).float().div_(255.0)
        return list(zip(F.normalize(batch, MEAN, STD, inplace=True), labels, strict=True))

    def bytes(self, indices: Sequence[int]) -> Tensor:
        """Return images as they are before they are normalised, uint8 (n, 3, size, size)."""
        from torchvision.transforms.v2 import functional as F

        images = self._decode([self.sources[index] for index in indices])
        if self.augmented:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(batch_seed(self.name, indices))
                changes = [draw_augmentation(image, self.size) for image in images]
        else:
            changes = [partial(F.resize, size=[self.size, self.size])] * len(images)
        pixels = in_threads(lambda change, image: F.pil_to_tensor(change(image)), changes, images)
        return torch.stack(pixels)

    def _decode(self, sources: Sequence[Any]) -> list[Image]:
        images = in_threads(partial(attempt, self.load), sources)
        failures = [
            f"{source} ({found})"
            for source, found in zip(sources, images, strict=True)
            if isinstance(found, Exception)
        ]
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

    A crop of 70 to 100 % of the area, resized to (size, size); a horizontal flip in one half of the
    cases; brightness, contrast, saturation (factors from 0.7 to 1.3) and hue (up to 0.3 of a turn)
    in random order; grey in one case of ten (Gulrajani and Lopez-Paz, ICLR 2021, appendix on data
    augmentation). Drawn with PyTorch's global generator; the function returned draws nothing.
    """
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional as F

    box = v2.RandomResizedCrop.get_params(image, scale=[0.7, 1.0], ratio=[3 / 4, 4 / 3])
    factors = [0.7, 1.3]
    order, *amounts = v2.ColorJitter.get_params(factors, factors, factors, [-0.3, 0.3])
    flipped, grey = (torch.rand(2) < torch.tensor([0.5, 0.1])).tolist()

    def augment(image: Image) -> Image:
        image = F.resized_crop(image, *box, size=[size, size])
        if flipped:
            image = F.horizontal_flip(image)
        for jitter in order.tolist():
            image = getattr(F, JITTERS[jitter])(image, amounts[jitter])
        return F.rgb_to_grayscale(image, num_output_channels=3) if grey else image

    return augment


def balanced_indices(labels: Sequence[int], limit: int, name: str, seed: int) -> list[int]:
    """Draw at most ``limit`` images of a domain, equally many of each class where there are."""
    drawn: Counter[int] = Counter()
    ranked = []
    for index in domain_permutation(f"{name}/limit", len(labels), seed).tolist():
        ranked.append((drawn[labels[index]], labels[index], index))
        drawn[labels[index]] += 1
    # First one image of every class, then a second one of every class, and so on.
    return sorted(index for *_, index in sorted(ranked)[:limit])
