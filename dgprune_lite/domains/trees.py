"""The image files of a folder tree `root/domain/class/image`, or what is wrong with the tree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dgprune_lite.checks import nearest_name

SHOWN = 10  # names that an error message lists; more are counted

Files = dict[str, list[tuple[str, int]]]


@dataclass(frozen=True)
class Layout:
    """What folders a data set consists of.

    Attributes:
        dataset: its name, for error messages.
        folders: domain name to the name of its folder; empty for whatever folders there are.
        class_names: the folders in each domain, in label order; empty for whatever there are.
        where: where the data set is to be had, a sentence.
    """

    dataset: str
    folders: Mapping[str, str]
    class_names: tuple[str, ...]
    where: str

    def expected(self, root: Path) -> str:
        """Return the tree that should be there, and where to get it, as text of several lines."""
        shown = self.class_names or ("cat", "dog", "...")
        classes = ", ".join(shown[:7]) + (", ..." if len(shown) > 7 else "")
        folders = [*self.folders.values()] or ["photo", "sketch", "..."]
        tree = [f"    {folder}/  holds the folders {classes}" for folder in folders]
        return "\n".join(
            [
                f"Expected (images in each class folder)\n  {root}/",
                *tree,
                f"To be had: {self.where}",
            ]
        )


def find_images(root: Path, layout: Layout) -> tuple[Layout, Files]:
    """Return every image of a tree, or say what is wrong with it.

    Args:
        root: the folder that holds the domains.
        layout: what should be there. Folders whose names begin with a point, and, where the
            domains are given, folders that are none of them, are passed over.

    Returns:
        The layout, with what it left open filled in, and (path, label) of every image by domain.

    Raises:
        FileNotFoundError: if the root, a domain, a class or the images of a class are missing.
        ValueError: if a domain has a class folder that is no class of the data set.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    layout = _with_domains(root, layout)
    layout = _with_classes(root, layout)
    labels = {name: label for label, name in enumerate(layout.class_names)}
    files = {
        name: make_dataset(str(root / folder), labels, IMG_EXTENSIONS, allow_empty=True)
        for name, folder in layout.folders.items()
    }
    empty = [
        f"{layout.folders[name]}/{layout.class_names[label]}"
        for name, found in files.items()
        for label in sorted(set(labels.values()) - {label for _, label in found})
    ]
    if empty:
        raise FileNotFoundError(
            f"{listed('class folder', empty)} in {str(root)!r} without any image (of "
            f"{', '.join(IMG_EXTENSIONS)}); was it copied only in part? {layout.expected(root)}"
        )
    return layout, files


def _with_domains(root: Path, layout: Layout) -> Layout:
    if not root.is_dir():
        raise FileNotFoundError(
            f"{layout.dataset}: there is no folder {str(root)!r}. {layout.expected(root)}"
        )
    present = _folders(root)
    folders = dict(layout.folders) or {name: name for name in present}
    missing = [folder for folder in folders.values() if folder not in present]
    if len(missing) == len(folders):
        raise FileNotFoundError(
            f"{layout.dataset}: {str(root)!r} holds none of its domains (folders found: "
            f"{', '.join(present) or 'none'}). {layout.expected(root)}"
        )
    if missing:
        raise FileNotFoundError(
            f"{layout.dataset}: {str(root)!r} lacks {listed('domain', missing)}; was it copied "
            f"only in part? {layout.expected(root)}"
        )
    return replace(layout, folders=folders)


def _with_classes(root: Path, layout: Layout) -> Layout:
    present = {folder: _folders(root / folder) for folder in layout.folders.values()}
    known = layout.class_names or tuple(sorted(set().union(*present.values())))
    layout = replace(layout, class_names=known)
    strange = [f"{folder}/{name}" for folder in present for name in present[folder]]
    strange = [name for name in strange if name.split("/")[1] not in known]
    if strange:
        raise ValueError(
            f"{layout.dataset} has no such class: {listed('folder', strange)} in {str(root)!r}; "
            f"expected {', '.join(known)} in every domain, since labels must mean the same "
            f"everywhere.{nearest_name(strange[0].split('/')[1], known)} Rename or remove it"
        )
    missing = [
        f"{folder}/{name}" for folder in present for name in known if name not in present[folder]
    ]
    if missing or not known:
        raise FileNotFoundError(
            f"{layout.dataset}: {str(root)!r} lacks {listed('class folder', missing)}; was it "
            f"copied only in part, or has a class another name in another domain? "
            f"{layout.expected(root)}"
        )
    return layout


def _folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and entry.name[0] != ".")


def listed(what: str, names: Iterable[str]) -> str:
    """Return "the file 'a'" or "3 files 'a', 'b', 'c'", the first ten of them by name.

    Example:
        >>> listed("file", ["a", "b"])
        "2 files 'a', 'b'"
    """
    names = list(names)
    number = f"the {what}" if len(names) == 1 else f"{len(names)} {what}s"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{number} {', '.join(map(repr, names[:SHOWN]))}{more}"
