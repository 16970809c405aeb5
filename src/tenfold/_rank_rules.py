"""Rank rules: targets that decide layer by layer."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tenfold._allocate import Option, allocate
from tenfold._apply import apply
from tenfold._budget import Budget
from tenfold._candidate import Candidate, cheaper
from tenfold._candidates import Options, Target
from tenfold._choice import Pool, pooled, unreachable
from tenfold._cost import LIMITED, PARAMS
from tenfold._errors import TenfoldError
from tenfold._judge import Evaluate, check_callable, scores
from tenfold._linalg import evbmf_rank, spectrum
from tenfold._plan import Plan, Rank, Step, is_number
from tenfold._progress import track
from tenfold._pruning import Pruning


@dataclass(frozen=True)
class Ranks(Target):
    """Literal ranks: `share` of each layer's full rank, one `rank` for all, or `per_layer` by name.

    Exactly one of the three. Ranks above the full rank, where nothing more can be gained, are lowered to it;
    `share=1.0` is full rank. Each layer gets the method that takes the fewest parameters at that rank, which may
    be more than dense. Layers that `per_layer` does not name stay dense. With `FilterPruning`, alone, `share` is that
    of the filters which stay of each group.

    Raises:
        TenfoldError: unless exactly one is given, for a share outside (0, 1], and for ranks that are no whole
            numbers above 0.
    """

    share: float | None = None
    rank: int | Rank | None = None
    per_layer: Mapping[str, int | Rank] | None = None
    prunes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.share, self.rank, self.per_layer)) != 1:
            raise TenfoldError("Ranks takes exactly one of share, rank and per_layer.")
        if self.share is not None and not (is_number(self.share) and 0 < self.share <= 1):
            raise TenfoldError(f"Ranks(share={self.share!r}): a share is in (0, 1]; 1.0 is full rank.")
        if self.per_layer is not None and not isinstance(self.per_layer, Mapping):
            raise TenfoldError(f"Ranks(per_layer={self.per_layer!r}): give a rank for each layer by name, as a dict.")
        for rank in [self.rank, *(self.per_layer or {}).values()]:
            entries = rank if isinstance(rank, tuple) else (rank,)
            if rank is not None and not all(isinstance(e, int) and not isinstance(e, bool) and e > 0 for e in entries):
                raise TenfoldError(f"a rank is a whole number above 0 or a tuple of them, not {rank!r}.")

    def steps(self, options: Options) -> list[Step]:
        if options.pruning is not None:
            return self._pruned(options.pruning, alone=not options.candidates)
        unknown = [name for name in self.per_layer or () if name not in options.graph.layers]
        if unknown:
            raise TenfoldError(f'Ranks: there is no layer "{unknown[0]}"; `tenfold inspect` lists them.')
        for name in self.per_layer or ():
            if name in options.unserved:
                raise TenfoldError(f'Ranks: layer "{name}" cannot be replaced: {options.unserved[name]}.')
        steps = _cheapest_of_each_site(options, self._rank)
        missed = set(self.per_layer or ()) - {name for step in steps for name in step.layers}
        if missed or (isinstance(self.rank, tuple) and options.candidates and not steps):
            where = f' of layer "{min(missed)}"' if missed else ""
            raise TenfoldError(f"Ranks: no chosen method takes a rank{where} of as many entries as given.")
        return steps

    def _pruned(self, pruning: Pruning, *, alone: bool) -> list[Step]:
        if self.share is None or not alone:
            raise TenfoldError(
                "Ranks decides how many filters stay by share only, and with FilterPruning as the only method; "
                "use Budget for several, or add plans."
            )
        return pruning.steps([count - max(1, round(self.share * count)) for count in pruning.sizes.tolist()])

    def _rank(self, candidate: Candidate) -> Rank | None:
        full = candidate.method.full_rank(candidate.site)
        if self.share is not None:
            return tuple(max(1, round(self.share * entry)) for entry in full)
        wanted = self.rank if self.per_layer is None else self.per_layer.get(candidate.site.layers[0])
        if isinstance(wanted, int):
            return (wanted,) * len(full)
        return wanted if wanted is not None and len(wanted) == len(full) else None


@dataclass(frozen=True)
class Energy(Target):
    """For each layer the cheapest option that keeps this share of the weight's energy (its squared norm).

    For the singular value decomposition: the least r with `sum_{i<=r} s_i^2 >= kept * sum s_i^2`. A layer for
    which no cheaper option keeps as much stays dense.

    Raises:
        TenfoldError: for a share outside (0, 1].
    """

    kept: float

    def __post_init__(self) -> None:
        if not (is_number(self.kept) and 0 < self.kept <= 1):
            raise TenfoldError(f"Energy({self.kept!r}): the share of energy to keep is in (0, 1].")

    def steps(self, options: Options) -> list[Step]:
        chosen = []
        for pool in pooled(ladder.cheaper() for ladder in options.ladders):
            # Rounding in the sum of a spectrum must not cost a rank: 1e-12 of the energy is below any weight's.
            enough = np.flatnonzero(pool.worst <= 1 - self.kept + 1e-12)
            if len(enough):
                cheapest = int(enough[np.lexsort(pool.costs[enough].T[::-1])[0]])
                chosen.append((int(pool.costs[cheapest, PARAMS]), pool.step(cheapest)))
        return _apart(chosen)


@dataclass(frozen=True)
class EVBMF(Target):
    """The rank that stands out from noise, by empirical variational Bayes matrix factorisation (Nakajima et al. 2013).

    Each entry of a method's rank comes from the matrix that it truncates; it is at least 1. Of the methods the one
    that takes the fewest parameters is used, if it takes fewer than dense.
    """

    def steps(self, options: Options) -> list[Step]:
        def rank(candidate: Candidate) -> Rank | None:
            matrices = candidate.method.unfoldings(candidate.site)
            found = tuple(max(evbmf_rank(spectrum(m), *m.shape[-2:]) for m in matrix) for matrix in matrices)
            return found or None  # a method that truncates no matrix has no such rank

        return _cheapest_of_each_site(options, rank, cheaper_than_dense=True)


@dataclass(frozen=True)
class MinMax(Target):
    """Within a budget, the largest relative error of any layer is as small as it can be.

    Each layer takes the cheapest option whose error is at most one threshold for all; bisection finds the least
    threshold that meets the budget (the inner problem of ALDS, Liebenwein et al. 2021, arXiv 2107.11442).

    Raises:
        TenfoldError: for a budget with a `max_drop`.
    """

    budget: Budget

    def __post_init__(self) -> None:
        _check_limits_only(self.budget)

    def steps(self, options: Options) -> list[Step]:
        pools = _of_disjoint_sites(options)
        return _least_threshold(
            options, self.budget, [(pool, np.arange(len(pool.worst)), pool.worst) for pool in pools]
        )


@dataclass(frozen=True)
class Greedy(Target):
    """Within a budget, the largest drop of the metric that any layer causes by itself is as small as it can be.

    A table is made first: each layer alone at `levels` shares of its cost, and the metric of the network with that
    one layer replaced (as AIMET's greedy rank selection does). It takes layers x levels evaluations, so
    `evaluate(model)`, as `compress` takes it, should be a quick one, on training data.

    Raises:
        TenfoldError: for a budget with a `max_drop`, and for what does not evaluate.
    """

    budget: Budget
    evaluate: Evaluate
    levels: int = 10

    def __post_init__(self) -> None:
        _check_limits_only(self.budget)
        check_callable(self.evaluate)

    def steps(self, options: Options) -> list[Step]:
        dense = self._metric(options.model)
        pools = _of_disjoint_sites(options)
        tables = [self._table(options, pool, dense) for pool in track(pools, "per-layer table")]
        return _least_threshold(options, self.budget, tables)

    def _table(self, options: Options, pool: Pool, dense: float) -> tuple[Pool, NDArray[np.int64], NDArray[np.float64]]:
        """The best option at each level of cost, the dearest first, and the drop that it causes."""
        price = _price(options, self.budget, pool)
        rows: list[int] = []
        for level in np.linspace(price.max(), price.min(), self.levels):
            within = np.flatnonzero(price <= level)
            best = int(within[pool.worst[within].argmin()])
            if best not in rows:
                rows.append(best)
        drops = [dense - self._metric(apply(options.model, Plan((pool.step(row),)))) for row in rows]
        # A smaller layer that seems to do less harm does so by chance.
        return pool, np.array(rows), np.maximum.accumulate(np.array(drops))

    def _metric(self, model: nn.Module) -> float:
        return float(scores(self.evaluate, model).mean())


def _cheapest_of_each_site(
    options: Options,
    rank_of: Callable[[Candidate], Rank | None],
    *,
    cheaper_than_dense: bool = False,
) -> list[Step]:
    best: dict[tuple[str, ...], tuple[tuple[int, ...], Step]] = {}
    for candidate in options.candidates:
        wanted = rank_of(candidate)
        if wanted is None:
            continue
        rank = candidate.method.clamped(candidate.site, wanted)
        change = options.change(candidate, np.array([rank]))
        if cheaper_than_dense and not cheaper(change, options.dense_cost(candidate)).all():
            continue
        layers, cost = candidate.site.layers, tuple(change[0].tolist())
        if layers not in best or cost < best[layers][0]:
            best[layers] = cost, candidate.step(rank)
    return _apart([(cost[PARAMS], step) for cost, step in best.values()])


def _apart(priced: Sequence[tuple[int, Step]]) -> list[Step]:
    """Of steps some of whose layers overlap, those that cover the most layers, with the least cost in all."""
    covered = [name for _, step in priced for name in step.layers]
    if len(covered) == len(set(covered)):
        return [step for _, step in priced]
    dense = 1 + sum(abs(cost) for cost, _ in priced)  # dearer than any choice
    choices = [Option(frozenset(step.layers), (), cost) for cost, step in priced]
    choices += [Option(frozenset([name]), (), dense) for name in dict.fromkeys(covered)]
    return [priced[pick][1] for pick in allocate(choices, ()) if pick < len(priced)]


def _of_disjoint_sites(options: Options) -> list[Pool]:
    pools = pooled(ladder.cheaper() for ladder in options.ladders)
    times = Counter(name for pool in pools for name in pool.layers)
    for name, count in times.items():
        if count > 1:
            raise TenfoldError(
                f'layer "{name}" stands in {count} groups, among which this rule cannot choose; '
                "leave JointSVD out, or use Budget."
            )
    return pools


def _least_threshold(
    options: Options, budget: Budget, tables: Sequence[tuple[Pool, NDArray[np.int64], NDArray[np.float64]]]
) -> list[Step]:
    """For each pool the cheapest of its listed options whose harm is at most t; t is the least that fits the budget."""
    limits = budget.limits(options)
    columns = [LIMITED.index(name) for name in limits]
    dense = np.array([getattr(options.dense, name) for name in limits])

    prices = [_price(options, budget, pool) for pool, _, _ in tables]

    def chosen(threshold: float) -> list[tuple[Pool, int]]:
        picks = []
        for (pool, rows, harm), price in zip(tables, prices, strict=True):
            if len(allowed := rows[harm <= threshold]):
                picks.append((pool, int(allowed[price[allowed].argmin()])))
        return picks

    def total(picks: list[tuple[Pool, int]]) -> NDArray[np.int64]:
        return dense + sum((pool.costs[row, columns] for pool, row in picks), np.zeros(len(columns), np.int64))

    thresholds = np.unique(np.concatenate([[-np.inf], *[harm for _, _, harm in tables]]))
    low, high = 0, len(thresholds) - 1
    most = total(chosen(thresholds[high]))
    if (most > list(limits.values())).any():
        raise unreachable(options, limits, dense.tolist(), (most - dense).tolist())
    while low < high:
        middle = (low + high) // 2
        fits = (total(chosen(thresholds[middle])) <= list(limits.values())).all()
        low, high = (low, middle) if fits else (middle + 1, high)
    return [pool.step(row) for pool, row in chosen(thresholds[high])]


def _price(options: Options, budget: Budget, pool: Pool) -> NDArray[np.float64]:
    """What each option saves, as a sum over the limits of its share in the dense model; negative."""
    shares = [pool.costs[:, LIMITED.index(name)] / getattr(options.dense, name) for name in budget.limits(options)]
    return np.sum(shares, axis=0)


def _check_limits_only(budget: Any) -> None:
    if not isinstance(budget, Budget) or budget.max_drop is not None or budget.is_timed:
        raise TenfoldError(
            "this rule takes limits, such as Budget(params=0.5), and neither max_drop nor limits of time."
        )
