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
    """The images of one domain, each decoded when asked for: (float32 (3, size, size), int) pairs.

    What augmenting draws depends on the domain's name and on *all* indices of a batch, and on
    nothing else: equal batches are augmented equally, and no global random state is touched.
    """

    name: str
    sources: Sequence[Any]  # one an image: paths, or rows of a table
    labels: Sequence[int]
    load: Callable[[Any], Image]  # of a source, in RGB mode
    size: int = 224  # height and width, in pixels
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
        pairs = zip(sources, images, strict=True)
        if failures := [f"{source} ({e})" for source, e in pairs if isinstance(e, Exception)]:
            raise ValueError(
                f"{len(failures)} of {len(sources)} images of domain {self.name!r} cannot be "
                f"decoded: {'; '.join(failures)}. Copy them anew. To find all such images of the "
                f"data set at once, open it with check='full'; to leave them out, also with "
                f"skip_unreadable=True"
            )
        return images


def draw_augmentation(image: Image, size: int) -> Callable[[Image], Image]:
    """Draw one random change of an image, as DomainBed makes in training; making it draws none."""
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
