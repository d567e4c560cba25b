"""What goes, where, why, and what it saves: a plan that can be read, drawn, saved and applied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dgprune_lite.channels.graph import ChannelGraph, keep_mask
from dgprune_lite.checks import misfit
from dgprune_lite.pruning.limits import by_reason
from dgprune_lite.pruning.surgery import Cut, smaller_copy
from dgprune_lite.pruning.verification import check_applied
from dgprune_lite.running import check_unwrapped

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PruningPlan:
    """Which filters go, and from where.

    Attributes:
        pruning_ratio: The ratio asked for, one number or a dict by pattern; with a target the
            ratio that was found for it.
        cuts: Module name to :class:`Cut`, for every module that loses something.
        widths: Group name to (filters before, filters after).
        skipped: Module name to the reason why none of its filters can be removed.
        parameters: Of the whole network, (before, after).
        macs: Multiply-accumulates for one image, (before, after).
        layers: One dict a module: channels, parameters and MACs before and after.
        kept_gates: Group name to float (filters,): 1 where the filter stays, 0 where it goes.
        notes: Group name to the reason why it keeps another number of filters than
            round(n·(1 - ratio)).
        remarks: What else the reader should know, such as a target that was not reached.
        partly: Module name to how many of its channels must stay, and why, where others can go.
        graph: The :class:`~dgprune_lite.channels.graph.ChannelGraph` that it was made with.
    """

    pruning_ratio: float | dict[str, float]
    cuts: dict[str, Cut]
    widths: dict[str, tuple[int, int]]
    skipped: dict[str, str]
    parameters: tuple[int, int]
    macs: tuple[int, int]
    layers: tuple[dict[str, Any], ...] = field(repr=False)
    kept_gates: dict[str, Tensor] = field(repr=False)
    graph: ChannelGraph = field(repr=False)
    notes: dict[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    partly: dict[str, str] = field(default_factory=dict)

    @property
    def removed(self) -> dict[str, tuple[int, ...]]:
        """Module name to the indices it loses on its output axis."""
        return {name: cut.out for name, cut in self.cuts.items() if cut.out}

    def to_frame(self) -> pd.DataFrame:
        """One row a module: channels, parameters and MACs before and after."""
        import pandas as pd

        return pd.DataFrame(self.layers)

    def explain(self) -> str:
        """What goes, where, why not elsewhere, and what it saves, as text."""
        lines = [f"{self._title()}: the lowest scores of a group go"]
        width = max([len(name) for name in self.widths] or [0])
        for name, (before, after) in self.widths.items():
            without = f", without {gone}" if (gone := self._gone(name)) else ""
            lines.append(f"  {name:<{width}}  {before:>5} -> {after:>5} filters{without}")
            if name in self.notes:
                lines.append(f"  {'':<{width}}  {self.notes[name]}")
        for reason, names in by_reason(self.skipped).items():
            keep = "keeps all its" if len(names) == 1 else "keep all their"
            lines.append(f"  {', '.join(names)} {keep} filters: {reason}")
        lines += [f"  {name}: {reason}" for name, reason in self.partly.items()]
        lines += [f"note: {remark}" for remark in self.remarks]
        lines += [f"{title}: {change}" for title, change in self._savings().items()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The same as :meth:`explain`, as a table for notebooks."""
        cells = [
            (name, f"{before} → {after}", self._gone(name), self.notes.get(name, ""))
            for name, (before, after) in self.widths.items()
        ]
        cells += [(", ".join(n), "all stay", "", why) for why, n in by_reason(self.skipped).items()]
        cells += [(name, "some stay", "", why) for name, why in self.partly.items()]

        def row(tag: str, texts: Iterable[str]) -> str:
            return f"<tr>{''.join(f'<{tag}>{escape(text)}</{tag}>' for text in texts)}</tr>"

        head = row("th", ("group", "filters", "without", "why"))
        facts = [f"{title}: {change}" for title, change in self._savings().items()]
        below = "<br/>".join(escape(line) for line in [*facts, *self.remarks])
        return (
            f"<table><caption>{escape(self._title())}</caption><thead>{head}</thead>"
            f"<tbody>{''.join(row('td', texts) for texts in cells)}</tbody></table><p>{below}</p>"
        )

    def plot(self) -> Any:
        """Return a matplotlib figure: the channels that every layer keeps and loses, as bars."""
        from dgprune_lite.pruning.plan_figure import draw_plan

        return draw_plan(self)

    def apply(self, model: nn.Module, *, check: bool = True) -> nn.Module:
        """Make the smaller network; ``model`` is untouched.

        Args:
            model: The network the plan was made for, or another with the same layers.
            check: Whether to compare both on random inputs of the traced shapes, in eval mode
                (inputs of whole numbers are the traced ones); costs a pass of each.

        Returns:
            A copy of ``model`` without the filters of the plan. In eval mode it computes what
            ``model`` computes with those filters' gates at 0.

        Raises:
            TypeError: ``model`` is no ``nn.Module``, or a wrapper round one.
            ValueError: A layer of the plan is missing or has another shape; or the copy computes
                something else than it should, and which layers are to be left out.
        """
        check_unwrapped(model)
        if problem := misfit(model, {name: cut.weight_shape for name, cut in self.cuts.items()}):
            raise ValueError(
                f"the plan is for another model: {problem}. Make the plan with the graph of this "
                "model"
            )
        small = smaller_copy(model, self.cuts)
        if check:
            check_applied(model, small, self)
        return small

    def _title(self) -> str:
        if isinstance(self.pruning_ratio, Mapping):
            each = ", ".join(f"{name} {share:g}" for name, share in self.pruning_ratio.items())
            return f"Pruning plan at ratios {each}"
        return f"Pruning plan at ratio {self.pruning_ratio:g}"

    def _gone(self, group: str) -> str:
        gone = (self.kept_gates[group] == 0).nonzero()[:, 0].tolist()
        return ", ".join(map(str, gone[:8])) + (", ..." if len(gone) > 8 else "")

    def _savings(self) -> dict[str, str]:
        return {
            title: f"{before:,} -> {after:,}" + (f" ({after / before - 1:+.1%})" if before else "")
            for title, (before, after) in (("parameters", self.parameters), ("MACs", self.macs))
        }


def make_plan(
    graph: ChannelGraph,
    removed: np.ndarray,
    pruning_ratio: float | Mapping[str, float],
    *,
    notes: Mapping[str, str] | None = None,
    remarks: tuple[str, ...] = (),
) -> PruningPlan:
    """The plan that removes exactly the filters marked in ``removed``.

    Args:
        graph: From :func:`~dgprune_lite.channels.graph.trace_channels`.
        removed: bool (M,), the filters that go; at least one of each group must stay.
        pruning_ratio: What the plan is to say was asked for.
        notes: See :class:`PruningPlan`, also for ``remarks``.

    Raises:
        TypeError: ``removed`` is no numpy array of bool.
        ValueError: It has another length, or marks all filters of a group.

    >>> import dgprune_lite as dg
    >>> graph = dg.trace_channels(dg.build_model("digits_cnn", width=4), torch.zeros(1, 3, 28, 28))
    >>> make_plan(graph, np.arange(graph.num_filters) == 2, pruning_ratio=0.0).widths
    {'conv1': (4, 3), 'conv2': (8, 8), 'conv3': (8, 8)}
    """
    _check_removed(graph, removed)
    cuts: dict[str, Cut] = {}
    rows: list[dict[str, Any]] = []
    for name, layer in graph.layers.items():
        out, into = (
            () if units is None else tuple(np.flatnonzero(~keep_mask(units, removed)).tolist())
            for units in (layer.out_units, layer.in_units)
        )
        if out or into:
            cuts[name] = Cut(out, into, layer.weight_shape)
        before, after = layer.size(), layer.size(removed)
        rows.append(
            {
                "module": name,
                "kind": layer.kind,
                "channels_before": len(layer.out_units),
                "channels_after": len(layer.out_units) - len(out),
                "parameters_before": before[0],
                "parameters_after": after[0],
                "macs_before": before[1],
                "macs_after": after[1],
            }
        )
    parameters, macs = (
        (total, total - sum(row[f"{cost}_before"] - row[f"{cost}_after"] for row in rows))
        for cost, total in zip(("parameters", "macs"), graph.totals(), strict=True)
    )
    kept = torch.from_numpy(~removed).float()
    ratio = dict(pruning_ratio) if isinstance(pruning_ratio, Mapping) else pruning_ratio
    return PruningPlan(
        pruning_ratio=ratio,
        cuts=cuts,
        widths={n: (g.size, int((~removed[g.span]).sum())) for n, g in graph.groups.items()},
        skipped=dict(graph.skipped),
        partly=dict(graph.partly),
        parameters=parameters,
        macs=macs,
        layers=tuple(rows),
        kept_gates=graph.split(kept),
        graph=graph,
        notes=dict(notes or {}),
        remarks=remarks,
    )


def _check_removed(graph: ChannelGraph, removed: np.ndarray) -> None:
    """Raise an error unless ``removed`` marks filters, and leaves one of each group or more."""
    if not isinstance(removed, np.ndarray) or removed.dtype != np.bool_:
        raise TypeError(f"removed is {removed!r:.80}, expected a numpy array of bool")
    if removed.shape != (graph.num_filters,):
        raise ValueError(
            f"removed has shape {removed.shape}, expected ({graph.num_filters},): one mark for "
            "each filter of the graph"
        )
    for name, group in graph.groups.items():
        if removed[group.span].all():
            raise ValueError(
                f"removed marks all {group.size} filters of group {name!r}, at least one must stay"
            )
