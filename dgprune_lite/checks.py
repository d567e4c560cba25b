"""What every part of the package refuses, and how it says so."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping

from torch.utils.data import Dataset


def nearest_name(name: object, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the known name nearest to `name`, or "" if none is near.

    Args:
        name: what the caller gave.
        known: the names that would have been right.

    Returns:
        A sentence with a leading space, to be put at the end of an error message.

    Example:
        >>> nearest_name("mnistm", ("mnist_m", "optdigits"))
        " Did you mean 'mnist_m'?"
    """
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(str(name).lower(), by_lower_case, n=1, cutoff=0.5)
    return f" Did you mean {by_lower_case[close[0]]!r}?" if close else ""


def named_domains(data: object, argument: str, example: str = "split.train") -> dict[str, Dataset]:
    """Return what an argument holds as a dict of domain name to dataset, or say what it is."""
    if not isinstance(data, Mapping):
        raise TypeError(
            f"{argument} is a {type(data).__name__}; expected a mapping from domain name to "
            f"dataset, such as {example}"
        )
    if not data:
        raise ValueError(
            f"{argument}={{}} holds no domain; expected one or more, as {example} does"
        )
    return dict(data)


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
