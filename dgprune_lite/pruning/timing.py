"""How long networks take: the median of runs in turn, so that a slow moment hits them all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median

import torch
from torch import Tensor, nn

from dgprune_lite.running import check_model, evaluating


def median_latency(
    models: Sequence[nn.Module], inputs: tuple[Tensor, ...], rounds: int = 11
) -> list[float]:
    """Median seconds of ``rounds`` passes of each network, in eval mode and without gradients."""
    seconds: list[list[float]] = [[] for _ in models]
    gpus = {value.device for value in inputs if value.is_cuda}

    def wait() -> None:
        for gpu in gpus:
            torch.cuda.synchronize(gpu)

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for model in models:
            stack.enter_context(evaluating(model))
        for number in range(rounds + 2):  # two of them warm up
            for model, times in zip(models, seconds, strict=True):
                wait()
                start = time.perf_counter()
                model(*inputs)
                wait()
                if number >= 2:
                    times.append(time.perf_counter() - start)
    return [median(times) for times in seconds]


def check_inputs(
    model: nn.Module, example_inputs: Tensor | tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """The inputs as a tuple, or an error if the model does not run on them."""
    check_model(model)
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    if not inputs or not all(isinstance(value, Tensor) for value in inputs):
        raise TypeError(
            f"example_inputs is {example_inputs!r:.80}, expected a tensor or a tuple of tensors"
        )
    try:
        with torch.no_grad(), evaluating(model):
            model(*inputs)
    except Exception as error:
        shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
        raise ValueError(
            f"{type(model).__name__} does not run on example_inputs of shape {shapes}: "
            + str(error).split("\n")[0]
        ) from error
    return inputs
