"""The process that runs one submission on one network, and ends.

It reads the network and the source domains from its standard input, and leaves in its folder either
``scores.safetensors`` or, in ``words.txt``, what was wrong. ``runner.py`` starts it; nobody else
should.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib.util
import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from dgprune_book.assignment.contract import Sources, as_scores
from dgprune_book.assignment.guard import arm
from dgprune_book.assignment.packing import unpack
from dgprune_lite.channels.graph import ChannelGraph, trace_channels

SUBMISSION, SCORES, WORDS, PRINTED = "submission.py", "scores.safetensors", "words.txt", "printed"
REFUSED = 77  # exit status; what was wrong is in WORDS
LARGEST_FILE = 16 * 1024**2  # bytes that a submission may write or print


def limit_resources(gibibytes: float, seconds: float) -> None:
    """Bound this process's memory, files and computing, where the system can (macOS: in part).

    Time is kept by the process that started this one. The bound here, a generous one, is for the
    case that somebody has killed that.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    for what, value in (
        (resource.RLIMIT_DATA, int(gibibytes * 1024**3)),
        (resource.RLIMIT_FSIZE, LARGEST_FILE),
        (resource.RLIMIT_CPU, int(time.process_time() + 2 * seconds + 10)),
    ):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(what, (value, value))


def load_function(path: Path) -> Callable[..., Any]:
    """Run a submission's file and return its function ``score``."""
    spec = importlib.util.spec_from_file_location("submission", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["submission"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    function = getattr(module, "score", None)
    if not callable(function):
        found = "no `score`" if function is None else f"a `score` that is {function!r:.40}"
        raise LookupError(f"the file has {found}; expected a function score(model, graph, domains)")
    return function


def describe(error: BaseException, path: Path) -> str:
    """Say what went wrong in a submission, and in which of its lines."""
    text = " ".join(str(error).split())
    if isinstance(error, LookupError) and text.startswith("the file has"):
        return text
    if isinstance(error, SystemExit):
        what = f"calls sys.exit({error.code!r}); it must return scores"
    elif isinstance(error, MemoryError) or "can't allocate memory" in text:
        what = f"needs more memory than it may have ({type(error).__name__})"
    elif isinstance(error, OSError) and error.errno == errno.EFBIG:
        what = f"prints or writes more than {LARGEST_FILE // 1024**2} MiB"
    else:
        what = f"raises {type(error).__name__}: {text}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    return what if line is None else f"{what} (line {line})"


def changed(model: nn.Module, found: dict[str, Tensor]) -> str | None:
    """Say what of the network is no longer as it was."""
    now = model.state_dict()
    for name in [*found, *now]:
        same = name in found and name in now and found[name].shape == now[name].shape
        if not same or not torch.equal(found[name], now[name]):
            return f"it changes {name!r} of the model it was given; work on copy.deepcopy(model)"
    if any(module.training for module in model.modules()):
        return "it leaves the model in training mode; call model.eval() or work on a copy"
    return None


def run(
    path: Path, model: nn.Module, graph: ChannelGraph, domains: Sources
) -> tuple[dict[str, Tensor], float]:
    """Run a submission; scores and seconds of processor time, or a ValueError with words."""
    found = {name: value.clone() for name, value in model.state_dict().items()}
    start = time.process_time()
    try:
        answer = load_function(path)(model, graph, domains)
    except BaseException as error:  # also SystemExit: whatever it is, the submission did it
        with contextlib.suppress(Exception):  # it may have closed or filled its output
            traceback.print_exc()
        raise ValueError(describe(error, path)) from None
    seconds = time.process_time() - start
    try:
        scores = as_scores(answer, graph)
    except Exception as error:
        raise ValueError(" ".join(str(error).split())) from None
    if words := changed(model, found):
        raise ValueError(words)
    return scores, seconds


def main() -> NoReturn:
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--forbidden", nargs="*", default=[])
    options = parser.parse_args()
    folder = Path.cwd()
    torch.set_num_threads(1)
    model, domains = unpack(sys.stdin.buffer.read())
    graph = trace_channels(model, domains.example_inputs)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(domains.seed)
    words, leave = (folder / WORDS).open("w", encoding="utf-8"), os._exit
    write, flush = words.write, words.flush

    def refuse(text: str) -> NoReturn:
        write(text)
        flush()
        leave(REFUSED)

    limit_resources(options.memory, options.seconds)
    arm(refuse, str(folder), options.forbidden)
    try:
        scores, seconds = run(folder / SUBMISSION, model, graph, domains)
    except ValueError as error:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        refuse(str(error))
    (folder / SCORES).write_bytes(save({name: part.contiguous() for name, part in scores.items()}))
    write(f"{seconds:.2f}")
    flush()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    leave(0)  # without what a submission wants to happen at exit


if __name__ == "__main__":
    main()
