"""Save and load pruned networks: weights as safetensors, the plan as JSON in its header."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from dgprune_lite.checks import misfit, weight_of
from dgprune_lite.files import read_tensors, write_atomically
from dgprune_lite.pruning.plans import PruningPlan
from dgprune_lite.pruning.surgery import Cut, smaller_copy
from dgprune_lite.running import check_model, check_unwrapped

FORMAT = "dgprune_lite pruned network"
VERSION = 1


def save(small: nn.Module, plan: PruningPlan, path: str | Path) -> None:
    """Write a pruned network and what was cut from it to one file.

    Args:
        small: ``plan.apply(model)``, fine-tuned or not.
        plan: The plan it was made with.
        path: Such as ``"small.safetensors"``; replaced if it exists.

    Raises:
        TypeError: Arguments of another kind, or extra state that JSON does not hold.
        ValueError: ``small`` does not have the shapes that ``plan`` gives.
        FileNotFoundError: The folder does not exist.
    """
    path = Path(path)
    check_unwrapped(small)
    if not isinstance(plan, PruningPlan):
        raise TypeError(f"plan is {plan!r:.80}, expected the PruningPlan of this network")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot save to {str(path)!r}: make the folder {path.parent}")
    removed = plan.graph.join(plan.kept_gates).numpy() == 0
    modules = dict(small.named_modules())
    for name, cut in plan.cuts.items():
        channels, inputs = plan.graph.layers[name].widths(removed)
        wanted = channels * inputs * prod(cut.weight_shape[2:])
        try:
            weight = weight_of(modules, name)
            fits = weight is None or weight.numel() == wanted
        except KeyError:
            fits = False
        if not fits:
            raise ValueError(
                f"the network does not fit the plan at {name!r}: expected {channels} channels. "
                "Save the network that plan.apply returned"
            )
    header: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "pruning_ratio": plan.pruning_ratio,
        "cuts": {name: asdict(cut) for name, cut in plan.cuts.items()},
        "extra": {},  # state that is no tensor
    }
    tensors = {}
    for name, value in small.state_dict().items():
        if isinstance(value, Tensor):
            tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        else:
            header["extra"][name] = _as_json(name, value)
    write_atomically(path, to_safetensors(tensors, {"dgprune_lite": json.dumps(header)}))


def load(path: str | Path, model_factory: Callable[[], nn.Module]) -> nn.Module:
    """Rebuild a pruned network from a file that :func:`save` wrote.

    Args:
        path: The file.
        model_factory: Makes the network as it was before pruning, with any weights, such as
            ``lambda: dg.build_model("digits_cnn", num_classes=10)``.

    Returns:
        The pruned network, on the CPU, in the factory's mode. Layers that share a weight there
        share it here, too, unless they were saved with different values.

    Raises:
        TypeError: A ``model_factory`` that cannot be called, or that makes no network.
        FileNotFoundError: No such file.
        ValueError: A damaged or foreign file, another format version, or a factory whose
            network has other layers.

    >>> import tempfile, dgprune_lite as dg
    >>> build = lambda: dg.build_model("digits_cnn", width=4)
    >>> model = build()
    >>> graph = dg.trace_channels(model, torch.zeros(1, 3, 28, 28))
    >>> plan = dg.plan_pruning(graph, dg.score("l1", model, graph), 0.5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dg.save(plan.apply(model), plan, f"{folder}/small.safetensors")
    ...     dg.load(f"{folder}/small.safetensors", build).conv1.weight.shape
    torch.Size([2, 3, 3, 3])
    """
    if not callable(model_factory) or isinstance(model_factory, nn.Module):
        raise TypeError(
            f"model_factory is {model_factory!r:.80}, expected a function without arguments that "
            "makes the network as it was before pruning"
        )
    path = Path(path)
    header, tensors = _read(path)
    model = model_factory()
    check_model(model)
    try:
        cuts = {
            name: Cut(**{key: tuple(operator.index(i) for i in part) for key, part in one.items()})
            for name, one in header["cuts"].items()
        }
        problem = misfit(model, {name: cut.weight_shape for name, cut in cuts.items()})
        small = model if problem else smaller_copy(model, cuts)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path.name} is damaged: its header holds no valid cuts ({error})"
        ) from error
    if problem:
        raise ValueError(f"{path.name} was pruned from another network: {problem}")
    try:
        state = _tied_as_in(small, tensors) | header.get("extra", {})
        small.load_state_dict(state, assign=True)  # in the file's precision
    except RuntimeError as error:
        raise ValueError(f"{path.name} does not fit the factory's network: {error}") from error
    return small


def _as_json(name: str, value: Any) -> Any:
    """Extra state of a module, if JSON gives it back as it is; else a TypeError."""
    try:
        again = json.loads(json.dumps(value))
    except (TypeError, ValueError):
        again = None
    if again != value:
        raise TypeError(
            f"the network's state {name!r} is {value!r:.80}: only tensors and what JSON holds "
            "(numbers, texts, lists, dicts with texts as keys) can be saved; let get_extra_state "
            "return such"
        )
    return again


def _tied_as_in(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The tensors, one object for all names that share a tensor of the same values in the model."""
    own = model.state_dict(keep_vars=True)
    shared: dict[int, Tensor] = {}
    tied: dict[str, Any] = {}
    for name, tensor in tensors.items():
        whole = own.get(name)
        if isinstance(whole, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=whole.requires_grad)
        first = shared.setdefault(id(whole), tensor) if isinstance(whole, Tensor) else tensor
        tied[name] = first if torch.equal(first, tensor) else tensor
    return tied


def _read(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """The JSON header and the tensors of a file."""
    metadata, tensors = read_tensors(path, "dgprune_lite.save")
    try:
        header = json.loads(metadata.get("dgprune_lite", "{}"))
    except ValueError as error:
        raise ValueError(f"{path.name} is damaged: its header is no JSON ({error})") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(
            f"{path.name} is a safetensors file, but not a network saved by dgprune_lite.save"
        )
    if header.get("version") != VERSION or "cuts" not in header:
        raise ValueError(
            f"{path.name} has format version {header.get('version')!r}, this package reads "
            f"{VERSION}: use the package version that wrote it"
        )
    return header, tensors
