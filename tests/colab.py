"""A machine like Colab's, on which the notebooks run as their readers run them.

It is a fresh virtual environment with the packages that a notebook may count on, no more. They are
linked from the environment of the tests, so nothing is downloaded. Into it a notebook's own set-up
cell clones and installs the book: git is told that the book's address means a repository made here
from the working tree, and pip to find the build backend in a folder. Neither command is changed.

What this file is *not*: a copy of Colab. Colab has more packages, and other versions of these.
"""

from __future__ import annotations

import json
import os
import subprocess
import venv
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import nbclient
import nbformat
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

KERNEL = "colab"
# What the shell's environment may say about the machine; all else is the user's, and left out.
MACHINE = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "TMPDIR", "TZ")


@dataclass(frozen=True)
class Colab:
    """Where things are on the machine: its folder, its Python, and where notebooks start."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "env" / "bin" / "python"

    @property
    def content(self) -> Path:
        return self.folder / "content"

    @property
    def environment(self) -> dict[str, str]:
        return json.loads((self.folder / "environment.json").read_text(encoding="utf-8"))

    def distributions(self) -> set[str]:
        """The normalised names of all that is installed."""
        code = "from importlib.metadata import distributions as d; print(*[p.name for p in d()])"
        return set(map(canonicalize_name, self._say(code).split()))

    def has(self, module: str) -> bool:
        """Whether a module can be imported."""
        return self._say(f"import importlib.util as u; print(u.find_spec({module!r}))") != "None"

    def _say(self, code: str) -> str:
        run = subprocess.run(
            [str(self.python), "-c", code],
            cwd=self.content,
            env=self.environment,
            check=True,
            capture_output=True,
            text=True,
        )
        return run.stdout.strip()

    def run(self, notebook: nbformat.NotebookNode, **variables: str) -> nbformat.NotebookNode:
        """Run a copy of a notebook from top to bottom, with more environment variables."""
        ran = nbformat.from_dict(notebook)
        where = {"metadata": {"path": str(self.content)}}
        client = nbclient.NotebookClient(ran, timeout=300, kernel_name=KERNEL, resources=where)
        before = os.environ.get("JUPYTER_PATH")
        os.environ["JUPYTER_PATH"] = str(self.folder / "jupyter")  # this process finds the kernel
        try:
            client.execute(env=self.environment | variables)
        finally:
            if before is None:
                del os.environ["JUPYTER_PATH"]
            else:
                os.environ["JUPYTER_PATH"] = before
        return ran


def make(folder: Path, packages: Iterable[str], source: Path, address: str, branch: str) -> Colab:
    """Make a machine in an empty folder.

    Args:
        folder: Where it goes.
        packages: What is installed there, with all that it requires.
        source: The working tree of the book's repository.
        address: The repository's address, as in the set-up cell.
        branch: The branch that the set-up cell clones.

    Returns:
        The machine. The book is not on it: that is the set-up cell's work.

    Raises:
        RuntimeError: if a package is not installed here, or does not say which files it has.
    """
    venv.EnvBuilder(symlinks=True).create(folder / "env")
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    for package in closure(packages):
        link(package, site)
    (folder / "content").mkdir()
    (folder / "home").mkdir()
    (folder / "wheels").mkdir()
    for package in closure(["hatchling"]):  # pip builds in an environment of its own
        pack(package, folder / "wheels")
    commit(source, folder / "remote.git", branch)
    colab = Colab(folder)
    environment = {name: os.environ[name] for name in MACHINE if name in os.environ} | {
        "HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
        "PYTHONNOUSERSITE": "1",
        "PYTHONUTF8": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder / "wheels"),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{folder / 'remote.git'}.insteadOf",
        "GIT_CONFIG_VALUE_0": address,
    }
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    kernel = folder / "jupyter" / "kernels" / KERNEL
    kernel.mkdir(parents=True)
    start = [str(colab.python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    specification = {"argv": start, "display_name": KERNEL, "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(specification), encoding="utf-8")
    return colab


def closure(packages: Iterable[str]) -> list[Distribution]:
    """The installed distributions of some packages and of all that they require."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    wanted = [(name, "") for name in packages]  # with the extra, if one is asked for
    while wanted:
        name, extra = wanted.pop()
        name = canonicalize_name(name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            found[name] = distribution(name)
        except PackageNotFoundError as error:
            raise RuntimeError(f"{name} is not installed here: run `make quick` once") from error
        for requirement in map(Requirement, found[name].requires or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                wanted += [(requirement.name, of) for of in ("", *requirement.extras)]
    return [found[name] for name in sorted(found)]


def link(package: Distribution, site: Path) -> None:
    """Make a package importable from another environment, without copying it."""
    for name in {path.parts[0] for path in _files(package)} - {"__pycache__"}:
        if not (site / name).exists():  # packages share folders, such as nvidia/
            (site / name).symlink_to(package.locate_file(name))


def pack(package: Distribution, folder: Path) -> None:
    """Write the wheel that a pure Python package was installed from."""
    name = canonicalize_name(package.name).replace("-", "_")
    with zipfile.ZipFile(folder / f"{name}-{package.version}-py3-none-any.whl", "w") as wheel:
        for path in _files(package):
            if path.suffix != ".pyc":
                wheel.write(package.locate_file(path), path.as_posix())


def _files(package: Distribution) -> list[Path]:
    """What lies in site-packages, relative to it; scripts and manual pages lie elsewhere."""
    if package.files is None:
        raise RuntimeError(f"{package.name} has no list of files: install it with pip")
    return [Path(path) for path in package.files if ".." not in path.parts]


def commit(source: Path, remote: Path, branch: str) -> None:
    """Make a bare repository with one commit: the working tree, less what git ignores."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    clean |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}

    def git(*arguments: str) -> None:
        subprocess.run(["git", *arguments], env=clean, check=True, capture_output=True)

    git("init", "--quiet", "--bare", "--initial-branch", branch, str(remote))
    inside = ("--git-dir", str(remote), "--work-tree", str(source))
    git(*inside, "add", "--all", str(source))
    who = ("-c", "user.name=Nobody", "-c", "user.email=nobody@example.org")
    git(*who, *inside, "commit", "--quiet", "--message", "The working tree")
