"""The networks that run in the reader's page (chapter 9): their data file, and the same in PyTorch.

The file is JavaScript that sets one variable, so that a page opened from a disk can load it. The
scripts that compute with it lie beside it, in ``book/_static/network/``.

    python -m dgprune_book.figures.network_page --help
"""

from __future__ import annotations

import argparse
import base64
import copy
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from dgprune_book.figures.plots import criterion_style
from dgprune_book.study.cells import DENSE, ENVIRONMENTS, Cell
from dgprune_book.study.experiment import Bench
from dgprune_book.study.runner import environment
from dgprune_lite.channels.graph import trace_channels
from dgprune_lite.checks import nearest_name
from dgprune_lite.domains import count, fetch
from dgprune_lite.files import write_atomically
from dgprune_lite.networks.models import build_model
from dgprune_lite.networks.recalibration import recalibrate_batchnorm
from dgprune_lite.pruning.pruning import kept_filters
from dgprune_lite.running import evaluating
from dgprune_lite.scores.criteria import NEEDS_STATISTICS
from dgprune_lite.scores.gates import gated

FILE = Path("book/_static/network/data.js")
NETWORK = Cell("DigitsLite", "mnist", 0, "none", pruning_ratio=0, width=8)
CRITERIA = ("l1", "bn_scale", "fisher", "risk_variance", "random")
RATIOS = tuple(step / 20 for step in range(19))  # 0 to 0.9
BEGIN, END = "globalThis.dgpruneData = ", ";\n"  # what stands around the JSON
COMMAND = "python -m dgprune_book.figures.network_page"


def export(
    path: str | Path = FILE,
    work: str | Path = ".study",
    network: Cell = NETWORK,
    *,
    criteria: Sequence[str] = CRITERIA,
    images: int = 100,
    calibration: int = 24,
) -> Path:
    """Train a network for each unseen domain, score its filters, and write the page's data file.

    The criteria see the training images of the source domains only. A test image is a held-out
    image of its domain for every network that was trained on that domain.

    Args:
        path: The file to write, in one piece or not at all; returned.
        work: The study's folder: trained networks are taken from there, or left there.
        network: Data set, seed, width, algorithm and steps; each domain is left out in turn.
        criteria: Names for :func:`~dgprune_lite.scores.criteria.score`.
        images: Test images of each domain; ``calibration``: training images, for BatchNorm.

    Raises:
        ValueError: Unknown data set or criterion, fewer images in a domain than asked for.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> tiny = replace(NETWORK, width=1, dense_steps=1)
    >>> path = export(f"{folder.name}/data.js", folder.name, tiny, criteria=["l1"], images=10)
    >>> page = read(path)
    >>> page.removed("syn", "l1", ratio=0.5)
    {'conv2': [1], 'conv3': [0]}
    >>> page.predict("syn", {"conv2": [1]})["mnist"].shape
    torch.Size([10])
    """
    networks, domains = dict[str, Any](), dict[str, Any]()
    for env in _known("dataset", network.dataset, ENVIRONMENTS):
        bench = Bench(replace(network, test_env=env), Path(work))
        graph = bench.graph
        tensors = {k: v for k, v in bench.model.state_dict().items() if v.is_floating_point()}
        weights = torch.cat([value.flatten() for value in tensors.values()])
        networks[env] = {"weights": _pack(weights), "order": {}}
        for name in criteria:
            part = "train" if name in NEEDS_STATISTICS else None
            cell = replace(network, test_env=env, criterion=name, scored_on=part)
            scores = bench.scores(cell, bench.model, graph).items()
            networks[env]["order"][name] = {k: v.argsort(stable=True).tolist() for k, v in scores}
        # A domain is divided in the same way whichever other domain is left out.
        for source, held_out in bench.split.val.items():
            domains[source] = {
                "images": _pictures(source, held_out, images),
                "calibration": _pictures(source, bench.split.train[source], calibration),
            }
    settings = f"--seed {network.seed} --width {network.width} --steps {network.dense_steps}"
    recipe = {name: getattr(network, name) for name in DENSE if name not in ("test_env", "without")}
    content = {
        "provenance": {"command": f"{COMMAND} {settings}", **recipe, **environment()},
        "classes": bench.split.num_classes,
        "tensors": {name: list(value.shape) for name, value in tensors.items()},
        "ratios": RATIOS,
        "kept": {k: [kept_filters(g.size, r) for r in RATIOS] for k, g in graph.groups.items()},
        "criteria": {name: criterion_style(name)["label"] for name in criteria},
        "domains": {env: domains[env] for env in networks},
        "networks": networks,
    }
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    write_atomically(path, BEGIN + "{\n" + ",\n".join(lines) + "\n}" + END)
    return Path(path)


def _known(what: str, value: Any, known: Any) -> Any:
    if value not in known:
        near = nearest_name(value, known) if isinstance(value, str) else ""
        raise ValueError(f"{what}={value!r}: expected {', '.join(map(str, known))}.{near}")
    return known[value]


def _pack(values: Tensor) -> str:
    return base64.b64encode(values.numpy().tobytes()).decode()


def _unpack(text: str, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=dtype)


def _pictures(domain: str, data: Dataset, number: int) -> dict[str, Any]:
    """The first images of a part of a domain, uint8; one channel where all three are equal."""
    there = count(data, domain)
    if not 1 <= number <= there:
        raise ValueError(f"{number!r} images of domain {domain!r}: expected 1 to {there}")
    pixels, labels = fetch(data, range(number))
    kept = pixels[:, :1] if bool((pixels == pixels[:, :1]).all()) else pixels
    octets = _pack((255 * kept).round().byte())
    return {"shape": list(kept.shape), "pixels": octets, "labels": labels.tolist()}


@dataclass(frozen=True)
class Export:
    """A data file, as PyTorch sees it: by domain images float32 (n, 3, 28, 28) in [0, 1] with
    classes int64 (n,), and by unseen domain the network trained without it, in eval mode."""

    content: dict[str, Any]  # all that the file holds, images and weights in base64
    images: dict[str, TensorDataset]  # to test on
    calibration: dict[str, TensorDataset]  # for BatchNorm's statistics
    networks: dict[str, nn.Module]

    def removed(self, unseen: str, criterion: str, ratio: float) -> dict[str, list[int]]:
        """Layer to the filters that go, the lowest score first; a ValueError for what the file
        does not hold."""
        order = _known("unseen", unseen, self.content["networks"])["order"]
        steps = {value: step for step, value in enumerate(self.content["ratios"])}
        step = _known("ratio", ratio, steps)
        return {
            layer: filters[: len(filters) - self.content["kept"][layer][step]]
            for layer, filters in _known("criterion", criterion, order).items()
        }

    def predict(
        self, unseen: str, removed: Mapping[str, Iterable[int]], *, recalibrate: bool = False
    ) -> dict[str, Tensor]:
        """Classify the test images with the gates of some filters at 0, as the page does.

        Args:
            unseen: The domain left out; a ValueError if it, or a layer, is not there.
            removed: Layer to numbers of filters.
            recalibrate: Whether BatchNorm's statistics are measured anew without these filters.

        Returns:
            Domain to predicted classes, int64 (n,).
        """
        model = copy.deepcopy(_known("unseen", unseen, self.networks))
        graph = trace_channels(model, self.images[unseen].tensors[0][:1])
        gates = {layer: torch.ones(group.size) for layer, group in graph.groups.items()}
        for layer, filters in removed.items():
            gate: Tensor = _known("layer", layer, gates)
            gate[list(filters)] = 0
        with gated(model, graph, gates):
            if recalibrate:  # with all images in one batch
                sources = {name: data for name, data in self.calibration.items() if name != unseen}
                total = sum(len(data) for data in sources.values())
                recalibrate_batchnorm(model, sources, images_per_domain=total, batch_size=total)
            with evaluating(model), torch.inference_mode():
                return {k: model(data.tensors[0]).argmax(1) for k, data in self.images.items()}

    def accuracy(
        self, unseen: str, removed: Mapping[str, Iterable[int]], *, recalibrate: bool = False
    ) -> dict[str, float]:
        """Domain to the share of its test images that :meth:`predict` classifies rightly."""
        classes = self.predict(unseen, removed, recalibrate=recalibrate)
        right = {k: classes[k] == data.tensors[1] for k, data in self.images.items()}
        return {name: value.double().mean().item() for name, value in right.items()}


def read(path: str | Path = FILE) -> Export:
    """Read a file that :func:`export` wrote; a ValueError if it is not whole, or another."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {str(path)!r}: run {COMMAND}")
    text = Path(path).read_text(encoding="utf-8")
    if not (text.startswith(BEGIN) and text.endswith("}" + END)):
        raise ValueError(f"{str(path)!r} is not whole: run {COMMAND} again")
    content = json.loads(text[len(BEGIN) : -len(END)])
    pictures: dict[str, dict[str, TensorDataset]] = {"images": {}, "calibration": {}}
    for name, domain in content["domains"].items():
        for part, found in pictures.items():
            pixels = _unpack(domain[part]["pixels"], torch.uint8).view(domain[part]["shape"])
            pixels = (pixels.float() / 255).expand(-1, 3, -1, -1).contiguous()
            found[name] = TensorDataset(pixels, torch.tensor(domain[part]["labels"]))
    networks, shapes, width = {}, content["tensors"], content["provenance"]["width"]
    for env, packed in content["networks"].items():
        networks[env] = build_model("digits_cnn", content["classes"], width=width).eval()
        parts = _unpack(packed["weights"], torch.float32).split([*map(math.prod, shapes.values())])
        state = {name: part.view(shapes[name]) for name, part in zip(shapes, parts, strict=True)}
        networks[env].load_state_dict(state, strict=False)  # without BatchNorm's counters
    return Export(content, **pictures, networks=networks)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Make the data of chapter 9: train a small network for each unseen domain, "
        "score its filters, and write weights and test images for the reader's page (2 minutes). "
        "Networks that the work folder holds already are not trained again.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=FILE, help="the file to write")
    parser.add_argument("--work", type=Path, default=Path(".study"), help="the study's folder")
    parser.add_argument("--seed", type=int, default=0, help="of split, weights and batches")
    parser.add_argument("--width", type=int, default=8, help="filters of the first layer")
    parser.add_argument("--steps", type=int, default=800, help="updates of training")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # as in the study: the numbers must not depend on the cores
    cell = replace(NETWORK, seed=options.seed, width=options.width, dense_steps=options.steps)
    page = read(export(options.output, options.work, cell))
    for unseen in page.networks:
        shown = (f"{name} {share:.0%}" for name, share in page.accuracy(unseen, {}).items())
        print(f"{unseen} unseen:", *shown)
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
