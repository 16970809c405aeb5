"""The budget: one global choice over every layer, method and rank."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold._allocate import Option, UnreachableError, allocate, worthwhile
from tenfold._candidates import Ladder, Options, Target
from tenfold._cost import LIMITED
from tenfold._errors import TenfoldError
from tenfold._plan import Step

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

    def weighed(self, errors: NDArray[np.float64], moves: float | None) -> NDArray[np.float64]:
        """What the choice adds up over layers, of each relative squared error e.

        By the weights alone, noise over signal: e / (1 - e). With statistics, the geometric mean of that and of m e,
        what moves in the outputs (m where the layer is lost): sqrt(m) e / sqrt(1 - e). Against sums of e or of m e,
        both keep the choice from ruining few layers to spare the rest.
        """
        kept = np.maximum(1 - errors, 1e-3)
        return errors / kept if moves is None else moves**0.5 * errors / kept**0.5

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
        origins: list[tuple[Pool, int] | None] = [None] * len(choices)
        for pool in pooled(ladders):
            costs = pool.costs[:, columns]
            errors = self.weighed(pool.errors, pool.moves)
            for index in worthwhile(costs.astype(np.float64), errors, spacing):
                change = tuple(int(cost) for cost in costs[index])
                choices.append(Option(frozenset(pool.layers), change, float(errors[index])))
                origins.append((pool, index))
        try:
            picks = allocate(choices, room) if choices else _nothing(room)
        except UnreachableError as error:
            raise unreachable(limits, dense, error.least) from None
        return [origin[0].step(origin[1]) for pick in picks if (origin := origins[pick]) is not None]


class Pool:
    """The options of all ladders for the same layers, in one table."""

    def __init__(self, ladders: Sequence[Ladder]) -> None:
        self.layers = ladders[0].candidate.site.layers
        self.moves = ladders[0].moves
        self.costs = np.concatenate([ladder.costs for ladder in ladders])
        self.errors = np.concatenate([ladder.errors for ladder in ladders])
        self._ladders = ladders
        self._starts = np.cumsum([0] + [len(ladder.errors) for ladder in ladders])

    def step(self, index: int) -> Step:
        """One option, as a step of a plan."""
        which = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._ladders[which].step(index - int(self._starts[which]))


def pooled(ladders: Iterable[Ladder]) -> list[Pool]:
    """The options of each set of layers, where there are any."""
    groups: dict[tuple[str, ...], list[Ladder]] = {}
    for ladder in ladders:
        groups.setdefault(ladder.candidate.site.layers, []).append(ladder)
    return [pool for group in groups.values() if len((pool := Pool(group)).errors)]


def _nothing(room: Sequence[int]) -> list[int]:
    if min(room) < 0:
        raise UnreachableError((0,) * len(room))
    return []


def unreachable(limits: Mapping[str, int], dense: Sequence[int], least: Sequence[int]) -> TenfoldError:
    """The refusal of limits, with the least that could be reached."""
    asked = " and ".join(f"{limit:,} {_UNITS[name]}" for name, limit in limits.items())
    reached = " and ".join(
        f"{cost + change:,} {_UNITS[name]}" for name, cost, change in zip(limits, dense, least, strict=True)
    )
    whole = " and ".join(f"{cost:,}" for cost in dense)
    return TenfoldError(
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
