"""How much an error in a layer's weight matters, by what calibration told."""

# g groups, O outputs and K inputs (times kernel positions) of a group, B blocks of b inputs

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from tenfold._statistics import LayerStatistics

_ROUNDING = 1e-12  # of the mean square, which is all that S holds of inputs that do not vary
_FLOOR = 1e-6  # of the mean variance: directions that calibration never saw count by this much
_RESPONSE_FLOOR = 1e-3
_MANY = 10  # patches for each input, and S is taken as it is


@dataclass(frozen=True, eq=False)
class Metric:
    """`|D|^2 = tr(C D S D^T)` for an error D of the weight.

    S is the covariance of the layer's patches where the mean of what D changes goes into a bias or into the batch
    norm behind, and their second moment otherwise; C is the second moment of the gradient at its outputs. With the
    gradients of `calibrate`, |D|^2 is to first order how much of the outputs' variance the error moves, if errors at
    different positions are independent (the Kronecker factors of Martens & Grosse 2015, arXiv 1503.05671).
    """

    inputs: Tensor  # (g, B, b, b), S: one block, or diagonal blocks
    outputs: Tensor | None  # (g, O, O), C; None: the outputs count alike
    mean: Tensor | None  # (g, K), of the patches; None where nothing takes up what it changes

    @classmethod
    def of(cls, told: LayerStatistics, *, has_bias: bool) -> "Metric":
        """The metric of a layer. Where patches are few, S is evened out by the shrinkage of Ledoit & Wolf (2004)."""
        count, blocks, size = told.count, told.gram.shape[1], told.gram.shape[2]
        mean = told.total / count if has_bias or told.norm is not None else None
        moment, inputs, quartic = told.gram / count, told.total.shape[1], told.quartic / count
        square = moment.diagonal(dim1=-2, dim2=-1).sum((1, 2)) / inputs
        parts = told.total.new_zeros(len(told.total), blocks * size)
        if mean is not None and size > 1:  # centred, the counts of an embedding would not be diagonal
            parts[:, : mean.shape[1]] = mean
            quartic = _centred(told, moment, mean)
            split = parts.unflatten(1, (blocks, size))
            moment = moment - split[..., :, None] * split[..., None, :]
        level = (moment.diagonal(dim1=-2, dim2=-1).sum((1, 2)) / inputs).clamp_min(1e-30)  # inputs may all be zero
        real = torch.arange(blocks * size, device=level.device) < inputs
        one = torch.diag_embed(real.double().unflatten(0, (blocks, size)))
        even = level[:, None, None, None] * one
        floor = (_FLOOR * level).maximum(_ROUNDING * square)
        chance = (quartic - moment.square().sum((1, 2, 3))).clamp_min(0) / count
        share = (chance / (moment - even).square().sum((1, 2, 3)).clamp_min(1e-300)).clamp(max=1)
        if count > _MANY * size:
            share = torch.zeros_like(share)
        shrunk = moment + share[:, None, None, None] * (even - moment) + floor[:, None, None, None] * one
        return cls(shrunk, _response(told), mean)

    def to(self, dtype: torch.dtype) -> "Metric":
        """The same metric in numbers of another precision."""
        outputs, mean = (None if part is None else part.to(dtype) for part in (self.outputs, self.mean))
        return Metric(self.inputs.to(dtype), outputs, mean)

    def over(self, unit: float) -> "Metric":
        """The metric in which |D|^2 is `unit` times less, with S of about 1."""
        level = unit if self.outputs is None else float(self.inputs.diagonal(dim1=-2, dim2=-1).mean())
        outputs = None if self.outputs is None else self.outputs * (level / unit)
        return Metric(self.inputs / level, outputs, self.mean)

    def times_inputs(self, matrix_gok: Tensor) -> Tensor:
        """M S."""
        return times_blocks(matrix_gok, self.inputs)

    def times(self, error_gok: Tensor) -> Tensor:
        """C D S: half of the gradient of |D|^2."""
        moved = self.times_inputs(error_gok)
        return moved if self.outputs is None else self.outputs @ moved

    def square(self, error_gok: Tensor) -> Tensor:
        """|D|^2, summed over groups."""
        return (self.times(error_gok) * error_gok).sum()


def times_blocks(matrix_gok: Tensor, blocks_gbii: Tensor) -> Tensor:
    """Matrices times diagonal blocks, which may reach beyond the last column."""
    inputs, (blocks, size) = matrix_gok.shape[2], blocks_gbii.shape[1:3]
    parts = F.pad(matrix_gok, (0, blocks * size - inputs)).unflatten(2, (blocks, size)).transpose(1, 2)
    return (parts @ blocks_gbii).transpose(1, 2).flatten(2)[..., :inputs]


def _centred(told: LayerStatistics, moment_gbii: Tensor, mean_gk: Tensor) -> Tensor:
    """E|x - mu|^4 = E|x|^4 - 4 mu.E[|x|^2 x] + 4 mu.M mu + 2 |mu|^2 tr M - 3 |mu|^4, by group."""
    along = (times_blocks(mean_gk[:, None], moment_gbii)[:, 0] * mean_gk).sum(1)
    square, trace = mean_gk.square().sum(1), moment_gbii.diagonal(dim1=-2, dim2=-1).sum((1, 2))
    skew = (told.cubic * mean_gk).sum(1) / told.count
    return told.quartic / told.count - 4 * skew + 4 * along + 2 * square * trace - 3 * square.square()


def _response(told: LayerStatistics) -> Tensor | None:
    level = told.response.diagonal(dim1=-2, dim2=-1).mean() / told.count
    if not (level > 0 and told.response.isfinite().all()):
        return None
    even = torch.eye(told.response.shape[-1], dtype=level.dtype, device=level.device)
    return told.response / told.count + _RESPONSE_FLOOR * level * even
