"""A method for a site, and what it costs at each rank: known before anything is fitted."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from tenfold._cost import LIMITED, layers_cost
from tenfold._factored import Factored
from tenfold._gauge import in_form
from tenfold._method import Method, Site
from tenfold._plan import MethodSpec, Rank, Step
from tenfold._trace import Call


@dataclass(frozen=True, eq=False)
class Candidate:
    """A site, a method that serves it, and the form in which it is to run."""

    site: Site
    method: Method
    form: str = "factors"

    def step(self, rank: Rank) -> Step:
        """This candidate at a rank, as a step of a plan."""
        spec = MethodSpec.model_validate(self.method)
        return Step(layers=self.site.layers, method=spec, rank=rank, form=self.form)

    def skeleton(self, rank: Iterable[int]) -> list[Factored]:
        """What stands in the place of the site's layers at a rank, on the meta device."""
        with torch.device("meta"):
            new = self.method.skeleton(self.site, tuple(int(entry) for entry in rank))
            return [in_form(factored, self.form) for factored in new]

    def priced(self, calls: Sequence[Sequence[Call]], ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """The cost at each rank for the calls of each layer, in the order of LIMITED.

        The cost of a chain of factors is a polynomial in the entries of its rank, of degree 1 in each (2 in the row
        gauge), so skeletons at two (three) ranks an entry give all of it. One more checks that; where it disagrees,
        every rank is run.
        """

        def run(rank: Iterable[int]) -> NDArray[np.int64]:
            return layers_cost(self.skeleton(rank), calls)

        degree = 2 if self.form == "gauge" else 1
        if len(ranks) <= (degree + 1) ** ranks.shape[1] + 1:
            return np.array([run(rank) for rank in ranks])
        places = [np.unique(np.linspace(entry.min(), entry.max(), degree + 1).astype(np.int64)) for entry in ranks.T]
        costs = np.zeros((len(ranks), len(LIMITED)))
        for node in product(*places):
            weights = np.ones(len(ranks))  # Lagrange's: 1 there, 0 at the other nodes
            for entry, at, known in zip(ranks.T, node, places, strict=True):
                for other in known[known != at]:
                    weights *= (entry - other) / (at - other)
            costs += weights[:, None] * run(node)
        found = costs.round().astype(np.int64)
        check = len(ranks) // 3
        return found if (found[check] == run(ranks[check])).all() else np.array([run(rank) for rank in ranks])

    def cheaper(self, calls: Sequence[Sequence[Call]], ranks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which ranks cost less than the layers as they are."""
        dense = layers_cost(self.site.modules, calls)
        return cheaper(self.priced(calls, ranks) - dense, dense)


def cheaper(changes: NDArray[np.int64], dense: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which changes of cost, one a row, cost less than dense in something and more in nothing.

    A lookup has no multiply-adds, so that every factorisation of an embedding has more: there, only parameters and
    bytes count.
    """
    no_more, less = (changes <= 0)[:, dense > 0].all(axis=1), (changes < 0).any(axis=1)
    return np.logical_and(no_more, less)
