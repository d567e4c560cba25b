"""Data sets of image files: a folder for each domain, in it a folder for each class.

What this file is *not*: a downloader. The data sets of the field are large and their terms are
their authors'; the errors say where each is to be had and where its files belong.
"""

from __future__ import annotations

import copy
import operator
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch.utils.data import Dataset

from dgprune_lite.checks import nearest_name
from dgprune_lite.domains.base import MultipleDomainDataset
from dgprune_lite.domains.images import ImageDomain, balanced_places
from dgprune_lite.domains.tensors import ImageTensors
from dgprune_lite.domains.trees import Files, Layout, find_images, listed
from dgprune_lite.domains.unreadable import unreadable_images

if TYPE_CHECKING:
    from PIL.Image import Image

CHECKS = ("quick", "full", "none")


class MultipleEnvironmentImageFolder(MultipleDomainDataset):
    """Your own images in the layout `root/domain/class/image`, every domain with the same classes.

    `PACS`, `VLCS`, `OfficeHome` and `TerraIncognita` are the same with fixed names. Each domain is
    an `ImageDomain`: images are decoded when asked for, resized to `image_size` and normalised for
    torchvision's networks. `leave_one_domain_out` augments the training parts as DomainBed does,
    and nothing else.

    Attributes:
        ENVIRONMENTS: names of the domains.
        FOLDERS: domain name to the name of its folder, which works as a name just as well:
            `dataset["art_painting"]` is `dataset["A"]`.
        left_out: unreadable files that the data set leaves out.

    Args:
        root: the folder that holds the domains, or (as DomainBed's `data_dir`) the one above it.
        image_size: height and width of the images, in pixels; 224 in DomainBed.
        limit: at most this many images of each domain, drawn at random and balanced over the
            classes as far as they last; None for all.
        seed: seed of that draw. (The seed of `leave_one_domain_out` decides what is held out.)
        check: how to look for unreadable images: "quick" finds those that are empty or cut short,
            "full" decodes every image, "none" takes them on trust (see `unreadable_images`).
        skip_unreadable: leave out unreadable images, with a warning, rather than raise an error.

    Raises:
        FileNotFoundError: if the folder, a domain, a class or the images of a class are missing.
        ValueError: if a domain has a class folder that does not belong there, if images are
            unreadable (all are named together), or for settings out of range.
        TypeError: if a size, limit or seed is not a whole number.

    Source:
        The class of this name in DomainBed (Gulrajani and Lopez-Paz, "In search of lost domain
        generalization", ICLR 2021).

    Example:
        >>> import tempfile
        >>> from dgprune_lite import draw_tiny_pacs
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     data = MultipleEnvironmentImageFolder(draw_tiny_pacs(folder), image_size=32)
        ...     image, label = data["photo"][0]
        >>> data
        MultipleEnvironmentImageFolder(art_painting 28, cartoon 28, photo 28, sketch 28;
            7 classes, images 3×32×32)
        >>> image.shape, data.class_names[label]
        (torch.Size([3, 32, 32]), 'dog')
    """

    FOLDERS: Mapping[str, str] = {}  # empty: whatever folders there are
    ROOT = ""  # what DomainBed calls the folder that holds the domains
    WHERE = "a data set of your own, one folder a domain, in each the same folders, one a class"
    KNOWN_DAMAGED: frozenset[str] = frozenset()  # "domain/class/file" that others found unreadable

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        image_size: int = 224,
        limit: int | None = None,
        seed: int = 0,
        check: str = "quick",
        skip_unreadable: bool = False,
    ) -> None:
        if check not in CHECKS:
            raise ValueError(
                f"check is {check!r}; expected one of {', '.join(CHECKS)}."
                + nearest_name(check, CHECKS)
            )
        place = Path(root).expanduser()
        if self.ROOT and (place / self.ROOT).is_dir():
            place = place / self.ROOT
        name = type(self).__name__
        layout = Layout(name, self.FOLDERS, self.class_names, self.WHERE)
        layout, files = find_images(place, layout)
        self.FOLDERS, self.class_names = layout.folders, layout.class_names
        bad = set() if check == "none" else unreadable(files, thorough=check == "full")
        known = {str(place / path) for path in self.KNOWN_DAMAGED}
        if bad - known and not skip_unreadable:
            raise ValueError(
                f"{name} has {listed('unreadable image', sorted(bad - known))}. Copy them anew, or "
                f"leave them out with skip_unreadable=True"
            )
        if bad - known:
            what = listed("unreadable image", sorted(bad - known))
            warnings.warn(f"{name} leaves out {what}", stacklevel=2)
        whole = {
            env: [pair for pair in found if pair[0] not in bad] for env, found in files.items()
        }
        gone = [env for env, found in whole.items() if not found]
        if gone:
            raise ValueError(f"{name} has no readable image in {listed('domain', gone)}; copy anew")
        domains = {
            env: ImageDomain(env, [path for path, _ in found], [k for _, k in found], load_rgb)
            for env, found in whole.items()
        }
        self._hold(domains, image_size, limit, seed, left_out=sorted(bad))

    def _hold(
        self,
        domains: Mapping[str, ImageDomain],
        image_size: int,
        limit: int | None,
        seed: int,
        left_out: Iterable[str] = (),
    ) -> None:
        """Take over the domains: resized and limited, wherever their images come from."""
        size, seed = _whole("image_size", image_size, 1), _whole("seed", seed, 0)
        held = {env: replace(domain, size=size) for env, domain in domains.items()}
        if limit is not None:
            limit = _whole("limit", limit, 1)
            held = {env: _limited(domain, limit, seed) for env, domain in held.items()}
        super().__init__(held, self.class_names, (3, size, size))
        self.left_out = tuple(left_out)
        self._sizes = {env: len(domain) for env, domain in held.items()}

    def for_training(self, env: str | int) -> Dataset:
        """Return a domain as training sees it: augmented at random."""
        domain = self[env]
        assert isinstance(domain, ImageDomain | ImageTensors)
        return replace(domain, augmented=True)

    def in_memory(self, device: torch.device | str = "cpu") -> Self:
        """Decode all images once and keep them as bytes, so that no step waits for a disk.

        Args:
            device: where the images are kept and augmented: where the network is.

        Returns:
            The same data set, each domain as `ImageTensors`; 0.5 GB for PACS at 128 pixels.

        Raises:
            ValueError: if images cannot be decoded (all of a domain are named).
        """
        held = copy.copy(self)
        held._opened = {}
        for env in self:
            domain = self[env]
            assert isinstance(domain, ImageDomain)
            images, labels = domain.bytes(range(len(domain))), torch.as_tensor(domain.labels)
            held._opened[env] = ImageTensors(env, images.to(device), labels)
        return held

    def resolve(self, env: str | int) -> str:
        """Return the domain name that a name, a folder's name or a position stands for."""
        if not isinstance(env, str) or env in self.FOLDERS:
            return super().resolve(env)
        by_folder = {folder: name for name, folder in self.FOLDERS.items()}
        if env in by_folder:
            return by_folder[env]
        known = ", ".join(f"{name} ({folder})" for name, folder in self.FOLDERS.items())
        raise ValueError(
            f"{type(self).__name__} has no domain {env!r}; expected one of {known}."
            + nearest_name(env, [*self.FOLDERS, *by_folder])
        )

    def __repr__(self) -> str:
        sizes = ", ".join(f"{env} {size}" for env, size in self._sizes.items())
        shape = "×".join(map(str, self.input_shape))
        return f"{type(self).__name__}({sizes}; {self.num_classes} classes, images {shape})"


def unreadable(files: Files, *, thorough: bool) -> set[str]:
    """Return the paths among `files` that cannot be decoded (see `unreadable_images`)."""
    return set(unreadable_images([path for pairs in files.values() for path, _ in pairs], thorough))


def load_rgb(path: str) -> Image:
    """Decode an image file to a PIL image in RGB mode."""
    from torchvision.datasets.folder import pil_loader

    return pil_loader(path)


def _limited(domain: ImageDomain, limit: int, seed: int) -> ImageDomain:
    places = balanced_places(domain.labels, limit, domain.name, seed)
    sources = [domain.sources[place] for place in places]
    return replace(domain, sources=sources, labels=[domain.labels[place] for place in places])


def _whole(name: str, value: int, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} is {value!r}; expected a whole number") from error
    if number < least:
        raise ValueError(f"{name} is {value!r}; expected a whole number of at least {least}")
    return number
