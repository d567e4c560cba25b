"""The ``torch.fx`` graph of a network, and whether that of training can be another one.

What this file is *not*: it runs nothing and knows nothing of channels.

Tracing replaces methods of ``nn.Module`` itself while it lasts, so it takes turns: one thread
traces at a time, and the networks that others run meanwhile are told apart.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx, nn

ONE_AT_A_TIME = threading.RLock()
"""Held by the thread that traces."""


def symbolic_graph(model: nn.Module) -> fx.Graph:
    """The ``torch.fx`` graph of a model, or an error that names the place it cannot follow."""
    try:
        with ONE_AT_A_TIME:
            return _Tracer().trace(model)
    except Exception as error:
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if "torch/fx" not in frame.filename.replace("\\", "/") and frame.filename != __file__
        ]
        place = f" at {frames[-1].name}(): `{frames[-1].line}`" if frames else ""
        raise ValueError(
            f"torch.fx cannot trace {type(model).__name__}{place}: {error}. Move what depends on "
            "the data (if, for, len) out of forward, or into a function marked with torch.fx.wrap"
        ) from error


class _Tracer(fx.Tracer):
    """Does not note beside each node which modules it lies in: nobody asks, and it takes long."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self.thread:  # somebody else's network, which is run
            return forward(*args, **kwargs)
        name = self.path_of_module(m)
        if self.is_leaf_module(m, name):
            return self.create_proxy("call_module", name, args, kwargs)
        return forward(*args, **kwargs)


def training_graph(network: nn.Module, graph: fx.Graph, asked: list[nn.Module]) -> fx.Graph | None:
    """The graph of training where it is another one and can be traced, else None.

    Args:
        network: In eval mode, and left so.
        graph: Its graph.
        asked: The modules whose mode was asked for while it was made, see :func:`asking_modes`.
            Where there are none, and no class has modes of its own, nothing can depend on them.
    """
    if not asked and not any(_has_own_modes(type(module)) for module in network.modules()):
        return None
    try:
        other = symbolic_graph(network.train())
    except ValueError:  # only its evaluation can be followed
        return None
    finally:
        network.eval()
    return None if _calls(other) == _calls(graph) else other


@contextmanager
def asking_modes() -> Iterator[list[nn.Module]]:
    """Note in a list the modules whose ``training`` is read inside the ``with`` block.

    Only one thread may be in it at a time.
    """
    asked: list[nn.Module] = []
    thread = threading.get_ident()

    def read(module: nn.Module) -> bool:
        if threading.get_ident() == thread:
            asked.append(module)
        return module.__dict__["training"]

    def write(module: nn.Module, mode: bool) -> None:
        module.__dict__["training"] = mode

    nn.Module.training = property(read, write)  # type: ignore[assignment]
    try:
        yield asked
    finally:
        del nn.Module.training


def _has_own_modes(kind: type[nn.Module]) -> bool:
    return kind.train is not nn.Module.train or hasattr(kind, "training")


def _calls(graph: fx.Graph) -> list[Any]:
    """What a graph does, to tell whether two do the same."""
    return [(n.op, n.target, [parent.name for parent in n.all_input_nodes]) for n in graph.nodes]
