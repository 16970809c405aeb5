"""The pipeline: options, plan, apply, recover, verify."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from tenfold._apply import apply, skeleton
from tenfold._calibrate import calibrate
from tenfold._candidates import Options, Target, check_evaluate, options
from tenfold._data import example_inputs
from tenfold._engines import Engine, check_engine
from tenfold._errors import TenfoldError
from tenfold._judge import Evaluate, Judge, Trial
from tenfold._method import Method
from tenfold._plan import Plan
from tenfold._predicted import predicted
from tenfold._recover import HOW, recover
from tenfold._resume import remembered, write_text
from tenfold._run import trainable
from tenfold._store import REPORT, save
from tenfold._stream import apply_to, with_weights
from tenfold._timed import Clock
from tenfold._times import Profile
from tenfold._verify import Report, verified
from tenfold.methods import FilterPruning

log = logging.getLogger("tenfold")


@dataclass(frozen=True)
class Result:
    """The smaller model, the plan that made it, and the report that proves it."""

    model: nn.Module
    plan: Plan
    report: Report

    def save(self, folder: str | Path) -> None:
        """Write `model.safetensors`, `plan.json` and `report.json`; see `tenfold.load`."""
        save(folder, self.model, self.plan, self.report)


@trainable()
def compress(
    model: nn.Module,
    target: Target,
    *,
    example: Any,
    calibration: Iterable[Any] | None = None,
    methods: Sequence[Method | FilterPruning] | None = None,
    evaluate: Evaluate | None = None,
    recover: Literal["auto", "refit", "blocks", "none"] = "auto",
    freeze: Iterable[str] = (),
    guard: bool = False,
    engine: Engine | Profile = "eager",
    seed: int = 0,
) -> Result:
    """Make a trained network smaller: calibrate, plan, apply, recover, verify.

    Args:
        model: any network; it is not modified.
        target: a `Budget`, or a rule of ranks such as `Ranks` or `Energy`: any `Target`.
        example: a tensor, a tuple (positional arguments) or a dict (keyword arguments).
        calibration: batches of training data, labels ignored; a list or a DataLoader. With it, errors are those that
            the data sees, and factors are fitted to it; a few hundred examples do.
        methods: those that compete; by default `tenfold.methods.DEFAULT`, one layer at a time. With `FilterPruning`
            among them, filters are removed first, and the others serve what that leaves.
        evaluate: `evaluate(model)` returns a number, or a score for each example whose mean counts; higher is better.
            For the report, and for `Budget(max_drop=...)`, whose networks are judged after recovery.
        recover: how `tenfold.recover` mends the small network with the calibration data: "refit" or "blocks", which
            "auto" takes, or "none".
        freeze: names of layers to leave dense, as shell patterns.
        guard: whether only what is measurably faster than its dense layer may replace it.
        engine: where times are measured, on one run of the example: "eager", "compile" or "onnxruntime"; or what
            another machine measured, see `Profile`.
        seed: of what is drawn at random in calibration and recovery.

    Raises:
        TenfoldError: for every input that cannot be served, before work starts where that can be known.
    """
    check_evaluate(target, evaluate)
    check_recovery(calibration, recover)
    engine = engine if isinstance(engine, Profile) else check_engine(engine)
    statistics = None if calibration is None else calibrate(model, calibration, seed=seed)
    setting: dict[str, Any] = {"methods": methods, "freeze": freeze, "guard": guard, "engine": engine}
    found = options(model, example=example, statistics=statistics, **setting)
    return carry_out(target, found, example=example, calibration=calibration, evaluate=evaluate, how=recover, seed=seed)


def carry_out(
    target: Target | Plan,
    found: Options,
    *,
    example: Any,
    calibration: Iterable[Any] | None = None,
    evaluate: Evaluate | None = None,
    how: str = "auto",
    seed: int = 0,
    command: str | None = None,
) -> Result:
    """The pipeline behind the options: plan, unless a plan is given, apply, recover, verify."""
    with remembered() if _is_searched(target, evaluate) else nullcontext():
        small, plan, trials = made(target, found, calibration=calibration, evaluate=evaluate, how=how, seed=seed)
        report = _report(small, plan, target, found, example, calibration, evaluate)
    more = {"trials": trials, "seed": seed, "command": command}
    return Result(small, plan, report.model_copy(update=more))


def made(
    target: Target | Plan,
    found: Options,
    *,
    calibration: Iterable[Any] | None = None,
    evaluate: Evaluate | None = None,
    how: str = "auto",
    seed: int = 0,
) -> tuple[nn.Module, Plan, tuple[Trial, ...]]:
    """The same without a report: the small network, its plan, and those that were tried."""

    def recovered(plan: Plan) -> nn.Module:
        small = apply(found.model, plan, found.statistics)
        if calibration is None or how == "none":
            return small
        return recover(small, found.model, calibration, how="blocks" if how == "auto" else how, seed=seed)

    judge = None
    if isinstance(target, Plan):
        plan = target
    elif evaluate is not None and target.needs_evaluate:
        judge = Judge(found.model, evaluate, recovered)
        plan = found.planned(target, judge)
    else:
        plan = found.plan(target)
    log.info("%d of %d layers are replaced", len(plan.steps), len(found.graph.layers))
    return recovered(plan), plan, () if judge is None else tuple(judge.trials)


def _is_searched(target: Target | Plan, evaluate: Evaluate | None) -> bool:
    """Whether networks are tried, of which the one that is chosen was made for its trial."""
    return isinstance(target, Target) and evaluate is not None and target.needs_evaluate


def _report(
    small: nn.Module,
    plan: Plan,
    target: Target | Plan,
    found: Options,
    example: Any,
    calibration: Iterable[Any] | None,
    evaluate: Evaluate | None,
) -> Report:
    batches = [example_inputs(example)] if calibration is None else calibration
    report = verified(small, found.model, batches, example=example, evaluate=evaluate)
    more: dict[str, Any] = {"left_dense": found.left_dense(plan), "asked": asked(target)}
    more["predicted"] = predicted(found, plan)
    if found.guard or (isinstance(target, Target) and target.is_timed):
        more["timed"] = Clock(found).network(plan, small)
    return report.model_copy(update=more)


def asked(target: Any) -> str:
    """A target as one would write it; what is as usual is left out."""
    if isinstance(target, Plan):
        return "a plan that was given"
    if not is_dataclass(target):
        return getattr(target, "__name__", repr(target))
    given = {each.name: getattr(target, each.name) for each in fields(target)}
    usual = {each.name: each.default for each in fields(target)}
    shown = ", ".join(f"{name}={asked(value)}" for name, value in given.items() if value != usual[name])
    return f"{type(target).__name__}({shown})"


def carry_into(
    folder: Path,
    target: Target | Plan,
    found: Options,
    *,
    example: Any,
    calibration: Iterable[Any] | None = None,
    evaluate: Evaluate | None = None,
    how: str = "auto",
    reference: str | None = None,
    command: str | None = None,
) -> Result:
    """The same for a network that lies in files, as does what it becomes; without recovery."""
    if how in HOW:
        raise TenfoldError(f'recover="{how}" needs networks in memory, not in files; take "none".')
    plan = target if isinstance(target, Plan) else found.plan(target, evaluate=evaluate)
    plan = plan.model_copy(update={"reference": reference})
    apply_to(folder, found.model, plan, found.statistics)
    small = with_weights(skeleton(found.model, plan), folder)
    report = _report(small, plan, target, found, example, calibration, evaluate)
    report = report.model_copy(update={"command": command})
    write_text(folder / REPORT, report.dumps())
    return Result(small, plan, report)


def check_recovery(calibration: Iterable[Any] | None, how: str) -> None:
    """Refuse a way of recovery that there is not, or that there is no data for."""
    if how not in ("auto", "none", *HOW):
        raise TenfoldError(f'recover is {how!r}; use "auto", {", ".join(map(repr, HOW))} or "none".')
    if how in HOW and calibration is None:
        raise TenfoldError(f'recover="{how}" needs calibration data; give batches of training inputs.')
    if isinstance(calibration, Iterator):
        raise TenfoldError("calibration is an iterator, which can be read only once; give a list or a DataLoader.")
