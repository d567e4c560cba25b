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
    found = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in found:
            module.training = mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network in evaluation mode for a `with` block, and every module back afterwards.

    Example:
        >>> network = nn.Dropout()
        >>> with evaluating(network):
        ...     print(network.training)
        False
        >>> network.training
        True
    """
    with modes_as_found(model):
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
    stored last, and those with other numbers, as pruning makes them, up to twice as slow. For a
    convolution whose stride exceeds its kernel (the 1×1 shortcuts of torchvision's ResNets) and
    that has few input channels, oneDNN in PyTorch 2.12 then even writes past the end of the
    input's gradient, and the process dies. So only a network without either stores channels last.

    Args:
        model: the network.

    Returns:
        `torch.channels_last` or `torch.contiguous_format`.

    Example:
        >>> layout_for(nn.Conv2d(3, 8, kernel_size=3))
        torch.channels_last
        >>> layout_for(nn.Conv2d(3, 8, kernel_size=1, stride=2))
        torch.contiguous_format
        >>> layout_for(nn.Conv2d(3, 5, kernel_size=3))
        torch.contiguous_format
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            strides = zip(module.stride, module.kernel_size, strict=True)
            if module.out_channels % 8 or any(stride > kernel for stride, kernel in strides):
                return torch.contiguous_format
    on_cpu = device_of(model).type == "cpu"
    return torch.channels_last if on_cpu else torch.contiguous_format
