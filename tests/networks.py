"""Networks and data that several tests use."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import dgprune_lite as dg

# name -> side of the square input image
NETWORKS = {
    "digits_cnn": 28,
    "digits_resnet": 28,
    "resnet18": 32,
    "vgg11_bn": 32,
    "mobilenet_v2": 32,
}
# The same as test parameters; the large ones stay out of `make quick`.
EACH = [
    pytest.param(name, marks=[pytest.mark.slow] if name in ("vgg11_bn", "mobilenet_v2") else [])
    for name in NETWORKS
]


class FromDisk(Dataset):
    """Reads one image after another, as from files, some noise on each."""

    def __init__(self, dataset, noise=0.0):
        self.dataset, self.noise = dataset, noise

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        image, label = self.dataset[index]
        return image + self.noise * torch.rand_like(image), int(label)


class PlainCNN(nn.Module):
    """Convolutions with a bias and no BatchNorm, so that the gates sit on bare layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1), nn.SiLU(inplace=True), nn.AdaptiveAvgPool2d(2),
        )  # fmt: skip
        self.hidden = nn.Linear(32, 12)
        self.out = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(self.features(x).flatten(1)).relu())


class ByNumbers(nn.Module):
    """Indexes by tensors, whose numbers decide; without weights it cannot be followed."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("channels", torch.tensor([2, 0, 1]))
        self.register_buffer("rows", torch.tensor([0, 2]))
        self.conv, self.out = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x[:, self.channels])[:, :, self.rows].relu()
        return self.out(x.mean((2, 3)))


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random BatchNorm parameters and statistics, as training leaves them; eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, mean, spread in (
                (module.weight, 1.0, 0.3),
                (module.bias, 0.0, 0.3),
                (module.running_mean, 0.0, 0.2),
            ):
                tensor.data.copy_(mean + spread * torch.randn(tensor.shape, generator=generator))
            module.running_var.copy_(
                0.5 + torch.rand(module.running_var.shape, generator=generator)
            )
    return model.eval()


def network(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    """A lively network and four input images."""
    width = {"width": 8} if name.startswith("digits") else {}
    if name == "plain_cnn":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: nn.Module = PlainCNN()
    else:
        model = dg.build_model(name, num_classes=10, **width)
    side = NETWORKS.get(name, 28)
    images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(1))
    return lively(model).to(dtype), images.to(dtype)


def domains(
    names: tuple[str, ...] = ("a", "b", "c"),
    images: int = 24,
    dtype: torch.dtype = torch.float32,
    side: int = 28,
) -> dict[str, TensorDataset]:
    """Random images and labels, another distribution in each domain."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: TensorDataset(
            (torch.rand(images, 3, side, side, generator=generator) * (1 + i)).to(dtype),
            torch.randint(0, 10, (images,), generator=generator),
        )
        for i, name in enumerate(names)
    }


def fingerprint(model: nn.Module) -> dict[str, object]:
    """All that must be as it was: weights, gradients, modes, hooks, random states."""
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "grad": {
            name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
        },
        "parameters": {name: (type(p), id(p)) for name, p in model.named_parameters()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "modes": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
        "rng": torch.get_rng_state(),
        "cuda rng": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def assert_same(before: object, after: object) -> None:
    if isinstance(before, dict):
        assert isinstance(after, dict)
        assert before.keys() == after.keys()
        for key in before:
            assert_same(before[key], after[key])
    elif isinstance(before, Tensor):
        assert isinstance(after, Tensor)
        assert torch.equal(before, after)
    else:
        assert before == after
