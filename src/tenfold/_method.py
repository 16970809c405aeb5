"""The contract of a method: how a site is factorised."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from tenfold._factored import Factored
from tenfold._layers import kind
from tenfold._linalg import discarded, spectrum
from tenfold._metric import Metric
from tenfold._plan import Rank
from tenfold._trace import Graph


@dataclass(frozen=True)
class Site:
    """Layers that are replaced together: their names, and the layers themselves."""

    layers: tuple[str, ...]
    modules: tuple[Any, ...]  # Any: torch does not type the attributes that layers have


@dataclass(frozen=True)
class Curve:
    """Ranks, one a row, and for each the squared error of the weight of each of the site's layers.

    Summed over layers, the errors never rise where every entry of the rank rises or stays.
    """

    ranks: NDArray[np.int64]  # (ranks, entries)
    errors: NDArray[np.float64]  # (ranks, layers)


class Method(ABC):
    """A way to factorise; subclasses are frozen dataclasses, final, with their options as fields.

    `skeleton` and `fill` are apart because the same skeleton prices an option on the meta device, starts training
    from fresh weights, and reloads a saved model.
    """

    name: ClassVar[str]
    twin_of_svd: ClassVar[bool] = False  # on Linear and pointwise layers no better than the plain SVD
    forms: ClassVar[tuple[str, ...]] = ("factors",)  # how what it makes can run; the first unless a step says else
    joins: ClassVar[bool] = False  # whether a site may hold several layers
    mixes_channels: ClassVar[bool] = False  # at both ends, without a closed form: fitted in whitened coordinates, too
    serves: ClassVar[tuple[type[nn.Module], ...]]  # exactly these kinds of layers, not their subclasses

    def sites(self, graph: Graph) -> Iterable[Site]:
        """Which of the graph's free layers go together: unless overridden, each layer goes alone."""
        for layer in graph.free:
            if kind(layer.module) in self.serves:
                yield Site((layer.name,), (layer.module,))

    @abstractmethod
    def unfoldings(self, site: Site) -> tuple[Tensor, ...]:
        """For each entry of the rank, the matrices `(g, m, n)` in float64 that it truncates.

        Their shapes are all that is read when the weights are on the meta device.
        """

    @abstractmethod
    def curve(self, site: Site) -> Curve:
        """Errors for a ladder of ranks, the full rank among them; what `fill` does is never worse."""

    @abstractmethod
    def skeleton(self, site: Site, rank: Rank) -> tuple[Factored, ...]:
        """Ordinary layers of the right shapes, one `Factored` for each layer of the site.

        Called under `torch.device("meta")`: nothing is initialised and no random number is drawn.
        """

    @abstractmethod
    def fill(self, site: Site, rank: Rank, new: tuple[Factored, ...]) -> None:
        """Write the weights and biases of `new` from the site's layers."""

    def outline(self, site: Site) -> Curve:
        """The curve, or what is cheaper and falls alike: fits to the data say how far off it is."""
        return self.curve(site)

    def curve_in(self, site: Site, metrics: Sequence[Metric]) -> Curve | None:  # noqa: ARG002
        """The errors of the best fits in the metrics of the data, where there is a closed form for them."""
        return None

    def fill_in(self, site: Site, rank: Rank, new: tuple[Factored, ...], metrics: Sequence[Metric]) -> None:  # noqa: ARG002
        """Write weights from which descent in the metrics starts; what has a closed form is there already."""
        self.fill(site, rank, new)

    def draft(self, site: Site, rank: Rank, new: tuple[Factored, ...], metrics: Sequence[Metric]) -> None:
        """What `fill_in` does, or what is cheaper and serves to find errors along the curve."""
        self.fill_in(site, rank, new, metrics)

    def full_rank(self, site: Site) -> Rank:
        """The least rank at which nothing is lost, whatever the weights."""
        return tuple(min(matrix.shape[-2:]) for matrix in self.unfoldings(site))

    def clamped(self, site: Site, rank: Rank) -> Rank:
        """The rank without what cannot matter: each entry lowered to where more of it gains nothing."""
        return tuple(map(min, rank, self.full_rank(site)))


def matrix_curve(matrix_gmn: Tensor) -> Curve:
    """The curve of the best low-rank fit of a matrix (a group): at every rank, the energy that it discards."""
    errors = discarded(spectrum(matrix_gmn)).sum(0)[1:].cpu().numpy()
    return curve_at_every_rank(errors)


def curve_at_every_rank(errors: NDArray[np.float64]) -> Curve:
    """The curve of a method of one rank, with the error of a site of one layer at ranks 1, 2, ..."""
    return Curve(np.arange(1, len(errors) + 1)[:, None], errors[:, None])


def levels(full: int, most: int) -> NDArray[np.int64]:
    """At most about `most` ranks from 1 to `full`: all of them, or in equal ratios."""
    if full <= most:
        return np.arange(1, full + 1)
    return np.unique(np.geomspace(1, full, most).round().astype(np.int64))
