"""The Chromium that prints the book and the slides, and in which the tests open pages."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NO_CHROMIUM = f"none of these is installed: {', '.join(NAMES)} (Debian: apt install chromium)"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
FONTS = Path(__file__).with_name("fonts.conf")  # what it finds of the machine's


def find_chromium() -> str | None:
    """Its path; None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def require_chromium(what: str) -> str:
    """Its path; exits with a message where there is none. `what` needs it."""
    return find_chromium() or sys.exit(f"{what} needs Chromium, and {NO_CHROMIUM}")


def launch(playwright: Any, executable: str) -> Any:
    """Start it, with none of the machine's fonts but those that FONTS names."""
    return playwright.chromium.launch(
        executable_path=executable, args=FLAGS, env=os.environ | {"FONTCONFIG_FILE": str(FONTS)}
    )


if __name__ == "__main__":
    require_chromium(*sys.argv[1:])
