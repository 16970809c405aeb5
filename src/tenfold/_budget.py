"""The budget: one global choice over every layer, method and rank."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tenfold._candidates import Options, Target
from tenfold._choice import UNITS, Choice, Offer, chosen, unreachable
from tenfold._cost import LIMITED, PARAMS
from tenfold._errors import TenfoldError, TenfoldWarning
from tenfold._judge import Judge, Trial
from tenfold._plan import Step, is_number
from tenfold._pruning import Pruning
from tenfold._search import smallest
from tenfold._timed import Clock

log = logging.getLogger("tenfold")

_MARGIN = 0.05  # of what has to be saved: over the last of it, prices are compared
_NOISE = 0.03  # of the dense time
_NEAR = 0.94  # of a limit of time, that is used well enough
_STEP = 0.01  # of a limit of time: the least correction of what exceeds it
_TRIALS = 5  # of whole networks
_ROUNDS = 10  # of choices, until all of one are measured


@dataclass(frozen=True)
class Budget(Target):
    """Limits on the whole model: a float in (0, 1] is a share of the dense model, an int is absolute.

    All layers, methods and ranks compete at once, dense included: the sum of errors is least, no limit is
    exceeded, and no layer costs more than it did in parameters, multiply-adds or bytes.

    Times are those of the whole network in the engine of the options: of layers as they are measured, then corrected
    by the measured network. With the guard, no layer takes more time than it did, and the network does not either.

    With `max_drop`, the fewest parameters within the limits, if there are any, at which the metric falls by no more,
    in the unit of what `evaluate` returns. Up to eight networks are made and evaluated to find them.

    Raises:
        TenfoldError: for a budget without limits, and for a limit that is no share and no number of its kind.
    """

    params: float | int | None = None
    macs: float | int | None = None  # multiply-adds of one run of the example
    bytes: float | int | None = None  # of all parameters and buffers
    latency: float | None = None  # time of one run of the example, a share of that of the dense network
    latency_ms: float | None = None
    max_drop: float | None = None
    prunes: ClassVar[bool] = True
    guards: ClassVar[bool] = True

    def __post_init__(self) -> None:
        limits = {name: getattr(self, name) for name in LIMITED}
        times = (self.latency, self.latency_ms)
        if self.max_drop is None and all(limit is None for limit in [*limits.values(), *times]):
            raise TenfoldError("the budget has no limit; give one, such as Budget(params=0.5).")
        for name, limit in limits.items():
            if limit is not None:
                _check_limit(name, limit)
        if self.latency is not None and not (isinstance(self.latency, float) and 0 < self.latency <= 1):
            raise TenfoldError(f"Budget(latency={self.latency!r}): a share of the dense time is a float in (0, 1].")
        if self.latency_ms is not None and not (is_number(self.latency_ms) and 0 < self.latency_ms < inf):
            raise TenfoldError(f"Budget(latency_ms={self.latency_ms!r}): it is a number of milliseconds above 0.")
        if self.max_drop is not None and not (is_number(self.max_drop) and 0 <= self.max_drop < inf):
            raise TenfoldError(f"Budget(max_drop={self.max_drop!r}): the drop of the metric is a number, 0 or more.")

    @property
    def needs_evaluate(self) -> bool:
        return self.max_drop is not None

    @property
    def is_timed(self) -> bool:
        return self.latency is not None or self.latency_ms is not None

    def limits(self, options: Options) -> dict[str, int]:
        """The limits that are set, as absolute numbers."""
        given = {name: getattr(self, name) for name in LIMITED}
        return {
            name: int(limit * getattr(options.dense, name)) if isinstance(limit, float) else int(limit)
            for name, limit in given.items()
            if limit is not None
        }

    def weighed(self, errors: NDArray[np.float64], moves: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """What the choice adds up over layers, of each relative squared error e `(options, layers)`.

        By the weights alone, noise over signal: e / (1 - e). With statistics, the geometric mean of that and of m e,
        what moves in the outputs (m where the layer is lost): sqrt(m) e / sqrt(1 - e). Against sums of e or of m e,
        both keep the choice from ruining few layers to spare the rest.
        """
        kept = np.maximum(1 - errors, 1e-3)
        return errors / kept if moves is None else moves**0.5 * errors / kept**0.5

    def steps(self, options: Options) -> list[Step]:
        if self._takes_time(options):
            return self._timed(options, Clock(options))
        return self._within(options, self.limits(options))

    def channels_last(self, options: Options) -> bool:
        return self._takes_time(options) and Clock(options).channels_last

    def _takes_time(self, options: Options) -> bool:
        return self.is_timed or options.guard

    def _timed(self, options: Options, clock: Clock) -> list[Step]:
        """The steps whose network, timed as a whole, keeps the limits; what the sum of parts got wrong is corrected."""
        limits, best, removals = dict[str, float](self.limits(options)), None, None
        asked = most = self._time_share(clock)
        for trial in range(_TRIALS):
            try:
                if self.is_timed or trial:  # the guard alone asks no more of the parts at first
                    limits["ns"] = clock.nanoseconds(asked)
                steps = self._within(options, limits, clock, removals)
            except TenfoldError:
                if not trial:
                    raise
                break  # the parts cannot be as much faster as the whole would need
            if not (clock.is_here and steps):
                return steps
            measured, predicted = self._measured(clock, steps, most)
            fits = measured <= _enough(most)
            if fits and (best is None or measured > best[0]):
                best = measured, steps
            if fits and (most == 1 or measured >= _NEAR * most):
                break
            asked = asked + most - measured if fits else min(asked, predicted) - max(measured - most, _STEP * most)
            if options.candidates:  # which would have to be found anew for other removals
                removals = [step for step in steps if step.links]
        if best is None:
            raise TenfoldError(
                f"the network takes {measured:.3f} of the dense time where {most:.3f} is asked, and it cannot be "
                "corrected further. Raise the limits, or add a method."
            )
        return best[1]

    def _measured(self, clock: Clock, steps: Sequence[Step], most: float) -> tuple[float, float]:
        """The network's share of the dense time, and what its parts say.

        What fits has to fit twice, or of several trials luck would choose.
        """
        plan = clock.plan(steps)
        measured = clock.share(plan)
        if measured <= _enough(most):
            measured = clock.share(plan, again=True)
        predicted = clock.predicted(plan)
        assert predicted is not None, "this machine measures"
        log.info("timed: %.3f of the dense time, %.3f by its parts", measured, predicted)
        return measured, predicted

    def _within(
        self,
        options: Options,
        limits: Mapping[str, float],
        clock: Clock | None = None,
        removals: list[Step] | None = None,
    ) -> list[Step]:
        """The steps within the limits; those that remove filters may be given."""
        if removals is not None:
            return [*removals, *self._left(options, limits, clock, removals).steps]
        pruning = options.pruning if clock is None else clock.pruning
        if pruning is None:
            return self._factorised(options, limits, clock).steps
        return self._pruned_first(options, pruning, limits, clock)

    def _factorised(self, options: Options, limits: Mapping[str, float], clock: Clock | None = None) -> Choice:
        """The choice of factors alone; where times count, by those measured for exactly what it chooses."""
        for _ in range(_ROUNDS):
            offer = Offer.of(options) if clock is None else Offer.timed(options, clock)
            choice = chosen(offer, limits, lambda pool: self.weighed(pool.errors, pool.moves).sum(1))
            if clock is None or not clock.exactly(choice.steps):
                break
        return choice

    def _left(
        self, options: Options, limits: Mapping[str, float], clock: Clock | None, removals: Sequence[Step]
    ) -> Choice:
        """The choice of factors for what filter removal leaves."""
        if not (removals and options.candidates):
            return self._factorised(options, limits, clock) if options.candidates else Choice([], 0.0)
        rest = None if clock is None else clock.without(removals)
        return self._factorised(options.without(removals), limits, rest)

    def _pruned_first(
        self, options: Options, pruning: Pruning, limits: Mapping[str, float], clock: Clock | None
    ) -> list[Step]:
        """Filters go as long as they cost less for what they save than the last of the other options would.

        By the weights alone, prices of filters and of factors do not compare: then only filters go that cost nothing.
        """
        prices = [self.weighed(each.errors, each.moves).sum(1) for each in (options.pruning or pruning).rankings]
        dense = {name: getattr(options.dense, name) for name in LIMITED}
        dense |= {} if clock is None else {"ns": clock.start_ns}
        room = {name: int(limit) - dense[name] for name, limit in limits.items()}
        alone, dearest = None, np.inf
        if options.candidates:
            try:
                alone = self._factorised(options, limits, clock)
                dearest = 0.0 if options.statistics is None else self._last_price(options, limits, room, alone, clock)
            except TenfoldError:
                if not pruning.groups:
                    raise  # else filters may reach what the others do not
        gone = pruning.without(prices, room, dearest)
        if gone is None and alone is None:
            raise unreachable(options, limits, [dense[name] for name in limits], pruning.least(limits))
        if alone is not None and (gone is None or not gone.any()):
            return alone.steps
        assert gone is not None, "what neither reaches is refused"
        removals = pruning.steps(gone)
        rest = self._left(options, limits, clock, removals)
        price = sum(float(price[count]) for price, count in zip(prices, gone, strict=True)) + rest.price
        return [*removals, *rest.steps] if alone is None or price < alone.price else alone.steps

    def _last_price(
        self,
        options: Options,
        limits: Mapping[str, float],
        room: Mapping[str, int],
        alone: Choice,
        clock: Clock | None,
    ) -> float:
        """What the last of the savings costs, for all of them."""
        wider = {name: limit - _MARGIN * min(room[name], 0) for name, limit in limits.items()}
        saving = sum(room[name] < 0 for name in limits)
        return (alone.price - self._factorised(options, wider, clock).price) / (_MARGIN * max(saving, 1))

    def searched(self, options: Options, judge: Judge) -> list[Step]:
        if self.max_drop is None:
            return self.steps(options)
        clock = Clock(options) if self._takes_time(options) else None
        limits, most, drop = self.limits(options), options.dense.params, 0.0
        if clock is not None:
            limits |= {"ns": clock.nanoseconds(self._time_share(clock))} if self.is_timed else {}
        best: list[Step] = []
        if limits:
            best = self._within(options, limits, clock)
            most, drop = self._allowed(judge(options.ordered(best)))
        offer = Offer.of(options) if clock is None else Offer.timed(options, clock)
        least = self._fewest(options, offer, limits or {"params": 2 * most})

        def at(params: int) -> list[Step]:
            return self._within(options, {**limits, "params": params}, clock)

        found = smallest(lambda size: -judge(options.ordered(at(size))).change, least, most, drop, self.max_drop)
        best = best if found is None else at(found)
        judge.warn(options.ordered(best), self.max_drop)
        if clock is not None:
            self._warn_if_slow(clock, best)
        return best

    def _time_share(self, clock: Clock) -> float:
        return min(self.latency or 1.0, (self.latency_ms or np.inf) / clock.dense_ms)

    def _warn_if_slow(self, clock: Clock, steps: Sequence[Step]) -> None:
        """Of a network that a metric chose, time is not corrected any more."""
        measured, most = clock.network(clock.plan(steps)).measured, self._time_share(clock)
        if measured is not None and measured > most + _NOISE:
            text = (
                f"the network takes {measured:.3f} of the dense time, {most:.3f} was asked; give its size as a limit."
            )
            warnings.warn(text, TenfoldWarning, stacklevel=4)

    def _fewest(self, options: Options, offer: Offer, limits: Mapping[str, int]) -> int:
        if options.pruning is not None and not options.candidates:
            return options.dense.params + options.pruning.least(["params"])[0]
        fewest = chosen(offer, limits, lambda pool: pool.costs[:, PARAMS].astype(np.float64))
        return int(options.predicted(fewest.steps)[PARAMS])

    def _allowed(self, trial: Trial) -> tuple[int, float]:
        """The size and drop of what the limits alone give."""
        assert self.max_drop is not None
        if -trial.change > self.max_drop:
            raise TenfoldError(
                f"within the limits the metric falls by {-trial.change:.4g}, and max_drop is {self.max_drop:g}; "
                "raise the limits, or allow more."
            )
        return trial.params, -trial.change


def _enough(most: float) -> float:
    """The share of the dense time that keeps a limit; noise may exceed the guard."""
    return most + (_NOISE if most == 1 else 0)


def _check_limit(name: str, limit: Any) -> None:
    if isinstance(limit, float) and 0 < limit <= 1:
        return
    if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0:
        return
    raise TenfoldError(
        f"Budget({name}={limit!r}): a limit is a float in (0, 1], a share of the dense model, or a whole number "
        f"above 0 of {UNITS[name]}."
    )
