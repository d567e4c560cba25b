"""Save and load pruned networks: weights as safetensors, the plan as JSON in its header.

Nothing is pickled. A file is written beside its destination first and then renamed, so that an
interrupted save leaves the old file or none.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from dgprune_lite.channels import misfit
from dgprune_lite.pruning import PruningPlan
from dgprune_lite.surgery import Cut, shrink

FORMAT = "dgprune_lite pruned network"
VERSION = 1


def save(small: nn.Module, plan: PruningPlan, path: str | Path) -> None:
    """Write a pruned network and what was cut from it to one file.

    Args:
        small: ``plan.apply(model)``, fine-tuned or not.
        plan: The plan it was made with.
        path: Such as ``"small.safetensors"``; replaced if it exists.

    Raises:
        ValueError: ``small`` does not have the shapes that ``plan`` gives.
        FileNotFoundError: The folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot save to {str(path)!r}: make the folder {path.parent}")
    expected = plan.to_frame().set_index("module")["channels_after"]
    modules = dict(small.named_modules())
    for name in plan.cuts:
        module = modules.get(name)
        weight = getattr(module, "weight", None)
        if module is None or (weight is not None and len(weight) != expected[name]):
            raise ValueError(
                f"the network does not fit the plan at {name!r}: expected "
                f"{expected[name]} channels. Save the network that plan.apply returned"
            )
    header = {
        "format": FORMAT,
        "version": VERSION,
        "pruning_ratio": plan.pruning_ratio,
        "cuts": {name: asdict(cut) for name, cut in plan.cuts.items()},
    }
    tensors = {name: value.detach().cpu().clone() for name, value in small.state_dict().items()}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata={"dgprune_lite": json.dumps(header)})
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def load(path: str | Path, model_factory: Callable[[], nn.Module]) -> nn.Module:
    """Rebuild a pruned network from a file that :func:`save` wrote.

    Args:
        path: The file.
        model_factory: Makes the network as it was before pruning, with any weights, such as
            ``lambda: dg.build_model("digits_cnn", num_classes=10)``.

    Returns:
        The pruned network, on the CPU, in the factory's mode.

    Raises:
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
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {str(path)!r}: save a pruned network there first")
    header, tensors = _read(path)
    model = model_factory()
    cuts = {name: Cut(**record) for name, record in header["cuts"].items()}
    if problem := misfit(model, {name: cut.weight_shape for name, cut in cuts.items()}):
        raise ValueError(f"{path.name} was pruned from another network: {problem}")
    for name, cut in cuts.items():
        shrink(model.get_submodule(name), cut)
    try:
        model.load_state_dict(tensors, assign=True)  # in the file's precision
    except RuntimeError as error:
        raise ValueError(f"{path.name} does not fit the factory's network: {error}") from error
    return model


def _read(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """The JSON header and the tensors of a file."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("dgprune_lite", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path.name} is damaged or no safetensors file: {error}") from error
    if header.get("format") != FORMAT:
        raise ValueError(
            f"{path.name} is a safetensors file, but not a network saved by dgprune_lite.save"
        )
    if header.get("version") != VERSION or "cuts" not in header:
        raise ValueError(
            f"{path.name} has format version {header.get('version')!r}, this package reads "
            f"{VERSION}: use the package version that wrote it"
        )
    return header, tensors
