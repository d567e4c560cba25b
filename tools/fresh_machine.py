"""Run make as on a newcomer's machine: a clone in an empty folder, no environment, an empty HOME.

    python tools/fresh_machine.py                # make test
    python tools/fresh_machine.py book           # make book; other targets and settings likewise

Of this machine there are its installed programs, and what says how to reach the network. Fonts make
no difference: tools/fonts.conf names those that count. Changes that are not committed are left out.
The folder is removed when all went well, and kept to look at otherwise.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROGRAMS = "/usr/local/bin:/usr/bin:/bin"
KEPT = ("LANG", "LC_ALL", "TERM", "USER", "SSL_CERT_FILE")


def environment(folder: Path) -> dict[str, str]:
    """The variables of a new user whose HOME and temporary files are in a folder."""
    names = [name for name in os.environ if name in KEPT or re.match("PIP_|.*_proxy$", name, re.I)]
    made = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "PATH": PROGRAMS}
    return {name: os.environ[name] for name in names} | made


def run(source: Path, arguments: list[str]) -> int:
    """Clone a repository and run make there; returns make's exit status."""
    folder = Path(tempfile.mkdtemp(prefix="fresh-"))
    for name in ("home", "tmp"):
        (folder / name).mkdir()
    start = time.monotonic()
    clone = ["git", "clone", "--quiet", "--no-hardlinks", str(source), str(folder / "clone")]
    subprocess.run(clone, check=True)
    done = subprocess.run(["make", *arguments], cwd=folder / "clone", env=environment(folder))
    print(f"make {' '.join(arguments)}: {(time.monotonic() - start) / 60:.1f} minutes from nothing")
    if done.returncode:
        print(f"It failed; what it left is in {folder}")
    else:
        shutil.rmtree(folder)
    return done.returncode


if __name__ == "__main__":
    sys.exit(run(ROOT, sys.argv[1:] or ["test"]))
