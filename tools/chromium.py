"""The Chromium that prints the book and the slides, and in which the tests open pages."""

from __future__ import annotations

import shutil
import sys

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


def find_chromium() -> str | None:
    """Its path; None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def require_chromium(what: str) -> str:
    """Its path; exits with a message where there is none. `what` needs it."""
    return find_chromium() or sys.exit(f"{what} needs Chromium, and {NO_CHROMIUM}")


if __name__ == "__main__":
    require_chromium(*sys.argv[1:])
