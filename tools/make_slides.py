"""Make the lecture's slides from book/slides/lecture.md: run it, write a folder, print it.

    python tools/make_slides.py              # _build/slides/index.html and _build/slides.pdf
    python tools/make_slides.py --output DIR

The folder holds all that the slides need and opens from a disk, with no network. The PDF is printed
by Chromium; where there is none, only the folder is made.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import jupytext
import yaml
from chromium import find_chromium, launch
from nbclient import NotebookClient
from nbconvert.exporters import SlidesExporter

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"
SOURCE = BOOK / "slides" / "lecture.md"
STATIC = BOOK / "_static"
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
SIZE = {"width": 1280, "height": 720}  # CSS pixels of a slide


def run(source: Path = SOURCE) -> Any:
    """The notebook of the slides, executed in the folder book/, where the chapters run too."""
    notebook = jupytext.read(source)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    timeout = CONFIG["execute"]["timeout"]  # seconds a cell, as in the book
    where = {"metadata": {"path": str(BOOK)}}
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3", resources=where)
    client.execute(env=environment)
    return notebook


def check(notebook: Any) -> None:
    """Refuse what a listener would stumble over.

    Raises:
        ValueError: A figure without alternative text, output on standard error, a slide without
            a title or without notes; each names the cell.
    """
    titles: list[str] = []
    notes = 0
    for cell in notebook.cells:
        kind = cell.metadata.get("slideshow", {}).get("slide_type")
        start = " ".join(cell.source.split())[:60]
        if kind == "slide":
            if not re.match(r"#{1,2} \S", cell.source):
                raise ValueError(f"a slide starts with {start!r}: give it a title")
            if notes < len(titles):
                raise ValueError(f"the slide {titles[-1]!r} has no notes for the speaker")
            titles.append(cell.source.split("\n")[0].lstrip("# "))
        notes += kind == "notes"
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                raise ValueError(f"the cell {start!r} writes to standard error: {output.text}")
            alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt")
            if "image/svg+xml" in output.get("data", {}) and not alt:
                raise ValueError(f"the figure of the cell {start!r} has no alternative text")
    if notes < len(titles):
        raise ValueError(f"the slide {titles[-1]!r} has no notes for the speaker")


def minutes(notebook: Any) -> float:
    """How long the talk takes by its speaker notes, each of which starts with "**2 min.**"."""
    notes = [
        cell.source
        for cell in notebook.cells
        if cell.metadata.get("slideshow", {}).get("slide_type") == "notes"
    ]
    found = [re.match(r"\*\*([\d.]+) min\.\*\*", note) for note in notes]
    if missing := [note[:60] for note, match in zip(notes, found, strict=True) if not match]:
        raise ValueError(f"the notes {missing[0]!r} do not start with their minutes, '**2 min.**'")
    return sum(float(match[1]) for match in found if match)


def write(notebook: Any, folder: Path) -> Path:
    """Write the slides and all that they load into a folder, in place of what is there.

    Returns:
        The page to open.
    """
    exporter = SlidesExporter(
        extra_template_basedirs=[str(BOOK / "slides")],
        template_name="template",
        exclude_anchor_links=True,
    )
    exporter.register_filter("to_base64", lambda text: base64.b64encode(text.encode()).decode())
    for cell in notebook.cells:  # one picture of each output: sharp at every size
        for output in cell.get("outputs", []):
            if "image/svg+xml" in output.get("data", {}):
                output["data"] = {"image/svg+xml": output["data"]["image/svg+xml"]}
    notebook.metadata["title"] = next(
        cell.source.split("\n")[0].lstrip("# ")
        for cell in notebook.cells
        if cell.source.startswith("# ")
    )
    page, _ = exporter.from_notebook_node(notebook)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as parent:
        made = Path(parent, "slides")
        for name in ("reveal", "mathjax", "source-sans", "source-code"):
            shutil.copytree(STATIC / "vendor" / name, made / "vendor" / name)
        for path in (BOOK / "slides" / "slides.css", STATIC / "fonts.css", STATIC / "favicon.svg"):
            shutil.copy(path, made)
        (made / "index.html").write_text(page, encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)
    return folder / "index.html"


def print_pdf(page: Path, pdf: Path) -> bool:
    """Print the slides by Chromium, one a sheet; tell whether there is a Chromium to do so."""
    executable = find_chromium()
    if executable is None:
        return False
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory(dir=pdf.parent) as folder, sync_playwright() as playwright:
        made = Path(folder, "slides.pdf")
        browser = launch(playwright, executable)
        sheets = browser.new_context(offline=True, viewport=SIZE).new_page()
        sheets.goto(f"{page.resolve().as_uri()}?view=print", wait_until="load")
        sheets.wait_for_selector("html[data-printable]", timeout=120_000)
        sheets.evaluate("() => document.fonts.ready")
        sheets.pdf(path=made, prefer_css_page_size=True, print_background=True)
        browser.close()
        made.replace(pdf)
    return True


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--output", type=Path, default=ROOT / "_build", help="folder for slides/ and slides.pdf"
    )
    output = parser.parse_args(arguments).output
    notebook = run()
    check(notebook)
    page = write(notebook, output / "slides")
    print(f"Open {page} in a browser; S shows the notes. {minutes(notebook):g} minutes.")
    if print_pdf(page, output / "slides.pdf"):
        print(f"To print: {output / 'slides.pdf'}")
    else:
        print("No PDF: no Chromium was found (Debian: apt install chromium).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
