"""What a page of the book asks of its reader: symbols, abbreviations, figures, passage by passage.

What this file is *not*: the rules (``book/test_reading.py``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

BOOK = Path(__file__).parent.parent / "book"
TABLE_OF_CONTENTS = yaml.safe_load((BOOK.parent / "_toc.yml").read_text(encoding="utf-8"))

# Commands of TeX that every reader of formulas knows, or that only lay a formula out. Letters
# after them are symbols all the same.
EVERYDAY = {
    r"\approx", r"\bar", r"\begin", r"\big", r"\bigl", r"\bigr", r"\Big", r"\Bigl", r"\Bigr",
    r"\cdot", r"\dots", r"\end", r"\exp", r"\frac", r"\ge", r"\hat", r"\in", r"\infty", r"\le",
    r"\left", r"\log", r"\max", r"\min", r"\neq", r"\partial", r"\qquad", r"\quad", r"\right",
    r"\sim", r"\sqrt", r"\sum", r"\tfrac", r"\times", r"\to", r"\top",
}  # fmt: skip
_LAYOUT = re.compile(r"\\(?:begin|end|text|tag)\{[^}]*\}")
_NAMED = re.compile(r"\\(?:operatorname|mathbb|mathbf|mathrm)\{\w+\}")
_SYMBOL = re.compile(r"\\[a-zA-Z]+|[A-Za-z]")
_FORMULA = re.compile(r"\$\$.*?\$\$|\$[^$]+?\$", re.DOTALL)
# Symbols in plain text: Greek letters, the loss, and what stands behind a sign or a fraction.
_PLAIN = re.compile("[Α-ωℓ]|(?<=[½−])[A-Z]")
_TEX = {
    "Δ": r"\Delta",
    "β": r"\beta",
    "γ": r"\gamma",
    "δ": r"\delta",
    "ε": r"\varepsilon",
    "λ": r"\lambda",
    "μ": r"\mu",
    "σ": r"\sigma",
    "ℓ": r"\ell",
}
_CELL = re.compile(
    r"^(?P<fence>`{3,})\{code-cell\}[^\n]*\n(?:---\n(?P<settings>.*?)^---\n)?.*?^(?P=fence)$",
    re.DOTALL | re.M,
)
_FIRST_WORDS = re.compile(r"^(?:[A-Z][a-z]{3,})+(?=[A-Z]{2})")  # of a name like ColoredMNIST
_SHORT = re.compile(r"\b(?:[A-Z]-)?[A-Za-z]*[A-Z]{2,}[A-Za-z]*\b")


@dataclass(frozen=True)
class Page:
    """A page of the book.

    Attributes:
        name: Such as "05_risk_variance".
        place: 0 for the index, then as in the table of contents.
        text: Its Markdown, code cells replaced by their figures' captions.
        passages: The text cut at blank lines; a formula on lines of its own belongs to what
            stands above and below it. Those of its solutions come last.
        figures: Names of its figures, such as "fig-gate".
    """

    name: str
    place: int
    text: str = field(repr=False)
    passages: tuple[str, ...] = field(repr=False)
    figures: tuple[str, ...]


def read_pages(folder: Path = BOOK) -> list[Page]:
    """All pages of the table of contents, in its order."""
    files = [TABLE_OF_CONTENTS["root"]]
    files += [page["file"] for part in TABLE_OF_CONTENTS["parts"] for page in part["chapters"]]
    pages = []
    for place, file in enumerate(files):
        name, path = Path(file).name, folder / f"{file.removeprefix('book/')}.md"
        page = read_page(name, place, path.read_text(encoding="utf-8"))
        solutions = folder / "solutions" / f"{name}.md"
        if solutions.is_file():
            added = read_page(name, place, solutions.read_text(encoding="utf-8")).passages
            page = replace(page, passages=page.passages + added)
        pages.append(page)
    return pages


def read_page(name: str, place: int, markdown: str) -> Page:
    """Take a page apart.

    >>> page = read_page("01_a", 1, "The loss is\\n\\n$$\\nx = 1\\n$$\\n\\nnow.\\n\\nEnd.")
    >>> len(page.passages)
    2
    >>> read_page("01_a", 1, "```{exercise} Add\\nThe sum $x$.\\n```").passages
    ('Add\\nThe sum $x$.',)
    """
    figures = []

    def caption(cell: re.Match[str]) -> str:
        settings = yaml.safe_load(cell["settings"]) if cell["settings"] else {}
        figure = settings.get("mystnb", {}).get("figure", {})
        figures.extend([figure["name"]] if "name" in figure else [])
        return figure.get("caption", "")

    text = re.sub(r"\A---\n.*?^---\n", "", markdown, flags=re.DOTALL | re.M)
    text = _CELL.sub(caption, text)
    text = re.sub(r"^```(?:\w+|\{eval-rst\})\n.*?^```$", "", text, flags=re.DOTALL | re.M)
    text = re.sub(r"^`{3,}(?:\{[\w-]+\})?", "", text, flags=re.M)  # the fences of directives
    passages: list[str] = []
    for block in re.split(r"\n\s*\n", text.strip()):
        below = passages and re.search(r"^\$\$[^$\n]*\Z", passages[-1], re.M)
        if passages and (below or block.startswith("$$")):
            passages[-1] += f"\n\n{block}"
        else:
            passages.append(block)
    return Page(name, place, text, tuple(passages), tuple(figures))


def reading_minutes(page: Page) -> float:
    """Two hundred words a minute, and half a minute for a figure; code and exercises not counted.

    >>> reading_minutes(read_page("01_a", 1, "word " * 400 + "\\n## Exercises\\n" + "word " * 400))
    2.0
    """
    prose = re.sub(r"\$\$.*?\$\$", "", page.text.split("\n## Exercises")[0], flags=re.DOTALL)
    return len(prose.split()) / 200 + len(page.figures) / 2


def symbols(passage: str) -> set[str]:
    r"""The symbols of a passage, without indices' positions, accents and everyday notation.

    >>> sorted(symbols(r"the loss $\bar R_d = \frac1D \sum_d \operatorname{Var} z$ and ½F"))
    ['D', 'F', 'R', '\\operatorname{Var}', 'd', 'z']
    """
    passage = re.sub(r"`[^`]*`", "", passage)
    found = {_TEX.get(sign, sign) for sign in _PLAIN.findall(_FORMULA.sub("", passage))}
    for formula in _FORMULA.findall(passage):
        formula = _LAYOUT.sub("", formula)
        found |= set(_NAMED.findall(formula))
        found |= set(_SYMBOL.findall(_NAMED.sub("", formula))) - EVERYDAY
    return found


def abbreviations(passage: str) -> set[str]:
    """Words with two capitals side by side, in prose: not in code, formulas, headings and links.

    >>> sorted(abbreviations("Plain ERM on ColoredMNIST: fewer MACs than `V-REx`. [A GPU](gpu.md)"))
    ['ERM', 'MAC', 'MNIST']
    """
    passage = re.sub(r"^#.*$|`[^`]*`|\[[^\]]*\]\([^)]*\)", "", passage, flags=re.M)
    words = _SHORT.findall(_FORMULA.sub("", passage))
    return {_FIRST_WORDS.sub("", word).removesuffix("s") for word in words}
