"""The lecture's slides: made, shown and printed without another host, and nothing is cut off."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jupytext
import make_slides
import nbformat
import pytest
from pages import machine_letters
from pypdf import PdfReader

ROOT = Path(__file__).parent.parent.parent
REVEAL = ROOT / "book" / "_static" / "vendor" / "reveal"
LECTURE = ROOT / "book" / "slides" / "lecture.md"

SIZE = {"width": 1280, "height": 720}
# What reaches over the edge, or into the place of another cell, of the slide that is shown.
CUT = """() => {
  const slide = Reveal.getCurrentSlide().querySelector(".slide");
  const edge = slide.getBoundingClientRect();
  const shown = [...slide.querySelectorAll(".cell *")]
    .filter((e) => !e.closest("mjx-container, aside") || e.matches("mjx-container"))
    .map((e) => [e, e.getBoundingClientRect()])
    .filter(([, box]) => box.width && box.height);
  const over = shown.filter(([, box]) => box.left < edge.left || box.right > edge.right - 20
    || box.top < edge.top || box.bottom > edge.bottom - 20);
  const cells = [...slide.querySelectorAll(".cell")].map((e) => e.getBoundingClientRect());
  const meet = cells.some((a, i) => cells.slice(i + 1).some((b) => a.left < b.right - 1
    && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1));
  const wide = [...slide.querySelectorAll("pre")].filter((e) => e.scrollWidth > e.clientWidth);
  return [...over.map(([e]) => e), ...wide].map((e) => e.outerHTML.slice(0, 80))
    .concat(meet ? ["cells lie upon each other"] : []);
}"""
AXE = """async () => (await axe.run({ resultTypes: ["violations"], preload: false,
  runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"] })).violations.map((rule) => rule.id + ": "
  + rule.nodes.slice(0, 3).map((node) => node.target.join(" ")).join("; "))"""

Slides = namedtuple("Slides", "folder pdf log")


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    output = tmp_path_factory.mktemp("slides")
    done = subprocess.run(
        [sys.executable, ROOT / "tools/make_slides.py", "--output", output],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return Slides(output / "slides", output / "slides.pdf", done.stdout)


@pytest.fixture(scope="module")
def show(slides, open_folder):
    """The slides in Chromium, opened as a file, and what went wrong meanwhile."""
    browser = open_folder(slides.folder)
    with browser.open(f"{slides.folder.as_uri()}/index.html", viewport=SIZE) as (page, errors, out):
        page.wait_for_selector("html[data-ready]")
        yield page, errors, out


def each_slide(page):
    for number in range(page.evaluate("Reveal.getTotalSlides()")):
        page.evaluate("number => Reveal.slide(number)", number)
        yield page.evaluate("Reveal.getCurrentSlide().querySelector('h1, h2').textContent")


in_browser = [pytest.mark.book, pytest.mark.slow, pytest.mark.xdist_group("slides")]


class TestShown:
    pytestmark = in_browser

    def test_a_lecture_of_45_to_60_minutes(self, slides, show):
        minutes = float(re.search(r"([\d.]+) minutes", slides.log)[1])
        assert 45 <= minutes <= 60
        assert 18 <= len(list(each_slide(show[0]))) <= 25

    def test_each_slide_fits(self, show):
        page, _, _ = show
        cut = {title: found for title in each_slide(page) if (found := page.evaluate(CUT))}
        assert not cut, cut

    def test_what_does_not_fit_is_found(self, show):
        page, _, _ = show
        page.evaluate("Reveal.slide(1)")
        page.evaluate("() => Reveal.getCurrentSlide().style.setProperty('font-size', '60px')")
        found = page.evaluate(CUT)
        page.evaluate("() => Reveal.getCurrentSlide().style.removeProperty('font-size')")
        assert found
        assert not page.evaluate(CUT)

    def test_maths_is_drawn(self, show):
        page, _, _ = show
        assert page.locator(".slides mjx-container").count() > 20
        assert page.locator("mjx-merror, [data-mjx-error]").count() == 0
        visible = page.eval_on_selector_all(
            ".cell", "all => all.map(e => { const c = e.cloneNode(true); c.querySelectorAll("
            "'pre, mjx-container').forEach(m => m.remove()); return c.textContent }).join(' ')",
        )  # fmt: skip
        assert "$" not in visible
        assert "\\" not in visible

    def test_every_figure_has_alternative_text(self, show):
        page, _, _ = show
        texts = page.eval_on_selector_all(".slides img", "all => all.map(e => e.alt.trim())")
        assert len(texts) > 10
        assert all(len(text) > 40 for text in texts)

    def test_every_slide_has_a_title_and_notes(self, show):
        page, _, _ = show
        titles = list(each_slide(page))
        assert len(set(titles)) == len(titles)
        assert page.locator(".slides > section > .slide > aside.notes").count() == len(titles)
        assert page.locator("aside.notes:visible").count() == 0

    def test_axe_finds_no_violation(self, show):
        from axe_playwright_python.base import AXE_SCRIPT

        page, _, _ = show
        page.evaluate(AXE_SCRIPT)
        found = {}
        for number in (0, 1, 7, 16):  # a title, words, words and figure, tables: all looks
            page.evaluate("number => Reveal.slide(number)", number)
            found[number] = page.evaluate(AXE)
        assert not any(found.values()), found

    def test_they_bring_the_fonts_of_all_their_letters(self, show):
        assert machine_letters(show[0]) == {}
        show[0].evaluate("() => document.getElementById('samples').remove()")

    def test_no_other_host_and_no_error(self, show):
        _, errors, outside = show
        assert outside == []
        assert errors == []

    def test_pdf_has_a_sheet_a_slide(self, slides, show):
        sheets = PdfReader(slides.pdf).pages
        assert len(sheets) == show[0].evaluate("Reveal.getTotalSlides()")
        assert all(sheet.extract_text().strip() for sheet in sheets)
        assert {tuple(map(round, sheet.mediabox[2:])) for sheet in sheets} == {(960, 540)}


def test_vendored_reveal_is_small_and_asks_no_other_host():
    files = list(REVEAL.iterdir())
    assert {path.name for path in files} == {
        "LICENSE", "notes.js", "reset.css", "reveal.css", "reveal.js"
    }  # fmt: skip
    assert sum(path.stat().st_size for path in files) < 500_000
    styles = (REVEAL / "reveal.css").read_text() + (REVEAL / "reset.css").read_text()
    assert "http" not in styles
    assert "@import" not in styles


def slide(kind, source):
    return nbformat.v4.new_markdown_cell(source, metadata={"slideshow": {"slide_type": kind}})


def figure(**metadata):
    drawn = nbformat.v4.new_output("display_data", {"image/svg+xml": "<svg/>"})
    return nbformat.v4.new_code_cell("draw()", outputs=[drawn], metadata=metadata)


def notebook(*cells):
    cells = [copy.deepcopy(cell) | {"id": f"cell-{place}"} for place, cell in enumerate(cells)]
    return nbformat.v4.new_notebook(cells=[nbformat.NotebookNode(cell) for cell in cells])


GOOD = [slide("slide", "## A title"), figure(mystnb={"image": {"alt": "A line."}})]
NOTES = slide("notes", "**2 min.** Say it.")
LOUD = nbformat.v4.new_code_cell(
    "warn()", outputs=[nbformat.v4.new_output("stream", name="stderr", text="careful")]
)


def test_good_slides_pass_and_their_minutes_are_added():
    two_slides = notebook(*GOOD, NOTES, *GOOD, NOTES)
    make_slides.check(two_slides)
    assert make_slides.minutes(two_slides) == 4


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ([GOOD[0], figure(), NOTES], "no alternative text"),
        ([slide("slide", "No title"), NOTES], "give it a title"),
        ([*GOOD, *GOOD, NOTES], "'A title' has no notes"),
        (GOOD, "'A title' has no notes"),
        ([GOOD[0], LOUD, NOTES], "careful"),
    ],
    ids=["no alt", "no title", "no notes", "no notes at the end", "standard error"],
)
def test_what_a_listener_would_stumble_over_is_refused(cells, reason):
    with pytest.raises(ValueError, match=reason):
        make_slides.check(notebook(*cells))


def test_notes_without_minutes_are_refused():
    with pytest.raises(ValueError, match=r"Say it\."):
        make_slides.minutes(notebook(slide("notes", "Say it.")))


def test_no_result_is_typed_into_the_slides():
    """A number with a unit of results in the slides' words must come from a cell."""
    for cell in jupytext.read(LECTURE).cells:
        kind = cell.metadata.get("slideshow", {}).get("slide_type")
        if cell.cell_type == "markdown" and kind != "notes":
            assert not re.search(r"\d+\.\d+ (points|%)|\d+ %|p = ", cell.source), cell.source


@pytest.mark.book
def test_it_waits_until_the_page_can_be_printed(tmp_path, chromium_path):
    script = "document.body.textContent = 'ready'; document.documentElement.dataset.printable = ''"
    page = tmp_path / "index.html"
    page.write_text(f"<html><body><script>setTimeout(() => {{ {script} }}, 1500)</script></html>")
    with ThreadPoolExecutor(1) as thread:  # Playwright allows one browser a thread
        assert thread.submit(make_slides.print_pdf, page, tmp_path / "s.pdf").result()
    assert "ready" in PdfReader(tmp_path / "s.pdf").pages[0].extract_text()
