"""A training step on CUDA, captured once and then replayed: one launch instead of hundreds.

What Python decides in it is decided once. Source: PyTorch's notes on CUDA, "CUDA graphs".
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice, starmap

import torch
from torch import Tensor, nn

from dgprune_lite.running import gpus_of

Batch = Sequence[Tensor | float]
Step = Callable[..., Tensor]
WARM_UP_STEPS = 3  # in these libraries, autograd and Adam make what they keep


def can_be_captured(model: nn.Module, device: torch.device, precision: str) -> bool:
    """Whether it is on one CUDA device, and not in float16, where the gradients are looked at."""
    return precision != "float16" and gpus_of(model) == [device]


def replayed(step: Step, batches: Iterable[Batch], device: torch.device) -> Iterator[Tensor]:
    """What ``step(*batch)`` returns, for one batch after another: a tensor that may be reused.

    The first batches run the step, and its capture runs nothing. It finds every batch in the same
    memory, also numbers, whose values it would keep. If it fails, a warning says why, and the other
    batches run the step.
    """
    batches, side, static = iter(batches), torch.cuda.Stream(device), list[Tensor]()
    caught: list[warnings.WarningMessage] = []
    for number, batch in enumerate(islice(batches, WARM_UP_STEPS), 1):
        static = static or [
            torch.empty_like(value)
            if isinstance(value, Tensor)
            else torch.empty((), dtype=torch.float32, device=device)  # as Adam's kernel reads it
            for value in batch
        ]
        _fill(static, batch)
        watch = _watched() if number == WARM_UP_STEPS else nullcontext(caught)
        with _beside(side), watch as caught:
            row = step(*static)
        yield row
    waits = [one for one in caught if "called a synchronizing" in str(one.message)]
    for one in caught:
        if one not in waits:  # of the network's own
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    try:
        # Not even begun: PyTorch's allocator does not recover from a capture that fails.
        if waits:
            raise RuntimeError("the network's code waits for the GPU, as .item() and .cpu() do")
        replay, row = _capture(step, static, side)
    except RuntimeError as error:
        reason = str(error.__context__ or error).partition("\n")[0]
        warnings.warn(f"cuda_graph: the plain loop goes on, since {reason}", stacklevel=3)
        yield from starmap(step, batches)
        return
    for batch in batches:
        _fill(static, batch)
        replay()
        yield row


def _fill(static: list[Tensor], batch: Batch) -> None:
    for place, value in zip(static, batch, strict=True):
        if isinstance(value, Tensor):
            place.copy_(value)
        else:
            place.fill_(value)  # without waiting, which a copy from the CPU would do


@contextmanager
def _beside(side: torch.cuda.Stream) -> Iterator[None]:
    """Compute a `with` block on another stream, after what comes before, before what comes next."""
    here = torch.cuda.current_stream(side.device)
    side.wait_stream(here)
    with torch.cuda.stream(side):
        yield
    here.wait_stream(side)


@contextmanager
def _watched() -> Iterator[list[warnings.WarningMessage]]:
    """The warnings of a `with` block, among them one for each time that it waits for the GPU."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True, action="always") as caught:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield caught
        finally:
            torch.cuda.set_sync_debug_mode(mode)


def _capture(
    step: Step, static: list[Tensor], side: torch.cuda.Stream
) -> tuple[Callable[[], None], Tensor]:
    """Record a step without running it: what replays it, and where its result will then lie."""
    graph, how = torch.cuda.CUDAGraph(), "thread_local"  # others pin memory for the next batches
    generator = torch.cuda.default_generators[side.device.index]
    spare = generator.clone_state()
    try:
        # PyTorch 2.10 stays on the stream of a capture that fails; the outer context does not.
        with (
            torch.cuda.stream(side),
            torch.cuda.graph(graph, stream=side, capture_error_mode=how),
        ):
            row = step(*static)
    except BaseException:
        generator.graphsafe_set_state(spare)  # the other one still counts for the capture
        raise
    return graph.replay, row
