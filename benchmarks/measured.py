"""What the benchmarks share: networks, how much memory a run takes, tables as files."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
import torchvision
from torch import Tensor, nn

import dgprune_lite as dg


def network(name: str, side: int) -> tuple[nn.Module, Tensor]:
    """One of torchvision's with random weights, and an image for it."""
    torch.manual_seed(0)
    return getattr(torchvision.models, name)().eval(), torch.rand(1, 3, side, side)


def most_added(run: Callable[[], object]) -> float:
    """MiB by which this process grows at most during a run (Linux; not a number elsewhere)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        before = _status("VmRSS")
        run()
        return (_status("VmHWM") - before) / 1024
    except OSError:
        return float("nan")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])  # KiB


def write(path: Path, tables: dict[str, pd.DataFrame], **settings: object) -> None:
    """The tables as JSON, with the command, versions and threads they were made with."""
    record = {
        "command": shlex.join(["python", *sys.argv]),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "dgprune_lite": dg.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        **settings,
        **{
            title: json.loads(table.reset_index().to_json(orient="records", double_precision=5))
            for title, table in tables.items()
        },
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
