"""Tucker decomposition over the two channel modes: three layers."""

# O outputs, I inputs, K = kernel positions, R1 input rank, R2 output rank (a group), g groups

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from tenfold._factored import Factored
from tenfold._layers import LAYERS, channels, factor, groups, has_bias, kernel_size, matrices, write, write_bias
from tenfold._linalg import hooi, hosvd
from tenfold._method import Curve, Method, Site, levels
from tenfold._plan import Rank


@dataclass(frozen=True)
class Tucker(Method):
    """Tucker-2: `W_oik ~ sum_rs U_or core_rsk V_is`, the kernel whole (Kim et al. 2016, arXiv 1511.06530).

    `1x1` to R1 channels, the kernel from R1 to R2, `1x1` to O: I R1 + R1 R2 K + R2 O parameters. The rank is
    (R1, R2), a group. Factors by higher-order orthogonal iteration (De Lathauwer, De Moor & Vandewalle 2000);
    the curve is that of its starting point, the truncated higher-order SVD, so the fit is never worse. Serves
    Linear, Embedding, and Conv and ConvTranspose 1d, 2d, 3d. Exact at full rank, (min(I, OK), min(O, IK)) of one group.
    """

    name: ClassVar[str] = "tucker"
    mixes_channels: ClassVar[bool] = True
    twin_of_svd: ClassVar[bool] = True
    serves: ClassVar[tuple[type[nn.Module], ...]] = LAYERS

    def unfoldings(self, site: Site) -> tuple[Tensor, ...]:
        weight_goik = matrices(site.modules[0])
        return weight_goik.transpose(1, 2).flatten(2), weight_goik.flatten(2)

    def curve(self, site: Site) -> Curve:
        weight_goik = matrices(site.modules[0])
        core_gsrk = hosvd(weight_goik)[2].transpose(1, 2)
        energy_sr = core_gsrk.square().sum((0, 3)).cpu()
        full_s, full_r = energy_sr.shape
        # What is dropped, summed from the small end: as total minus kept, it would drown in rounding.
        below = energy_sr.flip(0).cumsum(0).flip(0).cumsum(1)
        beside = energy_sr.sum(0).flip(0).cumsum(0).flip(0)
        s, r = (axis.ravel() for axis in np.meshgrid(levels(full_s, 64), levels(full_r, 64), indexing="ij"))
        positions = weight_goik.shape[-1]
        matters = (r <= s * positions) & (s <= r * positions)  # see clamped
        s, r = s[matters], r[matters]
        padded_below = np.pad(below.numpy(), ((0, 1), (0, 0)))
        padded_beside = np.pad(beside.numpy(), (0, 1))
        return Curve(np.stack([s, r], 1), (padded_below[s, r - 1] + padded_beside[r])[:, None])

    def clamped(self, site: Site, rank: Rank) -> Rank:
        s, r = super().clamped(site, rank)
        positions = matrices(site.modules[0]).shape[-1]
        r = min(r, s * positions)  # the core's output mode has no higher rank
        return min(s, r * positions), r

    def skeleton(self, site: Site, rank: Rank) -> tuple[Factored, ...]:
        (dense,) = site.modules
        inputs, outputs = channels(dense)
        middle_s, middle_r = (entry * groups(dense) for entry in rank)
        axes = range(len(kernel_size(dense)))
        return (
            Factored.of(
                dense,
                factor(dense, inputs, middle_s, entry=True),
                factor(dense, middle_s, middle_r, axes=axes),
                factor(dense, middle_r, outputs, bias=has_bias(dense)),
            ),
        )

    def fill(self, site: Site, rank: Rank, new: tuple[Factored, ...]) -> None:
        (dense,), (factored,) = site.modules, new
        single = dense.weight.dtype != torch.float64
        u_gor, u_gis, core_grsk = hooi(matrices(dense), rank[1], rank[0], single=single)
        write(factored[0], u_gis.mT)
        write(factored[1], core_grsk)
        write(factored[2], u_gor)
        write_bias(dense, factored)
