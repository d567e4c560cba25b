"""How every part of the package runs a network: modes, place and memory layout, all as found after.

What this file is *not*: a trainer. It only answers what a network needs to be run, and puts back
what was changed to run it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


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

    The random state is put back, too: some networks draw numbers even in evaluation.

    Example:
        >>> network = nn.Dropout()
        >>> with evaluating(network):
        ...     print(network.training)
        False
        >>> network.training
        True
    """
    with modes_as_found(model), torch.random.fork_rng(devices=[]):
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


def layout_for(model: nn.Module) -> torch.memory_format:
    """Return the memory layout of images and weights in which a network runs fastest, and safely.

    On a CPU, convolutions with whole blocks of 8 channels are about 1.5 times as fast with channels
    stored last, and those with other numbers, as pruning makes them, up to twice as slow. So a
    network of this package (it says `stores_channels_last = True`) has channels last as long as
    its widths are such. All others keep the usual layout: their code may rely on it
    (`x.view(n, -1)` does), and for a convolution whose stride exceeds its kernel oneDNN in PyTorch
    2.12 can write past the end of the input's gradient, so that the process dies.

    Args:
        model: the network.

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
    if not getattr(model, "stores_channels_last", False) or device_of(model).type != "cpu":
        return torch.contiguous_format
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    whole = all(module.out_channels % 8 == 0 for module in convolutions)
    return torch.channels_last if whole else torch.contiguous_format
