"""Print the versions that decide what the tests and the book see, as one line.

python tools/versions.py "Tested with"
"""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import version

from chromium import find_chromium

PACKAGES = ("torch", "torchvision", "numpy", "pandas", "matplotlib", "jupyter-book", "sphinx")


def versions() -> str:
    """Python, the packages above and Chromium, where there is one."""
    found = [
        f"Python {platform.python_version()}",
        *(f"{name} {version(name)}" for name in PACKAGES),
    ]
    if browser := find_chromium():
        said = subprocess.run([browser, "--version"], capture_output=True, text=True, check=False)
        found.append(" ".join(said.stdout.split()[:2]))
    return ", ".join(found)


if __name__ == "__main__":
    print(f"{sys.argv[1]} {versions()}.")
