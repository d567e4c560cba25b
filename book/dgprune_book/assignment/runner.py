"""Start a submission's process, bound it, and say in words how it ended.

What this file is *not*: what happens in that process (``child.py``), or with its scores
(``protocol.py``).
"""

from __future__ import annotations

import contextlib
import os
import signal
import site
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

import dgprune_lite
from dgprune_book.assignment.child import PRINTED, REFUSED, SCORES, SUBMISSION, WORDS
from dgprune_book.assignment.contract import as_scores
from dgprune_lite.channels.graph import ChannelGraph
from dgprune_lite.domains.digits import DATA_FILE

PACKAGE = Path(dgprune_lite.__file__).parent
OWN = Path(__file__).parents[1]
# What a submission must not read, wherever the package lies; the study's folder comes to it.
_BOOK = (PACKAGE.parent / "book").glob("*")  # of a checkout: results, solutions and the rest
FORBIDDEN = (DATA_FILE.parent, *(path for path in _BOOK if path != OWN))
ENVIRONMENT = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PATH", "SYSTEMROOT")
START_SECONDS = 120  # for Python, PyTorch and the images, before the submission's own time begins
LARGEST_ANSWER = 1024**2  # bytes
LONGEST_WORDS = 400  # characters


@dataclass(frozen=True)
class Limits:
    """What a submission may use for one network.

    Attributes:
        seconds: Time on the clock, from when the submission's file is run.
        memory: GiB, all of the process; bounded on Linux, elsewhere as far as the system does it.
    """

    seconds: float = 60.0
    memory: float = 4.0

    def __post_init__(self) -> None:
        for name, value in (("seconds", self.seconds), ("memory", self.memory)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name}={value!r} must be a number above 0")


@dataclass(frozen=True)
class Answer:
    """What came of a submission on one network.

    Attributes:
        scores: Group name to float64 (filters,); None if there are no valid ones.
        problem: Why there are none, in words; "" if there are.
        seconds: Processor time of the function, as its process says.
        printed: The end of what it printed.
    """

    scores: dict[str, Tensor] | None
    problem: str = ""
    seconds: float = 0.0
    printed: str = ""


def ask(
    submission: bytes,
    packed: bytes,
    graph: ChannelGraph,
    *,
    limits: Limits | None = None,
    forbidden: Sequence[str | os.PathLike[str]] = (),
) -> Answer:
    """Run a submission on one network, in a process of its own.

    Args:
        submission: The file's content.
        packed: From :func:`~dgprune_book.assignment.packing.pack`: all that it is told.
        graph: Of the network; the answer is checked against it here, too.
        limits: What it may use.
        forbidden: Files and folders whose opening is noticed, besides the package's data and book.

    Returns:
        The :class:`Answer`. Whatever a submission does, this function does not raise for it, and
        its process and those it started are gone afterwards.
    """
    limits = limits or Limits()
    closed = [os.path.abspath(path) for path in (*FORBIDDEN, *forbidden)]
    # "ignore": an answer is worth more than the tidiness of a folder that a submission has locked.
    with tempfile.TemporaryDirectory(prefix="submission-", ignore_cleanup_errors=True) as name:
        folder = Path(os.path.realpath(name))
        (folder / SUBMISSION).write_bytes(submission)
        command = [sys.executable, "-P", "-B", "-m", "dgprune_book.assignment.child"]
        command += ["--memory", str(limits.memory), "--seconds", str(limits.seconds)]
        command += ["--forbidden", *closed]
        with (folder / PRINTED).open("wb") as printed:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=_environment(folder),
                stdin=subprocess.PIPE,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that it can be killed with all that it started
            )
            try:
                late = _wait(process, packed, folder / WORDS, limits.seconds)
            finally:
                _kill(process)
        if late:
            return Answer(None, late, printed=_text(folder / PRINTED, 2000, end=True))
        return _read(folder, graph, process.returncode)


def _environment(folder: Path) -> dict[str, str]:
    """Little of this process's environment, which may hold secrets, and nothing that differs."""
    kept = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    places = dict.fromkeys(("HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP"), str(folder))
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    if PACKAGE.parent.name not in ("site-packages", "dist-packages"):  # a checkout
        kept["PYTHONPATH"] = os.pathsep.join(map(str, (PACKAGE.parent, OWN.parent)))
    return {
        **kept, **places, **threads,
        "PYTHONUSERBASE": site.getuserbase(), "PYTHONHASHSEED": "0", "PYTHONUTF8": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip


def _wait(process: subprocess.Popen[bytes], packed: bytes, started: Path, seconds: float) -> str:
    """Wait until a process ends, and say what took too long: "" if nothing did."""
    threading.Thread(target=_send, args=(process, packed), daemon=True).start()
    end, begun = time.monotonic() + START_SECONDS, False
    while True:
        try:
            process.wait(0.1)
            return ""
        except subprocess.TimeoutExpired:
            if not begun and started.exists():
                end, begun = time.monotonic() + seconds, True
            if time.monotonic() > end and begun:
                return f"takes longer than the limit of {seconds:g} s for one network"
            if time.monotonic() > end:
                return (
                    f"its process was not ready after {START_SECONDS} s, before the submission was "
                    "run: the machine is too busy; run it again"
                )


def _send(process: subprocess.Popen[bytes], packed: bytes) -> None:
    """Write to a process's standard input, from a thread: its end breaks the pipe, and us off."""
    with contextlib.suppress(OSError, ValueError):
        assert process.stdin is not None
        process.stdin.write(packed)
        process.stdin.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and its process group, whatever state they are in."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _read(folder: Path, graph: ChannelGraph, status: int) -> Answer:
    """What a submission's process left behind when it ended with this status."""
    words = _text(folder / WORDS, LONGEST_WORDS)
    printed = _text(folder / PRINTED, 2000, end=True)
    if status == REFUSED:
        problem = words or "did what the rules forbid"
    elif status < 0:
        problem = f"was ended by {_signal(-status)}: a crash, or out of memory"
    elif status:
        problem = f"ended its process with status {status} before it returned scores"
    else:
        return _scores(folder / SCORES, graph, words, printed)
    return Answer(None, problem, printed=printed)


def _scores(path: Path, graph: ChannelGraph, words: str, printed: str) -> Answer:
    """The scores of a process that says it went well. Nothing that it wrote is trusted."""
    problem = ""
    if not path.is_file() or path.is_symlink():
        problem = "ended its process before it returned scores"
    elif path.stat().st_size > LARGEST_ANSWER:
        problem = f"returned {path.stat().st_size} bytes, more than scores can be"
    if problem:
        return Answer(None, problem, printed=printed)
    try:
        seconds = float(words or 0)
        return Answer(as_scores(load(path.read_bytes()), graph), "", seconds, printed)
    except (SafetensorError, TypeError, ValueError) as error:
        return Answer(None, f"returned no valid scores: {error}", printed=printed)


def _text(path: Path, length: int, *, end: bool = False) -> str:
    """Some characters of a file that may hold anything, fit to be printed."""
    if not path.is_file() or path.is_symlink():
        return ""
    with path.open("rb") as file:
        if end:
            file.seek(max(0, path.stat().st_size - length))
        text = file.read(length).decode(errors="replace")
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text).strip()


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
