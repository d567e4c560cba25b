"""Packages that only some of this one needs: what to install if one is missing."""

from __future__ import annotations

import importlib


def require(what: str, *packages: str, extra: str) -> None:
    """Raise an ImportError that says what to install if a package is missing.

    Args:
        what: What needs the packages, for the message.
        packages: Their names.
        extra: The extra of this package that brings them.

    >>> require("arithmetic", "math", extra="study")
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ImportError(
                f'{what} needs {package}: pip install {package} (or "dgprune-lite[{extra}]")'
            ) from error
