"""Every notebook runs as it does on Colab: a fresh machine, and the set-up cell as it stands."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import colab
import nbclient
import nbformat
import pytest
from filelock import FileLock
from make_notebooks import BRANCH, REPOSITORY
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "book").glob("[0-9]*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Of what Colab has: the package's own requirements, SciPy for the statistics, and a kernel.
PREINSTALLED = [
    *(Requirement(line).name for line in PROJECT["dependencies"]),
    *("scipy", "ipykernel", "pip"),
]
CHEAP = ROOT / "book" / "10_your_own_network.ipynb"
NO_EXTRA = "jupytext", "jupyter_book", "sphinx", "playwright", "datasets", "timm", "torch_pruning"
WHERE = "import pathlib, dgprune_lite; print(pathlib.Path.cwd(), dgprune_lite.__file__, sep='\\n')"

pytestmark = [pytest.mark.slow, pytest.mark.book]


def _set_up_alone(notebook: Path) -> nbformat.NotebookNode:
    first = nbformat.read(notebook, as_version=4)
    first.cells = first.cells[1:2]
    assert first.cells[0].source.startswith("# @title Set up")
    return first


def _printed(cell: nbformat.NotebookNode) -> str:
    return "".join(part.text for part in cell.outputs if part.output_type == "stream")


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> colab.Colab:
    """A machine on which the set-up cell has run once: one for all workers."""
    folder = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        folder = folder.parent
    folder /= "colab"
    with FileLock(f"{folder}.lock"):
        if not (folder / "ready").exists():
            shutil.rmtree(folder, ignore_errors=True)  # what another worker could not finish
            folder.mkdir()
            made = colab.make(folder, PREINSTALLED, ROOT, REPOSITORY, BRANCH)
            assert not made.has("dgprune_lite")
            made.run(_set_up_alone(NOTEBOOKS[0]))
            (folder / "ready").touch()
    return colab.Colab(folder)


def test_the_machine_has_the_book_and_none_of_its_tools(machine):
    assert machine.has("dgprune_lite")
    assert [name for name in NO_EXTRA if machine.has(name)] == []
    extras = {
        canonicalize_name(Requirement(line).name)
        for lines in PROJECT["optional-dependencies"].values()
        for line in lines
    } - {canonicalize_name(package.name) for package in colab.closure(PREINSTALLED)}
    assert extras & machine.distributions() == set()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_on_colab(machine, notebook):
    content = nbformat.read(notebook, as_version=4)
    content.cells.append(nbformat.v4.new_code_cell(WHERE))
    ran = machine.run(content)
    assert _printed(ran.cells[1]).startswith("Ready")
    folder, package = _printed(ran.cells[-1]).split()
    assert Path(folder) == machine.content / "dgprune_lite_book" / "book"
    assert Path(package).is_relative_to(machine.folder / "env")
    written = [
        output.data["text/markdown"]
        for cell in ran.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "text/markdown" in output.get("data", {})
    ]
    assert not any("⟦" in text for text in written), "a number is missing"


def test_where_the_package_is_installed_the_set_up_fetches_nothing(tmp_path):
    """In a copy of the repository: the kernel of this environment, started in the book's folder."""
    book = ROOT / "book"
    before = {path.name for path in book.iterdir()}
    notebook = nbformat.read(CHEAP, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(WHERE))
    where = {"metadata": {"path": str(book)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    folder, package = _printed(notebook.cells[-1]).split()
    assert Path(folder) == book
    assert Path(package) == ROOT / "dgprune_lite" / "__init__.py"
    assert {path.name for path in book.iterdir()} <= before | {".ipynb_checkpoints"}


def test_a_set_up_that_fails_says_so_and_what_to_do(tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "README.md").write_text("No package is here.")
    (tmp_path / "colab").mkdir()
    machine = colab.make(
        tmp_path / "colab", ["ipykernel", "pip"], tmp_path / "book", REPOSITORY, BRANCH
    )
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="Disconnect and delete"):
        machine.run(_set_up_alone(CHEAP))
