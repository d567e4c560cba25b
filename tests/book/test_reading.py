"""A reader meets nothing unexplained: symbols, abbreviations and figures, read from the source.

The rules:

- Every symbol of a formula is in the glossary's table of symbols, which gives its name in words
  and the chapter that defines it. Earlier pages do not use it. Where that chapter first uses it,
  the same passage has its name. Accents and everyday notation (``EVERYDAY``) are free.
- Every abbreviation is in the glossary's table of abbreviations. Where that names a chapter, the
  abbreviation first stands there, and the same passage spells it out. Where it has a dash, the
  word is one that every reader knows, or a name.
- Every figure is referred to in the text of its page.
- Every chapter opens and ends alike, and the index has the times that it says of itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from reading import (
    BOOK,
    Page,
    abbreviations,
    read_page,
    read_pages,
    reading_minutes,
    symbols,
)

PAGES = read_pages()
CHAPTERS = [page for page in PAGES if page.name[0].isdigit()]
GLOSSARY = next(page for page in PAGES if page.name == "glossary")
OTHERS = [page for page in PAGES if page is not GLOSSARY]


def table(heading: str, glossary: Page = GLOSSARY) -> Iterator[list[str]]:
    """The rows of the table below a heading of the glossary."""
    section = glossary.text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    for line in re.findall(r"^\|(.*)\|$", section, re.M)[2:]:
        yield [cell.strip() for cell in line.split("|")]


def place_of(cell: str) -> int:
    """The place of the page that a cell links to; 0 for a dash."""
    link = re.search(r"\((\w+)\.md\)", cell)
    return next(page.place for page in PAGES if page.name == link[1]) if link else 0


def says(passage: str, names: str) -> bool:
    """Whether a passage has one of the names ("scale or shift"), in whatever inflection."""
    words = re.sub(r"\{[\w:]+\}`[^`]*`|^\$\$ \([\w-]+\)$", "", passage, flags=re.M)  # not labels
    words = re.sub(r"[\s*_]+", " ", words).lower()
    return any(
        re.search(rf"\b{re.escape(name.strip().lower())}", words) for name in names.split(" or ")
    )


def undefined_symbols(pages: list[Page], rows: list[list[str]]) -> list[str]:
    """What breaks the rule about symbols, in words."""
    known: dict[str, list[tuple[int, str]]] = {}
    for row in rows:
        for symbol in symbols(row[0]):
            known.setdefault(symbol, []).append((place_of(row[3]), row[1]))
    wrong = []
    for page in pages:
        met: set[str] = set()
        for passage in page.passages:
            for symbol in symbols(passage) - met:
                met.add(symbol)
                meanings = known.get(symbol, [])
                if any(place < page.place for place, _ in meanings):
                    continue
                here = [names for place, names in meanings if place == page.place]
                if not any(says(passage, names) for names in here):
                    names = f"; define it there as {' or '.join(here)}" if here else ""
                    start = " ".join(passage.split())[:70]
                    wrong.append(f"{page.name} uses {symbol} undefined in {start!r}{names}")
    return wrong


def unused_symbols(pages: list[Page], rows: list[list[str]]) -> list[str]:
    """Rows of the table whose chapter never has symbol and name in one passage."""
    wrong = []
    for symbol, names, _, chapter in rows:
        page = pages[place_of(chapter)]
        for each in symbols(symbol):
            passages = [passage for passage in page.passages if each in symbols(passage)]
            if not any(says(passage, names) for passage in passages):
                wrong.append(f"{page.name} nowhere calls {each} {names}")
    return wrong


def unknown_abbreviations(pages: list[Page], rows: list[list[str]]) -> list[str]:
    """What breaks the rule about abbreviations, in words."""
    known = {
        word: (place_of(row[2]), row[1].split(":")[0]) for row in rows for word in row[0].split()
    }
    wrong, met = [], set()
    for page in pages:
        for passage in page.passages:
            for short in abbreviations(passage) - met:
                met.add(short)
                start = " ".join(passage.split())[:70]
                if short not in known:
                    wrong.append(f"{page.name}: {short} is not in the glossary, in {start!r}")
                    continue
                place, long = known[short]
                if place and (page.place != place or not says(passage, long)):
                    wrong.append(f"{page.name} does not spell out {short} ({long}) in {start!r}")
    return wrong + [f"nobody uses {short}" for short in known.keys() - met]


def unmentioned_figures(page: Page) -> list[str]:
    return [name for name in page.figures if f"{{numref}}`{name}`" not in page.text]


def test_every_symbol_is_defined_before_it_is_used():
    assert undefined_symbols(OTHERS, list(table("Symbols"))) == []


def test_the_glossary_has_no_symbol_that_its_chapter_does_not_define():
    assert unused_symbols(PAGES, list(table("Symbols"))) == []


def test_every_abbreviation_is_spelled_out_where_it_first_stands():
    assert unknown_abbreviations(OTHERS, list(table("Abbreviations"))) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_figure_is_referred_to(page):
    assert unmentioned_figures(page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_line_begins_with_a_per_cent_sign(page):
    """MyST takes such a line for a comment and leaves it out."""
    assert re.findall(r"^%.*", page.text, re.M) == []


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.name)
def test_every_chapter_opens_and_ends_alike(page):
    opening, *sections = re.split(r"^## ", page.text, flags=re.M)
    for part in ("What you will learn", "Reading time: ", "Running time: ", "You need:"):
        assert part in opening, f"{part!r} is missing above the first section"
    headings = [section.split("\n")[0] for section in sections]
    assert "Summary" in headings
    assert headings[headings.index("Summary") :] in (["Summary"], ["Summary", "Exercises"])


def test_the_index_has_the_times_of_the_chapters():
    rows = re.findall(r"\((\w+)\.md\) \|.*\| (\d+)\smin \| (\d+)\ss \|$", PAGES[0].text, re.M)
    said = {
        page.name: re.findall(r"(?:Reading|Running) time: (\d+) (?:minutes|seconds)", page.text)
        for page in CHAPTERS
    }
    assert {name: list(times) for name, *times in rows} == said


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.name)
def test_reading_time_is_that_of_its_words(page):
    """Up to three minutes more are for sentences that the run writes."""
    said = int(re.search(r"Reading time: (\d+) minutes", page.text)[1])
    assert 0 <= said - reading_minutes(page) < 4
    assert said <= 20


# The rules themselves, on pages made up to break them.

ROWS = [
    ["$R$", "risk", "the mean loss", "[chapter 1](01_domains.md)"],
    [r"$\beta$", "weight", "of the variance", "[chapter 2](02_training.md)"],
]


def page(place: int, text: str) -> Page:
    return read_page(CHAPTERS[place - 1].name, place, text)


def test_symbols_used_too_early_undefined_or_unknown_are_found():
    good = [page(1, "The risk $R$.\n\n$$\nR = 1\n$$"), page(2, "A weight $\\beta$ on\n\n$$R$$")]
    assert undefined_symbols(good, ROWS) == []
    for text, symbol in [
        ("Take $\\beta$, a weight.", r"\beta"),  # chapter 2 defines it
        ("Take $R$.\n\nThis is the risk.", "R"),  # the name comes later
        ("Take\n\n$$\nR\n$$ (eq-risk)\n\nof {eq}`eq-risk`.", "R"),  # labels are no words
        ("The risk $R$ of $q$.", "q"),
        ("The risk, with λ = 1.", r"\lambda"),
    ]:
        found = undefined_symbols([page(1, text)], ROWS)
        assert len(found) == 1
        assert f"uses {symbol} undefined" in found[0]
    assert undefined_symbols([page(1, "Code: `$q$`.\n\n```python\n'$q$'\n```")], ROWS) == []
    pages = [page(1, "Index"), page(1, "A number $R$."), page(2, "The weight $\\beta$.")]
    assert unused_symbols(pages, ROWS) == ["01_domains nowhere calls R risk"]


def test_abbreviations_that_are_not_spelled_out_are_found():
    rows = [["ERM", "empirical risk minimization", "[chapter 1](01_domains.md)"], ["GPU", "x", "–"]]
    whole = "Empirical risk *minimization* (ERM) on a GPU."
    assert unknown_abbreviations([page(1, whole), page(2, "Again ERM.")], rows) == []
    for pages, word in [
        ([page(1, "A GPU and ERM.\n\n" + whole)], "ERM"),
        ([page(1, "A GPU."), page(2, whole)], "ERM"),  # chapter 1 should have it
        ([page(1, whole + " And FPGM.")], "FPGM"),
        ([page(1, whole.replace("GPU", "laptop"))], "GPU"),
    ]:
        found = unknown_abbreviations(pages, rows)
        assert len(found) == 1
        assert word in found[0]


def test_a_figure_that_no_text_mentions_is_found():
    settings = "mystnb:\n  figure:\n    caption: A curve.\n    name: fig-a\n"
    cell = f"```{{code-cell}} ipython3\n---\n{settings}---\ndraw()\n```\n"
    assert unmentioned_figures(page(1, cell)) == ["fig-a"]
    assert unmentioned_figures(page(1, cell + "\n{numref}`fig-a` shows it.")) == []


def test_no_page_has_a_control_character():
    """A backslash of a formula that was taken for an escape: a tab for the start of times."""
    for path in [*BOOK.glob("*.md"), *BOOK.glob("*/*.md")]:
        found = re.search(r"[^\n]*[\x00-\x09\x0b-\x1f][^\n]*", path.read_text(encoding="utf-8"))
        assert not found, f"{path.name}: {found[0]!r}"


def test_all_pages_are_read():
    assert len(CHAPTERS) == len(list(BOOK.glob("[0-9]*.md"))) > 10
    assert sum(len(page.figures) for page in PAGES) > 20
    assert sum(len(symbols(passage)) for page in PAGES for passage in page.passages) > 200
