"""What a submission's process is told, as bytes: the network and the source domains.

The bytes are safetensors, so that nothing is unpickled on either side, and go through a pipe, so
that no submission can change what the next one reads. The unseen domain is not among them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from dgprune_book.assignment.contract import Sources
from dgprune_lite.domains import Split, count, fetch
from dgprune_lite.networks.models import build_model


def pack(model: nn.Module, recipe: Mapping[str, Any], split: Split, seed: int) -> bytes:
    """Pack a network and the source domains of a split.

    Args:
        model: The trained network.
        recipe: Arguments of :func:`~dgprune_lite.networks.models.build_model` that give its shapes.
        split: Where the sources are taken from; its target is not read.
        seed: For what the submission draws.

    >>> import dgprune_lite as dg
    >>> split = dg.leave_one_domain_out(dg.DigitsLite(), test_env="syn", seed=0)
    >>> recipe = {"name": "digits_cnn", "width": 4}
    >>> model, sources = unpack(pack(dg.build_model(**recipe), recipe, split, seed=7))
    >>> model.training, list(sources.val), len(sources.train["mnist"]), sources.seed
    (False, ['mnist', 'mnist_m', 'optdigits'], 1920, 7)
    """
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    for part, domains in {"train": split.train, "val": split.val}.items():
        for number, dataset in enumerate(domains.values()):
            images, labels = _whole(dataset)
            tensors |= {f"{part}/{number}/images": images, f"{part}/{number}/labels": labels}
    header = {
        "recipe": dict(recipe),
        "domains": list(split.train),
        "seed": seed,
        "num_classes": split.num_classes,
    }
    text = json.dumps(header).encode()
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    return struct.pack("<Q", len(text)) + text + save(contiguous)


def unpack(content: bytes) -> tuple[nn.Module, Sources]:
    """The network, in evaluation mode, and the source domains that :func:`pack` packed."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    tensors = load(content[8 + length :])
    model = build_model(**header["recipe"])
    prefix = "model/"
    model.load_state_dict(
        {n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)}
    )

    def part(name: str) -> dict[str, Dataset]:
        return {
            domain: TensorDataset(*(tensors[f"{name}/{i}/{what}"] for what in ("images", "labels")))
            for i, domain in enumerate(header["domains"])
        }

    example = torch.zeros_like(tensors["train/0/images"][:1])
    sources = Sources(part("train"), part("val"), header["seed"], header["num_classes"], example)
    return model.eval(), sources


def _whole(dataset: Dataset) -> tuple[Any, Any]:
    return fetch(dataset, range(count(dataset)))
