"""How every part of the package runs a network: modes, device, precision and memory layout."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_leaves

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""The precisions other than float32, in which autocast runs what bears it."""
Logits = Callable[[Any], Tensor]
"""How to get logits (batch, classes) from what a network returns."""


def check_model(model: object) -> None:
    """Raise a TypeError unless it is a network."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {model!r:.80}, expected an nn.Module")


def check_unwrapped(model: object) -> None:
    """Raise a TypeError unless it is a network whose layers have their own names and code."""
    check_model(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "model is a ScriptModule, whose code is compiled: prune the network that it was made "
            "from, and script the smaller one"
        )
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
    inside = "module" if isinstance(model, wrappers) else "_orig_mod"  # of torch.compile
    if inside == "module" or isinstance(getattr(model, inside, None), nn.Module):
        raise TypeError(
            f"model is wrapped in {type(model).__name__}: pass the network inside, model.{inside}"
        )


def count_classes(model: nn.Module, images: Tensor, logits: Logits | None = None) -> int:
    """How many classes a network tells apart: the columns of its logits for one or more images."""
    with evaluating(model), torch.no_grad():
        return logits_of(model, images, logits=logits).shape[1]


@contextmanager
def modes_as_found(model: nn.Module) -> Iterator[None]:
    """Give every module its train/eval mode back at the end of a `with` block, error or not."""
    found = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in found:
            module.training = mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a `with` block; modes and random states come back, error or not."""
    # Some networks draw random numbers even in evaluation, on the CPU or on their GPU.
    with modes_as_found(model), torch.random.fork_rng(devices=gpus_of(model)):
        model.eval()
        yield


def device_of(model: nn.Module) -> torch.device:
    """Where a network's parameters are; the CPU if it has none."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def gpus_of(model: nn.Module) -> list[torch.device]:
    """The GPUs that a network is on, whose random states it may change; [] on a CPU."""
    found = {parameter.device for parameter in model.parameters()}
    return sorted((device for device in found if device.type == "cuda"), key=str)


def move(model: nn.Module, device: torch.device | str | None, precision: str) -> torch.device:
    """Move a network to a device (None: it stays), unless that refuses the precision; return it."""
    check_precision(precision, device_of(model) if device is None else device)
    if device is not None:
        model.to(device)
    return device_of(model)


def in_dtype_of(model: nn.Module, images: Tensor) -> Tensor:
    """Images in the floating-point type of a network's weights (as they are, without any)."""
    weights = (parameter for parameter in model.parameters() if parameter.is_floating_point())
    weight = next(weights, None)
    return images if weight is None else images.to(weight.dtype)


def check_precision(precision: str, device: torch.device | str) -> None:
    """Refuse a precision that is unknown, or that a device cannot compute in."""
    kind = torch.device(device).type
    if precision == "float32":
        return
    if precision not in HALF:
        raise ValueError(
            f"precision={precision!r} is not one of {', '.join(map(repr, ('float32', *HALF)))}"
        )
    if precision == "float16" and kind != "cuda":
        raise ValueError(
            f"precision='float16' needs a CUDA device, not {kind!r}; use 'bfloat16' or 'float32'"
        )
    old = kind == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    if (old and precision == "bfloat16") or not torch.amp.is_autocast_available(kind):
        raise ValueError(
            f"precision={precision!r} is not available on this {kind!r} device; use 'float32'"
        )


def logits_of(
    model: nn.Module, images: Tensor, precision: str = "float32", logits: Logits | None = None
) -> Tensor:
    """A network's logits (batch, classes), with autocast if asked; half precision as float32."""
    half = HALF.get(precision)
    with torch.autocast(images.device.type, half) if half else nullcontext():
        found = find_logits(model(images), logits)
    if found.ndim != 2 or len(found) != len(images) or not found.is_floating_point():
        raise TypeError(
            f"the model returns a {found.dtype} tensor of shape {tuple(found.shape)} for "
            f"{len(images)} image(s); expected floating-point logits (batch, classes)"
        )
    return found


def find_logits(output: Any, logits: Logits | None = None) -> Tensor:
    """By ``logits``, or what is called "logits" or "out", or the first tensor of whatever it is."""
    found: Any
    if logits is not None and not callable(logits):
        raise TypeError(
            f"logits is {logits!r:.80}, expected a function, lambda output: output[0] say"
        )
    if logits is not None:
        found = logits(output)
    elif isinstance(output, Tensor):
        found = output
    else:
        named = output._asdict() if hasattr(output, "_asdict") else output  # a named tuple
        if isinstance(named, (tuple, list)):
            named = dict(enumerate(named))
        elif not isinstance(named, Mapping):
            named = getattr(named, "__dict__", {})
        values = [named.get("logits"), named.get("out"), *named.values()]
        found = next((value for value in values if isinstance(value, Tensor)), None)
    if not isinstance(found, Tensor):
        raise TypeError(
            f"the model returns a {type(output).__name__} in which no logits are found; expected a "
            "tensor of logits (batch, classes), or logits=lambda output: ... that gets them"
        )
    return found.float() if found.dtype in HALF.values() else found


def layout_for(model: nn.Module, precision: str = "float32") -> torch.memory_format:
    """The memory layout of images and weights in which a network runs fastest, and safely."""
    # Channels last pays where every convolution has whole blocks of 8 channels: on a CPU it is 1.5
    # times as fast, else up to twice as slow; on CUDA in half precision cuDNN transposes less. It
    # is safe for networks that say `stores_channels_last = True`, as this package's do, and for
    # torchvision's on CUDA. The code of others may rely on the usual layout (`x.view(n, -1)` does),
    # and on a CPU oneDNN in PyTorch 2.12 can crash where a stride exceeds the kernel's size.
    device, safe = device_of(model).type, getattr(model, "stores_channels_last", False)
    if device == "cuda":
        torchvision = type(model).__module__.startswith("torchvision.models.")
        wanted = precision != "float32" and (safe or torchvision)
    else:
        wanted = safe and device == "cpu"
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    whole = all(module.out_channels % 8 == 0 for module in convolutions)
    return torch.channels_last if wanted and whole else torch.contiguous_format


_HOLDING = (dict, list, set, deque)


@contextmanager
def left_as_found(modules: Collection[nn.Module]) -> Iterator[None]:
    """Give modules their attributes, modes, hooks and buffers back afterwards, error or not."""
    found = []
    for module in modules:
        own = vars(module)
        parts = [part for part in own.values() if isinstance(part, _HOLDING)]
        found.append((own, own.copy(), {id(part): part.copy() for part in parts if part}))
    buffers = {b for module in modules for b in module._buffers.values() if b is not None}
    copies = [(buffer, version_of(buffer), buffer.clone()) for buffer in buffers]
    try:
        yield
    finally:
        for own, before, entries in found:
            for part in before.values():
                if isinstance(part, _HOLDING) and (part or id(part) in entries):
                    part.clear()
                    there = entries.get(id(part), ())
                    (part.update if hasattr(part, "update") else part.extend)(there)
            own.clear()
            own.update(before)
        with torch.no_grad():
            for buffer, version, copy in copies:
                if version != version_of(buffer):
                    buffer.copy_(copy)


def version_of(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else int(tensor._version)


def outputs_in(output: Any) -> Iterator[Tensor]:
    """All tensors that a network returns, in whatever objects they are."""
    seen: set[int] = set()

    def search(value: Any) -> Iterator[Tensor]:
        if isinstance(value, Tensor):
            yield value
        elif id(value) not in seen and not isinstance(value, (nn.Module, type, str, bytes)):
            seen.add(id(value))
            parts = [part for part in tree_leaves(value) if part is not value]
            parts += getattr(value, "__dict__", {}).values()
            for kind in type(value).__mro__:
                slots = getattr(kind, "__slots__", ())
                names = [slots] if isinstance(slots, str) else slots
                parts += [getattr(value, name, None) for name in names]
            for part in parts:
                yield from search(part)

    return search(output)
