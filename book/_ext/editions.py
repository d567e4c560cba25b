"""Three editions of the book from one source: the reader's, the student's and the instructor's.

The environment variable `DGPRUNE_EDITION` says which one is built; without it, the reader's.

| edition    | solutions of the exercises | notes for the teacher |
|------------|----------------------------|-----------------------|
| reader     | folded, below the exercise | no                    |
| student    | none                       | no                    |
| instructor | open, below the exercise   | at the end of a page  |

A page `book/NAME.md` holds the exercises (`{exercise}` of sphinx-exercise, each with a label) and
never a solution. `book/solutions/NAME.md` has one section an exercise, whose heading is the label;
`book/instructor/NAME.md` has the notes. Both are put into the text of the page before it is parsed,
so that they are written like any other text of the page. The code cells are the same in every
edition: one execution serves all.

What this file is *not*: it draws nothing. sphinx-exercise does, and dgprune.css.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import SphinxError

TITLES = {"reader": "", "student": "student edition", "instructor": "instructor's edition"}
FOLDERS = ("solutions", "instructor")

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,}|:{3,})(.*)")
_EXERCISE = re.compile(r" {0,3}(?:`{3,}|:{3,})\{exercise\}")
_NEXT_PART = re.compile(r"#{1,6} |\([\w-]+\)=|(?:`{3,}|:{3,})\{exercise\}")
_LABEL = re.compile(r":label:\s*(\S+)")


class EditionError(SphinxError):
    """Exercises, solutions, notes and pages that do not belong together."""

    category = "Edition error"


def _top_level(lines: list[str]) -> Iterator[tuple[int, str]]:
    """The lines, with their numbers, that stand in no fenced block; of a block, the first."""
    fence = ""
    for number, line in enumerate(lines):
        found = _FENCE.match(line)
        if fence:
            if found and found[1].startswith(fence) and not found[2].strip():
                fence = ""
            continue
        fence = found[1] if found else ""
        yield number, line


def find_exercises(page: str) -> dict[str, int]:
    """Return the label of each exercise, and the number of the line before which it ends.

    An exercise goes on, with its hint and its cells, up to the next exercise or heading.

    >>> find_exercises("```{exercise} Sum\\n:label: exercise-01-sum\\nAdd.\\n```\\nMore.\\n## Next")
    {'exercise-01-sum': 5}
    """
    lines = page.split("\n")
    ends: dict[str, int] = {}
    label = ""
    for number, line in _top_level(lines):
        if label and _NEXT_PART.match(line):
            ends[label] = number
            label = ""
        if _EXERCISE.match(line):
            found = next(filter(None, map(_LABEL.match, lines[number + 1 : number + 5])), None)
            if found is None:
                raise EditionError(f"{line!r} has no label: write ':label: exercise-01-name' below")
            label = found[1]
            if label in ends:
                raise EditionError(f"two exercises of a page have the label {label!r}")
    if label:
        ends[label] = len(lines)
    return ends


def read_solutions(text: str) -> dict[str, str]:
    """Return the solution for each label; what stands before the first section is left out.

    >>> read_solutions("## exercise-01-sum\\n\\nTwo.\\n\\n## exercise-01-next\\nThree.")
    {'exercise-01-sum': 'Two.', 'exercise-01-next': 'Three.'}
    """
    lines = text.split("\n")
    starts = [number for number, line in _top_level(lines) if line.startswith("## ")]
    solutions: dict[str, str] = {}
    for start, end in pairwise([*starts, len(lines)]):
        label = lines[start].removeprefix("## ").strip()
        body = "\n".join(lines[start + 1 : end]).strip()
        if label in solutions or not body:
            problem = "stands twice" if label in solutions else "is empty"
            raise EditionError(f"the solution {label!r} {problem}")
        solutions[label] = body
    return solutions


def check_pairs(exercises: dict[str, int], solutions: dict[str, str], page: str) -> None:
    """Raise an EditionError where an exercise or a solution of the page stands alone."""
    problems = [
        *(f"exercise {label!r} has no solution" for label in exercises if label not in solutions),
        *(f"solution {label!r} has no exercise" for label in solutions if label not in exercises),
    ]
    if problems:
        raise EditionError(
            f"{page}.md and solutions/{page}.md do not agree: {'; '.join(problems)}. "
            "The headings ('## label') of the second are the labels of the first."
        )


def insert_solutions(page: str, solutions: dict[str, str], *, folded: bool) -> str:
    """Return the page's text with each solution at the end of its exercise.

    >>> page = "```{exercise} Sum\\n:label: exercise-01-sum\\nAdd 1 and 1.\\n```\\n"
    >>> print(insert_solutions(page, {"exercise-01-sum": "Two."}, folded=True))
    ```{exercise} Sum
    :label: exercise-01-sum
    Add 1 and 1.
    ```
    <BLANKLINE>
    <BLANKLINE>
    ````{solution} exercise-01-sum
    :label: solution-01-sum
    :class: dropdown
    <BLANKLINE>
    Two.
    ````
    <BLANKLINE>
    """
    lines = page.split("\n")
    for label, end in sorted(find_exercises(page).items(), key=lambda item: -item[1]):
        body = solutions[label]
        fence = "`" * (1 + max([3, *map(len, re.findall(r"^ *(`+)", body, re.MULTILINE))]))
        options = [f":label: {label.replace('exercise', 'solution', 1)}"]
        options += [":class: dropdown"] if folded else []
        lines[end:end] = ["", f"{fence}{{solution}} {label}", *options, "", body, fence, ""]
    return "\n".join(lines)


def append_notes(page: str, notes: str, name: str) -> str:
    """Return the page's text with the notes for the teacher as its last section."""
    if not notes.startswith("## "):
        raise EditionError(f"instructor/{name}.md does not begin with a heading ('## For …')")
    return f"{page.rstrip()}\n\n{notes.strip()}\n"


def _companions(app: Sphinx, docname: str) -> dict[str, Path]:
    """The files that belong to a page, by folder, where they exist."""
    page = Path(app.env.doc2path(docname))
    files = {folder: page.parent / folder / page.name for folder in FOLDERS}
    return {folder: path for folder, path in files.items() if path.is_file()}


def _check_configuration(app: Sphinx, config: Any) -> None:
    edition = config.dgprune_edition
    if edition not in TITLES:
        raise EditionError(
            f"DGPRUNE_EDITION is {edition!r}; the editions are {', '.join(map(repr, TITLES))}"
        )
    if TITLES[edition]:
        config.html_title = f"{config.html_title} ({TITLES[edition]})"


def _check_files(app: Sphinx) -> None:
    for folder in FOLDERS:
        for path in sorted(Path(app.srcdir, "book", folder).glob("*.md")):
            if not (path.parent.parent / path.name).is_file():
                raise EditionError(f"book/{folder}/{path.name} belongs to no page of this name")


def _edit(app: Sphinx, docname: str, source: list[str]) -> None:
    edition, name = app.config.dgprune_edition, Path(docname).name
    texts = {}
    for folder, path in _companions(app, docname).items():
        app.env.note_dependency(str(path))
        texts[folder] = path.read_text(encoding="utf-8")
    try:
        solutions = read_solutions(texts.get("solutions", ""))
        check_pairs(find_exercises(source[0]), solutions, name)
    except EditionError as error:
        raise EditionError(f"book/{name}.md: {error}") from None
    if edition != "student":
        source[0] = insert_solutions(source[0], solutions, folded=edition == "reader")
    if edition == "instructor" and "instructor" in texts:
        source[0] = append_notes(source[0], texts["instructor"], name)


def _find_new_companions(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    """Pages that have got solutions or notes since they were read; Sphinx notices the rest."""
    return [
        docname
        for docname in env.found_docs - added - changed
        if any(
            str(path) not in env.dependencies[docname]
            for path in _companions(app, docname).values()
        )
    ]


def _finish(app: Sphinx, document: nodes.document) -> None:
    """Fold hints; sphinx-exercise gives the parts of all exercises one identifier: change it."""
    for hint in document.findall(nodes.hint):
        hint["classes"].append("dropdown")
    for part in document.findall(nodes.section):
        if part["ids"] in (["exercise-content"], ["solution-content"]):
            # Not empty: Sphinx looks for the number of every section by its first identifier.
            part["ids"] = [f"{part.parent['label']}-content"]


def setup(app: Sphinx) -> dict[str, bool]:
    edition = os.environ.get("DGPRUNE_EDITION") or "reader"
    app.add_config_value("dgprune_edition", edition, "env", str)
    app.connect("config-inited", _check_configuration)
    app.connect("builder-inited", _check_files)
    app.connect("env-get-outdated", _find_new_companions)
    app.connect("source-read", _edit)
    app.connect("doctree-read", _finish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
