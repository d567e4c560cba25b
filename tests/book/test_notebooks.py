"""The notebooks for Colab: up to date and plain. That they run there: test_colab.py."""

from __future__ import annotations

import json
import re
from pathlib import Path

import make_notebooks as tool
import nbformat
import pytest

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "book").glob("[0-9]*.md"))


@pytest.fixture(scope="module")
def labels():
    return tool.Labels(CHAPTERS)


def test_every_chapter_has_an_up_to_date_notebook(capsys):
    assert tool.main(["--check"]) == 0, capsys.readouterr().err


def test_a_changed_chapter_and_a_stray_notebook_are_noticed(tmp_path, monkeypatch, capsys):
    for path in (CHAPTERS[0], CHAPTERS[0].with_suffix(".ipynb"), ROOT / "book/references.bib"):
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(tool, "BOOK", tmp_path)
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    assert tool.main(["--check"]) == 0
    chapter = tmp_path / CHAPTERS[0].name
    chapter.write_text(chapter.read_text(encoding="utf-8") + "\nOne more sentence.\n")
    assert tool.main(["--check"]) == 1
    assert f"out of date: {chapter.stem}.ipynb" in capsys.readouterr().err
    assert tool.main([]) == 0
    assert tool.main(["--check"]) == 0
    (tmp_path / "99_gone.ipynb").write_text("{}")
    assert tool.main(["--check"]) == 1
    assert "99_gone.ipynb" in capsys.readouterr().err


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_a_notebook_is_plain_markdown_without_output(chapter):
    notebook = nbformat.read(chapter.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    asks = any("cuda" in cell.source for cell in notebook.cells[2:] if cell.cell_type == "code")
    assert ("accelerator" in notebook.metadata) == asks, "a GPU that nothing uses, or none"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None
            assert "myst_nb" not in cell.source
            assert "⟦" not in cell.source or "_numbers[" in cell.source
        else:
            assert "⟦" not in cell.source
            assert not re.search(r"\{[a-z:]+\}`|^[`:]{3,}\{|^\([\w-]+\)=$", cell.source, re.M), (
                cell.source
            )
    assert "git clone" in notebook.cells[1].source
    text = json.dumps(notebook)
    assert "pip install" in text
    assert "--no-deps" in text, "Colab keeps its own torch"


def test_what_is_unknown_is_an_error(labels):
    for text, message in (
        ("```{tabs}\nx\n```", "directive 'tabs' is unknown"),
        ("{doc}`x`", "role 'doc' is unknown"),
        ("{numref}`fig-nowhere`", "'fig-nowhere' belongs to no figure"),
        ("{cite:p}`nobody1900`", "'nobody1900' is not in references.bib"),
        ("![a picture](images/cover.png)", "is a file that Colab does not have"),
    ):
        with pytest.raises(ValueError, match=message):
            tool.plain(text, labels)


def test_references_become_words(labels):
    assert tool.plain("{eq}`eq-risk`", labels) == "(1.1)"
    assert (
        tool.plain("{cite:t}`krueger2021vrex`", labels)
        .strip("[")
        .startswith("Krueger et al. (2021)")
    )
    assert "\\tag{1.1}\n$$" in tool.plain("$$\nx\n$$ (eq-risk)", labels)
    shown = tool.plain("```{note}\nRead [it](01_domains.md).\n```", labels)
    assert shown.startswith("> **Note**\n>\n> Read [it](https://colab.research.google.com/github/")
    assert shown.endswith("/book/01_domains.ipynb).")
    folded = tool.plain("```{admonition} An answer\n:class: dropdown\nNo.\n```", labels)
    assert folded == "<details>\n<summary>An answer</summary>\n\nNo.\n\n</details>"
    assert "/blob/main/book/references.md" in tool.plain("[r](references.md)", labels)


def test_exercises_have_their_numbers_and_hints_are_folded(tmp_path):
    first, second = tmp_path / "01_a.md", tmp_path / "02_b.md"
    first.write_text("```{exercise} One\n:label: exercise-01-one\nx\n```\n")
    text = (
        "````{exercise}\n:label: exercise-02-code\n\nSee {numref}`exercise-01-one`.\n\n"
        "```python\nx = 1\n```\n````\n\n```{hint}\nUse `y`.\n```\n\n"
        "```{exercise} The $x$ of it\n:label: exercise-02-two\nFind it.\n```\n"
    )
    second.write_text(text)
    shown = tool.plain(text, tool.Labels([first, second]))
    assert shown.startswith("**Exercise 2.1**\n\nSee Exercise 1.1.\n\n```python\nx = 1\n```\n")
    assert "**Exercise 2.2 (The $x$ of it)**\n\nFind it." in shown
    assert "<details>\n<summary>Hint</summary>\n\nUse `y`.\n\n</details>" in shown
    with pytest.raises(ValueError, match="no figure, equation or exercise"):
        tool.plain("```{exercise} One\nx\n```", tool.Labels([first]))


@pytest.mark.slow
@pytest.mark.book
@pytest.mark.xdist_group("book")
def test_a_page_without_a_notebook_offers_none(book):
    """Neither to open nor to download; its source and its print stay."""
    offered = {}
    for path in book.html.glob("book/**/*.html"):
        page = path.relative_to(book.html).with_suffix("")
        header = path.read_text(encoding="utf-8").partition("<article")[0]
        hosts = [host for host in ("colab.research", "mybinder", ".ipynb") if host in header]
        offered[str(page)] = (ROOT / page).with_suffix(".ipynb").is_file(), len(hosts)
        assert "window.print()" in header
    assert set(offered.values()) == {(True, 3), (False, 0)}, offered
    assert offered["book/index"] == (False, 0)


@pytest.mark.slow
@pytest.mark.book
@pytest.mark.xdist_group("book")
@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_the_buttons_of_a_page_open_its_notebook(book, chapter):
    page = (book.html / "book" / f"{chapter.stem}.html").read_text(encoding="utf-8")
    repository = tool.REPOSITORY.removeprefix("https://github.com/")
    path = f"book/{chapter.stem}.ipynb"
    assert f"https://colab.research.google.com/github/{repository}/blob/main/{path}" in page
    assert f"https://mybinder.org/v2/gh/{repository}/main?urlpath=lab/tree/{path}" in page
    assert f'href="../_sources/{path}"' in page
    downloaded = book.html / "_sources" / path
    assert downloaded.read_bytes() == chapter.with_suffix(".ipynb").read_bytes()
