"""Every page of the built book can be read by everybody, and comes quickly.

axe-core, which looks for violations of WCAG 2 A and AA, comes from axe-playwright-python. What it
does not find (images without text, maths not drawn, pages wider than a phone, requests of other
hosts) is in `test_built_book.py`; what the explorers and the network in the page do when they are
used is in `test_built_explorers.py` and `test_browser.py`.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import statistics
from pathlib import Path

import numpy as np
import pytest
import yaml
from matplotlib.colors import rgb_to_hsv
from PIL import Image

ROOT = Path(__file__).parent.parent.parent
TOC = (ROOT / "_toc.yml").read_text()
CHAPTERS = re.findall(r"file: (book/\d\d_\w+)", TOC)
WRITTEN = [yaml.safe_load(TOC)["root"], *re.findall(r"file: (\S+)", TOC)]
MADE = ["genindex", "py-modindex", "search"]
PAGES = [*WRITTEN, *MADE, "_static/network/index"]
NETWORK = ROOT / "book" / "_static" / "network"

# All tests share one build: with pytest-xdist they stay on one worker.
pytestmark = [pytest.mark.book, pytest.mark.slow, pytest.mark.xdist_group("book")]

LEVELS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
COLOURS = ["color-contrast", "link-in-text-block"]
RUN = """async (options) => (await axe.run(options)).violations.map((rule) => rule.id + ": "
  + rule.help + rule.nodes.slice(0, 3).map((node) => "\\n    " + node.target.join(" ") + " "
  + [...node.any, ...node.all, ...node.none].map((check) => check.message).join("; ")).join(""))"""

# axe takes 20 seconds for the colours of a page of code. Words that look the same have the same
# contrast, so it is shown two paragraphs and pieces of lines of each look: the colour and size of
# the letters and every ground behind them, in both themes. Formulas are drawn without text.
NOTE_LOOKS = """() => {
  const known = new Map([[null, ""]]);
  const grounds = (element) => {
    if (!known.has(element)) {
      const style = getComputedStyle(element);
      const { backgroundColor, backgroundImage, opacity, filter, position } = style;
      const ground = [backgroundColor, backgroundImage, opacity, filter, position].join();
      const plain = ground === "rgba(0, 0, 0, 0),none,1,none,static";
      known.set(element, grounds(element.parentElement) + (plain ? "" : "|" + ground));
    }
    return known.get(element);
  };
  window.looks ??= new Map();
  window.small = "p, span, em, strong, code, a, mi, mo, mn";
  for (const element of document.querySelectorAll(small)) {
    if (element.childElementCount || !element.textContent.trim()) continue;
    if (element.closest("button, label, summary")) continue; // what names them stays
    if (!element.checkVisibility({ visibilityProperty: true })) continue;
    const { color, fontSize, fontWeight } = getComputedStyle(element);
    const look = [looks.get(element), color, fontSize, fontWeight, grounds(element)];
    looks.set(element, look.join("|"));
  }
}"""
KEEP_TWO_OF_EACH_LOOK = """() => {
  const seen = new Map();
  for (const [element, look] of looks) {
    seen.set(look, (seen.get(look) ?? 0) + 1);
    if (seen.get(look) <= 2) continue;
    let empty = element;
    do [empty] = [empty.parentElement, empty.remove()];
    while (empty.matches(small) && !empty.textContent.trim());
  }
  for (const formula of document.querySelectorAll("mjx-math")) formula.remove();
}"""
TWO_FRAMES = "() => new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))"
STILL = "*, ::before, ::after { transition: none !important; animation: none !important; }"


class Examiner:
    """A page in the hands of axe."""

    def __init__(self, page):
        from axe_playwright_python.base import AXE_SCRIPT

        self.page = page
        page.add_style_tag(content=STILL)
        page.evaluate("() => window.MathJax?.startup?.promise")
        # Code that is folded away is read too, once it is unfolded.
        page.evaluate("() => document.querySelectorAll('details').forEach((e) => (e.open = true))")
        if page.locator("#dg-network").count():
            page.wait_for_selector("#dg-network[aria-busy=false]")
        page.evaluate(AXE_SCRIPT)

    def violations(self, run_only, **options):
        options |= {"runOnly": run_only, "resultTypes": ["violations"], "preload": False}
        return self.page.evaluate(RUN, options)

    def whole(self):
        """All rules except those of colours, on a phone: there most must be scrolled."""
        self.page.set_viewport_size({"width": 360, "height": 740})
        self.page.evaluate(TWO_FRAMES)  # what is too wide now can be scrolled with the keyboard
        return self.violations(LEVELS, rules={rule: {"enabled": False} for rule in COLOURS})

    def turn(self, theme):
        """Set the theme: the system's, and that of the page's own button."""
        self.page.emulate_media(color_scheme=theme)
        self.page.evaluate("theme => (document.documentElement.dataset.theme = theme)", theme)
        self.page.wait_for_timeout(50)

    def thinned(self):
        """All rules on a wide screen, with its side bars, and colours in both themes.

        The page is of no use afterwards.
        """
        self.page.set_viewport_size({"width": 1200, "height": 900})
        for theme in ("dark", "light"):
            self.turn(theme)
            self.page.evaluate(NOTE_LOOKS)
        self.page.evaluate(KEEP_TWO_OF_EACH_LOOK)
        light = self.violations(LEVELS)
        self.turn("dark")
        return {"light": light, "dark": self.violations(COLOURS)}


@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_no_violation(browser, name):
    with browser.open(name) as (page, _, _):
        examiner = Examiner(page)
        found = {"phone": examiner.whole()} | examiner.thinned()
    found = {where: rules for where, rules in found.items() if rules}
    listed = "\n".join(f"{where}: {rule}" for where, rules in found.items() for rule in rules)
    assert not found, f"{name}:\n{listed}"


def names(rules):
    return sorted(rule.split(":")[0] for rule in rules)


def test_axe_finds_what_is_put_there(browser):
    """The check is not blind, also not by what it leaves out."""
    faults = """
      <img src="../_images/none.png"><button></button>
      <dl><div role="alert">neither term nor definition</div></dl>
      <p>one <code style="color: #888; background: #fff">pale</code> name</p>
      <p style="color: #999; background: #fff">pale words</p>
      <p style="background: #666">a <a href="#" style="color: #6cb4f0 !important">link</a></p>
    """
    with browser.open(WRITTEN[0]) as (page, _, _):
        page.eval_on_selector(
            "article", "(e, html) => e.insertAdjacentHTML('beforeend', html)", faults
        )
        examiner = Examiner(page)
        whole = examiner.whole()
        thinned = examiner.thinned()
    assert names(whole) == ["button-name", "definition-list", "image-alt"]
    assert names(thinned["light"]) == sorted(["color-contrast", *names(whole)])
    assert names(thinned["dark"]) == ["color-contrast"]
    for theme in thinned.values():
        assert "".join(theme).count("insufficient color contrast") == 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_theme_is_that_of_the_readers_system(browser, scheme):
    with browser.open(CHAPTERS[0], color_scheme=scheme) as (page, _, _):
        assert page.locator("html").get_attribute("data-theme") == scheme


def test_figures_are_dark_in_the_dark_and_keep_their_hues(browser):
    """No white slab; and what the text calls blue and orange-red is still blue and orange-red."""
    with browser.open(CHAPTERS[3], color_scheme="dark") as (page, _, _):
        figure = page.locator("article figure img").first
        figure.scroll_into_view_if_needed()
        pixels = np.asarray(Image.open(io.BytesIO(figure.screenshot())).convert("RGB")) / 255
    assert np.median(pixels) < 0.2
    strong = pixels.reshape(-1, 3)[np.ptp(pixels.reshape(-1, 3), axis=1) > 0.5]
    hues = 360 * rgb_to_hsv(strong)[:, 0]
    assert ((hues > 10) & (hues < 45)).sum() > 50, "the unseen domain's orange-red"
    assert ((hues > 190) & (hues < 230)).sum() > 50, "the source domains' blue"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_captions_are_as_dark_and_as_bold_as_the_text(browser, scheme):
    look = "e => { const s = getComputedStyle(e); return [s.color, s.fontWeight]; }"
    with browser.open(CHAPTERS[3], color_scheme=scheme) as (page, _, _):
        captions = page.locator("figcaption .caption-text").all()
        assert len(captions) > 1
        text = page.locator("article section > p").first.evaluate(look)
        assert all(caption.evaluate(look) == text for caption in captions)


@pytest.mark.parametrize("name", [*MADE, "_static/network/index"])
def test_pages_that_nobody_wrote_stand_alone_too(browser, name):
    """The written pages are in `test_built_book.py`."""
    visit = browser.visit(name)
    assert visit.outside == []
    assert visit.errors == []
    assert visit.too_wide_on_phone == []
    assert visit.images_without_alt == []


def test_search_finds_a_word(browser):
    """Its scripts depend on each other's order."""
    with browser.open("search") as (page, errors, outside):
        page.wait_for_load_state("networkidle")
        page.goto(page.url + "?q=pruning")
        page.wait_for_selector("#search-results li a")
        assert page.locator("#search-results li a").count() > 3
        assert errors == []
        assert outside == []


@pytest.mark.parametrize("name", WRITTEN)
def test_page_is_light(book, name, record_property):
    size = len(gzip.compress((book.html / f"{name}.html").read_bytes()))
    record_property("page_bytes", f"{name}: {size} bytes compressed")
    assert size < 600_000


def test_network_in_the_page_is_light(book):
    files = [path for path in NETWORK.iterdir() if path.is_file()]
    assert files
    assert sum(path.stat().st_size for path in files) < 2_500_000
    shipped = book.html / "_static" / "network"
    assert {path.name for path in files} == {path.name for path in shipped.iterdir()}


@pytest.mark.parametrize("name", CHAPTERS)
def test_chapter_is_painted_within_a_second(browser, name, record_property):
    """The median of three loads with an empty cache; more time where others use the processor."""
    paints = [browser.first_paint(name) for _ in range(3)]
    others = os.getloadavg()[0] / (os.cpu_count() or 1)
    record_property("first_paint", f"{name}: {statistics.median(paints):.0f} ms, load {others:.1f}")
    assert statistics.median(paints) < 1000 * max(1, others), paints
