"""A figure of a plan: the channels that each layer keeps and loses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from dgprune_lite.pruning.plans import PruningPlan

_KEPT, _REMOVED = "#0072B2", "#C8C8C8"
_MANY = 60  # layers from which on names would overlap


def draw_plan(plan: PruningPlan) -> Figure:
    """Draw a bar for every convolution and linear layer: the channels that stay and that go."""
    rows = [row for row in plan.layers if row["kind"] != "norm"]
    names = [row["module"] for row in rows]
    before = [row["channels_before"] for row in rows]
    after = [row["channels_after"] for row in rows]
    rows_down = range(len(rows))
    inches = 0.24 if len(rows) <= _MANY else 0.1
    figure, axes = plt.subplots(figsize=(5.6, 1.3 + inches * len(rows)), layout="constrained")
    axes.barh(rows_down, before, color=_REMOVED, label="removed")
    axes.barh(rows_down, after, color=_KEPT, label="kept")
    step = 1 if len(rows) <= _MANY else 4
    axes.set_yticks(rows_down[::step], names[::step])
    axes.tick_params("y", length=0, labelsize=9)
    axes.grid(visible=False, axis="y")
    axes.invert_yaxis()
    axes.set_xlabel("channels")
    parameters, macs = (after / max(1, before) for before, after in (plan.parameters, plan.macs))
    axes.set_title(f"{parameters:.0%} of parameters and {macs:.0%} of MACs left", loc="left")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower right", ncols=2)
    return figure
