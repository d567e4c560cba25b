"""The small networks of the tutorial, torchvision's by name, and checkpoints of either."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from dgprune_lite.checks import nearest_name, whole_number
from dgprune_lite.files import read_tensors, write_atomically
from dgprune_lite.networks.efficientnet import efficientnet_lite0
from dgprune_lite.networks.pretrained import load_pretrained

FORMAT = "dgprune_lite-model-1"


def digits_cnn(num_classes: int = 10, width: int = 32, in_channels: int = 3) -> nn.Module:
    """Return a plain network for 28 × 28 digits: three convolutions and a linear layer."""
    network, channels = DigitsCNN(), in_channels
    for number, filters in enumerate((width, 2 * width, 2 * width), start=1):
        # (batch, channels, side, side) -> (batch, filters, side // 2, side // 2)
        network.add_module(f"conv{number}", nn.Conv2d(channels, filters, 3, padding=1, bias=False))
        network.add_module(f"bn{number}", nn.BatchNorm2d(filters))
        # Pooling and ReLU commute, and ReLU on a quarter of the values makes a step 10 % shorter.
        network.add_module(f"pool{number}", nn.MaxPool2d(2))  # 28 -> 14 -> 7 -> 3
        network.add_module(f"relu{number}", nn.ReLU())
        channels = filters
    network.add_module("flatten", nn.Flatten())  # (batch, 2 * width * 3 * 3)
    network.add_module("fc", nn.Linear(channels * 3 * 3, num_classes))
    return network


class DigitsCNN(nn.Sequential):
    """The network that ``digits_cnn`` returns, layer after layer."""

    stores_channels_last = True  # see `layout_for`


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut around them (He et al., CVPR 2016, figure 2)."""

    def __init__(self, inputs: int, filters: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, filters, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != filters:
            # An average, where a stride would ignore three pixels of four (ResNet-D, CVPR 2019).
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True),
                nn.Conv2d(inputs, filters, 1, bias=False),
                nn.BatchNorm2d(filters),
            )

    def forward(self, x: Tensor) -> Tensor:
        # (batch, inputs, side, side) -> (batch, filters, side / stride, side / stride)
        hidden = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(hidden)) + self.shortcut(x))


class DigitsResNet(nn.Module):
    """A small residual network for digits, where filters stand and fall together."""

    stores_channels_last = True  # see `layout_for`

    def __init__(self, num_classes: int = 10, width: int = 16, in_channels: int = 3) -> None:
        super().__init__()
        # Halving the image in the stem costs a quarter of the arithmetic in the first stage.
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.stage1 = BasicBlock(width, width)
        self.stage2 = BasicBlock(width, 2 * width, stride=2)
        self.stage3 = BasicBlock(2 * width, 4 * width, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # (batch, width, 14, 14)
        x = self.stage1(x)  # (batch, width, 14, 14)
        x = self.stage2(x)  # (batch, 2 * width, 7, 7)
        x = self.stage3(x)  # (batch, 4 * width, 4, 4)
        return self.fc(self.pool(x).flatten(1))  # (batch, num_classes)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "digits_cnn": digits_cnn,
    "digits_resnet": DigitsResNet,
    "efficientnet_lite0": efficientnet_lite0,
}
"""Name to a function that returns a network; add your own here. It takes ``num_classes`` and, where
the network has such settings, ``width``, ``in_channels`` and ``weights``, all by name."""


def build_model(
    name: str,
    num_classes: int = 10,
    *,
    width: int | None = None,
    in_channels: int = 3,
    weights: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Build a network by name, randomly initialised from a seed or with pretrained weights.

    Args:
        name: A key of ``MODELS`` ("digits_cnn", "digits_resnet", "efficientnet_lite0"), or any
            classification network that torchvision knows ("resnet18", "mobilenet_v3_small" ...).
        num_classes: Outputs of the network, at least 1.
        width: Filters of the first layer, for the digits' networks; None for their default.
        in_channels: Channels of the images; all but the digits' networks expect 3.
        weights: None for random ones. For torchvision's networks, "DEFAULT" for its ImageNet
            weights (downloaded at first use), another of its names ("IMAGENET1K_V1"), or a file
            with a state dictionary; for efficientnet_lite0, "DEFAULT" (from a package) or a file.
            The head is new and random unless ``num_classes`` is that of the weights.
        seed: Seed of the initialisation, at least 0.

    Returns:
        The network on the CPU, in training mode.

    Raises:
        ValueError: An unknown name, a number out of range, a setting that the network does not
            have, or weights that are unknown, damaged or do not fit.
        ConnectionError: Pretrained weights are not downloaded yet and cannot be.
        FileNotFoundError: There is no such file of weights.

    >>> model = build_model("digits_cnn", num_classes=10, seed=0)
    >>> model(torch.zeros(1, 3, 28, 28)).shape, count_parameters(model)
    (torch.Size([1, 10]), 62250)
    """
    whole_number("num_classes", num_classes, 1)
    whole_number("seed", seed)
    whole_number("in_channels", in_channels, 1)
    given: dict[str, Any] = {"weights": weights}
    if width is not None:
        given["width"] = whole_number("width", width, 1)
    if in_channels != 3:
        given["in_channels"] = in_channels
    factory = MODELS.get(name) or partial(_of_torchvision, name)
    settings = inspect.signature(factory).parameters
    for setting, value in given.items():
        if setting not in settings and value is not None:
            able = [n for n, f in MODELS.items() if setting in inspect.signature(f).parameters]
            raise ValueError(
                f"{setting} is {value}, but {name!r} has no such setting; leave it out or use one "
                f"of {', '.join(able)}"
            )
    given = {setting: value for setting, value in given.items() if setting in settings}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return factory(num_classes=num_classes, **given)


def _of_torchvision(
    name: str, num_classes: int, weights: str | os.PathLike[str] | None
) -> nn.Module:
    """A classification network of torchvision by name."""
    import torchvision.models  # takes longer than all the rest of the package

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ValueError(
            f"unknown model {name!r}; expected one of {', '.join(MODELS)}, or a classification "
            f"network of torchvision.{nearest_name(name, [*MODELS, *known])}"
        )
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        # One output in training as in evaluation, and the initialisation named explicitly.
        options |= {"aux_logits": False, "init_weights": True}
        # torchvision's weights of these two are for images in another normalisation.
        options["transform_input"] = weights is not None
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    if weights is not None:
        load_pretrained(model, name, weights)
    return model


def count_parameters(model: nn.Module) -> int:
    """Return how many numbers a network's parameters hold, trainable or not, shared ones once.

    >>> count_parameters(nn.Linear(3, 2))
    8
    """
    return sum(parameter.numel() for parameter in model.parameters())


def save_model(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    name: str,
    num_classes: int = 10,
    width: int | None = None,
    in_channels: int = 3,
    replace: bool = True,
) -> None:
    """Write a network that ``build_model`` made as safetensors; for a pruned one see ``save``.

    Args:
        model: The network.
        path: The file to write.
        name: As given to ``build_model``, also ``num_classes``, ``width`` and ``in_channels``.
        replace: Whether to replace a file of that name; else it stays as it is.

    Raises:
        ValueError: The weights do not fit that recipe.
        FileNotFoundError: The folder does not exist.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> model = build_model("digits_cnn", 10, width=4)
    >>> save_model(model, f"{folder.name}/net.safetensors", name="digits_cnn", width=4)
    >>> same = load_model(f"{folder.name}/net.safetensors")
    >>> torch.equal(model.fc.weight, same.fc.weight)
    True
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {str(path.parent)!r} to write {path.name!r} in")
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    recipe: dict[str, Any] = {"name": name, "num_classes": num_classes, "width": width}
    if in_channels != 3:  # unwritten otherwise, as in files from before there was a choice
        recipe["in_channels"] = in_channels
    _built(recipe, state, "the model to save")
    metadata = {"format": FORMAT, "recipe": json.dumps(recipe)}
    write_atomically(path, to_safetensors(state, metadata), replace=replace)


def load_model(path: str | os.PathLike[str]) -> nn.Module:
    """Read a network that ``save_model`` wrote, onto the CPU, in training mode; unpickles nothing.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a whole safetensors file, was not written by ``save_model``, or holds
            weights that do not fit its recipe.
    """
    path = Path(path)
    metadata, state = read_tensors(path, "save_model")
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{str(path)!r} has the format {metadata.get('format')!r}; expected {FORMAT!r}, which "
            f"save_model of this version writes"
        )
    return _built(json.loads(metadata["recipe"]), state, repr(str(path)))


def _built(recipe: dict[str, Any], state: dict[str, Tensor], what: str) -> nn.Module:
    """The network of a recipe with this state, or a ValueError that names what does not fit."""
    model = build_model(**recipe)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{what} does not fit build_model(**{recipe}): {error}") from error
    return model
