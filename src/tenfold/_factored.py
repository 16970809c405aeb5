"""What stands where a layer stood: its factor layers in order, looking from outside like the layer itself."""

# O outputs, I inputs, C channels between two factors, g groups, ... kernel axes

from collections.abc import Iterable
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

_LINEAR = ("in_features", "out_features")
_CONV = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode",
    "transposed", "output_padding",
)  # fmt: skip
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
DENSE_TYPES = (nn.Linear, *CONVOLUTIONS)


class Factored(nn.Sequential):
    """The factor layers of one dense layer, and what other code reads from that layer.

    `in_features`, `out_channels`, `stride`, ... are the dense layer's; `weight` is rebuilt from the factors each
    time it is read (so it can be read, not written), and `bias` is the last factor's.
    """

    @classmethod
    def of(cls, dense: Any, *factors: nn.Module) -> "Factored":
        """Chain `factors` in the place of `dense`."""
        new = cls(*factors)
        for name in _LINEAR if isinstance(dense, nn.Linear) else _CONV:
            setattr(new, name, getattr(dense, name))
        return new.train(dense.training)

    @property
    def weight(self) -> Tensor:
        """The dense weight that the factors stand for: `(O, I)`, or `(O, I / groups, *kernel)`."""
        groups = getattr(self, "groups", 1)
        weights: list[Any] = [factor.weight for factor in self]
        return reduce(lambda first, then: _compose(first, then, groups), weights)

    @property
    def bias(self) -> Tensor | None:
        """The bias, which only the last factor has."""
        last: Any = self[-1]
        return last.bias


def factor(like: Any, inputs: int, outputs: int, *, axes: Iterable[int] = (), bias: bool = False) -> nn.Module:
    """A factor layer of `like` from `inputs` to `outputs` channels that spans the given kernel axes.

    Stride, padding and dilation of an axis go with the factor that spans it; a factor that spans none is pointwise.
    Groups are the dense layer's. The dtype is the dense weight's.
    """
    dtype: torch.dtype = like.weight.dtype
    if isinstance(like, nn.Linear):
        return nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
    assert isinstance(like, CONVOLUTIONS)
    spanned = set(axes)

    def along(values: tuple[int, ...], otherwise: int) -> Any:
        return tuple(value if axis in spanned else otherwise for axis, value in enumerate(values))

    return type(like)(
        inputs,
        outputs,
        along(like.kernel_size, 1),
        stride=along(like.stride, 1),
        # "same" and "valid" stay words: an even kernel pads unevenly, and pointwise axes get nothing either way.
        padding=like.padding if spanned and isinstance(like.padding, str) else along(_sides(like), 0),
        dilation=along(like.dilation, 1),
        groups=like.groups,
        bias=bias,
        padding_mode=like.padding_mode if spanned else "zeros",
        dtype=dtype,
    )


def kernel_axes(layer: Any) -> range:
    """The kernel axes of a layer: none for Linear, two for Conv2d."""
    return range(layer.weight.dim() - 2)


def channels(layer: Any) -> tuple[int, int]:
    """Input and output channels (or features) of a layer."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def grouped(layer: Any) -> Tensor:
    """The weight as `(g, O / g, I / g, kernel positions)` in float64, one matrix of kernels a group."""
    weight: Tensor = layer.weight.detach()
    groups: int = getattr(layer, "groups", 1)
    return weight.double().reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def write(parameter: Any, values: Tensor) -> None:
    """Copy `values`, in any matching shape, into a factor's parameter."""
    with torch.no_grad():
        parameter.copy_(values.reshape(parameter.shape))


def write_bias(dense: Any, factored: Any) -> None:
    """The dense bias goes on the last factor: on an earlier one, zero padding would spoil it at the border."""
    if dense.bias is not None:
        write(factored.bias, dense.bias.detach())


def _sides(conv: Any) -> tuple[int, ...]:
    return (0,) * len(kernel_axes(conv)) if isinstance(conv.padding, str) else conv.padding


def _compose(first: Tensor, then: Tensor, groups: int) -> Tensor:
    # Kernels multiply position by position, because each axis is spanned by one factor and is 1 in the others.
    first_gci = first.reshape(groups, first.shape[0] // groups, *first.shape[1:])
    then_goc = then.reshape(groups, then.shape[0] // groups, *then.shape[1:])
    return torch.einsum("goc...,gci...->goi...", then_goc, first_gci).flatten(0, 1)
