"""A pull towards few singular values that needs no singular value decomposition."""

# m rows, n columns

from typing import Any

import torch
from torch import Tensor, nn

from tenfold._errors import TenfoldError
from tenfold._layers import CONVOLUTIONS, groups, kernels
from tenfold.train._hooks import Hooks

_STEPS_WIDE, _STEPS_SQUARE = 15, 20  # the nearer to square, the smaller the least singular values


class HoyerPull(Hooks):
    """Adds `strength sum (|s|_1 / |s|_2)^2` of the singular values s of every layer's matrix, outputs by the rest.

    With the polar factor P of W, `|s|_1 = <W, P>` and the gradient is `2 (|s|_1 / f) (P / f - |s|_1 W / f^3)`, f being
    the Frobenius norm. P comes from Newton-Schulz steps `X <- (3 X - X X^T X) / 2`, products only. Linear layers and
    convolutions without groups take part.

    Raises:
        TenfoldError: if the strength is not above 0.
    """

    def __init__(self, strength: float) -> None:
        super().__init__()
        if not strength > 0:
            raise TenfoldError(f"HoyerPull(strength={strength!r}): it is above 0.")
        self.strength = strength

    def penalty(self, model: nn.Module) -> Tensor:
        layers = [m for m in model.modules() if type(m) in (nn.Linear, *CONVOLUTIONS) and groups(m) == 1]
        total = torch.zeros(())
        for layer in layers:
            total = total + hoyer_square(kernels(layer)[0].flatten(1))
        return self.strength * total


def hoyer_square(matrix_mn: Tensor) -> Tensor:
    """`(|s|_1 / |s|_2)^2` of the singular values: 1 at rank one, the rank where all are equal."""
    return _HoyerSquare.apply(matrix_mn)  # type: ignore[no-untyped-call]


class _HoyerSquare(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, matrix: Tensor) -> Tensor:
        polar, norm = _polar(matrix), matrix.norm().clamp_min(1e-12)
        nuclear = (matrix * polar).sum()
        context.save_for_backward(2 * nuclear / norm * (polar / norm - nuclear * matrix / norm**3))
        return (nuclear / norm) ** 2

    @staticmethod
    def backward(context: Any, *upstream: Any) -> Tensor:
        (gradient,) = context.saved_tensors
        product: Tensor = upstream[0] * gradient
        return product


def _polar(matrix: Tensor) -> Tensor:
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / wide.norm().clamp_min(1e-12)
    for _ in range(_STEPS_WIDE if wide.shape[1] >= 2 * wide.shape[0] else _STEPS_SQUARE):
        x = (3 * x - (x @ x.T) @ x) / 2
    return x if matrix.shape[0] <= matrix.shape[1] else x.T
