"""Canonical polyadic decomposition: a sum of rank-one kernels, run as depthwise convolutions."""

# O outputs, I inputs, H x W kernel, K = HW, R rank (a group), g groups

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import prod
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tenfold._cp import alternating, cancellation, corrected, rebuilt, sliced, sliced_errors, split, squared_error
from tenfold._errors import TenfoldError
from tenfold._factored import Factored
from tenfold._layers import LAYERS, channels, factor, groups, has_bias, kernel_size, kernels, write, write_bias
from tenfold._method import Curve, Method, Site, curve_at_every_rank
from tenfold._metric import Metric
from tenfold._plan import Rank

# Alternating sweeps, and the multiply-adds that they may take, so that large layers get fewer: for a rank of the curve,
# for the weights, and before descent in the metric of the data.
_CURVE, _FILL, _SHORT = (30, 1e9), (100, 2e11), (10, 1e9)
_TRIED = 12  # ranks of the curve
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

    Raises:
        TenfoldError: for another number of factors.
    """

    name: ClassVar[str] = "cp"
    mixes_channels: ClassVar[bool] = True
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
        # them to the next, the closed form goes on with the residual, if that is better, as `fill` does.
        for low, high in pairwise([*_tried(weight), len(errors) + 1]):
            rest = weight - rebuilt(alternating(weight, sliced(weight, low), _sweeps(weight, low, *_CURVE)))
            further = sliced_errors(rest).sum(0)[: high - low].cpu().numpy()
            errors[low - 1 : high - 1] = np.minimum(errors[low - 1 : high - 1], further)
        # Alternating steps at a higher rank may get stuck above those at a lower one.
        errors = _SLACK * np.maximum.accumulate(errors[::-1])[::-1]
        return curve_at_every_rank(errors)

    def outline(self, site: Site) -> Curve:
        errors = sliced_errors(self._weight(site)).sum(0)[1:].cpu().numpy()
        return curve_at_every_rank(errors)

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
        self._write(site, new[0], alternating(weight, _start(weight, rank[0]), _sweeps(weight, rank[0], *_FILL)))

    def _write(self, site: Site, factored: Factored, terms: list[Tensor]) -> None:
        weight = self._weight(site)
        if cancellation(terms) > _HEALTHY * float(weight.square().sum()):
            terms = corrected(weight, terms, _SLACK)
        for module, values in zip(factored, split(terms), strict=True):
            write(module, values if module is factored[-1] else values.mT)
        write_bias(site.modules[0], factored)

    def _weight(self, site: Site) -> Tensor:
        """`(g, I, *kernel modes, O)` in float64."""
        weight = kernels(site.modules[0]).detach().double().movedim(1, -1)
        return weight.flatten(2, -2) if self.factors == 3 and weight.dim() > 3 else weight


def _start(weight: Tensor, rank: int) -> list[Tensor]:
    """The best that the curve knows of: the closed form, or that of what the fit of the tried rank below leaves."""
    start = sliced(weight, rank)
    low = max((tried for tried in _tried(weight) if tried <= rank), default=0)
    if not low:
        return start
    terms = alternating(weight, sliced(weight, low), _sweeps(weight, low, *_CURVE))
    if rank > low:
        further = sliced(weight - rebuilt(terms), rank - low)
        terms = [torch.cat(pair, -1) for pair in zip(terms, further, strict=True)]
    return min(start, terms, key=partial(squared_error, weight))


def _tried(weight: Tensor) -> list[int]:
    """Ranks of a fortieth of the weight's size to all of it, as far as sweeps there are worth their work."""
    most = weight[0].numel() / sum(weight.shape[1:])
    ranks = np.unique(np.geomspace(max(most / 40, 1), max(most, 1), _TRIED).astype(np.int64)).tolist()
    return [rank for rank in ranks if _sweeps(weight, rank, *_CURVE)]


def _sweeps(weight: Tensor, rank: int, most: int, work: float) -> int:
    """How many sweeps are worth their work; fewer than three are not."""
    count = min(most, int(work / (4 * weight.numel() * rank)))
    return count if count >= 3 else 0
