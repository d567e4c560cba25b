"""What every part of the package refuses, and how it says so."""

from __future__ import annotations

import difflib
import importlib
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset


def nearest_name(name: object, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the known name nearest to a wrong one, or ""."""
    by_lower_case = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(str(name).lower(), by_lower_case, n=1, cutoff=0.5)
    return f" Did you mean {by_lower_case[close[0]]!r}?" if close else ""


def whole_number(name: str, value: Any, least: int = 0) -> int:
    """Return a setting as an int, NumPy's welcome, or say that it is none or too small."""
    expected = f"expected a whole number of at least {least}"
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} is {value!r}; {expected}") from error
    if number < least:
        raise ValueError(f"{name} is {value!r}; {expected}")
    return number


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
    return {name: _as_dataset(part, f"{argument}[{name!r}]") for name, part in data.items()}


def _as_dataset(data: Any, argument: str) -> Dataset:
    """Return a dataset as it is and tensors (images, labels) as one; refuse a DataLoader."""
    if isinstance(data, DataLoader):
        raise TypeError(
            f"{argument} is a DataLoader; expected the dataset itself, such as its attribute "
            f".dataset (batches are made here)"
        )
    if isinstance(data, (tuple, list)) and len(data) == 2 and isinstance(data[0], Tensor):
        images, labels = data
        if not isinstance(labels, Tensor) or labels.shape != images.shape[:1]:
            shapes = [getattr(part, "shape", type(part).__name__) for part in data]
            raise ValueError(
                f"{argument} holds {shapes[0]} and {shapes[1]}; expected tensors of images "
                f"(n, channels, height, width) and labels (n,)"
            )
        return TensorDataset(images, labels)
    return data


def require(what: str, *packages: str, extra: str) -> None:
    """Raise an ImportError that says what to install for ``what`` if a package is missing."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ImportError(
                f'{what} needs {package}: pip install {package} (or "dgprune-lite[{extra}]")'
            ) from error


def weight_of(modules: Mapping[str, nn.Module], name: str) -> Tensor | None:
    """The weight of a layer, or the parameter of that name itself; KeyError where none is."""
    owner, _, key = name.rpartition(".")
    if name in modules:
        weight = getattr(modules[name], "weight", None)
        return weight if isinstance(weight, Tensor) else None
    return (modules[owner]._parameters | modules[owner]._buffers)[key]


def misfit(model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> str | None:
    """Say where ``model`` does not have the layers, by name, with weights of these shapes."""
    modules = dict(model.named_modules())
    for name, expected in shapes.items():
        try:
            weight = weight_of(modules, name)
            found = () if weight is None else tuple(weight.shape)
        except KeyError:
            found = None
        if found != tuple(expected):
            has = "is not there" if found is None else f"has shape {found}"
            kind, shape = type(model).__name__, tuple(expected)
            return f"its layer {name!r} has a weight of shape {shape}, in this {kind} it {has}"
    return None
