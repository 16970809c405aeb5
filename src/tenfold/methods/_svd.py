"""Singular value decomposition of a layer's matrix: two layers."""

# O outputs, I inputs, K = kernel positions, R rank a group, g groups

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from tenfold._errors import TenfoldError
from tenfold._factored import Factored
from tenfold._layers import LAYERS, channels, factor, groups, has_bias, kernel_size, matrices, write, write_bias
from tenfold._linalg import truncated
from tenfold._method import Curve, Method, Site, matrix_curve
from tenfold._plan import Rank


@dataclass(frozen=True)
class SVD(Method):
    """`W ~ B A`, the best rank-R fit in Frobenius norm (Eckart & Young 1936), group by group.

    - `side="output"`: W as `O x IK`. The kernel goes to R channels, then `1x1` to O (Denton et al. 2014; Zhang
      et al. 2015, arXiv 1505.06798). R(IK + O) parameters: pays when R < O IK / (O + IK).
    - `side="input"`: W as `I x OK`. `1x1` to R channels, then the kernel to O. R(I + OK) parameters.

    For Linear, Embedding and pointwise layers both are the same two layers. Serves these, and Conv and
    ConvTranspose 1d, 2d, 3d; the rank is one number, a group. Exact at full rank, min(O, IK) or min(I, OK) of one
    group.
    """

    name: ClassVar[str] = "svd"
    twin_of_svd: ClassVar[bool] = True
    serves: ClassVar[tuple[type[nn.Module], ...]] = LAYERS
    side: Literal["output", "input"] = "output"

    def __post_init__(self) -> None:
        if self.side not in ("output", "input"):
            raise TenfoldError(f'SVD has no side {self.side!r}; use "output" or "input".')

    def unfoldings(self, site: Site) -> tuple[Tensor, ...]:
        weight_goik = matrices(site.modules[0])
        by_side = weight_goik if self.side == "output" else weight_goik.transpose(1, 2)
        return (by_side.flatten(2),)

    def curve(self, site: Site) -> Curve:
        return matrix_curve(*self.unfoldings(site))

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
