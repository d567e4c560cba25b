"""Files that appear in one piece or not at all."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from dgprune_lite import files
from dgprune_lite.files import write_atomically


def test_text_and_bytes_replace_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    write_atomically(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()
    write_atomically(str(path), b"\x00\r\n")
    assert path.read_bytes() == b"\x00\r\n"
    assert list(tmp_path.iterdir()) == [path]


def test_the_first_file_stays_if_it_is_not_to_be_replaced(tmp_path, links):
    path = tmp_path / "new" / "a.txt"
    assert write_atomically(path, "first", replace=False)
    assert not write_atomically(path, "second", replace=False)
    assert path.read_text() == "first"
    assert write_atomically(path, "third")
    assert path.read_text() == "third"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, name):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(files.os, name, full)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_others_may_read_it_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a.txt", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_writers_of_one_file_do_not_meet(tmp_path):
    """With one temporary name for all of a process, one would move away the other's file."""
    path, texts = tmp_path / "a.txt", [str(number) * 10_000 for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write_atomically, [path] * 40, texts * 5))
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]
