"""What the options said of a plan before it was carried out: errors of layers, other budgets, spectra."""

from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from tenfold._budget import Budget
from tenfold._candidates import Ladder, Options
from tenfold._choice import Offer, Pool, pooled
from tenfold._cost import MACS, PARAMS
from tenfold._plan import Plan, Record, Step

_SHARES = tuple(percent / 100 for percent in range(5, 100, 5))  # of the parameters
_SPECTRA, _POINTS = 100, 32  # at most so many layers, and ranks of each
_WEIGHED = Budget(params=1.0)  # how errors of layers are added up, whatever the limits


class Point(Record):
    """A plan: what it leaves of the network, and its summed error as a budget weighs it."""

    params: float  # small / dense
    macs: float
    error: float


class Spectrum(Record):
    """How the energy of a layer is spread over its singular values."""

    layer: str
    ranks: tuple[int, ...]
    left: tuple[float, ...]  # the share of the energy beyond each rank


class Predicted(Record):
    """What the options said of the plan, and of others."""

    on_data: bool  # whether errors are those that calibration data sees, or those of the weights
    layers: dict[str, int]  # every layer of the dense network in its order, and its parameters
    errors: dict[str, float]  # of replaced layers: squared, relative to losing the layer altogether
    plan: Point | None = None  # the plan itself, where all of its steps are among the options
    tradeoff: tuple[Point, ...] = ()  # other budgets, the smallest first; none with filters, the guard or times
    spectra: tuple[Spectrum, ...] = ()  # of the layers with the most parameters that the SVD serves


def predicted(options: Options, plan: Plan) -> Predicted | None:
    """What the options say of a plan, from curves that are there already: without them nothing. Nothing is timed."""
    if "ladders" not in vars(options):
        return None
    ladders = _by_layers(options)
    places = [_place(ladders[step.layers], step) for step in plan.steps if not step.links]
    known = [place for place in places if place is not None and not _has_filters(plan)]
    own = None
    if len(known) == len(plan.steps):
        params, macs, _ = options.predicted(plan.steps)
        own = _point(options, params, macs, sum(_price(*place) for place in known))
    return Predicted(
        on_data=options.statistics is not None,
        layers={name: int(cost[PARAMS]) for name, cost in options.dense_costs.items()},
        errors={name: error for place in known for name, error in _errors(*place)},
        plan=own,
        tradeoff=() if options.guard or options.pruning is not None else tuple(_tradeoff(options)),
        spectra=tuple(_spectra(options)),
    )


def _has_filters(plan: Plan) -> bool:
    return any(step.links for step in plan.steps)


def _by_layers(options: Options) -> defaultdict[tuple[str, ...], list[Ladder]]:
    found = defaultdict[tuple[str, ...], list[Ladder]](list)
    for ladder in options.ladders:
        found[ladder.candidate.site.layers].append(ladder)
    return found


def _place(ladders: Iterable[Ladder], step: Step) -> tuple[Ladder, int] | None:
    """Where a step is among the options for its layers, in whatever form it runs."""
    for ladder in ladders:
        if ladder.candidate.step(step.rank).method == step.method:
            places = np.flatnonzero((ladder.ranks == np.array(step.rank)).all(1))
            return (ladder, int(places[0])) if len(places) else None
    return None


def _errors(ladder: Ladder, at: int) -> Iterable[tuple[str, float]]:
    return zip(ladder.candidate.site.layers, map(_rounded, ladder.errors[at]), strict=True)


def _price(ladder: Ladder, at: int) -> float:
    return float(_WEIGHED.weighed(ladder.errors[at : at + 1], ladder.moves).sum())


def _tradeoff(options: Options) -> Iterator[Point]:
    """Layer by layer along the lower hull of its options, what saves most for its price first: at once for all budgets.

    No budget's own choice has less error than that of the next point; options that share layers are left out.
    """
    pools = [pool for pool in pooled(Offer.of(options).ladders) if len(pool.layers) == 1]
    changes = np.concatenate([_along_hull(pool) for pool in pools] or [np.zeros((0, 3))])
    order = np.argsort(changes[:, 2] / -changes[:, 0], kind="stable")
    params, macs, errors = changes[order].cumsum(0).T
    for share in _SHARES:
        at = int(np.searchsorted(-params, (1 - share) * options.dense.params))
        if at < len(params):
            yield _point(options, options.dense.params + params[at], options.dense.macs + macs[at], errors[at])


def _along_hull(pool: Pool) -> NDArray[np.float64]:
    """From dense to its smallest option on the lower hull, step by step: parameters, multiply-adds and error."""
    prices = _WEIGHED.weighed(pool.errors, pool.moves).sum(1)
    rows = np.column_stack([pool.costs[:, PARAMS], pool.costs[:, MACS], prices])
    rows = rows[rows[:, 0] < 0]
    hull = [np.zeros(3)]
    for row in rows[np.lexsort((-rows[:, 0], rows[:, 2]))]:  # by rising error
        if row[0] >= hull[-1][0]:
            continue  # saves no more than what has less error
        while len(hull) > 1 and _slope(hull[-1], row) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(row)
    return np.diff(hull, axis=0)


def _slope(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Error for each parameter saved."""
    return float((b[2] - a[2]) / (a[0] - b[0]))


def _point(options: Options, params: float, macs: float, error: float) -> Point:
    return Point(
        params=_rounded(params / options.dense.params),
        macs=_rounded(macs / max(options.dense.macs, 1)),
        error=_rounded(error),
    )


def _spectra(options: Options) -> Iterator[Spectrum]:
    """From the ladders of the SVD, whose errors are what singular values leave."""
    ladders = {ladder.candidate.site.layers[0]: ladder for ladder in options.ladders if _is_svd(ladder)}
    order = {name: number for number, name in enumerate(options.graph.layers)}
    largest = sorted(ladders, key=lambda name: -int(ladders[name].dense[PARAMS]))[:_SPECTRA]
    for name in sorted(largest, key=order.__getitem__):
        ranks, left = ladders[name].ranks[:, 0], ladders[name].errors[:, 0]
        at = np.unique(np.linspace(0, len(ranks) - 1, min(_POINTS, len(ranks))).round().astype(int))
        yield Spectrum(layer=name, ranks=tuple(ranks[at].tolist()), left=tuple(map(_rounded, left[at])))


def _is_svd(ladder: Ladder) -> bool:
    spec = ladder.candidate.step(tuple(ladder.ranks[0].tolist())).method
    return spec.name == "svd" and spec.fields["side"] == "output" and len(ladder.candidate.site.layers) == 1


def _rounded(number: float) -> float:
    return float(f"{number:.4g}")
