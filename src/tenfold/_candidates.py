"""Every option of every layer: its cost and its error. Made once for a model, good for any number of targets."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tenfold._apply import apply, taken
from tenfold._candidate import Candidate, cheaper
from tenfold._cost import LIMITED, Cost, layers_cost, measure, own_cost
from tenfold._data import example_inputs
from tenfold._engines import Engine, check_engine
from tenfold._errors import TenfoldError
from tenfold._fit import Seen, kept_curve
from tenfold._judge import Evaluate, Judge, check_callable
from tenfold._layers import LAYERS, full_name, kind
from tenfold._method import Curve, Method, Site
from tenfold._plan import Fingerprint, Plan, Step
from tenfold._pruning import Pruning
from tenfold._run import copied, trainable, unwrapped
from tenfold._statistics import Statistics
from tenfold._times import Profile
from tenfold._trace import Call, Graph, trace
from tenfold._workers import each
from tenfold.methods import DEFAULT, FilterPruning, find


@dataclass(frozen=True, eq=False)
class Ladder:
    """The options of a candidate: for each rank its error, and its cost less the cost of the dense layers."""

    candidate: Candidate
    ranks: NDArray[np.int64]  # (options, entries)
    errors: NDArray[np.float64]  # (options, layers), squared, relative to losing the layer altogether
    costs: NDArray[np.int64]  # (options, 3), change against dense, in the order of LIMITED
    dense: NDArray[np.int64]  # (3,), the cost of the dense layers
    moves: NDArray[np.float64] | None = None  # (layers,), in the outputs, were it lost; where statistics tell

    def cheaper(self) -> "Ladder":
        """The options that are `cheaper` than dense."""
        return self.only(cheaper(self.costs, self.dense))

    def known(self) -> "Ladder":
        """The options for which a fit was found, and what it counts."""
        worst: NDArray[np.float64] = (self.errors * (1.0 if self.moves is None else self.moves)).max(axis=1, initial=0)
        return self.only(~np.isnan(worst))

    def only(self, keep: NDArray[np.bool_]) -> "Ladder":
        """Some of the options."""
        return replace(self, ranks=self.ranks[keep], errors=self.errors[keep], costs=self.costs[keep])

    def step(self, index: int) -> Step:
        """One option, as a step of a plan."""
        return self.candidate.step(tuple(int(entry) for entry in self.ranks[index]))


class Target(ABC):
    """What decides the ranks: a budget or a rank rule."""

    prunes: ClassVar[bool] = False  # whether it can decide how many filters stay
    guards: ClassVar[bool] = False  # whether it can leave out what is not faster

    @abstractmethod
    def steps(self, options: "Options") -> list[Step]:
        """The steps that meet this target."""

    @property
    def needs_evaluate(self) -> bool:
        """Whether networks have to be evaluated to find the steps."""
        return False

    @property
    def is_timed(self) -> bool:
        """Whether it limits time."""
        return False

    def channels_last(self, options: "Options") -> bool:  # noqa: ARG002
        """Whether the network is to store its kernels channels last, whatever the dense one does."""
        return False

    def searched(self, options: "Options", judge: Judge) -> list[Step]:  # noqa: ARG002
        """The steps that meet this target, where networks may be evaluated to find them."""
        return self.steps(options)


@dataclass(frozen=True, eq=False)
class Options:
    """All options for one model. `plan(target)` chooses among them; curves are computed once, when first needed."""

    model: nn.Module
    graph: Graph
    dense: Cost
    fingerprint: Fingerprint
    candidates: tuple[Candidate, ...]
    pruning: Pruning | None  # what can be removed before candidates serve what is left
    unserved: dict[str, str]  # layers that nothing serves, and why
    example: Any
    freeze: tuple[str, ...]
    guard: bool
    engine: Engine | Profile
    statistics: Statistics | None = None
    _prices: dict[Any, NDArray[np.int64]] = field(default_factory=dict)
    slow: dict[str, str] = field(default_factory=dict)  # layers that nothing measurably faster may replace, and why
    _rests: dict[tuple[Step, ...], "Options"] = field(default_factory=dict)

    @trainable()
    def plan(self, target: Target, *, evaluate: Evaluate | None = None) -> Plan:
        """Choose the ranks. `evaluate` is needed where the target has a `max_drop`.

        Raises:
            TenfoldError: if the target cannot be reached, with the least that could be.
        """
        check_evaluate(target, evaluate)
        self.slow.clear()
        if self.pruning is not None and not target.prunes:
            what = f"{type(target).__name__} cannot decide how many filters stay"
            raise TenfoldError(f"{what}; use Budget, or leave FilterPruning out.")
        if self.guard and not target.guards:
            raise TenfoldError(f"{type(target).__name__} does not know the guard; use Budget, or leave the guard out.")
        judge = None
        if evaluate is not None and target.needs_evaluate:
            judge = Judge(self.model, evaluate, lambda plan: apply(self.model, plan, self.statistics))
        return self.planned(target, judge)

    def planned(self, target: Target, judge: Judge | None) -> Plan:
        """The plan that meets a target, as the judge finds where it needs one."""
        plan = self.ordered(target.steps(self) if judge is None else target.searched(self, judge))
        return plan.model_copy(update={"channels_last": target.channels_last(self)})

    def ordered(self, steps: Iterable[Step]) -> Plan:
        """The plan of these steps: filters are removed first."""
        order = {name: index for index, name in enumerate(self.graph.layers)}
        placed = sorted(steps, key=lambda step: (not step.links, order[step.layers[0]]))
        return Plan(placed, fingerprint=self.fingerprint)

    def without(self, removals: Sequence[Step]) -> "Options":
        """The options of the network that these steps leave, as the data sees them."""
        key = tuple(removals)
        if key not in self._rests:
            small = copied(self.model)
            told = taken(small, removals, self.statistics)
            methods = [*dict.fromkeys(candidate.method for candidate in self.candidates)]
            self._rests.clear()  # each holds a network
            self._rests[key] = options(
                small,
                example=self.example,
                statistics=told,
                methods=methods,
                freeze=self.freeze,
                guard=self.guard,
                engine=self.engine,
            )
        return self._rests[key]

    @cached_property
    def ladders(self) -> tuple[Ladder, ...]:
        """Error and cost of every option of every candidate."""
        together: dict[tuple[str, ...], list[Candidate]] = {}
        for some in self.candidates:
            together.setdefault(some.site.layers, []).append(some)
        pieces = [
            (group, self.graph.calls_of(layers), self.statistics and self.statistics.of(layers))
            for layers, group in together.items()
        ]
        found: dict[Candidate, Ladder] = {}
        for group, (curves, *whole) in zip(together.values(), each("curves", errors_of, pieces), strict=True):
            found |= {some: self._ladder(some, curve, *whole) for some, curve in zip(group, curves, strict=True)}
        return tuple(found[some] for some in self.candidates)

    @cached_property
    def dense_costs(self) -> dict[str, NDArray[np.int64]]:
        """Parameters, multiply-adds and bytes of every layer as it is; of other modules, what they hold themselves."""
        served = {name for candidate in self.candidates for name in candidate.site.layers}
        return {
            name: layers_cost([layer.module], [layer.calls])
            if name in served or issubclass(kind(layer.module), LAYERS)
            else own_cost(layer.module)
            for name, layer in self.graph.layers.items()
        }

    def dense_cost(self, candidate: Candidate) -> NDArray[np.int64]:
        """The cost of a candidate's layers as they are."""
        return np.sum([self.dense_costs[name] for name in candidate.site.layers], axis=0)

    def change(self, candidate: Candidate, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """The cost of a candidate at each rank, less the cost of the dense layers."""
        layers = [self.graph.layers[name] for name in candidate.site.layers]
        alike = tuple((repr(layer.module), layer.module.weight.dtype, layer.calls) for layer in layers)
        key = (candidate.method, candidate.form, alike, ranks.tobytes())
        if key not in self._prices:  # repeated blocks have the same prices
            self._prices[key] = candidate.priced(self.graph.calls_of(candidate.site.layers), ranks)
        return self._prices[key] - self.dense_cost(candidate)

    def candidate(self, step: Step) -> Candidate:
        """What a step replaces, and by what."""
        site = Site(step.layers, tuple(self.graph.layers[name].module for name in step.layers))
        return Candidate(site, find(step.method), step.form)

    def _costs_of(self, step: Step) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        candidate = self.candidate(step)
        dense = self.dense_cost(candidate)
        return dense, dense + self.change(candidate, np.array([step.rank]))[0]

    def predicted(self, steps: Sequence[Step]) -> NDArray[np.int64]:
        """Parameters, multiply-adds and bytes of the whole network after these steps."""
        whole = np.array([getattr(self.dense, name) for name in LIMITED])
        return whole + sum(after - before for before, after in self.costs(steps))

    def costs(self, steps: Sequence[Step]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """What the layers of each step cost before it and after, filters being removed first."""
        removals = [step for step in steps if step.links]
        if not removals:
            return [self._costs_of(step) for step in steps]
        pruning = self.pruning  # without one, the plan is of other options
        if pruning is None:
            method, inputs = FilterPruning.of(removals[0].method), example_inputs(self.example)
            pruning = Pruning.of(method, self.model, self.graph, inputs, self.statistics)
        rest = [step for step in steps if not step.links]
        return pruning.costs(removals) + (self.without(removals).costs(rest) if rest else [])

    def left_dense(self, plan: Plan) -> dict[str, str]:
        """Every layer that the plan leaves dense, and why."""
        replaced = {name for step in plan.steps for name in step.layers}
        return {
            name: self.obstacle(name) or "the target is met best with this layer as it is"
            for name in self.graph.layers
            if name not in replaced
        }

    def obstacle(self, name: str) -> str | None:
        """Why a layer must stay dense under any budget; None if it need not."""
        if name in self.unserved:
            return self.unserved[name]
        own = [ladder for ladder in self.ladders if name in ladder.candidate.site.layers]
        if name in self.slow:
            return self.slow[name]
        if not own or any(len(ladder.cheaper().ranks) for ladder in own):
            return None
        ladder = min(own, key=lambda ladder: int(ladder.costs[:, 0].min()))
        dense = int(ladder.dense[0])
        least = dense + int(ladder.costs[:, 0].min())
        return f"no rank is cheaper: the least takes {least:,} parameters; dense takes {dense:,}"

    def _ladder(self, candidate: Candidate, curve: Curve, whole: NDArray[np.float64], is_told: bool) -> Ladder:
        errors, changes = curve.errors / np.maximum(whole, 1e-300), self.change(candidate, curve.ranks)
        moves = whole if is_told else None
        return Ladder(candidate, curve.ranks, errors, changes, self.dense_cost(candidate), moves)


def errors_of(
    together: Sequence[Candidate], calls: Sequence[Sequence[Call]], statistics: Statistics | None
) -> tuple[list[Curve], NDArray[np.float64], bool]:
    """The curves of candidates for one site; what it counts to lose each of its layers, and whether in the outputs."""
    site = together[0].site
    seen = Seen.of(site, statistics)
    if seen is not None:
        whole = seen.whole
    else:
        norms = [torch.linalg.vector_norm(module.weight.detach(), dtype=torch.float64) for module in site.modules]
        whole = np.array([float(norm) ** 2 for norm in norms])
    return [kept_curve(some, calls, seen) for some in together], whole, seen is not None


def options(
    model: nn.Module,
    *,
    example: Any,
    statistics: Statistics | None = None,
    methods: Sequence[Method | FilterPruning] | None = None,
    freeze: Iterable[str] = (),
    guard: bool = False,
    engine: Engine | Profile = "eager",
) -> Options:
    """Find every option of a trained model.

    Args:
        model: any network; it is not modified.
        example: a tensor, a tuple (positional arguments) or a dict (keyword arguments), of the batch size and
            shape for which multiply-adds are to be counted.
        statistics: what `calibrate` told, for errors as the data sees them; without it, those of the weights.
        methods: those that compete; by default `tenfold.methods.DEFAULT`, one layer at a time. With `FilterPruning`
            among them, filters are removed first, and the others serve what that leaves.
        freeze: names of layers to leave dense, as shell patterns (`"head.*"`).
        guard: whether only what is measurably faster than its dense layer may replace it.
        engine: where times are measured: "eager", "compile" or "onnxruntime"; or what another machine measured.

    Raises:
        TenfoldError: if the model fails on the example, holds weights that are not finite, or a pattern of
            `freeze` matches no layer.
    """
    engine = engine if isinstance(engine, Profile) else check_engine(engine)
    chosen, removing = _checked(DEFAULT if methods is None else methods)
    model, inputs = unwrapped(model), example_inputs(example)
    _refuse_bad_weights(model)
    if isinstance(freeze, str):
        raise TenfoldError(f'freeze is one string; give a list of patterns: ["{freeze}"].')
    if not isinstance(freeze, Iterable):
        raise TenfoldError(f'freeze is {freeze!r}; give a list of patterns, such as ["head.*"].')
    freeze = tuple(freeze)
    graph = _seen(_frozen(trace(model, inputs), freeze), statistics)
    candidates = _without_twins([Candidate(site, method) for method in chosen for site in method.sites(graph)])
    pruning = None if removing is None else Pruning.of(removing, model, graph, inputs, statistics)
    served, stays = (pruning.served, pruning.reasons) if pruning else (set[str](), {})
    served = served.union(*(candidate.site.layers for candidate in candidates))
    unserved = {
        name: layer.reason or stays.get(name) or f"no chosen method serves {_named(layer.module)}"
        for name, layer in graph.layers.items()
        if name not in served
    }
    dense, made_for = measure(model, example), Fingerprint.of(model)
    return Options(
        *(model, graph, dense, made_for, candidates, pruning, unserved, example, freeze, guard, engine, statistics)
    )


def plan(
    model: nn.Module,
    target: Target,
    *,
    example: Any,
    statistics: Statistics | None = None,
    methods: Sequence[Method | FilterPruning] | None = None,
    freeze: Iterable[str] = (),
    guard: bool = False,
    engine: Engine | Profile = "eager",
    evaluate: Evaluate | None = None,
) -> Plan:
    """`options(model, ...).plan(target, evaluate=evaluate)`, for one target; `options` serves many at little more.

    Raises:
        TenfoldError: as `options` and `Options.plan` do.
    """
    check_evaluate(target, evaluate)
    setting: dict[str, Any] = {"methods": methods, "freeze": freeze, "guard": guard, "engine": engine}
    return options(model, example=example, statistics=statistics, **setting).plan(target, evaluate=evaluate)


def check_evaluate(target: Target, evaluate: Evaluate | None) -> None:
    """Refuse a target that cannot be met without evaluation, and what does not evaluate."""
    if not isinstance(target, Target):
        raise TenfoldError(f"the target is {target!r}; give one such as Budget(params=0.5).")
    if target.needs_evaluate and evaluate is None:
        raise TenfoldError("max_drop needs evaluate: a function of a network that returns a number, higher is better.")
    if evaluate is not None:
        check_callable(evaluate)


def _without_twins(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    # One matrix has one best low-rank fit: where the plain SVD serves a Linear or pointwise layer, the methods that
    # come to the same there, with no fewer parameters, would only repeat its work.
    plain: dict[tuple[str, ...], Candidate] = {}
    for candidate in candidates:
        if candidate.method.name == "svd" and candidate.site.modules[0].weight[0, 0].numel() == 1:
            plain.setdefault(candidate.site.layers, candidate)
    return tuple(
        candidate
        for candidate in candidates
        if not candidate.method.twin_of_svd or plain.get(candidate.site.layers, candidate) is candidate
    )


def _frozen(graph: Graph, patterns: Iterable[str]) -> Graph:
    layers = dict(graph.layers)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TenfoldError(f"freeze pattern {pattern!r} is no string; layers are {_some(layers)}.")
        names = [name for name in layers if fnmatchcase(name, pattern) or name.startswith(pattern + ".")]
        if not names:
            raise TenfoldError(f'freeze pattern "{pattern}" matches no layer; layers are {_some(layers)}.')
        layers.update({name: replace(layers[name], reason=f'frozen by "{pattern}"') for name in names})
    return Graph(layers)


def _seen(graph: Graph, statistics: Statistics | None) -> Graph:
    """The same, in which layers stay dense about which calibration could tell nothing."""
    bad = {name for name, told in statistics.layers.items() if not told.is_finite} if statistics else set[str]()
    reason = "its inputs were NaN or infinite in calibration"
    layers = {
        n: replace(layer, reason=layer.reason or reason) if n in bad else layer for n, layer in graph.layers.items()
    }
    return Graph(layers)


def _checked(methods: Iterable[Method | FilterPruning]) -> tuple[list[Method], FilterPruning | None]:
    """Those that factorise, and the one that removes filters, if there is one."""
    if isinstance(methods, (Method, FilterPruning)):
        raise TenfoldError(f"methods is one method; give a list: [{methods!r}].")
    methods = list(methods)
    if not methods:
        raise TenfoldError("methods is empty; give at least one, such as tenfold.methods.SVD().")
    for method in methods:
        if not isinstance(method, (Method, FilterPruning)):
            raise TenfoldError(f"{method!r} is no method; give instances, such as tenfold.methods.SVD().")
    removing = [method for method in methods if isinstance(method, FilterPruning)]
    if len(removing) > 1:
        raise TenfoldError("FilterPruning stands among the methods more than once; give one.")
    return [method for method in methods if isinstance(method, Method)], removing[0] if removing else None


def _refuse_bad_weights(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise TenfoldError(f"{name} is on the meta device and has no values; load the weights first.")
        if not torch.isfinite(parameter).all():
            bad = int((~torch.isfinite(parameter)).sum())
            raise TenfoldError(
                f"{name} has {bad:,} of {parameter.numel():,} values that are NaN or infinite; "
                "give a model with finite weights."
            )


def _named(module: nn.Module) -> str:
    cls = type(module)
    return cls.__name__ if cls.__module__.startswith("torch.nn.modules.") else full_name(cls)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")
