"""Print the whole book into one PDF, from the pages of a built edition.

    python tools/make_pdf.py student       _build/student/html -> _build/dgprune_lite.pdf

`make pdf` builds the edition first. The pages' articles are put one after the other into a single
page with a cover, contents and a style sheet of its own (make_pdf.css); Chromium prints it, with no
network. It prints twice: the first time tells on which page each heading stands.

Paper cannot fold, slide or compute. Code that the pages fold is left out; a figure that the reader
steers shows its first state; the network of the page becomes a note.
"""

from __future__ import annotations

import argparse
import html
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from string import Template
from typing import Any

import yaml
from bs4 import BeautifulSoup, Tag
from chromium import launch, require_chromium

ROOT = Path(__file__).parent.parent
STYLE = Path(__file__).with_suffix(".css")
EDITIONS = {
    "reader": "With solutions of the exercises",
    "student": "Without solutions of the exercises",
    "instructor": "Instructor's edition, with solutions and notes for the teacher",
}
LEFT_OUT = ".headerlink, .toctree-wrapper, .dg-controls, button, script, style, summary, template"
NETWORK = (
    "Here the web page of this chapter runs a trained network. In a copy of the repository, open "
    "book/_static/network/index.html."
)
ANSWER = "The web page has something folded here: code, or an answer to be found first."
EXPLORER = "One of several figures: in the web page of this chapter the reader chooses among them."
SHORT = 30  # a block of at most so many lines or rows is kept on one page
WIDTH, HEIGHT = 650, 960  # CSS pixels of an A4 page within the margins of make_pdf.css
READY = """async () => {
  await MathJax.startup.promise;
  await document.fonts.ready;
  await Promise.all([...document.images].map((image) => image.decode()));
  for (const image of document.images) {
    image.style.width = `${0.36 * image.naturalWidth}px`; // their letters are then as large as ours
  }
  const shrink = (element, least) => {
    let size = parseFloat(getComputedStyle(element).fontSize);
    while (element.scrollWidth > element.clientWidth + 1 && size > least) {
      element.style.fontSize = `${(size -= 0.25)}px`;
    }
    return element.scrollWidth <= element.clientWidth + 1;
  };
  for (const output of document.querySelectorAll(".cell_output pre")) {
    output.classList.add("dg-whole"); // what is printed as a table keeps its lines, if it can
    if (!shrink(output, 7.5)) output.classList.remove("dg-whole");
  }
  for (const table of document.querySelectorAll("table")) {
    const size = () => parseFloat(getComputedStyle(table).fontSize);
    const room = () => table.parentElement.getBoundingClientRect().width;
    while (table.getBoundingClientRect().width > room() + 1 && size() > 6) {
      table.style.fontSize = `${size() - 0.25}px`;
    }
  }
  for (const formula of document.querySelectorAll("div.math > mjx-container")) {
    const wide = formula.scrollWidth / formula.clientWidth;
    if (wide > 1) formula.style.fontSize = `${100 / wide}%`;
  }
}"""
NUMBER = """(numbers) => {
  for (const entry of document.querySelectorAll("[data-heading]")) {
    entry.textContent = numbers[entry.dataset.heading];
  }
}"""
# Every element that the paper would cut.
CUT = """() => [...document.querySelectorAll("body *")]
  .filter((e) => e.getBoundingClientRect().right > document.body.clientWidth + 2
    && !e.closest("mjx-assistive-mml, svg"))
  .map((e) => e.outerHTML.slice(0, 120))"""

DOCUMENT = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="author" content="$author">
<title>$title</title>
<link rel="stylesheet" href="$static/pygments.css">
<link rel="stylesheet" href="$static/fonts.css">
<style>$style</style>
<script>MathJax = {options: {ignoreHtmlClass: "dg-book", processHtmlClass: "math"}}</script>
<script defer src="$static/vendor/mathjax/tex-mml-chtml.js"></script>
</head>
<body class="dg-book">
<div class="dg-cover">
<p class="dg-title">$title</p>
<p class="dg-edition">$author</p>
<p class="dg-edition">$edition</p>
<p class="dg-small">The source of this book, its notebooks and its package:
<a href="$address">$address</a>. Text and figures: CC BY 4.0. Code: MIT.</p>
<p>Printed from the book's web pages. Left out are code that the pages fold (it draws figures and
writes tables; the notebooks have it), folded answers, the choice of figures that the reader steers
(one is shown), and the network that runs in a page.</p>
</div>
<nav class="dg-contents"><p class="dg-title">Contents</p>
$contents</nav>
$articles
</body>
</html>""")


def page_names(toc: dict[str, Any]) -> list[str]:
    """The pages of a table of contents (_toc.yml), in order.

    >>> page_names({"root": "index", "parts": [{"chapters": [
    ...     {"file": "01_start", "sections": [{"file": "more/detail"}]}, {"file": "02_next"}]}]})
    ['index', '01_start', 'more/detail', '02_next']
    """
    names = [toc[key] for key in ("root", "file") if key in toc]
    for key in ("parts", "chapters", "sections"):
        for entry in toc.get(key, []):
            names += page_names(entry)
    return names


def read_article(path: Path, pages: Collection[str]) -> Tag:
    """The article of a built page, for paper, with identifiers that no other page has.

    Links between `pages` become links within the document, links to others plain text; images are
    looked for from `path`.
    """
    soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    article = soup.select_one("article.bd-article > section")
    if article is None:
        raise ValueError(f"{path} has no article: is it a page of the built book?")
    for element in article.select(LEFT_OUT):
        element.decompose()
    for answer in article.select(".tag_hide-cell"):
        answer.replace_with(_note(soup, ANSWER))
    for folded in article.select("details"):
        for code in folded.select(".cell_input"):
            code.decompose()
        folded.unwrap()
    for network in article.select("#dg-network"):
        network.replace_with(_note(soup, NETWORK))
    for explorer in article.select(".dg-explorer"):
        explorer.append(_note(soup, EXPLORER))
    for block in article.select("pre, table"):
        lines = len(block.find_all("tr")) or block.get_text().count("\n")
        if lines <= SHORT:
            block["class"] = [*block.get("class", []), "dg-short"]
    for element in article.find_all(True):
        _rename(element, path, pages)
    _rename(article, path, pages)
    return article.wrap(soup.new_tag("div", attrs={"class": "dg-part", "id": path.stem}))


def _note(soup: BeautifulSoup, words: str) -> Tag:
    note = soup.new_tag("p", attrs={"class": "dg-note"})
    note.string = words
    return note


def _rename(element: Tag, path: Path, pages: Collection[str]) -> None:
    """Make identifiers, and what refers to them, those of the whole document."""
    prefix = path.stem
    if "id" in element.attrs:
        element["id"] = f"{prefix}--{element['id']}"
    for name in ("style", "clip-path", "fill", "mask", "stroke"):
        if "url(#" in str(element.get(name, "")):
            element[name] = element[name].replace("url(#", f"url(#{prefix}--")
    if "src" in element.attrs and not element["src"].startswith("data:"):
        element["src"] = (path.parent / element["src"]).resolve().as_uri()
    for name in ("href", "xlink:href"):
        if name in element.attrs:
            element[name] = _address(str(element[name]), prefix, pages)
            if not element[name]:
                del element[name]


def _address(link: str, page: str, pages: Collection[str]) -> str:
    """Where a link of a page leads in the document; nothing if to a page that is not in it.

    >>> _address("02_next.html#summary", "01_start", {"01_start", "02_next"})
    '#02_next--summary'
    >>> _address("../genindex.html", "01_start", {"01_start"})
    ''
    """
    if re.match(r"[a-z]+:", link):
        return link
    file, _, place = link.partition("#")
    target = Path(file).stem if file else page
    if target not in pages or (file and Path(file).suffix != ".html"):
        return ""
    return f"#{target}--{place}" if place else f"#{target}"


def headings(articles: list[Tag]) -> list[tuple[int, str, str]]:
    """Level, text and identifier of every heading that the PDF's outline lists, in order."""
    found = []
    for article in articles:
        for heading in article.find_all(re.compile("^h[1-6]$")):
            holder = heading.find_parent("section")
            name = holder.get("id", "") if holder else ""
            found.append((int(heading.name[1]), heading.decode_contents().strip(), name))
    return found


def contents(entries: list[tuple[int, str, str]]) -> str:
    """The table of contents: chapters and their sections; the page numbers come later."""
    lines, inside = [], False
    for place, (level, text, name) in enumerate(entries):
        if level > 2:
            continue
        if (level == 2) != inside:
            lines.append("<li><ol>" if level == 2 else "</ol></li>")
            inside = level == 2
        number = f'<span class="dg-number" data-heading="{place}"></span>'
        lines.append(f'<li><div class="dg-entry"><a href="#{name}">{text}</a>{number}</div></li>')
    return "<ol>" + "\n".join([*lines, "</ol></li>" if inside else ""]) + "</ol>"


def title(heading: str) -> str:
    """A heading's text, from its HTML.

    >>> title('<span class="section-number">1. </span>One\\n  <em>domain</em> out')
    '1. One domain out'
    """
    return " ".join(BeautifulSoup(heading, "html.parser").get_text().split())


def assemble(source: Path, site: Path, edition: str) -> tuple[str, list[str]]:
    """The document to print, and the titles of its headings, in order."""
    config = yaml.safe_load((source / "_config.yml").read_text(encoding="utf-8"))
    toc = yaml.safe_load((source / "_toc.yml").read_text(encoding="utf-8"))
    files = [site / f"{name}.html" for name in page_names(toc)]
    names = [path.stem for path in files]
    if len(set(names)) < len(names):
        raise ValueError(f"two pages have one name, which the PDF cannot tell apart: {names}")
    articles = [read_article(path, names) for path in files]
    rules = []
    for name, article in zip(names, articles, strict=True):
        running = " ".join(article.find("h1").get_text().split()).replace('"', "'")
        look = f'content: "{running}"; font: 8.5pt "Source Sans 3"; color: #444'
        rules.append(
            f"[id='{name}'] {{ page: p-{name} }} @page p-{name} {{ @bottom-left {{ {look} }} }}"
        )
    entries = headings(articles)
    document = DOCUMENT.substitute(
        title=html.escape(config["title"]),
        author=html.escape(config["author"]),
        edition=html.escape(EDITIONS[edition]),
        address=html.escape(config["repository"]["url"]),
        style="\n".join([STYLE.read_text(encoding="utf-8"), *rules]),
        static=(site / "_static").resolve().as_uri(),
        contents=contents(entries),
        articles="\n".join(map(str, articles)),
    )
    return document, [title(text) for _, text, _ in entries]


def set_titles(pdf: Path, titles: list[str]) -> None:
    """Write the titles of a PDF's outline anew.

    Chromium takes them from the lines on paper, and joins two lines without a space.
    """
    from pypdf import PdfWriter
    from pypdf.generic import NameObject, TextStringObject

    writer = PdfWriter(clone_from=pdf)

    def walk(entry: Any) -> Iterator[Any]:
        while entry is not None:
            entry = entry.get_object()
            yield entry
            yield from walk(entry.get("/First"))
            entry = entry.get("/Next")

    entries = walk(writer.root_object["/Outlines"].get_object().get("/First"))
    for entry, text in zip(entries, titles, strict=True):
        entry[NameObject("/Title")] = TextStringObject(text)
    writer.write(pdf)


def heading_pages(pdf: Path) -> list[int]:
    """The page numbers, from 1, of the entries of a PDF's outline, in order."""
    from pypdf import PdfReader

    reader = PdfReader(pdf)

    def walk(outline: list[Any]) -> Iterator[int]:
        for entry in outline:
            if isinstance(entry, list):
                yield from walk(entry)
            else:
                yield reader.get_destination_page_number(entry) + 1

    return list(walk(reader.outline))


def make(source: Path, site: Path, edition: str, output: Path) -> list[str]:
    """Write the PDF; return what is wider than the paper (nothing, if all is well)."""
    executable = require_chromium("make pdf")
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = launch(playwright, executable)
        context = browser.new_context(
            offline=True, color_scheme="light", viewport={"width": WIDTH, "height": HEIGHT}
        )
        page = context.new_page()
        page.emulate_media(media="print")
        draft = Path(folder, "book.html")
        printed = Path(folder, "book.pdf")
        document, titles = assemble(source, site, edition)
        draft.write_text(document, encoding="utf-8")
        page.goto(draft.as_uri(), wait_until="load")
        page.evaluate(READY)
        cut: list[str] = page.evaluate(CUT)
        options = {"prefer_css_page_size": True, "print_background": True}
        page.pdf(path=printed, outline=True, tagged=True, **options)
        numbers = heading_pages(printed)
        if len(numbers) != len(titles):
            raise RuntimeError(f"the PDF's outline has {len(numbers)} of {len(titles)} headings")
        page.evaluate(NUMBER, numbers)
        page.pdf(path=printed, outline=True, tagged=True, **options)
        browser.close()
        set_titles(printed, titles)
        output.parent.mkdir(parents=True, exist_ok=True)
        beside = output.with_suffix(".part")
        shutil.copyfile(printed, beside)
        os.replace(beside, output)
    return cut


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("edition", choices=EDITIONS)
    parser.add_argument("--source", type=Path, default=ROOT, help="the book's top level")
    parser.add_argument("--build", type=Path, help="the build folder (default: _build)")
    options = parser.parse_args(arguments)
    require_chromium("make pdf")
    build = options.build or options.source / "_build"
    site = build / options.edition / "html"
    if not site.is_dir():
        sys.exit(f"{site} is not there: python tools/build_edition.py {options.edition}")
    output = build / "dgprune_lite.pdf"
    for element in make(options.source, site, options.edition, output):
        print("wider than the paper:", element)
    print("wrote", output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
