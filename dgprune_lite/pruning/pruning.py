"""Plan, then apply: scores and a ratio in, a physically smaller network out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.data import Dataset

from dgprune_lite.channels.graph import ChannelGraph, trace_channels
from dgprune_lite.checks import named_domains
from dgprune_lite.domains import Split, batches
from dgprune_lite.pruning.limits import Inputs, Layers, Ratio, make_limits
from dgprune_lite.pruning.plans import PruningPlan, make_plan
from dgprune_lite.pruning.selection import check_scores, kept_filters
from dgprune_lite.pruning.surgery import Cut
from dgprune_lite.pruning.targets import plan_within
from dgprune_lite.running import Logits, check_unwrapped, device_of, in_dtype_of
from dgprune_lite.scores.criteria import NEEDS_STATISTICS, importances
from dgprune_lite.scores.risks import Order, Reading, measure

__all__ = ["Cut", "PruningPlan", "kept_filters", "make_plan", "plan_pruning", "prune"]


def plan_pruning(
    graph: ChannelGraph,
    scores: Mapping[str, Tensor],
    pruning_ratio: Ratio | None = None,
    *,
    global_pruning: bool = False,
    ignored_layers: Layers = (),
    round_to: int = 1,
    max_pruning_ratio: float = 1.0,
    target_macs: float | None = None,
    target_parameters: float | None = None,
    target_latency: float | None = None,
    model: nn.Module | None = None,
    example_inputs: Inputs | None = None,
) -> PruningPlan:
    """Decide which filters go: in each group those with the lowest scores.

    Args:
        graph: From :func:`~dgprune_lite.channels.graph.trace_channels`.
        scores: Group name to (filters,), from :func:`~dgprune_lite.scores.criteria.score`.
        pruning_ratio: Share of filters to remove, in [0, 1); 0.5 where neither it nor a target is
            given. Each group of n filters keeps round(n·(1 - ratio)), and at least one. Or a dict
            of such shares by layer name, block or pattern, ``{"layer1.*": 0.3, "layer4": 0.6}``,
            the last of which counts that fits; groups that none fits keep all their filters.
        global_pruning: Rank all filters of the network together (with a dict: all that share a
            pattern); scores must then be comparable between groups.
        ignored_layers: Names of modules, of blocks that hold them, patterns such as
            ``"layer?.0.*"``, modules, or types of modules; they keep all their channels.
        round_to: Kept widths become the nearest multiple of it, such as 8, or stay whole.
        max_pruning_ratio: The largest share that any group may lose, in [0, 1].
        target_macs: Share of multiply-accumulates to be *left*, in (0, 1], in place of a ratio,
            which is found by bisection; ``plan.remarks`` says what was reached.
        target_parameters: The same for parameters.
        target_latency: The same for the median time of one pass on ``example_inputs``, here.
        model: The traced network, for modules or types in ``ignored_layers`` or a latency.
        example_inputs: A batch on the model's device, for a latency.

    Returns:
        The :class:`~dgprune_lite.pruning.plans.PruningPlan`, whose ``notes`` say why a group keeps
        another number than its ratio asks for. Equal scores go in order of the filters' numbers.

    Raises:
        TypeError: Arguments of another kind.
        ValueError: A ratio outside [0, 1), scores that do not fit the graph, a pattern that
            fits no layer, a ratio together with a target, a network of which no filter can go.
            (If fewer than half of the convolutions' filters can, a warning says so.)

    >>> import torch, dgprune_lite as dg
    >>> model = dg.build_model("digits_cnn", width=8)
    >>> graph = dg.trace_channels(model, torch.zeros(1, 3, 28, 28))
    >>> scores = dg.score("l1", model, graph)
    >>> plan = dg.plan_pruning(graph, scores, pruning_ratio=0.5)
    >>> plan.widths
    {'conv1': (8, 4), 'conv2': (16, 8), 'conv3': (16, 8)}
    >>> plan = dg.plan_pruning(graph, scores, {"conv[12]": 0.25}, max_pruning_ratio=0.2)
    >>> plan.widths["conv2"], plan.notes["conv2"]
    ((16, 13), 'the ratio asked for 12; max_pruning_ratio=0.2 leaves at least 13')
    >>> dg.plan_pruning(graph, scores, target_macs=0.5).remarks
    ('target_macs=0.5: 50.5% of MACs left, at ratio 0.3437',)
    """
    targets = {"macs": target_macs, "parameters": target_parameters, "latency": target_latency}
    bounds = (global_pruning, ignored_layers, round_to, max_pruning_ratio)
    limits = make_limits(graph, pruning_ratio, targets, *bounds, model, example_inputs)
    return plan_within(graph, check_scores(graph, scores), limits)


def prune(
    model: nn.Module,
    data: Split | Mapping[str, Dataset[Any]],
    criterion: str = "fisher",
    pruning_ratio: Ratio | None = None,
    *,
    example_inputs: Inputs | None = None,
    global_pruning: bool = False,
    ignored_layers: Layers = (),
    round_to: int = 1,
    max_pruning_ratio: float = 1.0,
    target_macs: float | None = None,
    target_parameters: float | None = None,
    target_latency: float | None = None,
    batch_size: int | None = None,
    precision: str = "float32",
    workers: int = 0,
    logits: Logits | None = None,
    progress: bool = False,
    **options: Any,
) -> tuple[nn.Module, PruningPlan]:
    """Trace, score, plan, apply and check in one call.

    The smaller network still needs
    :func:`~dgprune_lite.networks.recalibration.recalibrate_batchnorm` and fine-tuning with
    :func:`~dgprune_lite.networks.training.fit`.

    Args:
        model: The trained network; untouched.
        data: A :class:`~dgprune_lite.domains.splits.Split`, of which the held-out part of every
            source domain is scored on; or source domain name to data set, such as ``split.train``.
        criterion: See :func:`~dgprune_lite.scores.criteria.score`; ``options`` go to it. The
            default follows from the book's results, by a rule that stands in chapter 8.
        pruning_ratio: See :func:`plan_pruning`, also for ``global_pruning``, ``ignored_layers``,
            ``round_to``, ``max_pruning_ratio`` and the targets.
        example_inputs: One input batch, or a tuple of several inputs, which is brought to the
            model's device and precision; by default the first image of ``data``.
        batch_size: Images a pass while scoring; see
            :func:`~dgprune_lite.scores.risks.domain_statistics`, also for ``precision``,
            ``workers``, ``logits``.
        progress: Whether to show a progress bar while scoring.

    Returns:
        The smaller network and the :class:`~dgprune_lite.pruning.plans.PruningPlan`.

    Raises:
        TypeError: Arguments of another kind.
        ValueError: Bad input as in the functions that it calls, or a smaller network that does
            not compute what the masked one does
            (:meth:`~dgprune_lite.pruning.plans.PruningPlan.apply`).
    """
    domains, inputs, graph = traced(model, data, example_inputs)
    targets = {"macs": target_macs, "parameters": target_parameters, "latency": target_latency}
    bounds = (global_pruning, ignored_layers, round_to, max_pruning_ratio)
    limits = make_limits(graph, pruning_ratio, targets, *bounds, model, inputs)
    reading = Reading(batch_size, precision, workers, logits, progress)
    scores = score_on(model, graph, domains, criterion, options, reading)
    plan = plan_within(graph, check_scores(graph, scores), limits)
    return plan.apply(model), plan


def traced(
    model: nn.Module, data: Split | Mapping[str, Dataset[Any]], example_inputs: Inputs | None
) -> tuple[dict[str, Dataset[Any]], Inputs, ChannelGraph]:
    """What to score on, an example where the model can take it, and the model's graph."""
    check_unwrapped(model)
    domains = named_domains(data.val if isinstance(data, Split) else data, "data")
    if example_inputs is None:
        name, dataset = next(iter(domains.items()))
        example_inputs = next(batches(dataset, 1, domain=name))[0]

    def bring(value: Tensor) -> Tensor:
        value = value.to(device_of(model))
        return in_dtype_of(model, value) if value.is_floating_point() else value

    inputs = tree_map_only(Tensor, bring, example_inputs)
    return domains, inputs, trace_channels(model, inputs)


def score_on(
    model: nn.Module,
    graph: ChannelGraph,
    data: Mapping[str, Dataset[Any]],
    criterion: str,
    options: Mapping[str, Any],
    reading: Reading,
) -> dict[str, Tensor]:
    """The scores of a criterion, with the cheapest statistics that it can do with."""
    stats = None
    if criterion in NEEDS_STATISTICS:
        order: Order = "first" if criterion in ("taylor", "risk_gradient") else "fisher"
        if options.get("order") in ("first", "exact"):
            order = options["order"]
        stats = measure(model, graph, data, order, reading)
    return importances(criterion, model, graph, stats, options)
