"""Data sets of image files: a folder for each domain, in it a folder for each class."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
from torch.utils.data import Dataset

from dgprune_lite.checks import nearest_name, whole_number
from dgprune_lite.domains.base import MultipleDomainDataset
from dgprune_lite.domains.decoding import load_rgb, unreadable_images
from dgprune_lite.domains.images import ImageDomain, balanced_indices
from dgprune_lite.domains.loading import count
from dgprune_lite.domains.tensors import ImageTensors

CHECKS = ("quick", "full", "none")
# What systems leave in folders, besides all whose names begin with a point.
CLUTTER = ("__MACOSX", "__pycache__", "lost+found", "@eaDir", "$RECYCLE.BIN")
SHOWN = 10  # names that an error message lists; more are counted


class MultipleEnvironmentImageFolder(MultipleDomainDataset):
    """Your own images in the layout ``root/domain/class/image``, the same classes in every domain.

    Images are decoded when asked for, turned upright, resized and normalised for torchvision's
    networks. ``leave_one_domain_out`` augments the training parts as DomainBed does. What systems
    and editors leave in folders (hidden files, ``__MACOSX`` and the like) is passed over.

    Attributes:
        FOLDERS: Domain name to its folder's, which works just as well as a name.
        left_out: Unreadable files that the data set leaves out.

    Args:
        root: The folder that holds the domains, or (as DomainBed's ``data_dir``) the one above it.
        image_size: Height and width of the images, in pixels; 224 in DomainBed.
        limit: At most this many images of each domain, drawn at random and balanced over the
            classes as far as they last; None for all.
        seed: Seed of that draw. (The seed of ``leave_one_domain_out`` decides what is held out.)
        check: How to look for unreadable images: "quick" finds those that are empty or cut short,
            "full" decodes every image, "none" takes them on trust.
        skip_unreadable: Leave out unreadable images, with a warning, rather than raise an error.

    Raises:
        FileNotFoundError: The folder, a domain, a class or the images of a class are missing.
        ValueError: A class folder does not belong there, images are unreadable (all are named), or
            a setting is out of range.

    Source: The class of this name in DomainBed (Gulrajani and Lopez-Paz, ICLR 2021).

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
        name, folder = type(self).__name__, Path(root).expanduser()
        if check not in CHECKS:
            near = nearest_name(check, CHECKS)
            raise ValueError(f"check is {check!r}; expected one of {', '.join(CHECKS)}.{near}")
        if self.ROOT and (folder / self.ROOT).is_dir():
            folder = folder / self.ROOT
        files = self._read_folders(folder)
        paths = [path for found in files.values() for path, _ in found]
        bad = {} if check == "none" else unreadable_images(paths, thorough=check == "full")
        known = {str(folder / path) for path in self.KNOWN_DAMAGED}
        shown = [f"{path} ({why})" for path, why in sorted(bad.items()) if path not in known]
        these = listed("unreadable image", shown)
        if shown and not skip_unreadable:
            raise ValueError(
                f"{name} has {these}. Copy them anew, or leave them out with skip_unreadable=True"
            )
        if shown:
            warnings.warn(f"{name} leaves out {these}", stacklevel=2)
        domains = {}
        for env, found in files.items():
            good = [pair for pair in found if pair[0] not in bad]
            domains[env] = ImageDomain(env, [p for p, _ in good], [k for _, k in good], load_rgb)
        if gone := [env for env, domain in domains.items() if not len(domain)]:
            raise ValueError(f"{name} has no readable image in {listed('domain', gone)}; copy anew")
        self._hold(domains, image_size, limit, seed, left_out=sorted(bad))

    def _read_folders(self, root: Path) -> dict[str, list[tuple[str, int]]]:
        """(path, label) of all images by domain; names left open are taken from the folders."""
        from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

        where, partly = repr(str(root)), "was it copied only in part"

        def incomplete(problem: str) -> FileNotFoundError:
            return FileNotFoundError(
                f"{type(self).__name__}: {problem} {self._expected_tree(root)}"
            )

        if not root.is_dir():
            raise incomplete(f"there is no folder {where}.")
        present = _folders(root)
        self.FOLDERS = dict(self.FOLDERS) or {folder: folder for folder in present}
        paths = self.FOLDERS.values()
        missing = [folder for folder in paths if folder not in present]
        if len(missing) == len(paths):
            shown = ", ".join(present) or "none"
            raise incomplete(f"{where} holds none of its domains (folders found: {shown}).")
        if missing:
            raise incomplete(f"{where} lacks {listed('domain', missing)}; {partly}?")
        found = {f"{path}/{name}" for path in paths for name in _folders(root / path)}
        self.class_names = self.class_names or tuple(sorted({path.split("/")[1] for path in found}))
        wanted = {f"{path}/{name}" for path in paths for name in self.class_names}
        if strange := sorted(found - wanted):
            raise ValueError(
                f"{type(self).__name__} has no such class: {listed('folder', strange)} in {where}; "
                f"expected {', '.join(self.class_names)} in every domain, since labels must mean "
                f"the same everywhere.{nearest_name(strange[0].split('/')[1], self.class_names)} "
                f"Rename or remove it"
            )

        def is_image(path: str) -> bool:
            inner = path[len(str(root)) :].split(os.sep)
            return path.lower().endswith(IMG_EXTENSIONS) and not any(map(_is_clutter, inner))

        labels = {name: label for label, name in enumerate(self.class_names)}
        files: dict[str, list[tuple[str, int]]] = {}
        for env, path in self.FOLDERS.items() if wanted else ():
            files[env] = make_dataset(str(root / path), labels, None, is_image, allow_empty=True)
            wanted -= {f"{path}/{self.class_names[label]}" for _, label in files[env]}
        if wanted or not files:
            raise incomplete(
                f"{where} lacks images (of {', '.join(IMG_EXTENSIONS)}) in "
                f"{listed('class folder', sorted(wanted))}; {partly}, or has a class another name "
                f"in another domain?"
            )
        return files

    def _expected_tree(self, root: Path) -> str:
        """The folders that should be there, and where to get them, in several lines."""
        shown = self.class_names or ("cat", "dog", "...")
        classes = ", ".join(shown[:7]) + (", ..." if len(shown) > 7 else "")
        folders = self.FOLDERS.values() or ["photo", "sketch", "..."]
        tree = "".join(f"\n    {folder}/  holds the folders {classes}" for folder in folders)
        return f"Expected (images in each class folder)\n  {root}/{tree}\nTo be had: {self.WHERE}"

    def _hold(
        self,
        domains: Mapping[str, ImageDomain],
        image_size: int,
        limit: int | None,
        seed: int,
        left_out: Iterable[str] = (),
    ) -> None:
        """Take over the domains: resized and limited, wherever their images come from."""
        size, seed = whole_number("image_size", image_size, 1), whole_number("seed", seed)
        held = {env: replace(domain, size=size) for env, domain in domains.items()}
        if limit is not None:
            limit = whole_number("limit", limit, 1)
            for env, domain in held.items():
                few = balanced_indices(domain.labels, limit, env, seed)
                sources, labels = ([x[i] for i in few] for x in (domain.sources, domain.labels))
                held[env] = replace(domain, sources=sources, labels=labels)
        super().__init__(held, self.class_names, (3, size, size))
        self.left_out = tuple(left_out)

    def for_training(self, env: str | int) -> Dataset:
        """Return a domain as training sees it: augmented at random."""
        domain = self[env]
        assert isinstance(domain, ImageDomain | ImageTensors)
        return replace(domain, augmented=True)

    def in_memory(self, device: torch.device | str = "cpu") -> Self:
        """Decode all images once and keep them as bytes, so that no step waits for a disk.

        Args:
            device: Where the images are kept and augmented: where the network is.

        Returns:
            The same data set, each domain as ``ImageTensors``; 0.5 GB for PACS at 128 pixels.
        """
        held = copy.copy(self)
        held._opened = {}
        for env in self:
            domain = self[env]
            assert isinstance(domain, ImageDomain)
            # In parts, since photos take much more space before they are resized.
            parts = torch.arange(len(domain)).split(256)
            images = torch.cat([domain.bytes(part.tolist()).to(device) for part in parts])
            held._opened[env] = ImageTensors(env, images, torch.as_tensor(domain.labels))
        return held

    def __repr__(self) -> str:
        sizes = ", ".join(f"{env} {count(self[env])}" for env in self)
        shape = "×".join(map(str, self.input_shape))
        return f"{type(self).__name__}({sizes}; {self.num_classes} classes, images {shape})"


def listed(what: str, names: list[str]) -> str:
    """Return "the file 'a'" or "2 files 'a', 'b'", the first ten of them by name."""
    number = f"the {what}" if len(names) == 1 else f"{len(names)} {what}s"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{number} {', '.join(map(repr, names[:SHOWN]))}{more}".rstrip()


def _folders(path: Path) -> list[str]:
    return sorted(e.name for e in path.iterdir() if e.is_dir() and not _is_clutter(e.name))


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name in CLUTTER
