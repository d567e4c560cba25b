"""How every part of the package runs a network: modes, place, precision and memory layout.

What this file is *not*: a trainer. It only answers what a network needs to be run, and puts back
what was changed to run it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""The precisions other than float32, in which autocast runs what bears it."""


def count_classes(model: nn.Module, images: Tensor) -> int:
    """Return how many classes a network tells apart, from its logits for the images given.

    Args:
        model: network from images (batch, channels, height, width) to logits (batch, classes). It
            is run in evaluation mode and left as found.
        images: (batch, channels, height, width), on the network's device; one is enough.

    Returns:
        The number of columns of the logits.

    Raises:
        TypeError: if the network returns anything but floating-point logits (batch, classes).

    Example:
        >>> count_classes(nn.Sequential(nn.Flatten(), nn.Linear(12, 7)), torch.zeros(1, 3, 2, 2))
        7
    """
    with evaluating(model), torch.no_grad():
        logits = model(images)
    if not isinstance(logits, Tensor):
        raise TypeError(f"the model returns a {type(logits).__name__}; expected a tensor of logits")
    if logits.ndim != 2 or len(logits) != len(images) or not logits.is_floating_point():
        raise TypeError(
            f"the model returns a {logits.dtype} tensor of shape {tuple(logits.shape)} for "
            f"{len(images)} image(s); expected floating-point logits (batch, classes)"
        )
    return logits.shape[1]


def check_model(model: object) -> None:
    """Raise a TypeError unless it is a network."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is {model!r:.80}, expected an nn.Module")


@contextmanager
def modes_as_found(model: nn.Module) -> Iterator[None]:
    """Give every module its train/eval mode back at the end of a `with` block, error or not.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 2), nn.Dropout().eval())
        >>> with modes_as_found(network):
        ...     network = network.train()
        >>> network.training, network[1].training
        (True, False)
    """
    check_model(model)
    found = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in found:
            module.training = mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode for a `with` block, and every module back afterwards.

    The random states of the CPU and of the network's GPU are put back, too: some networks draw
    numbers even in evaluation.

    Example:
        >>> network = nn.Dropout()
        >>> with evaluating(network):
        ...     print(network.training)
        False
        >>> network.training
        True
    """
    with modes_as_found(model), torch.random.fork_rng(devices=gpus_of(model)):
        model.eval()
        yield


def device_of(model: nn.Module) -> torch.device:
    """Return where a network's parameters are; the CPU if it has none.

    Example:
        >>> device_of(nn.Linear(3, 2))
        device(type='cpu')
    """
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def gpus_of(model: nn.Module) -> list[torch.device]:
    """Return the GPUs that a network is on, whose random states it may change; [] on a CPU.

    Example:
        >>> gpus_of(nn.Linear(3, 2))
        []
    """
    found = {parameter.device for parameter in model.parameters()}
    return sorted((place for place in found if place.type == "cuda"), key=str)


def move(model: nn.Module, device: torch.device | str | None, precision: str) -> torch.device:
    """Move a network to a device, unless that cannot compute in the precision asked for.

    Args:
        model: the network, moved in place.
        device: where to; None for where it is.
        precision: "float32", "bfloat16" or "float16".

    Returns:
        Where the network is then.

    Raises:
        ValueError: as `check_precision`; the network is then where it was.

    Example:
        >>> move(nn.Linear(3, 2), None, "float32")
        device(type='cpu')
    """
    check_precision(precision, device_of(model) if device is None else device)
    if device is not None:
        model.to(device)
    return device_of(model)


def in_dtype_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return images in the floating-point type of a network's weights (as they are, without any).

    Args:
        model: the network.
        images: of any floating-point type and shape.

    Example:
        >>> in_dtype_of(nn.Linear(3, 2), torch.ones(1, 3, dtype=torch.float64)).dtype
        torch.float32
    """
    weights = (parameter for parameter in model.parameters() if parameter.is_floating_point())
    weight = next(weights, None)
    return images if weight is None else images.to(weight.dtype)


def check_precision(precision: str, device: torch.device | str) -> None:
    """Refuse a precision that is unknown, or that a device cannot compute in.

    Args:
        precision: "float32", "bfloat16" or "float16".
        device: where the network runs.

    Raises:
        ValueError: for an unknown name; "float16" anywhere but on CUDA; "bfloat16" on a device
            that has no units for it.

    Example:
        >>> check_precision("float16", "cpu")
        Traceback (most recent call last):
            ...
        ValueError: precision='float16' needs a CUDA device, not 'cpu'; use 'bfloat16' or 'float32'
    """
    place = torch.device(device).type
    if precision == "float32":
        return
    if precision not in HALF:
        raise ValueError(
            f"precision={precision!r} is not one of {', '.join(map(repr, ('float32', *HALF)))}"
        )
    if precision == "float16" and place != "cuda":
        raise ValueError(
            f"precision='float16' needs a CUDA device, not {place!r}; use 'bfloat16' or 'float32'"
        )
    able = torch.amp.is_autocast_available(place)
    if able and place == "cuda" and precision == "bfloat16":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    if not able:
        raise ValueError(
            f"precision={precision!r} is not available on this {place!r} device; use 'float32'"
        )


def logits_of(model: nn.Module, images: Tensor, precision: str = "float32") -> Any:
    """Run a network, with autocast if asked, and return what it returns in at least float32.

    The loss that is made of it is therefore computed, and summed, in float32.

    Args:
        model: network from images to logits (batch, classes).
        images: (batch, channels, height, width), on the network's device.
        precision: "float32" runs the network as it is, in the type of its weights; "bfloat16" and
            "float16" cast convolutions and matrix products (`torch.autocast`).

    Returns:
        The logits, float32 or float64; anything but a tensor as it is.

    Example:
        >>> logits_of(nn.Linear(3, 2), torch.ones(1, 3), "bfloat16").dtype
        torch.float32
    """
    if precision == "float32":
        logits = model(images)
    else:
        with torch.autocast(images.device.type, dtype=HALF[precision]):
            logits = model(images)
    half = isinstance(logits, Tensor) and logits.dtype in HALF.values()
    return logits.float() if half else logits


def layout_for(model: nn.Module, precision: str = "float32") -> torch.memory_format:
    """Return the memory layout of images and weights in which a network runs fastest, and safely.

    Channels last is chosen only where every convolution has whole blocks of 8 channels, and:

    - On a CPU, for a network of this package (it says `stores_channels_last = True`). That is about
      1.5 times as fast, and with other numbers of channels, as pruning makes them, up to twice as
      slow. All other networks keep the usual layout: their code may rely on it (`x.view(n, -1)`
      does), and for a convolution whose stride exceeds its kernel oneDNN in PyTorch 2.12 can write
      past the end of the input's gradient, so that the process dies.
    - On CUDA, in half precision, also for torchvision's networks, none of whose code relies on the
      layout. The tensor cores want channels last, and cuDNN would otherwise transpose around
      every convolution. In float32 the usual layout stays.

    A network of another author can say `stores_channels_last = True` itself.

    Args:
        model: the network.
        precision: in which it is to run.

    Returns:
        `torch.channels_last` or `torch.contiguous_format`.

    Example:
        >>> from dgprune_lite import build_model
        >>> layout_for(build_model("digits_cnn", width=8))
        torch.channels_last
        >>> layout_for(build_model("digits_cnn", width=5))
        torch.contiguous_format
        >>> layout_for(build_model("resnet18"))
        torch.contiguous_format
    """
    place, safe = device_of(model).type, getattr(model, "stores_channels_last", False)
    if place == "cuda":
        torchvision = type(model).__module__.startswith("torchvision.models.")
        wanted = precision != "float32" and (safe or torchvision)
    else:
        wanted = safe and place == "cpu"
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    whole = all(module.out_channels % 8 == 0 for module in convolutions)
    return torch.channels_last if wanted and whole else torch.contiguous_format
