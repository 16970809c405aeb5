"""Canonical polyadic decomposition: a sum of rank-one kernels, run as depthwise convolutions."""

# O outputs, I inputs, H x W kernel, K = HW, R rank (a group), g groups

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tenfold._cp import alternating, cancellation, corrected, rebuilt, sliced, sliced_errors, split
from tenfold._errors import TenfoldError
from tenfold._factored import Factored
from tenfold._layers import LAYERS, channels, factor, groups, has_bias, kernel_size, kernels, write, write_bias
from tenfold._method import Curve, Method, Site, levels
from tenfold._metric import Metric
from tenfold._plan import Rank

# Multiply-adds that alternating sweeps may take, for a rank of the curve and for the weights: large layers get fewer.
_CURVE_WORK, _FILL_WORK = 1e9, 2e11
_CURVE_SWEEPS, _FILL_SWEEPS = 30, 100
_SHORT = 10, 1e9  # sweeps and work before descent in the metric of the data
_SLACK = 1.01  # by how much the correction of cancelling terms may raise the error
_HEALTHY = 2.0  # summed squared norms of the terms over that of the weight, above which terms are corrected


@dataclass(frozen=True)
class CP(Method):
    """`W_oihw ~ sum_r A_ir B_hr C_wr D_or`: `1x1` to R channels, depthwise, `1x1` to O (Lebedev et al. 2015).

    - `factors=3`: the kernel kept whole, one depthwise `H x W`: R(I + HW + O) parameters (Denton et al. 2014).
    - `factors=4`: depthwise `H x 1`, then `1 x W`: R(I + H + W + O) parameters (arXiv 1412.6553).

    Starts from orthogonal terms in closed form, improves by alternating least squares, and where terms come to
    cancel, corrects them at the same error (Phan et al. 2020, arXiv 2008.05441). Serves Conv and ConvTranspose 1d,
    2d, 3d; the rank is one number, a group. Exact at full rank, K min(I, O) of one group. For Linear, Embedding and
    pointwise layers, it is the plain SVD.
    """

    name: ClassVar[str] = "cp"
    twin_of_svd: ClassVar[bool] = True
    serves: ClassVar[tuple[type[nn.Module], ...]] = LAYERS
    factors: Literal[3, 4] = 3

    def __post_init__(self) -> None:
        if self.factors not in (3, 4):
            raise TenfoldError(f"CP has no form with {self.factors!r} factors; use 3 or 4.")

    def unfoldings(self, site: Site) -> tuple[Tensor, ...]:  # noqa: ARG002  a rank-one term truncates no one matrix
        return ()

    def full_rank(self, site: Site) -> Rank:
        shape = self._weight(site).shape[1:]
        slices = prod(min(size, prod(shape) // size) for size in shape[1:-1])
        return (min(shape[0], shape[-1]) * slices,)

    def curve(self, site: Site) -> Curve:
        weight = self._weight(site)
        errors = sliced_errors(weight).sum(0)[1:].cpu().numpy()
        # The closed form is known at every rank. What alternating sweeps gain is found at some ranks; from each of
        # them to the next, the closed form goes on with the residual, as `fill` does.
        tried = _tried(len(errors))
        for low, high in pairwise([*tried, len(errors) + 1]):
            if sweeps := _sweeps(weight, low, _CURVE_SWEEPS, _CURVE_WORK):
                rest = weight - rebuilt(alternating(weight, sliced(weight, low), sweeps))
                errors[low - 1 : high - 1] = sliced_errors(rest).sum(0)[: high - low].cpu().numpy()
        # Alternating steps at a higher rank may get stuck above those at a lower one.
        errors = _SLACK * np.maximum.accumulate(errors[::-1])[::-1]
        return Curve(np.arange(1, len(errors) + 1)[:, None], errors[:, None])

    def outline(self, site: Site) -> Curve:
        errors = sliced_errors(self._weight(site)).sum(0)[1:].cpu().numpy()
        return Curve(np.arange(1, len(errors) + 1)[:, None], errors[:, None])

    def draft(self, site: Site, rank: Rank, new: tuple[Factored, ...], metrics: Sequence[Metric]) -> None:  # noqa: ARG002
        weight = self._weight(site)
        self._write(site, new[0], alternating(weight, sliced(weight, rank[0]), _sweeps(weight, rank[0], *_SHORT)))

    def skeleton(self, site: Site, rank: Rank) -> tuple[Factored, ...]:
        (dense,) = site.modules
        (inputs, outputs), axes = channels(dense), range(len(kernel_size(dense)))
        middle = rank[0] * groups(dense)
        spans = [(axis,) for axis in axes] if self.factors == 4 else [axes] * bool(axes)
        depthwise = [factor(dense, middle, middle, axes=span, depthwise=True) for span in spans]
        first, last = factor(dense, inputs, middle, entry=True), factor(dense, middle, outputs, bias=has_bias(dense))
        return (Factored.of(dense, first, *depthwise, last),)

    def fill(self, site: Site, rank: Rank, new: tuple[Factored, ...]) -> None:
        weight = self._weight(site)
        sweeps = _sweeps(weight, rank[0], _FILL_SWEEPS, _FILL_WORK)
        self._write(site, new[0], alternating(weight, self._start(weight, rank[0], self.full_rank(site)[0]), sweeps))

    def _write(self, site: Site, factored: Factored, terms: list[Tensor]) -> None:
        weight = self._weight(site)
        if cancellation(terms) > _HEALTHY * float(weight.square().sum()):
            terms = corrected(weight, terms, _SLACK)
        for module, values in zip(factored, split(terms), strict=True):
            write(module, values if module is factored[-1] else values.mT)
        write_bias(site.modules[0], factored)

    def _start(self, weight: Tensor, rank: int, full: int) -> list[Tensor]:
        """The best that the curve knows of: the fit of the tried rank below, and the closed form of what it leaves."""
        low = max(tried for tried in _tried(full) if tried <= rank)
        sweeps = _sweeps(weight, low, _CURVE_SWEEPS, _CURVE_WORK)
        if not sweeps:
            return sliced(weight, rank)
        terms = alternating(weight, sliced(weight, low), sweeps)
        if rank == low:
            return terms
        further = sliced(weight - rebuilt(terms), rank - low)
        return [torch.cat(pair, -1) for pair in zip(terms, further, strict=True)]

    def _weight(self, site: Site) -> Tensor:
        """`(g, I, *kernel modes, O)` in float64."""
        weight = kernels(site.modules[0]).detach().double().movedim(1, -1)
        return weight.flatten(2, -2) if self.factors == 3 and weight.dim() > 3 else weight


def _tried(full: int) -> list[int]:
    return levels(full, 20).tolist()


def _sweeps(weight: Tensor, rank: int, most: int, work: float) -> int:
    """How many sweeps are worth their work; fewer than three are not."""
    count = min(most, int(work / (4 * weight.numel() * rank)))
    return count if count >= 3 else 0
