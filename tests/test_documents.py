"""What the documents say to do can be done: their commands exist, and their examples run."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import dgprune_lite as dg

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "book/teaching.md", "book/WRITING.md"]
DOCUMENTS += [str(path.relative_to(ROOT)) for path in sorted((ROOT / "book/instructor").glob("*"))]
CHAPTERS = sorted(path.stem for path in (ROOT / "book").glob("[0-9][0-9]_*.md"))


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_exist(name):
    text = read(name)
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
    assert named <= targets, named - targets
    for tool in re.findall(r"python (tools/\w+\.py|benchmarks/[a-z]\w*\.py)", text):
        assert (ROOT / tool).is_file(), tool
    for module in re.findall(r"python -m (dgprune_book[\w.]*)", text):
        place = ROOT / "book" / module.replace(".", "/")
        assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), module


@pytest.mark.parametrize("name", [*DOCUMENTS, "CODE_OF_CONDUCT.md"])
def test_files_and_links_exist(name):
    text = re.sub(r"^(`{3,}).*?^\1", "", read(name), flags=re.MULTILINE | re.DOTALL)
    folder = ROOT / ("book" if "instructor" in name else Path(name).parent)
    for link in re.findall(r"\]\((?!https?:)([\w./-]+)", text):
        assert (folder / link).exists(), link
    for path in re.findall(r"`((?:book|tests|tools|dgprune_lite)/[\w./-]+)`", text):
        assert (ROOT / path).exists() or "NN_" in path or "12_name" in path, path


def test_examples_of_contributing_run():
    """The blocks depend on each other, from the first to the last."""
    outside = re.sub(r"^````md.*?^````", "", read("CONTRIBUTING.md"), flags=re.M | re.S)
    blocks = re.findall(r"^```python\n(.*?)^```", outside, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    try:
        exec("\n".join(blocks), {"__name__": "example"})
    finally:
        dg.CRITERIA.pop("range_of_change", None)


def test_readme_names_the_oldest_and_the_newest_tested_versions():
    """The lower bounds of pyproject.toml, and what constraints.txt pins."""
    project = tomllib.loads(read("pyproject.toml"))["project"]
    bounds = dict(re.match(r"(\S+?)>=(\S+)", each).groups() for each in project["dependencies"])
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", read("constraints.txt"), re.MULTILINE))
    line = " ".join(re.search(r"^Tested with .*?:", read("README.md"), re.M | re.S)[0].split())
    titles = {
        "torch": "PyTorch",
        "torchvision": "torchvision",
        "numpy": "NumPy",
        "pandas": "pandas",
    }
    for name, title in titles.items():
        newest = ".".join(pins[name].split(".")[:2])
        assert f"{title} {bounds[name]} to {newest}" in line, line


def test_citation_names_the_licence_and_the_version_of_the_package():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert (citation["version"], citation["license"]) == (dg.__version__, "MIT")
    assert read("LICENSE").startswith("MIT License")
    assert "Creative Commons Attribution 4.0 International" in read("LICENSE-CONTENT")


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapter_has_notes_for_the_teacher(chapter):
    notes = read(f"book/instructor/{chapter}.md")
    assert notes.startswith("## For the teacher\n")
    parts = ["**Goal.**", "get wrong**", "**Timing.**", "**Questions to ask**", "**Short of"]
    places = [notes.find(part) for part in parts]
    assert min(places) > 0
    assert places == sorted(places)
    assert len(re.findall(r"^\d\. \*.+?\*", notes, re.MULTILINE)) >= 2


def test_notes_name_exercises_that_exist():
    """Titles in the notes of a chapter, and in those of the module, are those of exercises."""
    for path in (ROOT / "book/instructor").glob("[0-9]*.md"):
        chapter = read(f"book/{path.name}")
        titles = re.findall(r"^```\{exercise\} (.+)$", chapter, re.MULTILINE)
        ordinals = {"first": 1, "second": 2, "third": 3, "last": 1}
        for word in re.findall(r"[Tt]he (\w+) exercise", path.read_text(encoding="utf-8")):
            assert len(titles) >= ordinals[word], f"{path.name}: the {word} exercise"


def test_slides_named_in_the_plan_exist():
    titles = re.findall(r"^## (.+)$", read("book/slides/lecture.md"), re.MULTILINE)
    plan = read("book/instructor/teaching.md").split("### Three weeks")[0]
    named = [cell.strip() for line in plan.splitlines() if line.startswith("| ")
             for cell in re.findall(r"\*([^*]+)\*", line.split("|")[3])]  # fmt: skip
    assert len(named) > 5
    for name in named:
        assert any(title.startswith(name) for title in titles), name
