"""What the package does not require: where it is missing, the error says what to install."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import dgprune_book
import numpy as np
import pytest
from dgprune_book.assignment import __main__ as assignment
from dgprune_book.assignment import protocol
from dgprune_book.study import agreement, analysis, command, runner

import dgprune_lite

STUDY = r'pip install (joblib|scipy) .or "dgprune-lite\[study\]"'


@pytest.mark.parametrize(
    ("missing", "call", "message"),
    [
        ("scipy", lambda: analysis.wilcoxon_p([1.0, 2.0]), STUDY),
        (
            "scipy",
            lambda: agreement.rank_correlation({"sizes": {"a": 3}}, np.arange(3), np.arange(3)),
            f"the rank correlation needs scipy: {STUDY}",
        ),
        ("joblib", lambda: runner.run([], "unused"), f"a study needs joblib: {STUDY}"),
        (
            "distributed",
            lambda: runner.run([], "unused", backend="dask"),
            r"distributed: pip install distributed",
        ),
        ("joblib", lambda: protocol.run({}, [], "unused"), f"submissions needs joblib: {STUDY}"),
    ],
)
def test_a_missing_package_is_named(missing, call, message, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=message):
        call()


@pytest.mark.parametrize(
    ("missing", "program", "arguments", "message"),
    [
        ("joblib", command, ["smoke"], f"a study needs joblib: {STUDY}"),
        (
            "distributed",
            command,
            ["smoke", "--backend", "dask"],
            r"needs distributed: pip install distributed",
        ),
        ("joblib", assignment, ["--quick"], f"submissions needs joblib: {STUDY}"),
        ("scipy", assignment, ["--quick"], f"submissions needs scipy: {STUDY}"),
    ],
)
def test_a_program_names_what_is_missing_before_it_does_anything(
    missing, program, arguments, message, monkeypatch, tmp_path, capsys
):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        program.main(arguments)
    assert error.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_no_module_needs_an_optional_package_to_be_imported():
    """Else a command line could not even say what is missing."""
    optional = {"joblib", "scipy", "distributed", "datasets", "torch_pruning", "onnx", "timm"}
    folders = [Path(package.__file__).parent for package in (dgprune_lite, dgprune_book)]
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in imports for alias in node.names}
        names |= {
            node.module or ""
            for node in imports
            if isinstance(node, ast.ImportFrom) and not node.level
        }
        assert not optional & {name.split(".")[0] for name in names}, path
