"""Targets: what decides the ranks."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from tenfold._allocate import Option, UnreachableError, allocate, worthwhile
from tenfold._candidates import Candidate, Ladder, Options, Target
from tenfold._cost import LIMITED
from tenfold._errors import TenfoldError
from tenfold._linalg import evbmf_rank, spectrum
from tenfold._plan import Rank, Step

_UNITS = {"params": "parameters", "macs": "multiply-adds", "bytes": "bytes"}


@dataclass(frozen=True)
class Budget(Target):
    """Limits on the whole model: a float in (0, 1] is a share of the dense model, an int is absolute.

    All layers, methods and ranks compete at once, dense included: the sum of errors is least, no limit is
    exceeded, and no layer costs more than it did in parameters, multiply-adds or bytes.
    """

    params: float | int | None = None
    macs: float | int | None = None  # multiply-adds of one run of the example
    bytes: float | int | None = None  # of all parameters and buffers

    def __post_init__(self) -> None:
        limits = {field.name: getattr(self, field.name) for field in fields(self)}
        if all(limit is None for limit in limits.values()):
            raise TenfoldError("the budget has no limit; give one, such as Budget(params=0.5).")
        for name, limit in limits.items():
            if limit is not None:
                _check_limit(name, limit)

    def limits(self, options: Options) -> dict[str, int]:
        """The limits that are set, as absolute numbers."""
        given = {name: getattr(self, name) for name in LIMITED}
        return {
            name: int(limit * getattr(options.dense, name)) if isinstance(limit, float) else int(limit)
            for name, limit in given.items()
            if limit is not None
        }

    def steps(self, options: Options) -> list[Step]:
        limits = self.limits(options)
        columns = [LIMITED.index(name) for name in limits]
        dense = [getattr(options.dense, name) for name in limits]
        room = [limit - cost for limit, cost in zip(limits.values(), dense, strict=True)]  # of change, so negative
        ladders = [ladder.cheaper() for ladder in options.ladders]
        # Options closer to each other than this in cost are thinned out; hundreds of layers still fill the limit.
        spacing = np.array([limit * 1e-3 for limit in limits.values()])
        names = sorted({name for ladder in ladders for name in ladder.candidate.site.layers})
        choices = [Option(frozenset([name]), (0,) * len(columns), 0.0) for name in names]
        origins: list[tuple[_Pool, int] | None] = [None] * len(choices)
        for pool in _pooled(ladders):
            costs = pool.costs[:, columns]
            for index in worthwhile(costs.astype(np.float64), pool.errors, spacing):
                change = tuple(int(cost) for cost in costs[index])
                choices.append(Option(frozenset(pool.layers), change, float(pool.errors[index])))
                origins.append((pool, index))
        try:
            picks = allocate(choices, room) if choices else _nothing(room)
        except UnreachableError as error:
            raise TenfoldError(_unreachable(limits, dense, error.least)) from None
        return [origin[0].step(origin[1]) for pick in picks if (origin := origins[pick]) is not None]


@dataclass(frozen=True)
class Ranks(Target):
    """Literal ranks: `share` of each layer's full rank, one `rank` for all, or `per_layer` by name.

    Exactly one of the three. Ranks above the full rank, where nothing more can be gained, are lowered to it;
    `share=1.0` is full rank. Each layer gets the method that takes the fewest parameters at that rank, which may
    be more than dense. Layers that `per_layer` does not name stay dense.
    """

    share: float | None = None
    rank: int | Rank | None = None
    per_layer: Mapping[str, int | Rank] | None = None

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.share, self.rank, self.per_layer)) != 1:
            raise TenfoldError("Ranks takes exactly one of share, rank and per_layer.")
        if self.share is not None and not (_is_number(self.share) and 0 < self.share <= 1):
            raise TenfoldError(f"Ranks(share={self.share!r}): a share is in (0, 1]; 1.0 is full rank.")
        for rank in [self.rank, *(self.per_layer or {}).values()]:
            entries = rank if isinstance(rank, tuple) else (rank,)
            if rank is not None and not all(isinstance(e, int) and not isinstance(e, bool) and e > 0 for e in entries):
                raise TenfoldError(f"a rank is a whole number above 0 or a tuple of them, not {rank!r}.")

    def steps(self, options: Options) -> list[Step]:
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
    """

    kept: float

    def __post_init__(self) -> None:
        if not (_is_number(self.kept) and 0 < self.kept <= 1):
            raise TenfoldError(f"Energy({self.kept!r}): the share of energy to keep is in (0, 1].")

    def steps(self, options: Options) -> list[Step]:
        chosen = []
        for pool in _pooled(ladder.cheaper() for ladder in options.ladders):
            # Rounding in the sum of a spectrum must not cost a rank: 1e-12 of the energy is below any weight's.
            enough = np.flatnonzero(pool.errors <= 1 - self.kept + 1e-12)
            if len(enough):
                cheapest = np.lexsort(pool.costs[enough].T[::-1])[0]
                chosen.append(pool.step(int(enough[cheapest])))
        return chosen


@dataclass(frozen=True)
class EVBMF(Target):
    """The rank that stands out from noise, by empirical variational Bayes matrix factorisation (Nakajima et al. 2013).

    Each entry of a method's rank comes from the matrix that it truncates; it is at least 1. Of the methods the one
    that takes the fewest parameters is used, if it takes fewer than dense.
    """

    def steps(self, options: Options) -> list[Step]:
        def rank(candidate: Candidate) -> Rank:
            matrices = candidate.method.unfoldings(candidate.site)
            return tuple(max(evbmf_rank(spectrum(m), *m.shape[-2:]) for m in matrix) for matrix in matrices)

        return _cheapest_of_each_site(options, rank, cheaper_than_dense=True)


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
        (change,) = options.change(candidate, np.array([rank]))
        if cheaper_than_dense and not ((change <= 0).all() and (change < 0).any()):
            continue
        layers, cost = candidate.site.layers, tuple(change.tolist())
        if layers not in best or cost < best[layers][0]:
            best[layers] = cost, candidate.step(rank)
    return [step for _, step in best.values()]


class _Pool:
    """The options of all ladders for the same layers, in one table."""

    def __init__(self, ladders: Sequence[Ladder]) -> None:
        self.layers = ladders[0].candidate.site.layers
        self.costs = np.concatenate([ladder.costs for ladder in ladders])
        self.errors = np.concatenate([ladder.errors for ladder in ladders])
        self._ladders = ladders
        self._starts = np.cumsum([0] + [len(ladder.errors) for ladder in ladders])

    def step(self, index: int) -> Step:
        """One option, as a step of a plan."""
        which = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._ladders[which].step(index - int(self._starts[which]))


def _pooled(ladders: Iterable[Ladder]) -> list[_Pool]:
    groups: dict[tuple[str, ...], list[Ladder]] = {}
    for ladder in ladders:
        groups.setdefault(ladder.candidate.site.layers, []).append(ladder)
    return [pool for group in groups.values() if len((pool := _Pool(group)).errors)]


def _nothing(room: Sequence[int]) -> list[int]:
    if min(room) < 0:
        raise UnreachableError((0,) * len(room))
    return []


def _unreachable(limits: Mapping[str, int], dense: Sequence[int], least: Sequence[int]) -> str:
    asked = " and ".join(f"{limit:,} {_UNITS[name]}" for name, limit in limits.items())
    reached = " and ".join(
        f"{cost + change:,} {_UNITS[name]}" for name, cost, change in zip(limits, dense, least, strict=True)
    )
    whole = " and ".join(f"{cost:,}" for cost in dense)
    return (
        f"the budget is {asked}; these methods reach {reached} at least (dense: {whole}). "
        "Raise it, add a method, or unfreeze a layer."
    )


def _check_limit(name: str, limit: Any) -> None:
    if isinstance(limit, float) and 0 < limit <= 1:
        return
    if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0:
        return
    raise TenfoldError(
        f"Budget({name}={limit!r}): a limit is a float in (0, 1], a share of the dense model, or a whole number "
        f"above 0 of {_UNITS[name]}."
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
