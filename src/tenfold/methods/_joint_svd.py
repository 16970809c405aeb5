"""Joint singular value decomposition: repeated layers share a factor."""

# N layers; of each the spatial unfolding, h = H I rows and w = W O columns, O outputs, I inputs, H x W kernel;
# R rank of what shares the right factor, L rank of what shares the left one

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tenfold._errors import TenfoldError
from tenfold._factored import Factored, Sum
from tenfold._layers import (
    channels,
    factor,
    groups,
    has_bias,
    kernel_size,
    kernels,
    kind,
    spatial_sides,
    write,
    write_bias,
)
from tenfold._linalg import discarded, truncated
from tenfold._method import Curve, Method, Site, levels
from tenfold._plan import Rank, is_number
from tenfold._repeats import repeated
from tenfold._trace import Graph

Pair = tuple[Tensor, Tensor]  # (h, R) and (R, w)

_SWEEPS, _CURVE_SWEEPS = 30, 2  # alternations: for the weights, and for the curve, which they only lower
_LEVELS = 12  # ranks of a curve that takes alternations


@dataclass(frozen=True)
class JointSVD(Method):
    """`W^n ~ U^n V` for layers at the same place of repeated blocks (Chen et al. 2021, arXiv 2107.04386).

    W^n is the spatial unfolding of layer n, `HI x WO`; U^n becomes an `H x 1` layer, V a `1 x W` layer whose weight
    is one tensor for all of them. Sharing saves parameters, no multiply-adds.

    - `shared="right"`: V from the SVD of all W^n, one below the other. R (sum_n h_n + w) parameters.
    - `shared="left"`: `W^n ~ U V^n`, U from the SVD of all W^n, side by side. L (h + sum_n w_n) parameters.
    - `shared="both"`: `W^n ~ U^n V + U V^n`, two branches that add, by alternation; the rank is (L, R), and `share`
      is L / (L + R) along the curve; 0 and 1 are the schemes above.

    Serves Linear and Conv2d without groups. The layers of a site have equal unfoldings; with `odd="joint"`, one side
    is free where only the other one is shared (such as the inputs of a stage's first block). `together` names the
    layers of each site, instead of those found. Exact at full rank of the stack.

    Raises:
        TenfoldError: for fields that are none of these, and for layers in `together` that cannot share a factor.
    """

    name: ClassVar[str] = "joint"
    joins: ClassVar[bool] = True
    mixes_channels: ClassVar[bool] = True
    serves: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear, nn.Conv2d)
    shared: Literal["right", "left", "both"] = "right"
    share: float = 0.5
    odd: Literal["joint", "alone"] = "joint"
    together: tuple[tuple[str, ...], ...] = field(default=(), metadata={"planned": False})

    def __post_init__(self) -> None:
        if self.shared not in ("right", "left", "both"):
            raise TenfoldError(f'JointSVD shares no {self.shared!r}; use "right", "left" or "both".')
        if not (is_number(self.share) and 0 <= self.share <= 1):
            raise TenfoldError(f"JointSVD(share={self.share!r}): the share of the left rank is in [0, 1].")
        if self.odd not in ("joint", "alone"):
            raise TenfoldError(f'JointSVD knows no odd={self.odd!r}; use "joint" or "alone".')
        object.__setattr__(self, "together", tuple(map(tuple, self.together)))  # lists have no hash

    @property
    def left_share(self) -> float:
        """The share of the rank whose left factor is shared: 0 or 1 where only one side is."""
        return {"right": 0.0, "left": 1.0, "both": float(self.share)}[self.shared]

    def sites(self, graph: Graph) -> Iterable[Site]:
        layers = [layer for layer in graph.free if kind(layer.module) in self.serves and groups(layer.module) == 1]
        free = {layer.name: layer.module for layer in layers}
        for names in self.together or repeated(layers, self._alike):
            for name in names:
                if name not in free:
                    raise TenfoldError(f'JointSVD: there is no free Linear or Conv2d layer "{name}" without groups.')
            site = Site(tuple(names), tuple(free[name] for name in names))
            self.full_rank(site)  # refuses sides that differ
            yield site

    def _alike(self, layer: Any) -> Hashable:
        rows, columns = spatial_sides(layer)
        shared = (rows if self.left_share > 0 else None, columns if self.left_share < 1 else None)
        sides = shared if self.odd == "joint" else (rows, columns)
        return kind(layer), kernel_size(layer), layer.weight.dtype, layer.weight.device, sides

    def unfoldings(self, site: Site) -> tuple[Tensor, ...]:
        shared, weights = self._shared_sides(site), [_unfolded(layer) for layer in site.modules]
        return tuple(
            torch.cat(weights, axis)[None] for axis, side in zip((1, 0), shared, strict=True) if side is not None
        )

    def _shared_sides(self, site: Site) -> tuple[int | None, int | None]:
        """The rows where left factors are shared, the columns where right ones are."""
        found = []
        if any(groups(layer) > 1 for layer in site.modules):
            raise TenfoldError(f"{', '.join(site.layers)} cannot share a factor: a convolution has groups.")
        for side, shared in enumerate((self.left_share > 0, self.left_share < 1)):
            sizes = sorted({spatial_sides(layer)[side] for layer in site.modules})
            if shared and (len(sizes) > 1 or len({kernel_size(layer) for layer in site.modules}) > 1):
                raise TenfoldError(
                    f"{', '.join(site.layers)} cannot share a {('left', 'right')[side]} factor: their unfoldings "
                    f"have {' and '.join(map(str, sizes))} {('rows', 'columns')[side]}, or their kernels differ."
                )
            found.append(sizes[0] if shared else None)
        return found[0], found[1]

    def full_rank(self, site: Site) -> Rank:
        height, width = self._shared_sides(site)
        if height is None or width is None:
            return super().full_rank(site)
        total = min(height / self.share, width / (1 - self.share))
        return self.clamped(site, (ceil(total * self.share), ceil(total * (1 - self.share))))

    def clamped(self, site: Site, rank: Rank) -> Rank:
        height, width = self._shared_sides(site)
        if height is None or width is None:
            return super().clamped(site, rank)
        return min(rank[0], height), min(rank[1], width)

    def curve(self, site: Site) -> Curve:
        full = self.full_rank(site)
        if len(full) == 2:
            return self._curve_of_both(site, full)
        pairs = self._pairs(site, full, 1)
        # Of U^n and V, one has orthonormal columns: a component holds the product of the squared norms of both.
        energies_NR = torch.stack([left.square().sum(0) * right.square().sum(1) for ((left, right),) in pairs])
        return Curve(np.arange(1, full[0] + 1)[:, None], discarded(energies_NR)[:, 1:].T.cpu().numpy())

    def _curve_of_both(self, site: Site, full: Rank) -> Curve:
        totals = levels(sum(full), _LEVELS)
        shares = [(max(1, round(total * self.share)), max(1, round(total * (1 - self.share)))) for total in totals]
        ranks = [*dict.fromkeys([*(self.clamped(site, rank) for rank in shares), full])]
        ranks = [rank for rank in ranks if rank == full or (rank[0] < full[0] and rank[1] < full[1])]
        errors = np.array([self._errors(site, rank) for rank in ranks])
        # A few alternations may end above those at a lower rank.
        total = errors.sum(1)
        return Curve(np.array(ranks), errors * (np.maximum.accumulate(total[::-1])[::-1] / total.clip(1e-300))[:, None])

    def _errors(self, site: Site, rank: Rank) -> list[float]:
        each = zip(site.modules, self._pairs(site, rank, _CURVE_SWEEPS), strict=True)
        return [float((_unfolded(layer) - _product(pairs)).square().sum()) for layer, pairs in each]

    def _pairs(self, site: Site, rank: Rank, sweeps: int) -> list[tuple[Pair, ...]]:
        """For each layer its left and right factors, a pair for each entry of the rank."""
        weights = [_unfolded(layer) for layer in site.modules]
        if len(rank) == 2:
            return alternated(weights, *rank, sweeps)
        fit = left_shared if self.left_share == 1 else right_shared
        return [(pair,) for pair in fit(weights, rank[0])]

    def skeleton(self, site: Site, rank: Rank) -> tuple[Factored, ...]:
        chains = [
            [_chain(dense, entry, last=entry_number == len(rank)) for entry_number, entry in enumerate(rank, 1)]
            for dense in site.modules
        ]
        shared = [0, 1] if len(rank) == 2 else [0 if self.left_share == 1 else 1]  # the first layer or the second
        for own in chains[1:]:
            for place, chain, with_weight in zip(shared, own, chains[0], strict=True):
                chain[place].weight = with_weight[place].weight
        return tuple(
            Factored.of(dense, *(own[0] if len(own) == 1 else [Sum(*own)]))
            for dense, own in zip(site.modules, chains, strict=True)
        )

    def fill(self, site: Site, rank: Rank, new: tuple[Factored, ...]) -> None:
        for dense, factored, pairs in zip(site.modules, new, self._pairs(site, rank, _SWEEPS), strict=True):
            chains: Any = [factored] if len(pairs) == 1 else factored[0].children()
            (height, width) = kernel_size(dense) or (1, 1)
            for (first, then), (left_hr, right_rw) in zip(chains, pairs, strict=True):
                write(first, left_hr.unflatten(0, (-1, height)).permute(2, 0, 1))
                write(then, right_rw.unflatten(1, (-1, width)).transpose(0, 1))
            write_bias(dense, factored)


def right_shared(weights_hw: Sequence[Tensor], rank: int) -> list[Pair]:
    """`W^n ~ U^n V`, best for all together."""
    left, right = truncated(torch.cat([*weights_hw])[None], rank)
    return [(own, right[0]) for own in left[0].split([len(weight) for weight in weights_hw])]


def left_shared(weights_hw: Sequence[Tensor], rank: int) -> list[Pair]:
    """`W^n ~ U V^n`, best for all together."""
    left, right = truncated(torch.cat([*weights_hw], 1)[None], rank)
    return [(left[0], own) for own in right[0].split([weight.shape[1] for weight in weights_hw], 1)]


def alternated(weights_hw: Sequence[Tensor], left: int, right: int, sweeps: int) -> list[tuple[Pair, ...]]:
    """`W^n ~ U V^n + U^n V`: from nothing, one side in turn fitted to what the other leaves, so errors never rise."""
    rest = [*weights_hw]
    for _ in range(sweeps):
        with_right = right_shared(rest, right)
        with_left = left_shared([w - u @ v for w, (u, v) in zip(weights_hw, with_right, strict=True)], left)
        rest = [w - u @ v for w, (u, v) in zip(weights_hw, with_left, strict=True)]
    return [*zip(with_left, with_right, strict=True)]


def _unfolded(layer: Any) -> Tensor:
    weight = kernels(layer).detach().double()[0]
    weight_oihw = weight if weight.dim() == 4 else weight[..., None, None]
    return weight_oihw.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)


def _product(pairs: Sequence[Pair]) -> Tensor:
    return torch.stack([left @ right for left, right in pairs]).sum(0)


def _chain(dense: Any, rank: int, *, last: bool) -> nn.Sequential:
    inputs, outputs = channels(dense)
    first = factor(dense, inputs, rank, axes=(0,), entry=True)
    return nn.Sequential(first, factor(dense, rank, outputs, axes=(1,), bias=last and has_bias(dense)))
