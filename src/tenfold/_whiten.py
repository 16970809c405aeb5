"""Coordinates of a layer's weight in which descent is quick: singular values of about 1, channels that vary alike."""

# g groups, O outputs, I inputs of a group, k kernel positions, K = I k, B blocks of b inputs

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tenfold._factored import Factored, Sum
from tenfold._layers import kernels, to_stored, write
from tenfold._method import Site
from tenfold._metric import Metric, times_blocks

_EVEN = 1e-3  # of the mean variance, added to all: the coordinates need not be exact


@dataclass(frozen=True, eq=False)
class Whitened:
    """A site with its weights and metrics in other coordinates of the channels, and the way back.

    With S summed over kernel positions as `L L^T` and C as `M M^T`, but for a scale, a weight W becomes `M^T W L / s`,
    along its channels. Errors count there what they did before, with `L^-1 S L^-T` for S and `s^2 M^-1 C M^-T` for C.
    Now the best fit of the weights is near the best fit in the metric, and descent needs few steps. The scale s makes
    the mean square of singular values 1: how far descent gets must not depend on that of the weights. Layers that share
    factors have L, M and s in common, those of their mean; where their channels differ, these stay as they are. So they
    do where S is known in blocks that cut through channels.
    """

    site: Site
    metrics: tuple[Metric, ...]
    inputs_back: Tensor | None  # L^-1, (g, B, b, b)
    outputs_back: Tensor | None  # M^-1, (g, O, O)
    scale: float  # s

    @classmethod
    def of(cls, site: Site, metrics: Sequence[Metric]) -> "Whitened":
        """A site in the coordinates of its metrics."""
        left = _root([metric.outputs for metric in metrics])
        right = _root([_of_channels(dense, metric) for dense, metric in zip(site.modules, metrics, strict=True)])
        return cls._by(site, metrics, left, right)

    @classmethod
    def plain(cls, site: Site, metrics: Sequence[Metric]) -> "Whitened":
        """A site in its own coordinates, but for the scale."""
        return cls._by(site, metrics, None, None)

    @classmethod
    def _by(cls, site: Site, metrics: Sequence[Metric], left: Tensor | None, right: Tensor | None) -> "Whitened":
        weights = [_in_coordinates(dense, left, right) for dense in site.modules]
        scale = _scale(weights)
        modules = tuple(
            _with_weight(dense, weight / scale) for dense, weight in zip(site.modules, weights, strict=True)
        )
        left_back, right_back = _inverse(left), _inverse(right)
        moved = tuple(
            Metric(
                _congruent(metric.inputs, right_back),
                None if metric.outputs is None else _congruent(metric.outputs, left_back),
                None,
            ).over(scale**-2)
            for metric in metrics
        )
        return cls(Site(site.layers, modules), moved, right_back, left_back, scale)

    def bring_back(self, new: Sequence[Factored]) -> None:
        """Change factors of this site to the coordinates of the layers, in place."""
        chains = [chain for factored in new for chain in _chains(factored)]
        if self.inputs_back is not None:
            for first in _once(chain[0] for chain in chains):
                write(first, _along_inputs(kernels(first), self.inputs_back))
        if self.outputs_back is not None:
            for last in _once(chain[-1] for chain in chains):
                write(last, _along_outputs(kernels(last), self.outputs_back))
        with torch.no_grad():
            for weight in {id(weight): weight for weight in map(_last_weight, chains)}.values():
                weight *= self.scale


def _chains(factored: Factored) -> list[Any]:
    return list(factored[0].children()) if isinstance(factored[0], Sum) else [factored]


def _last_weight(chain: Sequence[nn.Module]) -> Tensor:
    """The last weight of a chain, in which what it stands for is linear: of a train, its last core."""
    return [weight for name, weight in chain[-1].named_parameters() if "bias" not in name][-1]


def _once(factors: Iterable[Any]) -> list[Any]:
    """Factors without those whose weight another one shares."""
    return list({id(factor.weight): factor for factor in factors}.values())


def _root(symmetric: Sequence[Tensor | None]) -> Tensor | None:
    """The Cholesky factor of the mean; None where one is not known, or they are of different shapes."""
    known = [matrix for matrix in symmetric if matrix is not None]
    if len(known) < len(symmetric) or len({matrix.shape for matrix in known}) > 1:
        return None
    mean = torch.stack(known).mean(0)
    even = torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
    level = mean.diagonal(dim1=-2, dim2=-1).mean().clamp_min(1e-300)  # coordinates do not scale: inputs may all be 0
    return torch.linalg.cholesky(mean / level + _EVEN * even)


def _inverse(lower: Tensor | None) -> Tensor | None:
    if lower is None:
        return None
    one = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
    return torch.linalg.solve_triangular(lower, one, upper=False)


def _of_channels(dense: Any, metric: Metric) -> Tensor | None:
    """S summed over kernel positions, `(g, B, b, b)`."""
    positions = kernels(dense)[0, 0, 0].numel()
    if positions == 1:
        return metric.inputs
    if metric.inputs.shape[1] > 1:
        return None
    parted = metric.inputs[:, 0].unflatten(2, (-1, positions)).unflatten(1, (-1, positions))
    return parted.diagonal(dim1=2, dim2=4).sum(-1)[:, None]


def _in_coordinates(dense: Any, left: Tensor | None, right: Tensor | None) -> Tensor:
    weight = kernels(dense).detach().double()
    if left is not None:
        weight = _along_outputs(weight, left)
    return weight if right is None else _along_inputs(weight, right)


def _scale(weights_goi: Sequence[Tensor]) -> float:
    """The root mean square of singular values; 1 where all of them are 0."""
    energy = sum(float(weight.square().sum()) for weight in weights_goi)
    count = sum(weight.shape[0] * min(weight[0].flatten(1).shape) for weight in weights_goi)
    return (energy / count) ** 0.5 or 1.0


def _with_weight(dense: Any, weight: Tensor) -> Any:
    stored = nn.Parameter(to_stored(type(dense), weight).contiguous())
    return copy.deepcopy(dense, {id(dense.weight): stored}).double()


def _along_inputs(kernels_goi: Tensor, blocks: Tensor) -> Tensor:
    """Multiply `(g, o, i, *kernel)` by diagonal blocks along the inputs."""
    last = kernels_goi.detach().double().movedim(2, -1)
    return times_blocks(last.flatten(1, -2), blocks).reshape(last.shape).movedim(-1, 2)


def _along_outputs(kernels_goi: Tensor, matrix_gop: Tensor) -> Tensor:
    """Multiply `(g, o, i, *kernel)` by the transposed matrix along the outputs."""
    return torch.einsum("gop,go...->gp...", matrix_gop, kernels_goi.detach().double())


def _congruent(matrix: Tensor, by: Tensor | None) -> Tensor:
    """`A X A^T`, A acting on channels, where X may have several positions a channel."""
    if by is None:
        return matrix
    half = _rows_times(by, matrix)
    return _rows_times(by, half.mT)


def _rows_times(by: Tensor, matrix: Tensor) -> Tensor:
    channels = by.shape[-1]
    return (by @ matrix.unflatten(-2, (channels, -1)).flatten(-2)).reshape(matrix.shape)
