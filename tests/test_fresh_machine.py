"""A newcomer's machine: nothing of this user's, nothing that is not committed."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import fresh_machine
import pytest

MAKEFILE = """
test:
\t@ls -A . $$HOME > {seen}/files && env > {seen}/variables
broken:
\t@false
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A repository with a file that is not committed; temporary files go beside it."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "Makefile").write_text(MAKEFILE.format(seen=tmp_path))
    who = ("-c", "user.name=Nobody", "-c", "user.email=nobody@example.org")
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "One"]):
        subprocess.run(["git", *who, *command], cwd=folder, check=True)
    (folder / "notes").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("VIRTUAL_ENV", "/somewhere")
    monkeypatch.setenv("https_proxy", "http://proxy")
    monkeypatch.setenv("MAKEFLAGS", "--dry-run")
    return folder


def test_there_is_what_is_committed_and_nothing_of_the_user(source, tmp_path, capsys):
    assert fresh_machine.run(source, ["test"]) == 0
    listed = (tmp_path / "files").read_text().split("\n\n")
    assert listed[0].split()[1:] == [".git", "Makefile"]
    assert len(listed[1].split()) == 1, "HOME is not empty"
    variables = dict(
        line.split("=", 1) for line in (tmp_path / "variables").read_text().splitlines()
    )
    assert "VIRTUAL_ENV" not in variables
    assert variables["https_proxy"] == "http://proxy"
    assert Path(variables["HOME"]).parent == Path(variables["TMPDIR"]).parent
    assert not Path(variables["HOME"]).parent.exists(), "it is removed when all went well"
    assert "minutes from nothing" in capsys.readouterr().out


def test_what_failed_is_kept(source, capsys):
    assert fresh_machine.run(source, ["broken"]) != 0
    kept = capsys.readouterr().out.split("what it left is in ")[1].strip()
    assert (Path(kept) / "clone" / "Makefile").exists()
