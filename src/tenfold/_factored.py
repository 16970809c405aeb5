"""What stands where a layer stood: its factor layers in order, looking from outside like the layer itself."""

# O outputs, I inputs, C channels between two factors, g groups, ... kernel axes

from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from tenfold._errors import TenfoldError
from tenfold._layers import groups, kernels, to_stored
from tenfold._rebuilt import Rebuilt
from tenfold._run import without_values


class Factored(nn.Sequential):
    """The factor layers of one dense layer, and what other code reads from that layer.

    `in_features`, `out_channels`, `stride`, ..., and what other code has set are the dense layer's; `weight` is rebuilt
    from the factors each time something computes with it (so it can be read, not written), and `bias` is the last
    factor's.
    """

    __jit_unused_properties__ = ("weight", "bias")  # what torch.jit.script leaves out

    def __init__(self, *factors: Any) -> None:
        super().__init__(*factors)
        self.replaces: type[nn.Module] = nn.Module
        self.weight_shape = torch.Size()

    @classmethod
    def of(cls, dense: Any, *factors: nn.Module) -> "Factored":
        """Chain `factors` in the place of `dense`."""
        new = cls(*factors)
        new.replaces, new.weight_shape = type(dense), dense.weight.shape
        for name, value in vars(dense).items():
            if name not in vars(new):
                setattr(new, name, value)
        return new.train(dense.training)

    @property
    def weight(self) -> Tensor:
        """The dense weight that the factors stand for; its shape, data type and device cost nothing to read."""
        like = next(self.parameters(), None)  # replicas of DataParallel hold none
        # Compilers leave out what is not used, and follow no tensors of other kinds.
        if like is None or torch.compiler.is_compiling():
            return self.rebuilt()
        return Rebuilt(self.rebuilt, self.weight_shape, like)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refused for the weight and the bias.

        Raises:
            TenfoldError: if something, such as another library's fusion of batch norms, would assign to them.
        """
        if name in ("weight", "bias"):
            raise TenfoldError(
                f"the {name} of a compressed layer is that of its factors, so it cannot be assigned; change the "
                "factors, the modules inside the layer, or do with the dense network whatever assigns it (fusing batch "
                "norms, say) before that is compressed."
            )
        super().__setattr__(name, value)

    def rebuilt(self) -> Tensor:
        """The dense weight that the factors stand for, in the shape in which the dense layer stores it."""
        return to_stored(self.replaces, _chained(self, groups(self)))

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
        return float(reduce(torch.mul, squares).sum() / self.rebuilt().detach().double().square().sum())


class Sum(nn.Module):
    """Two chains of factor layers whose outputs add."""

    __jit_unused_properties__ = ("bias",)

    def __init__(self, first: nn.Sequential, second: nn.Sequential) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both."""
        return self.first(x) + self.second(x)

    def kernels(self) -> Tensor:
        """The kernels that both stand for, `(1, o, i, ...)`."""
        return _chained(self.first, 1) + _chained(self.second, 1)

    @property
    def bias(self) -> Tensor | None:
        """The bias, which only the last layer of the second chain has."""
        last: Any = self.second[-1]
        return getattr(last, "bias", None)


def materialise(model: nn.Module, device: torch.device) -> None:
    """Give a model on the meta device memory on another. What layers share stays shared (not so by `to_empty`)."""
    new: dict[int, Any] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = new.setdefault(id(tensor), without_values(tensor, device))


def _chained(factors: nn.Sequential, groups: int) -> Tensor:
    return reduce(_compose, [_grouped(kernels(factor), groups) for factor in factors])


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
