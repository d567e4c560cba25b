"""What the build refuses, tried on books of one chapter with this book's configuration."""

from __future__ import annotations

import doctest
import re
import shutil
import subprocess
import time
from pathlib import Path

import dgbook
import pytest
from books import make_book

ROOT = Path(__file__).parent.parent.parent


def cell(code: str) -> str:
    return f"```{{code-cell}} ipython3\n{code}\n```\n"


@pytest.mark.book
@pytest.mark.slow
def test_build_fails_and_names_every_fault(build_book, tmp_path):
    faults = {
        "stderr was found": cell("import warnings\nwarnings.warn('a stray warning')"),
        "'nowhere'": "See {ref}`nowhere`.\n",
        '"nobody1900"': "See {cite:p}`nobody1900`.\n",
        "Executing notebook failed": cell("raise RuntimeError('the chapter is broken')"),
    }
    source = make_book(tmp_path / "source", "\n".join(faults.values()))
    result = build_book(source, tmp_path / "output")
    assert result.returncode != 0
    warned = [line for line in result.log.split("\n") if "WARNING: " in line]
    for fault in faults:
        assert [line for line in warned if fault in line], result.log[-5000:]
    assert "RuntimeError: the chapter is broken" in result.log


@pytest.mark.book
@pytest.mark.slow
def test_live_widget_becomes_a_note(build_book, tmp_path):
    code = "import ipywidgets\nipywidgets.VBox([ipywidgets.IntSlider(), ipywidgets.HTML('old')])"
    result = build_book(make_book(tmp_path / "source", cell(code)), tmp_path / "output")
    assert result.returncode == 0, result.log[-3000:]
    page = (result.html / "book" / "chapter.html").read_text()
    assert 'class="dg-live-only"' in page
    assert "vnd.jupyter.widget" not in page
    assert "sphinx-thebe.js" not in page
    assert "unpkg.com/thebe" not in page


# Plays the build, for the Makefile: runs the chapter if it never ran as it stands. That editions
# share what ran: test_editions.py.
PLAY = """#!/bin/sh
[ "$1" = -I ] && exit
mkdir -p _build/html
cmp -s book/chapter.md _build/ran && exit
grep --quiet broken book/chapter.md && exit 1
cp book/chapter.md _build/ran
echo Executed notebook
"""


def test_a_second_build_runs_only_what_has_changed(tmp_path):
    """Chapters run again when they, or anything that all of them use, have changed."""
    folder = make_book(tmp_path, "print(1)")
    for name in ("Makefile", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "book" / "results").mkdir()
    package = folder / "dgprune_lite" / "module.py"
    package.parent.mkdir()
    package.touch()
    chapter = folder / "book" / "chapter.md"
    (folder / "play").write_text(PLAY)
    (folder / "play").chmod(0o755)

    def make(edition="book"):
        """Say whether the build went well, and whether the chapter ran."""
        command = ["make", "-o", "env-book", edition, "RUN=./play", "VENV=none"]
        time.sleep(0.1)  # times of files are compared
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        return done.returncode == 0, "Executed notebook" in done.stdout

    assert make() == (True, True)
    assert make() == (True, False)
    assert make("student") == (True, False), "a chapter runs once for all editions"
    package.touch()
    assert make("student") == (True, True)
    package.touch()
    (folder / "_build" / "html" / "old").touch()
    assert make() == (True, True)
    assert not (folder / "_build" / "html" / "old").exists(), "made with another package"
    good = chapter.read_text()
    chapter.write_text(good + "broken")
    assert make() == (False, False)
    assert make()[0] is False, "a failed build must not be taken for a whole one"
    chapter.write_text(good)
    assert make() == (True, True)


def test_extension_does_what_its_examples_say():
    result = doctest.testmod(dgbook)
    assert result.attempted >= 4
    assert result.failed == 0


def test_extension_replaces_only_widgets():
    script = '<script type="application/vnd.jupyter.widget-view+json">\n{"a": 1}\n</script>'
    result = dgbook.replace_widgets(f"<p>before</p>{script}<p>after</p>")
    assert re.sub(r'<p class="dg-live-only".*?</p>', "NOTE", result) == (
        "<p>before</p>NOTE<p>after</p>"
    )
    assert dgbook.replace_widgets("<script>let x;</script>") == "<script>let x;</script>"


def test_a_lecturers_links_stand_below_the_title_and_nothing_where_there_are_none():
    page = "<h1>Risk</h1><h1>Not here</h1>"
    assert dgbook.add_links(page, {}) == page
    shown = dgbook.add_links(page, {"A <b>": "https://x.edu/?a=1&b=2", "Forum": "https://f.edu"})
    assert shown.startswith(
        '<h1>Risk</h1><p class="dg-links"><a href="https://x.edu/?a=1&amp;b=2">'
    )
    assert ">A &lt;b&gt;</a> · <a" in shown
    assert shown.endswith("<h1>Not here</h1>")


def test_chapters_use_no_output_widget():
    """nbclient can lose a message while it serves an Output widget; the cell then waits in vain."""
    for chapter in sorted((ROOT / "book").glob("[0-9]*.md")):
        found = re.search(r"\binteract\w*\(|\bOutput\(", chapter.read_text())
        assert not found, (
            f"{chapter.name} uses {found[0]}: take dgprune_book.figures.explorer.PruneExplorer"
        )
