"""Singular value decomposition of a layer's matrix: two layers."""

# O outputs, I inputs, K = kernel positions, R rank a group, g groups

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from tenfold._errors import TenfoldError
from tenfold._factored import Factored
from tenfold._layers import (
    LAYERS,
    channels,
    factor,
    groups,
    has_bias,
    is_pointwise,
    kernel_size,
    matrices,
    write,
    write_bias,
)
from tenfold._linalg import discarded, truncated
from tenfold._method import Curve, Method, Site, curve_at_every_rank, matrix_curve
from tenfold._metric import Metric
from tenfold._plan import Rank


@dataclass(frozen=True)
class SVD(Method):
    """`W ~ B A`, the best rank-R fit in Frobenius norm (Eckart & Young 1936), group by group.

    - `side="output"`: W as `O x IK`. The kernel goes to R channels, then `1x1` to O (Denton et al. 2014; Zhang
      et al. 2015, arXiv 1505.06798). R(IK + O) parameters: pays when R < O IK / (O + IK).
    - `side="input"`: W as `I x OK`. `1x1` to R channels, then the kernel to O. R(I + OK) parameters.

    For Linear, Embedding and pointwise layers both are the same two layers. Serves these, and Conv and
    ConvTranspose 1d, 2d, 3d; the rank is one number, a group. Exact at full rank, min(O, IK) or min(I, OK) of one
    group. By outputs, the form "gauge" takes R^2 parameters and multiply-adds less below rank O, for a gather.

    Raises:
        TenfoldError: for another side.
    """

    name: ClassVar[str] = "svd"
    twin_of_svd: ClassVar[bool] = True
    serves: ClassVar[tuple[type[nn.Module], ...]] = LAYERS
    side: Literal["output", "input"] = "output"

    def __post_init__(self) -> None:
        if self.side not in ("output", "input"):
            raise TenfoldError(f'SVD has no side {self.side!r}; use "output" or "input".')

    @property
    def forms(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("factors", "gauge") if self.side == "output" else ("factors",)

    @property
    def mixes_channels(self) -> bool:  # type: ignore[override]
        return self.side == "input"  # the other side has a closed form

    def unfoldings(self, site: Site) -> tuple[Tensor, ...]:
        weight_goik = matrices(site.modules[0])
        by_side = weight_goik if self.side == "output" else weight_goik.transpose(1, 2)
        return (by_side.flatten(2),)

    def curve(self, site: Site) -> Curve:
        return matrix_curve(*self.unfoldings(site))

    def curve_in(self, site: Site, metrics: Sequence[Metric]) -> Curve | None:
        if not self._keeps_patches_whole(site):
            return None
        (full,) = self.full_rank(site)
        errors = discarded(self._whitened(site, metrics[0])[0]).sum(0)[1 : full + 1].cpu().numpy()
        return curve_at_every_rank(errors)

    def fill_in(self, site: Site, rank: Rank, new: tuple[Factored, ...], metrics: Sequence[Metric]) -> None:
        """`W ~ (C^-1/2 P)(P^T C^1/2 W)`, P the leading eigenvectors of C^1/2 W S W^T C^1/2: S is never inverted."""
        if not self._keeps_patches_whole(site):
            self.fill(site, rank, new)
            return
        _, vectors_gor, root, inverse = self._whitened(site, metrics[0])
        kept = vectors_gor[..., : rank[0]]
        write(new[0][0], kept.mT @ root @ matrices(site.modules[0]).flatten(2))
        write(new[0][1], inverse @ kept)
        write_bias(site.modules[0], new[0])

    def _keeps_patches_whole(self, site: Site) -> bool:
        return self.side == "output" or is_pointwise(site.modules[0])

    def _whitened(self, site: Site, metric: Metric) -> tuple[Tensor, ...]:
        """Eigenvalues and vectors of C^1/2 W S W^T C^1/2, the largest first, C^1/2 and its inverse."""
        weight_gok = matrices(site.modules[0]).flatten(2)
        moved = metric.times_inputs(weight_gok) @ weight_gok.mT
        root = inverse = torch.eye(moved.shape[-1], dtype=moved.dtype, device=moved.device)
        if metric.outputs is not None:
            squares, axes = torch.linalg.eigh(metric.outputs)
            root, inverse = (axes * squares[:, None].sqrt()) @ axes.mT, (axes * squares[:, None].rsqrt()) @ axes.mT
        values, vectors = torch.linalg.eigh(root @ moved @ root)
        return values.flip(-1).clamp_min(0), vectors.flip(-1), root, inverse

    def skeleton(self, site: Site, rank: Rank) -> tuple[Factored, ...]:
        (dense,) = site.modules
        (inputs, outputs), axes = channels(dense), range(len(kernel_size(dense)))
        middle = rank[0] * groups(dense)
        first_axes, then_axes = (axes, ()) if self.side == "output" else ((), axes)
        first = factor(dense, inputs, middle, axes=first_axes, entry=True)
        return (Factored.of(dense, first, factor(dense, middle, outputs, axes=then_axes, bias=has_bias(dense))),)

    def fill(self, site: Site, rank: Rank, new: tuple[Factored, ...]) -> None:
        (dense,), (factored,) = site.modules, new
        (matrix,) = self.unfoldings(site)
        left_gmr, right_grn = truncated(matrix, rank[0])
        if self.side == "output":
            write(factored[0], right_grn)
            write(factored[1], left_gmr)
        else:
            write(factored[0], left_gmr.mT)
            right_grok = right_grn.unflatten(-1, (channels(dense)[1] // groups(dense), -1))
            write(factored[1], right_grok.transpose(1, 2))
        write_bias(dense, factored)
