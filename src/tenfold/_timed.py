"""What options and whole networks take in time: measured, interpolated between few ranks, and corrected."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from math import inf, isfinite
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tenfold._apply import skeleton
from tenfold._candidate import Candidate
from tenfold._candidates import Ladder, Options
from tenfold._cost import MACS, PARAMS
from tenfold._data import example_inputs
from tenfold._engines import runner
from tenfold._errors import TenfoldError
from tenfold._layers import channels, groups, is_pointwise, stores_channels_last
from tenfold._plan import Plan, Rank, Record, Step
from tenfold._progress import track
from tenfold._pruning import Pruning
from tenfold._resume import tensors_by_name
from tenfold._run import copied, device_of, same_draws
from tenfold._times import Conditions, Piece, Profile, Times, draw

FASTER = 0.97  # of the time: what counts as faster
_POINTS = 6  # ranks of a ladder that are measured at first
_SLOW = "no option is measurably faster than it is"
_NS = 1e6  # nanoseconds of a millisecond


class Timed(Record):
    """Times of the dense and of the small network, measured side by side, and what the sum of parts had said."""

    conditions: Conditions
    dense_ms: float
    small_ms: float | None  # None where it cannot be measured here
    predicted: float | None  # small / dense

    @property
    def measured(self) -> float | None:
        """Small / dense."""
        return None if self.small_ms is None else self.small_ms / self.dense_ms


@dataclass(frozen=True, eq=False)
class Clock:
    """Times of a model's options, and of networks made of them, under the conditions of this process."""

    options: Options
    elsewhere: bool = False  # for a kit: nothing is measured here
    _asked: list[Step] = field(default_factory=list)  # to be measured besides those that every ladder starts with
    _sure: list[Step] = field(default_factory=list)  # that were chosen, and then measured
    _rests: dict[tuple[Step, ...], "Clock"] = field(default_factory=dict)

    @cached_property
    def times(self) -> Times | Profile:
        """Of layers."""
        engine = self.options.engine
        return engine if isinstance(engine, Profile) else Times(engine, device_of(self.options.model))

    @property
    def is_here(self) -> bool:
        """Whether times are those of this machine, on which more can be measured."""
        return not self.elsewhere and isinstance(self.times, Times)

    @cached_property
    def dense_ms(self) -> float:
        """The time of the whole dense network, as it is."""
        return self.times.whole_ms if isinstance(self.times, Profile) else self._measured(Plan())[0]

    def nanoseconds(self, share: float = 1.0) -> int:
        """A share of the time of the whole dense network, as costs are counted."""
        return int(share * self.dense_ms * _NS)

    @cached_property
    def channels_last(self) -> bool:
        """Whether kernels of two axes are to be stored channels last because the dense network is faster so."""
        may = any(weight.dim() == 4 for weight in self._weights) and not self._stores_last_already
        if not (may and self.is_here) or self.times.conditions.engine == "onnxruntime":
            return False
        return self.share(Plan(channels_last=True)) < FASTER

    @cached_property
    def start_ms(self) -> float:
        """The time of the dense network in the memory format that is chosen: what the parts are taken from."""
        return self.dense_ms * (self.share(Plan(channels_last=True)) if self.channels_last else 1.0)

    @property
    def start_ns(self) -> int:
        """The same, as costs are counted."""
        return int(self.start_ms * _NS)

    def pieces(self) -> Iterator[tuple[Piece, list[Piece]]]:
        """What has to be timed at first: of each candidate the dense layers, and options along its ladder."""
        for ladder in self.options.ladders:
            cheap = ladder.cheaper()
            if len(cheap.ranks):
                options = [self._piece(ladder.candidate, cheap.ranks[place]) for place in self._places(cheap)]
                yield self._dense(ladder.candidate.site.layers), options

    def ladders(self) -> list[Ladder]:
        """The options that cost less than dense; with the guard, those of them that are faster, too.

        Their times, in nanoseconds, are a cost behind those of LIMITED; options whose times are not known are left out.
        """
        forms = chain.from_iterable(map(self._forms, self.options.ladders))
        cheap = [ladder for each in forms if len((ladder := each.cheaper()).ranks)]
        every = [self._with_times(ladder) for ladder in track(cheap, "times")]
        fast = [ladder.only(ladder.costs[:, -1] <= (FASTER - 1) * ladder.dense[-1]) for ladder in every]
        tried, faster = _layers(every), _layers(ladder for ladder in fast if len(ladder.ranks))
        self.options.slow.clear()
        self.options.slow.update(dict.fromkeys(sorted(tried - faster), _SLOW))
        return fast if self.options.guard else every

    def _forms(self, ladder: Ladder) -> Iterator[Ladder]:
        """The options as they are; and of compiled matrices in the row gauge: elsewhere its gather takes too long."""
        yield ladder
        layer, method = ladder.candidate.site.modules[0], ladder.candidate.method
        compiled = self.is_here and self.times.conditions.engine == "compile"
        if compiled and "gauge" in method.forms and is_pointwise(layer):
            below = ladder.ranks[:, 0] < channels(layer)[1] // groups(layer)
            candidate, ranks = replace(ladder.candidate, form="gauge"), ladder.ranks[below]
            costs = self.options.change(candidate, ranks)
            yield replace(ladder, candidate=candidate, ranks=ranks, errors=ladder.errors[below], costs=costs)

    @cached_property
    def pruning(self) -> Pruning | None:
        """What filters can be removed, with the times of layers, and the multiple of filters that they like."""
        pruning = self.options.pruning
        if pruning is None:
            return None
        if not self.is_here:
            raise TenfoldError(
                "a profile does not tell what a network takes without some of its filters; leave FilterPruning out, "
                "or plan on the machine itself."
            )
        return pruning.timed(self._in_place_of)

    def _in_place_of(self, name: str, others: Sequence[nn.Module]) -> tuple[float, list[float]]:
        """Milliseconds of a layer, and of others that are given what it is given."""
        return self.times.of(self._dense([name]), [self._of((other,), [name]) for other in others])

    def without(self, removals: Sequence[Step]) -> "Clock":
        """That of the network which these steps leave."""
        if not removals:
            return self
        options, key = self.options.without(removals), tuple(removals)
        if key not in self._rests:
            self._rests[key] = Clock(options)
        return self._rests[key]

    def predicted(self, plan: Plan) -> float | None:
        """The time of the network over that of the dense one, by its parts; None for filters of other options."""
        removals = [step for step in plan.steps if step.links]
        rest = [step for step in plan.steps if not step.links]
        saved = (self.dense_ms - self.start_ms) if plan.channels_last else 0.0
        if removals:
            if not self.is_here or self.pruning is None:
                return None
            saved -= int(self.pruning.change(self.pruning.gone(removals))[-1]) / _NS
        clock = self.without(removals) if rest else self
        return 1 - (saved + sum(clock.saved_ms(step) for step in rest)) / self.dense_ms

    def saved_ms(self, step: Step) -> float:
        """By how much a step is faster than its dense layers."""
        if not self.is_here:
            return self._interpolated_saving(step)
        before, (after,) = self.times.of(
            self._dense(step.layers), [self._piece(self.options.candidate(step), step.rank)]
        )
        return before - after

    def _interpolated_saving(self, step: Step) -> float:
        """The same where it cannot be measured."""
        for ladder in self.options.ladders:
            if _is_of(step, ladder.candidate):
                timed = self._with_times(ladder.cheaper())
                place = (timed.ranks == np.array(step.rank)).all(1).argmax()
                return -float(timed.costs[place, -1]) / _NS
        raise TenfoldError(f"the profile says nothing of {step.layers[0]} by {step.method.name}.")

    def exactly(self, steps: Sequence[Step]) -> bool:
        """From now on, take these options as they are measured after this choice; whether any was not so far.

        With them the nearest ranks that processors may like: their kernels take channels by eights or sixteens.
        """
        if not isinstance(self.times, Times) or not self.is_here:
            return False
        new = [step for step in steps if step not in self._sure]
        for step in new:
            self.times.surely(self._dense(step.layers), self._piece(self.options.candidate(step), step.rank))
            self._asked.extend(step.model_copy(update={"rank": rank}) for rank in (step.rank, *_liked(step.rank)))
        self._sure.extend(new)
        return bool(new)

    def plan(self, steps: Sequence[Step]) -> Plan:
        """These steps, in the memory format that is chosen."""
        return self.options.ordered(steps).model_copy(update={"channels_last": self.channels_last})

    def share(self, plan: Plan, *, again: bool = False) -> float:
        """The time of the network of this plan over that of the dense one; `again` from a second measurement."""
        dense_ms, small_ms = self._measured(plan, again=again)
        return small_ms / dense_ms

    def network(self, plan: Plan, small: nn.Module | None = None) -> Timed:
        """The network of this plan beside the dense one; with drawn factors, unless it is there already."""
        conditions, predicted = self.times.conditions, self.predicted(plan)
        if not self.is_here:
            return Timed(conditions=conditions, dense_ms=self.dense_ms, small_ms=None, predicted=predicted)
        dense_ms, small_ms = self._measured(plan) if small is None else self.compared(small)
        return Timed(conditions=conditions, dense_ms=dense_ms, small_ms=small_ms, predicted=predicted)

    def _measured(self, plan: Plan, *, again: bool = False) -> tuple[float, float]:
        """Milliseconds of the dense network and of that of the plan, whose values are drawn; once, and kept."""
        assert isinstance(self.times, Times), "this machine measures"
        seen = [(name, repr(layer.calls)) for name, layer in self.options.graph.layers.items()]
        device, inputs = str(device_of(self.options.model)), example_inputs(self.options.example).describe()
        made = plan.model_copy(update={"fingerprint": self.options.fingerprint}).dumps()
        key = hashlib.sha256(repr((made, seen, inputs, device)).encode()).hexdigest()[:24] + "-again" * again
        return self.times.network(key, lambda: self.compared(self.drawn(plan)))

    def compared(self, small: nn.Module) -> tuple[float, float]:
        """Milliseconds of the dense network and of another, side by side."""
        assert isinstance(self.times, Times), "this machine measures"
        inputs = example_inputs(self.options.example)
        with same_draws():
            runs = [
                runner(self.times.conditions.engine, copied(model), inputs) for model in (self.options.model, small)
            ]
            dense_ms, small_ms = self.times.paced(runs, rounds=11, sure=0.01)
        return dense_ms, small_ms

    def drawn(self, plan: Plan) -> nn.Module:
        """The network of a plan, with values that are drawn where they are not those of the dense one."""
        dense = self.options.model
        new, known = skeleton(dense, plan), tensors_by_name(dense)
        draw(new, torch.Generator(device_of(dense)).manual_seed(0))
        with torch.no_grad():
            for name, tensor in tensors_by_name(new).items():
                if name in known and known[name].shape == tensor.shape:
                    tensor.copy_(known[name])
        return new

    def _with_times(self, ladder: Ladder) -> Ladder:
        dense_ms, each_ms = self._interpolated(ladder)
        known = np.isfinite(each_ms)
        changes = ((each_ms[known] - dense_ms) * _NS).round().astype(np.int64)
        dense, those = np.append(ladder.dense, int(dense_ms * _NS)), ladder.only(known)
        return replace(those, costs=np.column_stack([those.costs, changes]), dense=dense)

    def _interpolated(self, ladder: Ladder) -> tuple[float, NDArray[np.float64]]:
        """Of every option, between those measured, by multiply-adds, or by parameters where there are none.

        Infinite where none was measured.
        """
        candidate, size, places = ladder.candidate, _size(ladder), self._places(ladder)
        pieces = [self._piece(candidate, ladder.ranks[number]) for number in places]
        dense_ms, found = self.times.of(self._dense(candidate.site.layers), pieces)
        known = [(place, ms) for place, ms in zip(places, found, strict=True) if isfinite(ms)]
        if not known:  # no plain layers, which the kit of another machine left out
            return dense_ms, np.full(len(size), inf)
        where, taken = [place for place, _ in known], [ms for _, ms in known]
        each_ms = np.interp(size, size[where], taken)
        each_ms[where] = taken  # also where two ranks have the same size
        return dense_ms, each_ms

    def _places(self, ladder: Ladder) -> list[int]:
        """Which options are measured, the cheapest first."""
        size = _size(ladder)
        spread = np.geomspace(max(size.min(), 1), max(size.max(), 1), _POINTS)
        exact = {step.rank for step in self._asked if _is_of(step, ladder.candidate)}
        taken = {int(np.abs(size - wanted).argmin()) for wanted in spread}
        taken |= {number for number, rank in enumerate(ladder.ranks.tolist()) if tuple(rank) in exact}
        return sorted(taken, key=lambda number: (size[number], number))

    def _piece(self, candidate: Candidate, rank: Rank | NDArray[np.int64]) -> Piece:
        return self._of(candidate.skeleton(rank), candidate.site.layers)

    def _dense(self, names: Sequence[str]) -> Piece:
        return self._of(tuple(self.options.graph.layers[name].module for name in names), names)

    def _of(self, modules: Sequence[nn.Module], names: Sequence[str]) -> Piece:
        layers = [self.options.graph.layers[name] for name in names]
        weight: Any = layers[0].module.weight
        return Piece(tuple(modules), tuple(layer.calls for layer in layers), weight, self._stores_last)

    @cached_property
    def _stores_last(self) -> bool:
        """Whether the network that is planned stores its kernels channels last, by choice or as the dense one does."""
        return self.channels_last or self._stores_last_already

    @property
    def _stores_last_already(self) -> bool:
        return any(stores_channels_last(weight) for weight in self._weights)

    @property
    def _weights(self) -> list[Tensor]:
        return [parameter for layer in self.options.graph.layers.values() for parameter in layer.module.parameters()]


def _is_of(step: Step, candidate: Candidate) -> bool:
    """Whether a step is one of the candidate's options."""
    return step == candidate.step(step.rank)


def _liked(rank: Rank) -> list[Rank]:
    """The ranks below and above whose entries are all multiples of 8, or of 16."""
    ranks = []
    for multiple in (8, 16):
        below = tuple(max(multiple, entry // multiple * multiple) for entry in rank)
        ranks += [below, tuple(-(-entry // multiple) * multiple for entry in rank)]
    return ranks


def _size(ladder: Ladder) -> NDArray[np.float64]:
    """What times go by between options that are measured: multiply-adds, or parameters where there are none."""
    counted = MACS if ladder.dense[MACS] else PARAMS
    return (ladder.costs[:, counted] + ladder.dense[counted]).astype(np.float64)


def _layers(ladders: Iterable[Ladder]) -> set[str]:
    return {name for ladder in ladders for name in ladder.candidate.site.layers}
