"""A weight that nobody holds: it says at once what it is like, and is computed when something computes with it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tenfold._errors import TenfoldError

_GETTERS = ("dtype", "device", "shape", "ndim", "layout", "is_cuda", "is_cpu", "is_meta", "is_sparse", "is_quantized")
_METHODS = ("dim", "size", "numel", "nelement", "element_size", "is_floating_point", "is_complex", "__len__")
_TOLD = {getattr(Tensor, name).__get__ for name in _GETTERS} | {getattr(Tensor, name) for name in _METHODS}


_DATA = Tensor.data.__get__  # type: ignore[attr-defined]
_WRITERS = {"__set__", "__setitem__"} | {f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "pow", "matmul")}


class Rebuilt(Tensor):
    """A tensor of a known shape, data type and device whose values are computed anew by every use of them.

    Networks ask layers for `weight.dtype` in their forward (T5, CLIP, Mamba), where rebuilding a dense weight would
    take longer than the layer. Gradients go to whatever the values are computed from.
    """

    _values: Callable[[], Tensor]

    @staticmethod
    def __new__(cls: type["Rebuilt"], values: Callable[[], Tensor], shape: torch.Size, like: Tensor) -> "Rebuilt":
        """What `values()` will return, in the data type and on the device of `like`."""
        new = Tensor._make_wrapper_subclass(cls, shape, dtype=like.dtype, device=like.device)
        new._values = values
        return new

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Tell what is known; compute the values for all else.

        Raises:
            TenfoldError: if something would write to the weight, which would be lost.
        """
        if func in _TOLD:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        if func == _DATA:  # what is written to it is meant for the weight
            (weight,) = args
            return Rebuilt(lambda: weight._values().detach(), weight.shape, weight)
        if _writes(func) and isinstance(args[0], Rebuilt):
            raise TenfoldError(
                f"{func.__name__}: the weight of a compressed layer is computed from its factors, so it can be read "
                "but not changed; change the factors, the modules inside the layer, or the dense network before."
            )
        return _computed(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """The same for what operations in C++ ask."""
        return _computed(func, args, kwargs)


def _writes(func: Any) -> bool:
    """Whether a function changes its first argument, by its name: as `mul_`, `__imul__`, `__setitem__` do."""
    name = str(func.__name__)
    return name in _WRITERS or (name.endswith("_") and not name.endswith("__"))


def _computed(func: Any, args: Any, kwargs: Any) -> Any:
    args, kwargs = pytree.tree_map_only(Rebuilt, lambda weight: weight._values(), (args, kwargs or {}))
    return func(*args, **kwargs)
