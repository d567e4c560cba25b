"""A pretended GPU, for machines without one: it computes on the CPU and keeps apart as a GPU does.

Its tensors say that they lie on the device `pretended:0`. Each wraps a tensor on the CPU, on which
every operation is carried out, so results and gradients are real numbers. What CUDA refuses is
refused: an operation on tensors of both devices, a CPU generator for numbers drawn there, `numpy()`
before `cpu()`. So a tensor that the package forgets to move, or makes in the wrong place, is found
without a GPU. What it says nothing about: speed, memory, streams, autocast, and CUDA's own kernels.

`pytest --pretended-gpu -m gpu tests` runs on it what asks for the fixture `gpu`. The device must be
registered before the process first goes backward, hence a process of its own. PyTorch calls its
interface for devices written in Python experimental (torch.utils.backend_registration).
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretended"
LIBRARY = torch.library.Library("aten", "IMPL")
aten = torch.ops.aten
BETWEEN_DEVICES = {aten._to_copy, aten.copy_}
BY_INDEX = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


def register() -> None:
    """Make the device known to PyTorch: once in a process, before anything goes backward."""
    backend_registration._setup_privateuseone_for_python_backend(NAME)
    LIBRARY.impl("empty.memory_format", partial(_make, torch.empty), "PrivateUse1")
    LIBRARY.impl("empty_strided", partial(_make, torch.empty_strided), "PrivateUse1")
    LIBRARY.impl("_copy_from", _copy_from, "PrivateUse1")
    # A module's parameters cannot become tensors of another class in place.
    torch.__future__.set_overwrite_module_params_on_conversion(True)


class PretendedTensor(Tensor):
    """A tensor on the pretended GPU; `held` is the tensor on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "PretendedTensor":
        tensor = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        tensor.held = held
        return tensor

    def __repr__(self) -> str:
        return f"PretendedTensor({self.held})"

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None) -> Any:
        return _compute(function, args, kwargs or {})


class Pretending(TorchDispatchMode):
    """In a `with` block, tensors can be made on the pretended GPU, too."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> Any:
        return _compute(function, args, kwargs or {})


def _make(make: Any, *sizes: Any, dtype: Any, **_: Any) -> PretendedTensor:
    """An empty tensor there, where PyTorch makes one by itself, as in `torch.as_tensor`."""
    return PretendedTensor(make(*sizes, dtype=dtype))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _held(target).copy_(_held(source))
    return target


def _compute(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Carry an operation out on the CPU, and put its results where CUDA would have them."""
    operation = function.overloadpacket
    there = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, PretendedTensor)]
    place = kwargs.get("device")
    if place is not None:
        result_there = torch.device(place).type == NAME
        kwargs = {**kwargs, "device": torch.device("cpu")}
    elif operation is aten.copy_:
        result_there = isinstance(args[0], PretendedTensor)
    else:
        result_there = bool(there)
    if operation not in BETWEEN_DEVICES:
        _refuse_two_devices(operation, args, kwargs)
    if result_there and kwargs.get("generator") is not None:
        raise RuntimeError(f"{operation}: expected a generator on '{NAME}' but found one on 'cpu'")
    result = function(*tree_map(_held, args), **tree_map(_held, kwargs))
    if not result_there:
        return result
    in_place = {id(tensor.held): tensor for tensor in there}

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        known = in_place.get(id(value))
        if known is not None and known.shape != value.shape:
            raise NotImplementedError(f"{operation} changes a shape in place")
        return PretendedTensor(value) if known is None else known

    return tree_map(wrap, result)


def _refuse_two_devices(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """As on CUDA: only single numbers on the CPU, and indices, may meet a tensor on the GPU."""
    if operation in BY_INDEX and isinstance(args[0], PretendedTensor):
        args = (args[0], *args[2:])
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, PretendedTensor)]
    here = [
        tensor for tensor in tensors if tensor.dim() and not isinstance(tensor, PretendedTensor)
    ]
    if there and here:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in here)
        raise RuntimeError(
            f"{operation}: expected all tensors to be on the same device, but found at least two "
            f"devices, {NAME}:0 and cpu (shapes on the CPU: {shapes})"
        )


def _held(value: Any) -> Any:
    return value.held if isinstance(value, PretendedTensor) else value
