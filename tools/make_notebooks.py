"""Write the notebooks that Colab, Binder and the download button open, from the chapters.

    python tools/make_notebooks.py            write them, beside the chapters
    python tools/make_notebooks.py --check    say which are out of date; exit 1 if any is

A chapter is a MyST Markdown notebook. Jupyter shows its prose as plain Markdown, in which MyST's
directives, roles and numbers mean nothing. So they are rewritten: admonitions become quotes,
references to figures, equations, papers and chapters become words and links, and sentences that
hold numbers of the run become cells that write them. A directive or role that is unknown here is
an error: nothing is passed on unread. A first cell sets Colab up. Only a chapter whose code asks
for a GPU asks Colab for one: readers have few free hours of them.

What this file is *not*: it runs nothing, and the notebooks hold no output.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import yaml
from pybtex.database import parse_file

ROOT = Path(__file__).parent.parent
BOOK = ROOT / "book"
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
REPOSITORY, BRANCH = CONFIG["repository"]["url"], CONFIG["repository"]["branch"]
COPY = "dgprune_lite_book"  # the folder of the clone on Colab
METADATA = {
    "colab": {"provenance": []},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
GPU_METADATA = {"accelerator": "GPU", "colab": {"gpuType": "T4", "provenance": []}}
SET_UP = f"""# @title Set up (on Colab: Runtime > Run all)
# On Colab: fetch the book and install its package, beside Colab's own PyTorch (half a minute).
# Elsewhere, with the package installed, nothing is fetched.
import importlib.util
import os
import pathlib

if importlib.util.find_spec("dgprune_lite") is None:
    !git clone --quiet --depth 1 --branch {BRANCH} {REPOSITORY} {COPY}
    %pip install --quiet --no-deps ./{COPY}
    importlib.invalidate_caches()
    if importlib.util.find_spec("dgprune_lite") is None:
        raise RuntimeError(
            "The package was not installed; the messages above say why. If it was the network: "
            "Runtime > Disconnect and delete runtime, then Runtime > Run all."
        )
if pathlib.Path("{COPY}/book").is_dir():
    os.chdir("{COPY}/book")  # what the chapters read lies there
elif not pathlib.Path("results").is_dir():
    print("Chapters read files of the book: open this notebook in the folder book/ of a copy.")
"""
ON_CPU = """
print("Ready. This chapter runs on the CPU, in about a minute; it would not use a GPU.")"""
ON_GPU = """
import torch

if torch.cuda.is_available():
    print("Ready. The GPU:", torch.cuda.get_device_name())
else:
    print("Ready, without a GPU. As it stands, the chapter needs none and takes about a minute.")
    print("To get one on Colab: Runtime > Change runtime type > T4 GPU, then Runtime > Run all.")"""
GLUE = '''# @title The numbers of the text
_numbers = {}


def glue(name, value, display=False):
    """Keep a number for the sentences below."""
    _numbers[name] = value'''
WRITE = '''# @title The sentence with its numbers
import re as _re

from IPython.display import Markdown

Markdown(_re.sub("⟦(.*?)⟧", lambda m: str(_numbers[m[1]]), r"""{text}"""))'''

TITLES = {"note": "Note", "tip": "Tip", "warning": "Warning"}
EXERCISE = re.compile(r"^(?:`{3,}|:{3,})\{exercise\}[^\n]*\n:label: ([\w-]+)$", re.MULTILINE)
FOLDED = """<details>
<summary>{title}</summary>

{body}

</details>"""
FENCE = re.compile(
    r"^(?P<fence>`{3,}|:{3,})\{(?P<name>[\w:-]+)\}[ \t]*(?P<title>[^\n]*)\n"
    r"(?P<body>.*?)^(?P=fence)[ \t]*$",
    re.DOTALL | re.MULTILINE,
)
ROLE = re.compile(r"\{(?P<name>[\w:]+)\}`(?P<text>[^`]+)`")
EQUATION = re.compile(r"^\$\$ \((?P<label>[\w-]+)\)$", re.MULTILINE)
PAGE_LINK = re.compile(r"\]\((?P<page>[\w-]+)\.md(?:#[\w-]+)?\)")
LOCAL_IMAGE = re.compile(r"!\[[^\]]*\]\((?!https?://)[^)]*\)")


class Labels:
    """What figures, equations, exercises and papers are called: gathered from all chapters."""

    def __init__(self, chapters: list[Path]) -> None:
        self.words: dict[str, str] = {}
        for number, path in enumerate(chapters, start=1):
            text = path.read_text(encoding="utf-8")
            for place, label in enumerate(EQUATION.findall(text), start=1):
                self.words[label] = f"({number}.{place})"
            for place, label in enumerate(re.findall(r"^    name: (fig-[\w-]+)$", text, re.M), 1):
                self.words[label] = f"Figure {number}.{place}"
            for place, label in enumerate(EXERCISE.findall(text), start=1):
                self.words[label] = f"Exercise {number}.{place}"
        self.papers = parse_file(str(BOOK / "references.bib")).entries

    def paper(self, key: str, textual: bool) -> str:
        """A citation as a link, such as [Cai et al. (2022)](...)."""
        if key not in self.papers:
            raise ValueError(f"paper {key!r} is not in references.bib")
        entry = self.papers[key]
        names = [" ".join(person.last_names) for person in entry.persons["author"]]
        who = f"{names[0]} et al." if len(names) > 2 else " and ".join(names)
        fields = entry.fields
        year = fields["year"]
        where = fields.get("url") or (f"https://doi.org/{fields['doi']}" if "doi" in fields else "")
        words = f"{who} ({year})" if textual else f"({who}, {year})"
        return f"[{words}]({where})" if where else words

    def __getitem__(self, label: str) -> str:
        if label not in self.words:
            raise ValueError(f"label {label!r} belongs to no figure, equation or exercise")
        return self.words[label]


def plain(text: str, labels: Labels) -> str:
    """Markdown that Jupyter shows as it is meant, but for the numbers of the run."""
    text = FENCE.sub(lambda match: _directive(match, labels), text)
    text = EQUATION.sub(lambda match: f"\\tag{{{labels[match['label']][1:-1]}}}\n$$", text)
    text = ROLE.sub(lambda match: _role(match, labels), text)
    text = PAGE_LINK.sub(lambda match: f"]({address(match['page'])})", text)
    if image := LOCAL_IMAGE.search(text):
        raise ValueError(f"{image[0]!r} is a file that Colab does not have: draw it in a cell")
    return text


def address(page: str) -> str:
    """Where a reader of a notebook finds another page: chapters on Colab, the rest on GitHub."""
    site = REPOSITORY.removeprefix("https://github.com/")
    if page[0].isdigit():
        return f"https://colab.research.google.com/github/{site}/blob/{BRANCH}/book/{page}.ipynb"
    return f"{REPOSITORY}/blob/{BRANCH}/book/{page}.md"


def _directive(match: re.Match[str], labels: Labels) -> str:
    name, title = match["name"], match["title"].strip()
    lines = match["body"].strip("\n").split("\n")
    options: dict[str, str] = {}
    while lines and (option := re.match(r":([\w-]+):(.*)", lines[0])):
        options[option[1]] = option[2].strip()
        lines.pop(0)
    body = "\n".join(lines).strip()
    if name == "exercise":
        number = labels[options.get("label", "")]
        return f"**{number}{f' ({title})' if title else ''}**\n\n{body}"
    if name == "hint":
        return FOLDED.format(title="Hint", body=body)
    if name == "admonition" and "dropdown" in options.get("class", ""):
        return FOLDED.format(title=title, body=body)
    if name == "admonition" or name in TITLES:
        quoted = [f"**{title or TITLES[name]}**", "", *body.split("\n")]
        return "\n".join(f"> {line}".rstrip() for line in quoted)
    if name == "raw":
        return "*(This part lives in the web page of the book.)*"
    raise ValueError(f"directive {name!r} is unknown: teach it to tools/make_notebooks.py")


def _role(match: re.Match[str], labels: Labels) -> str:
    name, text = match["name"], match["text"]
    if name in ("cite:p", "cite:t"):
        keys = [key.strip() for key in text.split(",")]
        return ", ".join(labels.paper(key, textual=name == "cite:t") for key in keys)
    if name in ("numref", "eq"):
        return labels[text]
    if name == "glue:text":
        return f"⟦{text}⟧"
    if name == "term":
        return text
    raise ValueError(f"role {name!r} is unknown: teach it to tools/make_notebooks.py")


def convert(chapter: Path, labels: Labels) -> str:
    """The notebook of a chapter, as the text of its file."""
    cells: list[Any] = []
    for cell in jupytext.read(chapter).cells:
        make = _code if cell.cell_type == "code" else _prose
        cells += make(cell, labels)
    on_gpu = any(cell.cell_type == "code" and "cuda" in cell.source for cell in cells)
    cells.insert(1, _code_cell(SET_UP + (ON_GPU if on_gpu else ON_CPU), form=True))
    if any("glue(" in cell.source and "myst_nb" in cell.source for cell in cells):
        cells.insert(2, _code_cell(GLUE, form=True))
        for cell in cells:
            cell.source = re.sub(r"^from myst_nb import glue\n+", "", cell.source, flags=re.M)
    metadata = METADATA | (GPU_METADATA if on_gpu else {})
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=metadata)
    for place, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{place:03d}"
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def _code(cell: Any, labels: Labels) -> list[Any]:
    """A code cell and, below one that draws a figure, its caption."""
    tags = cell.metadata.get("tags", [])
    hidden = bool({"hide-input", "remove-input", "remove-cell"} & set(tags))
    source = cell.source.strip()
    if hidden:
        source = f"# @title Code\n{source}"
    cells = [_code_cell(source, form=hidden)]
    figure = cell.metadata.get("mystnb", {}).get("figure", {})
    if figure:
        caption = " ".join(figure["caption"].split())
        caption = plain(caption, labels)
        cells.append(_markdown_cell(f"*{labels[figure['name']]}.* {caption}"))
    return cells


def _prose(cell: Any, labels: Labels) -> list[Any]:
    """A Markdown cell or, paragraph by paragraph, code that writes what holds numbers."""
    cells: list[Any] = []
    for with_numbers, text in _paragraphs(plain(cell.source, labels)):
        if with_numbers:
            cells.append(_code_cell(WRITE.format(text=text), form=True))
        else:
            cells.append(_markdown_cell(text))
    return cells


def _paragraphs(text: str) -> list[tuple[bool, str]]:
    """Cut at blank lines where a paragraph holds numbers of the run, and only there."""
    parts: list[tuple[bool, str]] = []
    for paragraph in re.split(r"\n\n+", text.strip()):
        with_numbers = "⟦" in paragraph
        if parts and parts[-1][0] == with_numbers:
            parts[-1] = (with_numbers, f"{parts[-1][1]}\n\n{paragraph}")
        else:
            parts.append((with_numbers, paragraph))
    return parts


def _code_cell(source: str, *, form: bool) -> Any:
    metadata = {"cellView": "form", "jupyter": {"source_hidden": True}} if form else {}
    return nbformat.v4.new_code_cell(source, metadata=metadata)


_markdown_cell: Callable[[str], Any] = nbformat.v4.new_markdown_cell


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    chapters = sorted(BOOK.glob("[0-9]*.md"))
    labels, stale = Labels(chapters), []
    chapters += BOOK.glob("assignment.md")  # a page with code, but without a number
    for chapter in chapters:
        path, text = chapter.with_suffix(".ipynb"), convert(chapter, labels)
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if options.check:
            stale.append(path.name)
        else:
            path.write_text(text, encoding="utf-8", newline="\n")
            print("wrote", path.relative_to(ROOT))
    extra = {path.name for path in BOOK.glob("*.ipynb")} - {
        chapter.with_suffix(".ipynb").name for chapter in chapters
    }
    if stale or extra:
        print(
            f"out of date: {', '.join([*stale, *sorted(extra)])}. "
            "Run: python tools/make_notebooks.py (and delete what has no chapter)",
            file=sys.stderr,
        )
    return 1 if stale or (options.check and extra) else 0


if __name__ == "__main__":
    sys.exit(main())
