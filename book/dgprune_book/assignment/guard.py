"""Notice, in a submission's process, what a submission may not do, and end the process.

Python reports what it is about to do to *audit hooks* (PEP 578). A hook cannot be removed, and ours
does not raise, which could be caught: it says what it saw and ends the process. It notices

- files opened for reading that belong neither to Python, nor to the system, nor to the submission:
  the embedded data, the study's folder of trained networks, stored results, anybody's data;
- files written, moved or removed outside the submission's own folder;
- processes started, and sockets opened;
- data sets of the package being built, since each of them holds the unseen domain.

What this file is *not*: a sandbox. It does not notice code that never asks Python (a library's own
input and output, ``ctypes``), nor scores that were worked out elsewhere and typed in. Against these
helps another seed that nobody knew (``--seeds``), and reading the submission, which is one file.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import dgprune_lite

STARTS_A_PROCESS = {
    "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile", "os.system",
    "pty.spawn", "subprocess.Popen",
}  # fmt: skip
USES_THE_NETWORK = {
    "socket.bind", "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto",
    "urllib.Request",
}  # fmt: skip
CHANGES_FILES = {
    "os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir",
    "os.symlink", "os.truncate", "os.utime",
}  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
SYSTEM = (
    "/bin", "/dev", "/etc", "/lib", "/lib64", "/opt", "/proc", "/sys", "/usr",
    "/Library", "/System", os.environ.get("SYSTEMROOT", "/usr"),
)  # fmt: skip


def readable_folders() -> tuple[str, ...]:
    """Where Python, its packages, this package and the system keep their files."""
    own = {sys.prefix, sys.base_prefix, sys.exec_prefix, *sysconfig.get_paths().values()}
    packages = {str(Path(__file__).parents[1]), str(Path(dgprune_lite.__file__).parent)}
    own |= {*packages, site.getusersitepackages()}
    return tuple(sorted({os.path.realpath(folder) for folder in own} | set(SYSTEM)))


def arm(refuse: Callable[[str], NoReturn], own: str, forbidden: Sequence[str]) -> None:
    """Watch this process from now on. There is no way back.

    Args:
        refuse: Called with words that go on from "the submission ..."; must end the process.
        own: The folder that may be written to.
        forbidden: Files and folders that may not be read, wherever they are.
    """
    # The hook keeps what it uses in variables of its own: a submission may replace os.path.
    readable, home = readable_folders(), os.path.realpath(own)
    closed = tuple(os.path.realpath(path) for path in forbidden)
    realpath, decode, separator = os.path.realpath, os.fsdecode, os.sep
    processes, sockets = frozenset(STARTS_A_PROCESS), frozenset(USES_THE_NETWORK)
    changes, writes = frozenset(CHANGES_FILES), WRITES

    def within(path: str, folders: tuple[str, ...]) -> bool:
        return any(path == f or path.startswith(f.rstrip(separator) + separator) for f in folders)

    def place(path: Any) -> str | None:
        if isinstance(path, str | bytes) or hasattr(path, "__fspath__"):
            return realpath(decode(path))
        return None  # a number: opened before, or a pipe

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path = place(arguments[0])
            if path is None or within(path, (home,)) or path == os.devnull:
                return
            if int(arguments[2] or 0) & writes or set(str(arguments[1] or "")) & set("wax+"):
                refuse(f"writes to {path!r}; it may write to its own working folder only")
            if within(path, closed):
                refuse(
                    f"opens {path!r}, where data or results of the unseen domain are: it touches "
                    "the unseen domain"
                )
            if not within(path, readable):
                refuse(
                    f"opens {path!r}; it may read nothing but what it is given "
                    "(model, graph, domains)"
                )
        elif event in changes:
            paths = [place(argument) for argument in arguments[:2]]
            if event in ("os.chmod", "os.chown", "os.mkdir", "os.truncate", "os.utime"):
                paths = paths[:1]
            outside = [path for path in paths if path is not None and not within(path, (home,))]
            if outside:
                refuse(f"moves, links or changes {outside[0]!r} ({event}), which is not its own")
        elif event in processes:
            refuse(f"starts another process ({event}); everything must run in the one it has")
        elif event in sockets:
            refuse(f"uses the network ({event}); it may use nothing but what it is given")

    sys.addaudithook(hook)
    _close_data_sets(refuse)
    _watch_safetensors()


def _close_data_sets(refuse: Callable[[str], NoReturn]) -> None:
    """Let no data set of the package be built: each holds the unseen domain, too."""
    from dgprune_lite import domains

    def closed(name: str) -> Callable[..., None]:
        def initialise(self: object, *arguments: object, **settings: object) -> None:
            refuse(f"builds the data set {name}: it touches the unseen domain")

        return initialise

    kinds = [value for value in vars(domains).values() if isinstance(value, type)]
    for kind in kinds:
        if issubclass(kind, domains.MultipleDomainDataset):
            kind.__init__ = closed(kind.__name__)  # type: ignore[method-assign]


def _watch_safetensors() -> None:
    """Report safetensors files that are opened; the library, not being Python, does not."""
    import safetensors

    original = safetensors.safe_open

    def safe_open(filename: Any, *arguments: Any, **settings: Any) -> Any:
        sys.audit("open", filename, "rb", 0)
        return original(filename, *arguments, **settings)

    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is original:
                setattr(module, name, safe_open)
