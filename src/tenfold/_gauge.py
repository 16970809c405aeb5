"""The row gauge of a pair of factors: some outputs are what the first factor gives, the others combinations of them."""

# g groups, o outputs a group, r rank a group, i inputs a group, p pivots, q the other outputs

from typing import Any

import torch
from torch import Tensor, nn

from tenfold._errors import TenfoldError
from tenfold._factored import Factored
from tenfold._layers import channels, factor, groups, kernel_size, kernels, write

_LARGE = 1.5  # a coefficient above it makes its output a pivot


class Gauged(nn.Module):
    """The last factor of a pair: its inputs and what `rest` makes of them, put in order, and the bias."""

    order: Tensor

    def __init__(self, last: Any) -> None:
        super().__init__()
        width, outputs = channels(last)
        self.groups, self.axis = groups(last), -1 - len(kernel_size(last))
        self.rest = factor(last, width, outputs - width).to(last.weight.device)
        self.register_buffer("order", torch.empty(outputs, dtype=torch.int64, device=last.weight.device))
        self.bias, self.bias_shape = last.bias, [-1] + [1] * len(kernel_size(last))

    def forward(self, x: Tensor) -> Tensor:
        """All outputs."""
        y = torch.cat([x, self.rest(x)], self.axis).index_select(self.axis, self.order)
        return y if self.bias is None else y + self.bias.reshape(self.bias_shape)

    def kernels(self) -> Tensor:
        """The kernels of the factor that it stands for, `(g, o, r, ...)`."""
        rest = kernels(self.rest)
        width, axes = rest.shape[2], [1] * (rest.dim() - 3)
        own = torch.eye(width, dtype=rest.dtype, device=rest.device).repeat(self.groups, 1)
        rows = torch.cat([own.reshape(-1, width, *axes), rest.flatten(0, 1)])
        return rows[self.order].unflatten(0, (self.groups, -1))


def in_form(factored: Factored, form: str) -> Factored:
    """The factors such that they run in a form: in "gauge", another chain; else itself."""
    if form == "gauge":
        return _gauged(factored)
    factored.run_in(form)
    return factored


def _gauged(factored: Factored) -> Factored:
    """A pair `W = B A`, the last pointwise, as `[I; C] (B_p A)`, in the order of its outputs, with C = B_q B_p^-1.

    B_p are r independent rows of B such that no entry of C is above 1.5 in size, so nothing is lost; there are r^2
    parameters, and multiply-adds a position, less a group. On the meta device, the same shapes without values.
    Maximal volume: Goreinov et al. 2010, How to find a good submatrix.
    """
    first, last = (*factored,)
    width, outputs = channels(last)
    if width >= outputs:
        raise TenfoldError(f'the form "gauge" needs a rank below the number of outputs, not {width} of {outputs}.')
    factored[1] = Gauged(last)
    if not last.weight.is_meta:
        _fill(first, last, factored[1])
    return factored


@torch.no_grad()
def _fill(first: Any, last: Any, pair: Any) -> None:
    b_gor = kernels(last).double().flatten(2)
    picked = torch.stack([pivots(b_or) for b_or in b_gor])
    others = torch.ones(b_gor.shape[:2], dtype=torch.bool, device=b_gor.device).scatter(1, picked, False)
    c_gor = torch.stack([combined(*pair) for pair in zip(b_gor, picked, strict=True)])
    write(first, torch.einsum("gpr,gr...->gp...", b_gor.take_along_dim(picked[..., None], 1), kernels(first).double()))
    write(pair.rest, c_gor[others])
    starts = torch.arange(len(b_gor), device=b_gor.device)[:, None] * b_gor.shape[1]
    pair.order.copy_(torch.cat([(starts + picked).flatten(), others.flatten().nonzero()[:, 0]]).argsort())


def pivots(b_or: Tensor) -> Tensor:
    """Rows of nearly the largest volume: all others are combinations of them with small coefficients."""
    chosen = torch.linalg.lu(b_or)[0].argmax(0)[: b_or.shape[1]]  # as partial pivoting takes them
    for _ in range(4 * len(chosen)):
        coefficients = combined(b_or, chosen)
        row, column = divmod(int(coefficients.abs().argmax()), len(chosen))
        if float(coefficients[row, column].abs()) <= _LARGE:
            break
        chosen[column] = row
    return chosen


def combined(b_or: Tensor, chosen: Tensor) -> Tensor:
    """The coefficients by which the chosen rows make all."""
    return b_or @ torch.linalg.pinv(b_or[chosen])
