"""The pipeline: options, plan, apply, recover, verify."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from tenfold._apply import apply
from tenfold._candidates import Options, Target, options
from tenfold._errors import TenfoldError
from tenfold._method import Method
from tenfold._plan import Plan
from tenfold._recover import reestimate_norms
from tenfold._store import save
from tenfold._verify import Evaluate, Report, verify

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


def compress(
    model: nn.Module,
    target: Target,
    *,
    example: Any,
    calibration: Iterable[Any] | None = None,
    methods: Sequence[Method] | None = None,
    evaluate: Evaluate | None = None,
    recover: Literal["auto", "none"] = "auto",
    freeze: Iterable[str] = (),
) -> Result:
    """Make a trained network smaller: plan, apply, recover, verify.

    Args:
        model: any network; it is not modified.
        target: `Budget`, `Ranks`, `Energy` or `EVBMF`.
        example: a tensor, a tuple (positional arguments) or a dict (keyword arguments).
        calibration: batches of training data, labels ignored; a list or a DataLoader.
        methods: those that compete; by default all.
        evaluate: `evaluate(model) -> float`, higher is better; for the report.
        recover: "auto" re-estimates batch norms when there is calibration data.
        freeze: names of layers to leave dense, as shell patterns.

    Raises:
        TenfoldError: for every input that cannot be served, before work starts where that can be known.
    """
    if not isinstance(target, Target):
        raise TenfoldError(f"the target is {target!r}; give one such as Budget(params=0.5).")
    _check(calibration, recover)
    found = options(model, example=example, methods=methods, freeze=freeze)
    plan = found.plan(target)
    return carry_out(model, plan, found, example=example, calibration=calibration, evaluate=evaluate, recover=recover)


def carry_out(
    model: nn.Module,
    plan: Plan,
    found: Options,
    *,
    example: Any,
    calibration: Iterable[Any] | None = None,
    evaluate: Evaluate | None = None,
    recover: str = "auto",
) -> Result:
    """The pipeline behind the plan: apply, recover, verify."""
    _check(calibration, recover)
    log.info("%d of %d layers are replaced", len(plan.steps), len(found.graph.layers))
    small = apply(model, plan)
    if calibration is not None and recover == "auto":
        small = reestimate_norms(small, calibration)
        log.info("batch norms re-estimated")
    report = verify(small, model, [example] if calibration is None else calibration, evaluate=evaluate)
    return Result(small, plan, report.model_copy(update={"left_dense": found.left_dense(plan)}))


def _check(calibration: Iterable[Any] | None, recover: str) -> None:
    if recover not in ("auto", "none"):
        raise TenfoldError(f'recover is {recover!r}; use "auto" or "none".')
    if isinstance(calibration, Iterator):
        raise TenfoldError("calibration is an iterator, which can be read only once; give a list or a DataLoader.")
