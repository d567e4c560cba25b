"""The editions of one source: who sees a solution, and who does not."""

from __future__ import annotations

import doctest
import html
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import editions
import make_pdf
import pytest
import yaml
from books import make_book
from chromium import launch
from pypdf import PdfReader

ROOT = Path(__file__).parent.parent.parent
SOLUTIONS = sorted((ROOT / "book" / "solutions").glob("*.md"))

EXERCISE = """
Text.

## Exercises

```{exercise} A sum
:label: exercise-01-sum
What is one and one?
```

```{hint}
Use your fingers.
```

````{exercise} A function
:label: exercise-01-add
Write `add`.
```python
# a comment, no heading
```
````

```{code-cell} ipython3
## a comment, no heading
def add(a, b):
    raise NotImplementedError
```

```{code-cell} ipython3
print("checked")
```

(target)=
## Later

The end.
"""
ANSWERS = """# Solutions

## exercise-01-sum

Two, like the sticks of a xylophone.

## exercise-01-add

````text
```
````

```python
def add(a, b):
    return a + b  ## the xylophone again
```
"""
NOTES = "## For the teacher\n\nAsk who has played the zither.\n"


def test_extension_does_what_its_examples_say():
    result = doctest.testmod(editions)
    assert result.attempted >= 3
    assert result.failed == 0


@pytest.mark.parametrize("folded", [True, False])
def test_a_solution_stands_at_the_end_of_its_exercise(folded):
    page = editions.insert_solutions(EXERCISE, editions.read_solutions(ANSWERS), folded=folded)
    parts = [
        *("```{exercise} A sum", "fingers", "{solution} exercise-01-sum", "Two, like"),
        *("````{exercise} A function", 'print("checked")', "{solution} exercise-01-add"),
        *("return a + b", "(target)=", "## Later"),
    ]
    places = [page.index(part) for part in parts]
    assert places == sorted(places)
    assert page.count(":class: dropdown") == (2 if folded else 0)
    assert "\n`````{solution} exercise-01-add\n" in page, "longer than any fence inside"
    left = re.sub(r"\n`{4,}\{solution\}.*?\n`{4,}\n(?=\n|$)", "", page, flags=re.DOTALL)
    assert "xylophone" in page
    assert left.replace("\n", "").startswith(EXERCISE[:300].replace("\n", ""))


def test_solutions_and_exercises_must_agree():
    exercises = editions.find_exercises(EXERCISE)
    assert list(exercises) == ["exercise-01-sum", "exercise-01-add"]
    solutions = editions.read_solutions(ANSWERS)
    editions.check_pairs(exercises, solutions, "01_start")
    solutions["exercise-01-gone"] = solutions.pop("exercise-01-add")
    with pytest.raises(editions.EditionError) as error:
        editions.check_pairs(exercises, solutions, "01_start")
    assert "exercise 'exercise-01-add' has no solution" in str(error.value)
    assert "solution 'exercise-01-gone' has no exercise" in str(error.value)
    assert "solutions/01_start.md" in str(error.value)


@pytest.mark.parametrize(
    ("function", "text", "message"),
    [
        (editions.find_exercises, "```{exercise} A sum\nNo label.\n```", "has no label"),
        (editions.find_exercises, 2 * EXERCISE, "two exercises .* 'exercise-01-sum'"),
        (editions.read_solutions, "## exercise-01-sum\n\n## exercise-01-add\nx", "sum' is empty"),
        (editions.read_solutions, "## one\nx\n## one\ny", "'one' stands twice"),
        (lambda text: editions.append_notes("", text, "01_start"), "Ask.", "01_start.md does not"),
    ],
)
def test_what_cannot_be_meant_is_an_error(function, text, message):
    with pytest.raises(editions.EditionError, match=message):
        function(text)


def test_an_unknown_edition_is_an_error_that_names_the_three():
    config = SimpleNamespace(dgprune_edition="teacher", html_title="A book")
    named = r"'teacher'.*'reader', 'student', 'instructor'"
    with pytest.raises(editions.EditionError, match=named):
        editions._check_configuration(None, config)
    for edition, title in (
        ("reader", "A book"),
        ("student", "A book (student edition)"),
        ("instructor", "A book (instructor's edition)"),
    ):
        config = SimpleNamespace(dgprune_edition=edition, html_title="A book")
        editions._check_configuration(None, config)
        assert config.html_title == title


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_each_exercise_of_the_book_has_its_solution(path):
    exercises = editions.find_exercises((ROOT / "book" / path.name).read_text(encoding="utf-8"))
    solutions = editions.read_solutions(path.read_text(encoding="utf-8"))
    editions.check_pairs(exercises, solutions, path.stem)
    assert all(label.startswith(f"exercise-{path.stem[:2]}-") for label in exercises)


# From here on, books are built.


def build(edition: str, source: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Build an edition as the Makefile does, with nothing of this process's Python set-up."""
    dropped = {"MPLBACKEND", "PYTHONPATH", "PYTHONWARNINGS", "JUPYTER_PATH", "JUPYTER_CONFIG_DIR"}
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", "NO_COLOR": "1"}
    tool = [sys.executable, str(ROOT / "tools" / "build_edition.py"), edition]
    return subprocess.run(
        [*tool, "--source", str(source), "--build", str(folder)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def small_book(folder: Path, chapter: str) -> Path:
    make_book(folder, chapter)
    for name in ("solutions", "instructor"):
        (folder / "book" / name).mkdir()
    (folder / "book" / "solutions" / "chapter.md").write_text(ANSWERS)
    return folder


def contents(folder: Path) -> dict[str, str]:
    """The text of every file of a built edition, as a reader sees it."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in {".png", ".woff", ".woff2", ".svg", ".mo"}:
            text = path.read_text(encoding="utf-8", errors="ignore")
            files[str(path.relative_to(folder))] = readable(text, path.suffix == ".html")
    return files


def readable(text: str, markup: bool) -> str:
    if markup:
        text = html.unescape(re.sub(r"<[^>]*>", "", text))
    return " ".join(text.split())


@pytest.mark.book
@pytest.mark.slow
def test_the_editions_of_a_small_book(tmp_path):
    source, folder = small_book(tmp_path / "source", EXERCISE), tmp_path / "build"

    done = build("student", source, folder)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "Executed notebook" in done.stdout
    page = (folder / "student/html/book/chapter.html").read_text()
    assert "(student edition)" in page
    assert "dropdown admonition hint" in page
    for name, text in contents(folder / "student/html").items():
        assert "xylophon" not in text, name
        assert "solution-01-sum" not in text, name

    done = build("instructor", source, folder)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "Executed notebook" not in done.stdout, "a chapter runs once for all editions"
    page = (folder / "instructor/html/book/chapter.html").read_text()
    assert page.count('<div class="solution admonition"') == 2
    assert "(instructor's edition)" in html.unescape(page)
    found = {
        name for name, text in contents(folder / "instructor/html").items() if "xylophon" in text
    }
    assert found >= {"book/chapter.html", "searchindex.js"}, "the search above finds something"

    (source / "book/instructor/chapter.md").write_text(NOTES)  # new: the page is read again
    assert build("instructor", source, folder).returncode == 0
    page = (folder / "instructor/html/book/chapter.html").read_text()
    assert '<section id="for-the-teacher">' in page
    assert "zither" in page

    answers = source / "book/solutions/chapter.md"  # changed: the page is read again
    answers.write_text(ANSWERS.replace("exercise-01-add", "exercise-01-gone"))
    done = build("instructor", source, folder)
    assert done.returncode != 0
    assert "solution 'exercise-01-gone' has no exercise" in done.stdout


@pytest.mark.book
@pytest.mark.slow
def test_a_warning_of_a_cell_fails_the_build_also_when_it_comes_from_the_cache(tmp_path):
    cell = "\n```{code-cell} ipython3\nimport warnings\n\nwarnings.warn('a stray warning')\n```\n"
    source = small_book(tmp_path / "source", EXERCISE + cell)
    for notice in ("Executed notebook", "Using cached notebook"):
        shutil.rmtree(tmp_path / "build/reader", ignore_errors=True)  # all but the executed cells
        done = build("reader", source, tmp_path / "build")
        assert notice in done.stdout
        assert "stderr was found in the cell outputs" in done.stdout
        assert done.returncode != 0


@pytest.fixture(scope="module")
def student(book):
    """The student edition of the real book, from the chapters executed for the reader's."""
    folder = book.html.parent
    done = build("student", ROOT, folder)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "Executed notebook" not in done.stdout, "a chapter must run once for all editions"
    return folder / "student" / "html"


@pytest.fixture(scope="module")
def student_files(student):
    return contents(student)


def distinctive_lines(path: Path, known: str) -> set[str]:
    """Pieces of a page's solutions that stand nowhere else in the book or the package."""
    pieces = re.findall(r"[A-Za-z0-9 ,.:;=+/()\[\]_]{24,}", path.read_text(encoding="utf-8"))
    return {piece for piece in (" ".join(piece.split()) for piece in pieces) if piece not in known}


@pytest.mark.book
@pytest.mark.slow
@pytest.mark.xdist_group("book")
@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_the_student_edition_has_no_solution_anywhere(book, student_files, path):
    sources = [*(ROOT / "book").glob("*.md"), *(ROOT / "dgprune_lite").rglob("*.py")]
    known = " ".join(" ".join(file.read_text(encoding="utf-8").split()) for file in sources)
    page = (book.html / "book" / f"{path.stem}.html").read_text(encoding="utf-8")
    shown = readable(page, markup=True)
    lines = {line for line in distinctive_lines(path, known) if line in shown}
    assert len(lines) >= 3, "the reader's edition must have them"
    for name, text in student_files.items():
        assert not [line for line in lines if line in text], name


@pytest.mark.book
@pytest.mark.slow
@pytest.mark.xdist_group("book")
def test_the_student_edition_is_the_same_book_otherwise(book, student):
    """Numbers, figures and explorers come out of the cache as they went in."""
    for page in sorted((book.html / "book").glob("*.html")):
        texts = []
        for path in (page, student / "book" / page.name):
            text = path.read_text(encoding="utf-8")
            article = text[text.index("<article") : text.index("</article>")]
            article = re.sub(r'<div class="solution.*?</section>\s*</div>', "", article, flags=re.S)
            article = re.sub(r' id="id\d+"|#id\d+|_static/[^"]*', "", article)
            texts.append(re.sub(r"\s+", " ", article))
        assert texts[0] == texts[1], page.name
    pictures = [
        {file.name for file in (site / "_images").iterdir()} for site in (book.html, student)
    ]
    assert pictures[0] == pictures[1]


# The PDF.


def test_the_tool_for_paper_does_what_its_examples_say():
    result = doctest.testmod(make_pdf)
    assert result.attempted >= 3
    assert result.failed == 0


@pytest.mark.book
@pytest.mark.slow
@pytest.mark.xdist_group("book")
def test_no_link_on_paper_leads_nowhere(student):
    document, _ = make_pdf.assemble(ROOT, student, "student")
    names = re.findall(r' id="([^"]*)"', document)
    assert len(names) == len(set(names)), {name for name in names if names.count(name) > 1}
    targets = set(re.findall(r'href="#([^"]*)"', document))
    assert len(targets) > 100
    assert targets - set(names) == set()


@pytest.fixture(scope="module")
def pdf(student, chromium_path):
    """The student edition on paper, and what was said while it was printed."""
    folder = student.parent.parent
    command = [sys.executable, str(ROOT / "tools/make_pdf.py"), "student", "--build", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return PdfReader(folder / "dgprune_lite.pdf"), done.stdout


@pytest.mark.book
@pytest.mark.slow
@pytest.mark.xdist_group("book")
def test_the_pdf_is_the_whole_book(pdf, student):
    reader, log = pdf
    assert "wider than the paper" not in log, log
    assert 80 <= len(reader.pages) <= 260
    starts = {
        entry["/Title"]: reader.get_destination_page_number(entry)
        for entry in reader.outline
        if not isinstance(entry, list)
    }
    names = make_pdf.page_names(yaml.safe_load((ROOT / "_toc.yml").read_text()))
    titles = []
    for name in names:
        heading = re.search(r"<h1>(.*?)<a", (student / f"{name}.html").read_text())[1]
        titles.append(readable(heading, markup=True))
    assert list(starts) == titles

    def read(place: int) -> str:  # a second a page: only some are read
        return " ".join(reader.pages[place].extract_text().split())

    listed = " ".join(read(place) for place in range(1, starts[titles[0]]))
    for title, place in starts.items():
        assert re.search(rf"{re.escape(title)} {place + 1}\b", listed), f"{title}: {place + 1}"
    for title in (titles[1], titles[9], titles[-1]):
        page = read(starts[title])
        assert page.startswith(f"{starts[title] + 1}{title}"), "number and running title"
        assert page.count(title) >= 2
    maths = " ".join(map(read, range(starts[titles[5]] + 1, starts[titles[5]] + 5)))
    assert "∑" in maths
    assert "Δ" in maths
    assert not re.findall(r"\\(?:frac|sum|Delta|operatorname)|\\\(", maths), "maths was not drawn"
    network = " ".join(map(read, range(starts[titles[9]], starts[titles[9]] + 2)))
    assert "book/_static/network/index.html" in network
    assert "Click to show" not in network


@pytest.mark.book
@pytest.mark.slow
@pytest.mark.xdist_group("book")
def test_the_pdf_brings_its_fonts(pdf):
    reader, _ = pdf
    fonts = {}
    for page in reader.pages:
        for font in page["/Resources"].get("/Font", {}).values():
            font = font.get_object()
            inner = font["/DescendantFonts"][0].get_object() if "/DescendantFonts" in font else font
            descriptor = inner["/FontDescriptor"].get_object()
            embedded = font["/Subtype"] == "/Type3" or any("/FontFile" in key for key in descriptor)
            fonts[descriptor["/FontName"]] = embedded
    families = {re.sub(r".*\+|-.*|_.*", "", name) for name in fonts}
    assert families == {"SourceSans3", "SourceCodePro", "MathJax"}
    assert [name for name, embedded in fonts.items() if not embedded] == []


@pytest.mark.book
def test_a_heading_that_breaks_over_lines_keeps_its_words_in_the_outline(tmp_path, chromium_path):
    printed = tmp_path / "narrow.pdf"
    titles = ["Leaving one domain out", "Again one", "A (third) chapter: 25 %"]
    headings = "<h1>{}</h1><h2>{}</h2><h1>{}</h1>".format(*titles)

    def print_it() -> None:
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            browser = launch(playwright, chromium_path)
            page = browser.new_page()
            page.set_content(f"<html lang=en><title>x</title><div style='width: 5em'>{headings}")
            page.pdf(path=printed, outline=True, tagged=True)
            browser.close()

    with ThreadPoolExecutor(1) as thread:  # Playwright allows one browser a thread
        thread.submit(print_it).result()
    before = make_pdf.heading_pages(printed)
    make_pdf.set_titles(printed, titles)
    first, below, last = PdfReader(printed).outline
    assert [first["/Title"], below[0]["/Title"], last["/Title"]] == titles
    assert make_pdf.heading_pages(printed) == before
    with pytest.raises(ValueError, match="zip"):
        make_pdf.set_titles(printed, titles[:2])


def test_without_chromium_there_is_a_clear_error(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match=r"make pdf needs Chromium.*apt install chromium"):
        make_pdf.main(["student"])
