"""Filter pruning: whole filters are removed, with their norms and what every consumer reads of them."""

# n filters of a group, O outputs of a layer, K inputs times kernel positions

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tenfold._errors import TenfoldError
from tenfold._filters import link_rows
from tenfold._layers import matrices
from tenfold._metric import Metric
from tenfold._plan import Link, MethodSpec

Producer = tuple[Link, Any, Metric | None]  # where the filters lie in a layer, the layer, and its metric


@dataclass(frozen=True)
class Ranking:
    """The filters of a group, those that matter least first, and what is lost without the first of them."""

    order: NDArray[np.int64]  # (n,)
    errors: NDArray[np.float64]  # (n, layers), squared, relative to losing all, without the first 0 to n - 1
    moves: NDArray[np.float64] | None  # (layers,), in the outputs, were all lost; where statistics tell


@dataclass(frozen=True)
class FilterPruning:
    """Filters that go together, through residual sums and concatenations, are removed from every layer they touch.

    - `importance="l2"`: the norms of filters, squared, relative to those of their layers and summed over layers that
      must lose the same ones (Li et al. 2017, arXiv 1608.08710). With statistics, the norm is that of the metric of
      the data, in which filters together count otherwise than one by one: the next to go is the one that adds least.
    - `importance="median"`: the sum of the distances to all other filters of the layer, so that those go which the
      others can replace (the geometric median of He et al. 2019, arXiv 1811.00250).

    It changes the shapes of neighbours, so under a budget it runs first and the other methods serve what it leaves.
    With statistics, what consumers read of the removed channels is taken over by the channels that stay, in the least
    squares of the data, and by the bias or norm behind. Needs `pip install tenfold[prune]`.

    Raises:
        TenfoldError: for another importance.
    """

    name: ClassVar[str] = "filters"
    importance: Literal["l2", "median"] = "l2"

    def __post_init__(self) -> None:
        if self.importance not in ("l2", "median"):
            raise TenfoldError(f'FilterPruning has no importance {self.importance!r}; use "l2" or "median".')

    @classmethod
    def of(cls, spec: MethodSpec) -> "FilterPruning":
        """What the step of a plan names.

        Raises:
            TenfoldError: for another method, or wrong fields.
        """
        try:
            if spec.name == cls.name:
                return cls(**spec.fields)
        except TypeError:
            pass
        raise TenfoldError(f'a step with links is of method "{cls.name}" with importance, not {spec.model_dump()}.')

    def ranking(self, producers: Sequence[Producer]) -> Ranking:
        """Rank the filters of a group by the layers that make them; all of these have metrics, or none has."""
        products = [_products(*producer) for producer in producers]
        whole = np.array([max(float(each.sum()), 1e-300) for each in products])
        moves = None if producers[0][2] is None else whole
        if self.importance == "median":
            order = np.argsort(sum(_remoteness(link, layer) for link, layer, _ in producers), kind="stable")
        else:
            scales = np.ones_like(whole) if moves is not None else whole
            order = _eliminated(sum(each / scale for each, scale in zip(products, scales, strict=True)))
        return Ranking(order, np.stack([_losses(each, order) for each in products], 1) / whole, moves)


def _products(link: Link, layer: Any, metric: Metric | None) -> NDArray[np.float64]:
    """Q: without the filters of a set, the error is the sum of Q over all pairs of them."""
    weight_1OK = matrices(layer).detach().flatten(2)
    if metric is None:
        return np.diag(link_rows(link, weight_1OK[0]).square().flatten(1).sum(1).cpu().numpy())
    product_OO = (weight_1OK @ metric.times_inputs(weight_1OK).mT)[0]
    if metric.outputs is not None:
        product_OO = product_OO * metric.outputs[0]
    return link_rows(link, link_rows(link, product_OO).sum(1).T).sum(1).T.cpu().numpy()


def _remoteness(link: Link, layer: Any) -> NDArray[np.float64]:
    """The sums of the distances to the layer's other filters, relative to their mean."""
    rows_nK = link_rows(link, matrices(layer).detach().flatten(2)[0]).flatten(1)
    sums = torch.cdist(rows_nK, rows_nK, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
    found: NDArray[np.float64] = (sums / sums.mean().clamp_min(1e-300)).cpu().numpy()
    return found


def _eliminated(products: NDArray[np.float64]) -> NDArray[np.int64]:
    """All filters, each time the one that adds least to the error of those gone before."""
    added, order = products.diagonal().copy(), []
    for _ in range(len(products)):
        weakest = int(np.argmin(added))
        order.append(weakest)
        added += 2 * products[weakest]
        added[weakest] = np.inf
    return np.array(order)


def _losses(products: NDArray[np.float64], order: NDArray[np.int64]) -> NDArray[np.float64]:
    """The error without the first 0 to n - 1 of the order."""
    sums = products[np.ix_(order, order)].cumsum(0).cumsum(1).diagonal()
    return np.maximum.accumulate(np.maximum(np.r_[0.0, sums[:-1]], 0))
