"""The choice: the options on offer, and those whose summed price is least within limits."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tenfold._allocate import Option, UnreachableError, allocate, worthwhile
from tenfold._candidates import Ladder, Options
from tenfold._cost import LIMITED
from tenfold._errors import TenfoldError
from tenfold._plan import Step
from tenfold._timed import Clock

_SHOWN = 3  # layers that are named in a refusal
UNITS = {"params": "parameters", "macs": "multiply-adds", "bytes": "bytes"}


class Offer(NamedTuple):
    """The options to choose from, and what the dense network costs in all that may be limited."""

    ladders: list[Ladder]
    dense: dict[str, int]
    options: Options

    @classmethod
    def of(cls, options: Options) -> "Offer":
        """All that cost less than dense."""
        dense = {name: getattr(options.dense, name) for name in LIMITED}
        return cls([ladder.cheaper() for ladder in options.ladders], dense, options)

    @classmethod
    def timed(cls, options: Options, clock: Clock) -> "Offer":
        """Those with their times, which are a cost too; with the guard only those that are faster as well."""
        return cls(clock.ladders(), {**cls.of(options).dense, "ns": clock.start_ns}, options)


class Choice(NamedTuple):
    """Steps, and the sum of their prices."""

    steps: list[Step]
    price: float


def chosen(offer: Offer, limits: Mapping[str, float], price: Callable[["Pool"], NDArray[np.float64]]) -> Choice:
    """The steps within the limits whose summed price is least; a layer that stays dense has none."""
    columns = [[*offer.dense].index(name) for name in limits]
    dense = [offer.dense[name] for name in limits]
    room = [int(limit) - cost for limit, cost in zip(limits.values(), dense, strict=True)]  # of change, so negative
    ladders = offer.ladders
    # Options closer to each other than this in cost are thinned out; hundreds of layers still fill the limit.
    spacing = np.array([limit * 1e-3 for limit in limits.values()])
    names = sorted({name for ladder in ladders for name in ladder.candidate.site.layers})
    choices = [Option(frozenset([name]), (0,) * len(columns), 0.0) for name in names]
    origins: list[tuple[Pool, int] | None] = [None] * len(choices)
    for pool in pooled(ladders):
        costs, prices = pool.costs[:, columns], price(pool)
        for index in worthwhile(costs.astype(np.float64), prices, spacing):
            change = tuple(int(cost) for cost in costs[index])
            choices.append(Option(frozenset(pool.layers), change, float(prices[index])))
            origins.append((pool, index))
    try:
        picks = allocate(choices, room) if choices else _nothing(room)
    except UnreachableError as error:
        raise unreachable(offer.options, limits, dense, error.least) from None
    steps = [origin[0].step(origin[1]) for pick in picks if (origin := origins[pick]) is not None]
    return Choice(steps, sum(choices[pick].error for pick in picks))


class Pool:
    """The options of all ladders for the same layers, in one table."""

    def __init__(self, ladders: Sequence[Ladder]) -> None:
        self.layers = ladders[0].candidate.site.layers
        self.moves = ladders[0].moves
        self.costs = np.concatenate([ladder.costs for ladder in ladders])
        self.worst = np.concatenate([ladder.errors.max(1, initial=0) for ladder in ladders])  # of any of the layers
        self.errors = np.concatenate([ladder.errors for ladder in ladders])
        self._ladders = ladders
        self._starts = np.cumsum([0] + [len(ladder.errors) for ladder in ladders])

    def step(self, index: int) -> Step:
        """One option, as a step of a plan."""
        which = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._ladders[which].step(index - int(self._starts[which]))


def pooled(ladders: Iterable[Ladder]) -> list[Pool]:
    """The options of each set of layers whose errors are known, where there are any."""
    groups: dict[tuple[str, ...], list[Ladder]] = {}
    for ladder in ladders:
        groups.setdefault(ladder.candidate.site.layers, []).append(ladder.known())
    return [pool for group in groups.values() if len((pool := Pool(group)).errors)]


def _nothing(room: Sequence[int]) -> list[int]:
    if min(room) < 0:
        raise UnreachableError((0,) * len(room))
    return []


def unreachable(
    options: Options, limits: Mapping[str, float], dense: Sequence[int], least: Sequence[int]
) -> TenfoldError:
    """The refusal of limits, with the least that could be reached, and the largest of what is in the way."""
    asked = " and ".join(_amount(name, limit) for name, limit in limits.items())
    reached = [_amount(name, cost + change) for name, cost, change in zip(limits, dense, least, strict=True)]
    whole = " and ".join(_amount(name, cost).partition(" ")[0] for name, cost in zip(limits, dense, strict=True))
    return TenfoldError(
        f"the budget is {asked}; these methods reach {' and '.join(reached)} at least (dense: {whole}). "
        f"Raise it, add a method, or unfreeze a layer.{_in_the_way(options)}"
    )


def _in_the_way(options: Options) -> str:
    """The largest layers that must stay as they are, and why."""
    held = {name: int(cost[0]) for name, cost in options.dense_costs.items() if options.obstacle(name)}
    largest = [name for name in sorted(held, key=lambda name: -held[name])[:_SHOWN] if held[name]]
    if not largest:
        return ""
    named = [f"{name or 'the model itself'} ({held[name]:,}: {options.obstacle(name)})" for name in largest]
    return f" The largest layers that must stay as they are, in parameters: {'; '.join(named)}."


def _amount(name: str, number: float) -> str:
    return f"{number / 1e6:.4g} milliseconds" if name == "ns" else f"{int(number):,} {UNITS[name]}"
