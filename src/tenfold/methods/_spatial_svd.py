"""Singular value decomposition across the kernel: a column, then a row."""

# O outputs, I inputs, H x W kernel, R rank (a group), g groups

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from tenfold._factored import Factored
from tenfold._layers import channels, factor, groups, has_bias, kernels, write, write_bias
from tenfold._linalg import truncated
from tenfold._method import Curve, Method, Site, matrix_curve
from tenfold._plan import Rank


@dataclass(frozen=True)
class SpatialSVD(Method):
    """`W ~ sum_r U_ihr V_rwo`: an `H x 1` convolution to R channels, then `1 x W` to O.

    The best fit of this form, group by group: the SVD of W as `HI x WO` (Jaderberg et al. 2014; Tai et al. 2016,
    arXiv 1511.06067). R(HI + WO) parameters: pays when R < HI WO / (HI + WO). Stride, padding and dilation of each
    axis go with the factor that spans it. Serves Conv2d and ConvTranspose2d; the rank is one number, a group. Exact
    at full rank, min(HI, WO) of one group.
    """

    name: ClassVar[str] = "spatial"
    mixes_channels: ClassVar[bool] = True
    twin_of_svd: ClassVar[bool] = True
    serves: ClassVar[tuple[type[nn.Module], ...]] = (nn.Conv2d, nn.ConvTranspose2d)

    def unfoldings(self, site: Site) -> tuple[Tensor, ...]:
        weight_goihw = kernels(site.modules[0]).detach().double()
        return (weight_goihw.permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2),)

    def curve(self, site: Site) -> Curve:
        return matrix_curve(*self.unfoldings(site))

    def skeleton(self, site: Site, rank: Rank) -> tuple[Factored, ...]:
        (dense,) = site.modules
        inputs, outputs = channels(dense)
        middle = rank[0] * groups(dense)
        column = factor(dense, inputs, middle, axes=(0,), entry=True)
        return (Factored.of(dense, column, factor(dense, middle, outputs, axes=(1,), bias=has_bias(dense))),)

    def fill(self, site: Site, rank: Rank, new: tuple[Factored, ...]) -> None:
        (dense,), (factored,) = site.modules, new
        (matrix,) = self.unfoldings(site)
        left_gmr, right_grn = truncated(matrix, rank[0])
        height, width = dense.kernel_size
        write(factored[0], left_gmr.unflatten(1, (-1, height)).permute(0, 3, 1, 2))
        write(factored[1], right_grn.unflatten(2, (-1, width)).transpose(1, 2))
        write_bias(dense, factored)
