"""The repository holds together: one source of truth for dependencies, layout, cost of import."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base", "seaborn": "seaborn-base"}


def test_environment_yml_agrees_with_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge"]
    packages, pip = {}, []
    for entry in environment["dependencies"]:
        if isinstance(entry, dict):
            pip += entry["pip"]
        elif entry.startswith("python ="):
            python = entry.removeprefix("python =")  # Binder reads no range
        else:
            name, _, versions = entry.partition(" ")
            packages[name] = SpecifierSet(versions)
    assert pip == ["-e .[book]"]
    assert python in SpecifierSet(PROJECT["requires-python"])
    assert packages.pop("pip") == SpecifierSet("")
    expected = {
        CONDA_NAMES.get(requirement.name, requirement.name): requirement.specifier
        for requirement in map(Requirement, PROJECT["dependencies"])
    }
    assert packages == expected


def test_constraints_pin_a_version_that_pyproject_allows():
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[name.lower().replace("_", "-")] = version
    assert not [name for name in pins if name.startswith(("nvidia", "cuda", "triton"))]
    wanted = list(PROJECT["dependencies"])
    for extra in EXTRAS.values():
        wanted += extra
    for requirement in map(Requirement, wanted):
        assert requirement.name.lower() in pins, f"constraints.txt has no {requirement.name}"
        assert pins[requirement.name.lower()] in requirement.specifier, requirement


def test_top_level_has_what_the_readme_promises():
    folders = ["book", "dgprune_lite", "book/dgprune_book", "tests", "tools", "benchmarks"]
    settings = ["pyproject.toml", "constraints.txt", "environment.yml", "Makefile", ".ci/run"]
    book = ["_config.yml", "_toc.yml"]
    papers = ["README.md", "CITATION.cff", "LICENSE", "LICENSE-CONTENT"]
    for name in folders + settings + book + papers:
        assert (ROOT / name).exists(), name
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def repository_files():
    """Paths of what is tracked or would be; in a copy without git, of all files but built ones."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True)
    if not listed.returncode:
        return [Path(name) for name in filter(None, listed.stdout.decode().split("\0"))]
    built = {"_build", "__pycache__", ".hypothesis", ".jupyter_cache"}
    paths = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()]
    return [
        path for path in paths
        if not built & {*path.parts} and not path.parts[0].startswith((".venv", ".git"))
    ]  # fmt: skip


def test_only_what_belongs_there_lies_at_the_top():
    kinds = {".md", ".toml", ".txt", ".yml", ".cff", ""}
    names = [path for path in repository_files() if len(path.parts) == 1]
    assert Path("README.md") in names
    assert [path for path in names if path.suffix not in kinds] == []


def test_readme_first_screen_has_the_figure_and_the_two_commands():
    screen = (ROOT / "README.md").read_text().splitlines()[:20]
    text = "\n".join(screen)
    figure = re.search(r"!\[(.+?)\]\((.+?)\)", text)
    assert figure, "no figure with alternative text"
    assert (ROOT / figure[2]).is_file(), figure[2]
    assert "make book" in text
    assert "make test" in text


def test_makefile_has_the_targets_and_help_lists_them():
    targets = ["help", "book", "student", "instructor", "pdf", "test", "quick"]
    targets += ["fresh", "test-oldest", "test-gpu", "bench", "study", "pacs", "slides", "clean"]
    shown = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert re.findall(r"^  ([\w-]+)", shown, re.MULTILINE) == targets
    assert "-W --keep-going -n" in (ROOT / "Makefile").read_text()


def test_repository_address_stands_once():
    address = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    tracked = [
        path
        for pattern in ("*.md", "*.toml", "*.cff", "*.yml", "book/*.md", "**/dgprune_*/**/*.py")
        for path in ROOT.glob(pattern)
    ]
    assert [path.name for path in tracked if address in path.read_text()] == ["_config.yml"]


ROOMS = ("channels", "domains", "networks", "scores", "pruning", "interop")
# Which rooms a room may use, besides the files at the top that all use.
BELOW = {
    "": set(),
    "channels": {""},
    "domains": {""},
    "networks": {"", "domains"},
    "scores": {"", "domains", "channels"},
    "pruning": {"", "domains", "channels", "scores"},
    "interop": {"", "channels", "scores", "pruning"},
}


def test_the_package_stays_small():
    """What comes in takes something else out."""
    package = ROOT / "dgprune_lite"
    lines = {path: len(path.read_text().splitlines()) for path in package.rglob("*.py")}
    assert sum(lines.values()) <= 9000
    assert not {path.name: number for path, number in lines.items() if number > 350}
    assert {path.name for path in package.iterdir() if path.is_dir()} <= {*ROOMS, "__pycache__"}
    assert len({path.name for path in package.glob("*.py")} - {"__init__.py"}) <= 4


def imports_of(path: Path) -> set[str]:
    """The modules that a file imports, also inside functions, but not for type checkers alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def modules_of(folder: Path) -> dict[str, Path]:
    """Dotted name to file."""
    names = {}
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def test_rooms_use_only_what_lies_below_them():
    package = ROOT / "dgprune_lite"
    assert {path.parent.name for path in package.glob("*/__init__.py")} == set(ROOMS)
    for path in package.rglob("*.py"):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        room = room if room in ROOMS else ""
        for name in imports_of(path):
            parts = name.split(".")
            assert parts[0] not in ("dgprune_book", "seaborn", "ipywidgets", "IPython"), path
            assert parts[0] != "matplotlib" or path.name == "plan_figure.py", path
            if parts[0] == "dgprune_lite" and len(parts) > 1:
                used = parts[1] if parts[1] in ROOMS else ""
                assert used == room or used in BELOW[room], f"{path} imports {name}"


@pytest.mark.parametrize("folder", ["dgprune_lite", "book/dgprune_book"])
def test_no_modules_import_each_other_in_a_circle(folder):
    modules = modules_of(ROOT / folder)
    package = Path(folder).name
    uses = {
        name: {other for other in imports_of(path) if other in modules} - {name, package}
        for name, path in modules.items()
        if name != package
    }
    # A package is imported before what lies in it: its own imports count, those from it do not.
    uses = {
        name: {other for other in used if not name.startswith(f"{other}.")}
        for name, used in uses.items()
    }
    while free := {name for name, used in uses.items() if not used}:
        uses = {name: used - free for name, used in uses.items() if name not in free}
    assert not uses, f"in circles: {sorted(uses)}"


def test_import_brings_nothing_heavy_beside_torch():
    """These are imported where they are used: each would cost more than 0.2 s on its own."""
    heavy = {"torchvision", "pandas", "matplotlib", "seaborn", "ipywidgets", "IPython", "scipy"}
    code = "import sys, dgprune_lite; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    modules = set(result.stdout.split())
    assert heavy & {name.split(".")[0] for name in modules} == set()
    assert not [name for name in modules if name.startswith("dgprune_book")]


def test_import_costs_little_more_than_torch():
    """At most 0.2 s of CPU time once torch is there; the best of three, for noise."""
    code = (
        "import time, torch; start = time.process_time(); import dgprune_lite; "
        "print(time.process_time() - start)"
    )
    seconds = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(seconds) < 0.2, seconds


def test_no_tracked_file_is_large():
    for name in repository_files():
        path = ROOT / name
        if path.is_file():
            assert path.stat().st_size < 5_000_000, name
