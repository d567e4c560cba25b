"""Print the oldest versions that pyproject.toml promises, as constraints for pip.

    python tools/oldest.py > oldest.txt

Each requirement of the form ``name>=version`` becomes ``name==version``; what is pinned or has no
lower bound stays to pip. `make test-oldest` installs them and runs the tests.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
EXTRAS = ("study", "data", "hub", "interop")


def oldest(project: dict) -> list[str]:
    """The lower bounds of a project's requirements and of the extras that users install."""
    wanted = list(project["dependencies"])
    for extra in EXTRAS:
        wanted += project["optional-dependencies"][extra]
    found = {}
    for requirement in map(Requirement, wanted):
        for bound in requirement.specifier:
            if bound.operator == ">=":
                found[requirement.name] = bound.version
    return [f"{name}=={version}" for name, version in sorted(found.items())]


if __name__ == "__main__":
    print(*oldest(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]), sep="\n")
