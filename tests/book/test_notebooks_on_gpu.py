"""The chapters' notebooks on a machine with a GPU: each runs; its time and memory are said."""

import time
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "book").glob("[0-9]*.ipynb"))
USED = """
import torch
print(torch.cuda.max_memory_allocated() // 2**20 if torch.cuda.is_available() else 0)
"""


def execute(path: Path, folder: Path) -> tuple[float, int]:
    """Run a notebook from top to bottom in a folder: seconds, and MiB of the GPU at most."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(USED))
    where = {"metadata": {"path": str(folder)}}
    start = time.perf_counter()
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=where).execute()
    return time.perf_counter() - start, int(notebook.cells[-1].outputs[-1].text)


@pytest.mark.gpu
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_chapter_runs_beside_a_gpu(path, record_property):
    seconds, used = execute(path, ROOT / "book")
    record_property("chapter_seconds", f"{path.stem}: {seconds:.1f} s, {used} MiB of the GPU")


def test_a_notebook_is_run_where_it_is_told_and_its_errors_are_raised(tmp_path):
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in ("x = 2", "open('x', 'w').close()")]
    )
    nbformat.write(notebook, tmp_path / "a.ipynb")
    seconds, used = execute(tmp_path / "a.ipynb", tmp_path)
    assert seconds > 0
    assert used >= 0
    assert (tmp_path / "x").exists()
    notebook.cells.append(nbformat.v4.new_code_cell("x / 0"))
    nbformat.write(notebook, tmp_path / "a.ipynb")
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="ZeroDivisionError"):
        execute(tmp_path / "a.ipynb", tmp_path)
