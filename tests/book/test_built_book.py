"""The built book: every chapter runs in time, and every page stands alone in a browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pages import too_wide_on_phones

ROOT = Path(__file__).parent.parent.parent
TOC = (ROOT / "_toc.yml").read_text()
CHAPTERS = re.findall(r"file: (book/\d\d_\w+)", TOC)
PAGES = [yaml.safe_load(TOC)["root"], *re.findall(r"file: (\S+)", TOC)]

# All tests share one build: with pytest-xdist they stay on one worker.
pytestmark = [pytest.mark.book, pytest.mark.slow, pytest.mark.xdist_group("book")]


def test_build_has_no_warning(book):
    assert re.findall(r".*WARNING(?!.*encryption).*", book.log) == []


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapter_runs_in_time(book, chapter, record_property):
    """60 s on two idle cores is the book's promise; a busy machine is given twice that."""
    seconds = book.seconds(chapter)
    record_property("chapter_seconds", f"{chapter}: {seconds:.1f} s")
    assert seconds < 120, f"{chapter} took {seconds:.1f} s"


@pytest.mark.parametrize("page", [*PAGES, "genindex", "search"])
def test_page_asks_no_other_host_and_logs_no_error(browser, page):
    visit = browser.visit(page)
    assert visit.outside == []
    assert visit.errors == []


@pytest.mark.parametrize("page", PAGES)
def test_every_image_has_alternative_text(browser, page):
    assert browser.visit(page).images_without_alt == []


@pytest.mark.parametrize("page", PAGES)
def test_maths_is_drawn(browser, page):
    visit = browser.visit(page)
    assert visit.formulas_drawn == visit.formulas


def test_some_page_has_maths(browser):
    assert sum(browser.visit(page).formulas_drawn for page in CHAPTERS) > 0


@pytest.mark.parametrize("page", PAGES)
def test_page_fits_a_phone(browser, page):
    visit = browser.visit(page)
    assert visit.too_wide_on_phone == []
    assert visit.distorted_on_phone == []


def test_what_does_not_fit_a_phone_is_found(browser):
    wide = "<dl><dt class='sig' style='white-space: nowrap'>{}</dt></dl><table><td>{}</table>"
    with browser.open(CHAPTERS[0]) as (page, _, _):
        page.eval_on_selector(
            "article",
            "(e, html) => e.insertAdjacentHTML('beforeend', html)",
            wide.format(60 * "f", 60 * "o"),
        )
        found = [re.match(r"(\d+) px: <(\w+)", text).groups() for text in too_wide_on_phones(page)]
    assert found == [(px, tag) for px in ("360", "320") for tag in ("html", "dt", "table")]


@pytest.mark.parametrize("page", [PAGES[0], CHAPTERS[5]])
def test_page_opens_as_a_file(browser, book, page):
    visit = browser.visit(page, base=book.html.as_uri())
    assert visit.outside == []
    assert visit.errors == []
    assert visit.formulas_drawn == visit.formulas


def test_front_page_leads_to_the_book(book):
    assert "book/index.html" in (book.html / "index.html").read_text()


def test_no_figure_is_missing_from_a_chapter(book):
    """Each chapter has at least one figure, with a caption."""
    for chapter in CHAPTERS:
        assert "<figcaption>" in (book.html / f"{chapter}.html").read_text(), chapter


def test_no_page_keeps_a_widgets_stored_state(book):
    for page in PAGES:
        assert "vnd.jupyter.widget" not in (book.html / f"{page}.html").read_text(), page
