"""Start from ImageNet: weights for torchvision's networks, and BatchNorm kept as learnt there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dgprune_lite.checks import nearest_name
from dgprune_lite.files import read_tensors


def load_pretrained(model: nn.Module, name: str, weights: str | os.PathLike[str]) -> None:
    """Give a torchvision network pretrained weights, but for a head of another size, in place."""
    import torchvision.models

    known = torchvision.models.get_model_weights(name)
    if str(weights) in ("DEFAULT", *known.__members__):
        state = _downloaded(name, known[str(weights)])
    elif Path(weights).suffix in (".pth", ".pt", ".safetensors"):
        state = weights_from_file(Path(weights))
    else:
        names = ["DEFAULT", *known.__members__]
        raise ValueError(
            f"weights is {str(weights)!r}; for {name!r} expected None, one of {', '.join(names)}, "
            f"or a file that ends in .pth, .pt or .safetensors.{nearest_name(weights, names)}"
        )
    load_all_but_head(model, state, f"the weights {str(weights)!r} do not fit {name!r}")


def _downloaded(name: str, weights: object) -> Mapping[str, Tensor]:
    import torchvision.models

    url = weights.url  # type: ignore[attr-defined]
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    try:
        # torchvision's own builder, since it renames the tensors of files from old versions.
        return torchvision.models.get_model(name, weights=weights, progress=False).state_dict()
    except Exception as error:  # of the network, or of a file that is cut short
        if path.is_file():
            raise ValueError(
                f"{str(path)!r}, the downloaded weights of {name!r}, is damaged "
                f"({str(error)[:200]}); remove it and try again"
            ) from error
        raise ConnectionError(
            f"cannot download the ImageNet weights of {name!r} from {url} ({error}). Go on with "
            f"weights=None (random weights), or fetch that file elsewhere and put it at "
            f"{str(path)!r} (or anywhere, and give its path as weights)"
        ) from error


def weights_from_file(path: Path) -> Mapping[str, Tensor]:
    """The state dictionary of a file, .safetensors or .pth; nothing but tensors is unpickled."""
    if path.suffix == ".safetensors":
        return read_tensors(path, "safetensors.torch.save_file")[1]
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r} to read weights from")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)  # unpickles no code
    except Exception as error:  # of all kinds: what broken archives and pickles lead to
        raise ValueError(
            f"{str(path)!r} is no plain state dictionary ({error}); was it cut "
            f"short? Save one with torch.save(model.state_dict(), path)"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(x, Tensor) for x in state.values()):
        raise ValueError(
            f"{str(path)!r} holds a {type(state).__name__}; expected a state dictionary of "
            f"tensors, as torch.save(model.state_dict(), path) writes it"
        )
    return state


def load_all_but_head(model: nn.Module, state: Mapping[str, Tensor], complaint: str) -> None:
    """Copy a state dictionary; a head of another number of outputs stays as it is."""
    taken, heads = {}, set()
    for key, own in model.state_dict().items():
        if key not in state and key.endswith("num_batches_tracked"):  # as before PyTorch 0.4.1
            continue
        if key not in state:
            raise ValueError(f"{complaint}: they have no {key!r}")
        found, wanted = tuple(state[key].shape), tuple(own.shape)
        if found == wanted:
            taken[key] = state[key]
        elif found[1:] == wanted[1:]:  # the head, of another number of classes
            heads.add(key.rpartition(".")[0])
        else:
            raise ValueError(f"{complaint}: {key!r} is {found}, expected {wanted}")
    if len(heads) > 1:
        raise ValueError(
            f"{complaint}: {', '.join(sorted(heads))} have other numbers of outputs; expected "
            f"that of the last layer only"
        )
    model.load_state_dict(taken, strict=False)


def freeze_batchnorm(model: nn.Module) -> int:
    """Keep every BatchNorm of a network as it is while the rest is trained, as DomainBed does.

    From now on ``model.train()`` leaves BatchNorm layers in evaluation mode, and their scale and
    shift are not trained, in copies (pruned ones included) as well. ``recalibrate_batchnorm`` still
    works.

    Args:
        model: The network, changed in place.

    Returns:
        How many BatchNorm layers are frozen.

    Source: DomainBed (Gulrajani and Lopez-Paz, ICLR 2021), appendix on the networks.

    >>> network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    >>> freeze_batchnorm(network)
    1
    >>> network = network.train()
    >>> network.training, network[1].training, network[1].weight.requires_grad
    (True, False, False)
    """
    layers = _batchnorms(model)
    for layer in layers:
        layer.requires_grad_(False)
    if layers:
        model.train = _TrainWithoutBatchNorm(model)  # type: ignore[method-assign]
        model.train(model.training)
    return len(layers)


class _TrainWithoutBatchNorm:
    """Stands in for a network's ``train``; an object, not a function, so that copies are whole."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, mode: bool = True) -> nn.Module:
        type(self.model).train(self.model, mode)
        for layer in _batchnorms(self.model):
            layer.eval()
        return self.model


def _batchnorms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]
