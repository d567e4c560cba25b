"""The pages look the same on every machine: they bring their fonts."""

from __future__ import annotations

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import chromium as tool
import matplotlib
import pytest
import yaml
from pages import machine_letters

ROOT = Path(__file__).parent.parent.parent
STATIC = ROOT / "book" / "_static"
TOC = (ROOT / "_toc.yml").read_text()
PAGES = [yaml.safe_load(TOC)["root"], *re.findall(r"file: (\S+)", TOC), "genindex", "search"]

pytestmark = pytest.mark.book
built = [pytest.mark.slow, pytest.mark.xdist_group("book")]


class TestBuiltBook:
    pytestmark = built

    @pytest.mark.parametrize("page", [*PAGES, "_static/network/index"])
    def test_page_brings_the_fonts_of_all_its_letters(self, browser, page):
        assert browser.visit(page).machine_letters == {}

    def test_letters_of_the_machine_are_found(self, browser):
        """One that no shipped font has, and one in a font that is not shipped."""
        letters = "<p>\u2207</p><p style='font-family: Arial'>x</p>"
        with browser.open(PAGES[0]) as (page, _, _):
            page.eval_on_selector("article", "(e, html) => (e.innerHTML += html)", letters)
            assert sorted(machine_letters(page).values()) == ["x", "\u2207"]


def test_every_font_is_in_the_style_sheet_small_and_licensed():
    named = re.findall(r'url\("(.*?)"\)', (STATIC / "fonts.css").read_text())
    folders = [STATIC / "vendor" / name for name in ("source-sans", "source-code")]
    shipped = [path for folder in folders for path in folder.glob("*.woff2")]
    assert {STATIC / name for name in named} == set(shipped)
    assert sum(path.stat().st_size for path in shipped) < 600_000
    for folder in folders:
        assert "SIL OPEN FONT LICENSE Version 1.1" in (folder / "LICENSE").read_text()
        assert f"`{folder.name}/`" in (STATIC / "vendor" / "README.md").read_text()


def test_chromium_sees_no_font_of_the_machine_but_dejavu(tmp_path, monkeypatch, chromium_path):
    """On a machine with one more, which is seen once the file of fonts leaves none out."""
    (tmp_path / "fonts").mkdir()
    shutil.copy(
        Path(matplotlib.get_data_path(), "fonts", "ttf", "STIXGeneral.ttf"), tmp_path / "fonts"
    )
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with ThreadPoolExecutor(1) as thread:  # Playwright allows one browser a thread
        assert thread.submit(family_shown, chromium_path, "STIXGeneral").result() == "DejaVu Sans"
        everything = re.sub("<selectfont>.*</selectfont>", "", tool.FONTS.read_text(), flags=re.S)
        monkeypatch.setattr(tool, "FONTS", tmp_path / "all.conf")
        tool.FONTS.write_text(everything)
        assert thread.submit(family_shown, chromium_path, "STIXGeneral").result() == "STIXGeneral"


def family_shown(executable: str, asked: str) -> str:
    """The family that Chromium takes where a page asks for another, or else for sans-serif."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = tool.launch(playwright, executable)
        page = browser.new_page()
        page.set_content(f"<p style='font-family: {asked}, sans-serif'>letters</p>")
        session = page.context.new_cdp_session(page)
        session.send("DOM.enable")
        session.send("CSS.enable")
        root = session.send("DOM.getDocument")["root"]["nodeId"]
        node = session.send("DOM.querySelector", {"nodeId": root, "selector": "p"})
        (font,) = session.send("CSS.getPlatformFontsForNode", node)["fonts"]
        browser.close()
    return font["familyName"]
