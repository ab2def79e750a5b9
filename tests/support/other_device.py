"""A device that is not the CPU, for machines without one: it computes on the CPU, and refuses what a GPU would refuse.

Its tensors say that they lie on torch's device "meta". An operation on them and on tensors of the CPU raises, but for
what torch allows: numbers without dimensions, copies, and indices.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
_COPIES = ("aten::_to_copy", "aten::copy_")
_INDEXED = ("aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_")


class _There(Tensor):
    """A tensor on that device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "_There":
        tensor: _There = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        tensor.held = held
        return tensor

    def __init__(self, held: Tensor) -> None:
        del held

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


def _is_there(device: object) -> bool:
    return device is not None and torch.device(device) == DEVICE  # type: ignore[call-overload]


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name, device = func._schema.name, kwargs.get("device")
    values = tree_flatten((args, kwargs))[0]
    there = [value for value in values if isinstance(value, _There)]
    here = [value for value in values if isinstance(value, Tensor) and not isinstance(value, _There) and value.dim()]
    allowed = name in _COPIES or (name in _INDEXED and isinstance(values[0], _There))
    assert not (there and here) or allowed, f"{name} on tensors of two devices"
    drawn = any(isinstance(value, torch.Generator) for value in values)
    assert not (drawn and (there or _is_there(device))), f"{name} with a generator of another device"
    moved = {**kwargs, "device": torch.device("cpu")} if device is not None else kwargs
    result = func(*tree_map(_held, args), **tree_map(_held, moved))
    in_place = name.endswith("_") and not name.endswith("__")  # not such as aten::__rshift__
    if in_place and isinstance(args[0], Tensor):
        return args[0]
    lies_there = _is_there(device) if device is not None else bool(there)
    return tree_map(_lift, result) if lies_there else result


def _held(value: Any) -> Any:
    return value.held if isinstance(value, _There) else value


def _lift(value: Any) -> Any:
    return _There(value) if isinstance(value, Tensor) and not isinstance(value, _There) else value


class _Dispatched(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Called(TorchFunctionMode):
    """What torch does before it comes to an operation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and _is_there(kwargs.get("device")):
            del kwargs["device"]
            return func(*args, **kwargs).to(DEVICE)
        if func in (Tensor.tolist, Tensor.__format__):
            return func(_held(args[0]), *args[1:], **kwargs)
        assert func is not Tensor.numpy or not isinstance(args[0], _There), "numpy of a tensor that is not on the CPU"
        return func(*args, **kwargs)


@contextmanager
def elsewhere() -> Iterator[None]:
    """Let there be the device for as long as the block runs."""
    with _Called(), _Dispatched():
        yield


def move(model: nn.Module) -> nn.Module:
    """Bring a model there, in place."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(_There(parameter.detach()))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _There(buffer)
    return model
