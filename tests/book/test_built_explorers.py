"""Every explorer of the built book works with the keyboard alone, with no kernel and no network."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TOC = (ROOT / "_toc.yml").read_text()
MADE = re.compile(r"^(?:PruneExplorer|loss_explorer)\(", re.M)  # what ends a cell and shows one
CHAPTERS = [
    chapter
    for chapter in re.findall(r"(?:file|root): (book/(?:\d\d_\w+|index))", TOC)
    if MADE.search((ROOT / f"{chapter}.md").read_text())
]
PHONE = {"viewport": {"width": 360, "height": 740}}

# All tests share one build: with pytest-xdist they stay on one worker.
pytestmark = [pytest.mark.book, pytest.mark.slow, pytest.mark.xdist_group("book")]


class Explorer:
    """What a reader meets: the controls, the figure and the line of text."""

    def __init__(self, root):
        self.slider = root.locator("input[type=range]")
        self.criterion = root.locator("select")
        self._figure, self._text = root.locator(".dg-figure svg"), root.locator(".dg-text")

    def state(self):
        """The drawing, what the slider says of its value, and the text."""
        assert self._figure.get_attribute("aria-label") == self._text.inner_text()
        return (
            self._figure.inner_html(),
            self.slider.get_attribute("aria-valuetext"),
            self._text.inner_text(),
        )


def explorers(page):
    found = [Explorer(root) for root in page.locator(".dg-explorer").all()]
    assert found, "the page has no explorer"
    return found


def differ(before, after):
    return [old != new for old, new in zip(before, after, strict=True)]


def test_the_first_page_and_three_chapters_have_an_explorer():
    assert "book/index" in CHAPTERS
    assert len(CHAPTERS) >= 4


def test_the_first_screen_has_the_answer_and_the_sliders_figure(browser):
    screen = {"viewport": {"width": 1280, "height": 900}}
    with browser.open("book/index", **screen) as (page, _, _):
        for part in ("article ol", ".dg-buttons", ".dg-explorer input", ".dg-figure"):
            box = page.locator(part).first.bounding_box()
            assert box["y"] + box["height"] <= 900, part


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_page_has_an_explorer_for_each_in_the_chapter(book, chapter):
    page = (book.html / f"{chapter}.html").read_text()
    written = len(MADE.findall((ROOT / f"{chapter}.md").read_text()))
    assert page.count('class="dg-explorer"') == written
    assert "dg-live-only" not in page


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_tab_reaches_every_control(browser, chapter):
    with browser.open(chapter) as (page, errors, _):
        waiting = {
            control.get_attribute("data-labels") or control.inner_text()
            for explorer in explorers(page)
            for control in [*explorer.slider.all(), *explorer.criterion.all()]
        }
        stops = page.locator("a, button, input, select, summary, [tabindex]").count()
        for _ in range(stops):
            page.keyboard.press("Tab")
            waiting.discard(
                page.evaluate(
                    "() => document.activeElement.dataset.labels"
                    " ?? (document.activeElement.closest('.dg-explorer')"
                    " && document.activeElement.innerText)"
                )
            )
            if not waiting:
                break
        assert not waiting
        assert errors == []


@pytest.mark.parametrize("base", ["server", "disk"])
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_arrow_keys_change_figure_value_and_text(browser, book, chapter, base):
    url = chapter if base == "server" else (book.html / f"{chapter}.html").as_uri()
    with browser.open(url) as (page, errors, outside):
        for explorer in explorers(page):
            explorer.slider.focus()
            start = explorer.state()
            page.keyboard.press("ArrowRight")
            moved = explorer.state()
            assert differ(start, moved) == [True, True, True]
            page.keyboard.press("ArrowLeft")
            assert explorer.state() == start
            page.keyboard.press("End")
            assert explorer.state()[1] == explorer.slider.get_attribute("data-labels").split()[-1]
        assert errors == []
        assert outside == []


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_state_has_a_figure_and_a_text_of_its_own(browser, chapter):
    with browser.open(chapter) as (page, errors, _):
        for explorer in explorers(page):
            names = explorer.criterion.locator("option").all_inner_texts() or [None]
            states, seen = 0, set()
            for name in names:
                if name is not None:
                    explorer.criterion.select_option(name)
                steps = int(explorer.slider.get_attribute("max")) + 1
                states += steps
                explorer.slider.focus()
                page.keyboard.press("Home")
                for _ in range(steps):
                    figure, _, text = explorer.state()
                    seen.add((figure, text))
                    page.keyboard.press("ArrowRight")
            assert len(seen) == states
        assert errors == []


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_controls_have_a_name_and_a_visible_focus(browser, chapter):
    with browser.open(chapter) as (page, _, _):
        assert page.get_by_role("slider", name="Pruning ratio", exact=True).count() == len(
            explorers(page)
        )
        for explorer in explorers(page):
            page.keyboard.press("Tab")  # the focus ring is for the keyboard
            for control in [explorer.slider, *explorer.criterion.all()]:
                control.focus()
                width = control.evaluate("e => getComputedStyle(e).outlineWidth")
                assert width == "3px"
        for select in page.locator(".dg-explorer select").all():
            label = select.evaluate("e => e.labels[0].innerText")
            assert label.startswith(("Criterion", "Unseen domain"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_text_stands_out_from_its_background(browser, chapter, scheme):
    """WCAG's 4.5 to 1, for the text around the figure, on the panel's white."""
    contrast = """element => {
      const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
      const light = (color) => rgb(color).slice(0, 3).map((v) => v / 255)
        .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
      let behind = element;
      while ((rgb(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0)
        behind = behind.parentElement;
      const [a, b] = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor]
        .map(light).sort((x, y) => y - x);
      return (a + 0.05) / (b + 0.05);
    }"""
    with browser.open(chapter, color_scheme=scheme) as (page, _, _):
        for text in page.locator(".dg-text, .dg-controls label").all():
            assert text.evaluate(contrast) >= 4.5
        for root in page.locator(".dg-explorer").all():
            background = root.evaluate("e => getComputedStyle(e).backgroundColor")
            assert background == "rgb(255, 255, 255)"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_explorer_fits_a_phone(browser, chapter):
    with browser.open(chapter, **PHONE) as (page, _, _):
        for root in page.locator(".dg-explorer").all():
            inside = root.evaluate("e => [e.scrollWidth, e.clientWidth]")
            assert inside[0] <= inside[1] <= 360
        assert page.evaluate("() => document.scrollingElement.scrollWidth") <= 360


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_without_javascript_the_first_figure_shows_and_no_dead_control(browser, chapter):
    with browser.open(chapter, java_script_enabled=False) as (page, _, _):
        for root in page.locator(".dg-explorer").all():
            assert root.locator(".dg-figure svg").is_visible()
            assert not root.locator("input").is_visible()


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_ids_are_unique_whatever_is_shown(browser, chapter):
    with browser.open(chapter) as (page, _, _):
        for explorer in explorers(page):
            explorer.slider.focus()
            page.keyboard.press("End")
        twice = page.evaluate(
            "() => [...document.querySelectorAll('.dg-explorer [id]')].map(e => e.id)"
            ".filter(id => document.querySelectorAll('#' + CSS.escape(id)).length > 1)"
        )
        assert twice == []


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapter_stays_small(book, chapter, record_property):
    size = len(gzip.compress((book.html / f"{chapter}.html").read_bytes()))
    record_property("chapter_bytes", f"{chapter}: {size} bytes compressed")
    assert size < 600_000
