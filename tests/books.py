"""Books of one chapter, to build in a test."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).parent.parent


def make_book(folder: Path, chapter: str) -> Path:
    """A book with this book's configuration and one chapter."""
    (folder / "book").mkdir(parents=True)
    shutil.copy(ROOT / "_config.yml", folder)
    shutil.copytree(ROOT / "book" / "_ext", folder / "book" / "_ext")
    (folder / "book" / "_static").mkdir()
    for name in ("fonts.css", "dgprune.css", "favicon.svg"):
        shutil.copy(ROOT / "book" / "_static" / name, folder / "book" / "_static")
    shutil.copy(ROOT / "book" / "references.bib", folder / "book")
    (folder / "_toc.yml").write_text("format: jb-book\nroot: book/chapter\n")
    header = "---\njupytext:\n  text_representation:\n    format_name: myst\nkernelspec:\n"
    header += "  display_name: Python 3\n  name: python3\n---\n\n# A chapter\n\n"
    (folder / "book" / "chapter.md").write_text(header + chapter)
    return folder
