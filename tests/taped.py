"""A CUDA graph without CUDA: operations on the CPU are recorded, undone, and carried out again.

As on a GPU, a capture changes nothing, and a replay carries out the same operations on the same
memory without running any Python: a number that Python computed stays what it was at the capture.
What it says nothing about: streams, the memory of a graph, and which operations CUDA refuses.
"""

import warnings
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITING = {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero}


def tensors(values):
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def memory(tensor):
    return tensor.untyped_storage().data_ptr()


class Tape(TorchDispatchMode):
    """What `torch.cuda.CUDAGraph` is: filled by a capture, then replayed."""

    def __init__(self):
        super().__init__()
        self.operations, self.before, self.replays = [], {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.overloadpacket in WAITING:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        for tensor in tensors((args, kwargs)):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.before:
                self.before[storage.data_ptr()] = storage, storage.clone()
        result = function(*args, **kwargs)
        self.operations.append((function, args, kwargs, result))
        return result

    def undo(self):
        for storage, values in self.before.values():
            storage.copy_(values)

    def replay(self):
        self.replays += 1
        with torch.no_grad():
            for function, args, kwargs, result in self.operations:
                again = function(*args, **kwargs)
                given = set(map(memory, tensors((args, kwargs))))
                for place, value in zip(tensors(result), tensors(again), strict=True):
                    if memory(place) not in given:  # else a view, or changed in place
                        place.copy_(value)


class Waits(TorchDispatchMode):
    """What `torch.cuda.set_sync_debug_mode("warn")` does."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in WAITING:
            warnings.warn("called a synchronizing CUDA operation", stacklevel=2)
        return function(*args, **(kwargs or {}))


class Stream:
    """Everything is in order on the CPU."""

    def __init__(self, device):
        self.device = device

    def wait_stream(self, other):
        assert isinstance(other, Stream)


class Generator:
    """A GPU's, of which a capture has another state."""

    def __init__(self, state="found"):
        self.state = state

    def clone_state(self):
        return Generator("spare")

    def graphsafe_set_state(self, other):
        self.state = other.state


class TapedCuda:
    """As much of `torch.cuda` as a capture takes; ``tapes`` are those that were recorded."""

    def __init__(self, monkeypatch):
        self.tapes, self.mode, self.generator = [], 0, Generator()
        fakes = {
            "CUDAGraph": Tape,
            "Stream": Stream,
            "current_stream": Stream,
            "default_generators": {None: self.generator},
            "get_sync_debug_mode": lambda: self.mode,
            "graph": self.graph,
            "set_sync_debug_mode": self.set_sync_debug_mode,
            "stream": self.stream,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    @contextmanager
    def stream(self, stream):
        assert isinstance(stream, Stream)
        yield

    @contextmanager
    def graph(self, tape, *, stream, capture_error_mode):
        assert capture_error_mode == "thread_local"
        self.tapes.append(tape)
        state = torch.get_rng_state()
        try:
            with tape:
                yield
        except RuntimeError as error:
            raise RuntimeError("operation failed due to a previous error during capture") from error
        finally:
            tape.undo()
            torch.set_rng_state(state)

    def set_sync_debug_mode(self, mode):
        if mode == "warn":
            self.waits = Waits()
            self.waits.__enter__()
        elif self.mode == "warn":
            self.waits.__exit__(None, None, None)
        self.mode = mode


def on_gpus(*names):
    """A network of which one needs to know only where its parameters are."""
    devices = [SimpleNamespace(device=torch.device(name)) for name in names]
    return SimpleNamespace(parameters=lambda: iter(devices))
