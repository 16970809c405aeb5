"""What stands where a layer stood: its factor layers in order, looking from outside like the layer itself."""

# O outputs, I inputs, C channels between two factors, g groups, ... kernel axes

from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from tenfold._layers import groups, kernels, to_stored

_READ_BY_OTHERS = (
    "in_features", "out_features", "nx", "nf", "num_embeddings", "embedding_dim", "padding_idx",
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode",
    "transposed", "output_padding",
)  # fmt: skip


class Factored(nn.Sequential):
    """The factor layers of one dense layer, and what other code reads from that layer.

    `in_features`, `out_channels`, `stride`, ... are the dense layer's; `weight` is rebuilt from the factors each
    time it is read (so it can be read, not written), and `bias` is the last factor's.
    """

    replaces: type[nn.Module]

    @classmethod
    def of(cls, dense: Any, *factors: nn.Module) -> "Factored":
        """Chain `factors` in the place of `dense`."""
        new = cls(*factors)
        new.replaces = type(dense)
        for name in _READ_BY_OTHERS:
            if hasattr(dense, name):
                setattr(new, name, getattr(dense, name))
        return new.train(dense.training)

    @property
    def weight(self) -> Tensor:
        """The dense weight that the factors stand for, in the shape in which the dense layer stores it."""
        parts = [_grouped(kernels(factor), groups(self)) for factor in self]
        return to_stored(self.replaces, reduce(_compose, parts))

    @property
    def bias(self) -> Tensor | None:
        """The bias, which only the last factor has."""
        last: Any = self[-1]
        return getattr(last, "bias", None)

    def run_in(self, form: str) -> None:
        """Choose how the factors run, where they can run in more than one way."""
        for part in self:
            if hasattr(part, "form"):
                part.form = form  # type: ignore[assignment]

    def cancellation(self) -> float | None:
        """How much the rank-one terms of a CP chain cancel: the sum of their squared norms over that of the weight.

        1 is the health of orthogonal terms; large values mean terms that nearly cancel, which training blows up
        (Phan et al. 2020). None for chains that are not sums of rank-one terms.
        """
        parts = [_grouped(kernels(factor).detach().double(), groups(self)) for factor in self]
        first, middle, last = parts[0], parts[1:-1], parts[-1]
        if not middle or any(part.shape[1:3] != (first.shape[1], 1) for part in middle):
            return None
        squares = [_squares(first, 1), *(_squares(part, 1) for part in middle), _squares(last, 2)]
        return float(reduce(torch.mul, squares).sum() / self.weight.detach().double().square().sum())


def _squares(part: Tensor, kept: int) -> Tensor:
    """Squared norms along one axis of a factor `(g, o, i, *kernel)`, and for each group."""
    return part.square().sum([axis for axis in range(1, part.dim()) if axis != kept])


def _grouped(part_goi: Tensor, groups: int) -> Tensor:
    # A depthwise factor has more groups than the layer: its channels become rows of one input.
    own = part_goi.shape[0]
    return part_goi if own == groups else part_goi.reshape(groups, own // groups, *part_goi.shape[2:])


def _compose(first_gci: Tensor, then_goc: Tensor) -> Tensor:
    # Kernels multiply position by position, because each axis is spanned by one factor and is 1 in the others.
    axes = max(first_gci.dim(), then_goc.dim()) - 3
    first, then = (part.reshape(*part.shape, *[1] * (axes + 3 - part.dim())) for part in (first_gci, then_goc))
    if then.shape[2] == 1 and first.shape[1] != 1:  # depthwise: each channel by itself
        return first * then
    return torch.einsum("goc...,gci...->goi...", then, first)
