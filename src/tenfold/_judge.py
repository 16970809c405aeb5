"""What `evaluate` says of networks, beside what it says of the dense one."""

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tenfold._errors import TenfoldError, TenfoldWarning
from tenfold._plan import Plan, Record
from tenfold._resume import kept
from tenfold._run import undisturbed

Evaluate = Callable[[nn.Module], Any]  # a number, or a score for each example, whose mean is the metric
log = logging.getLogger("tenfold")
_Z = 1.96  # standard errors in half of a 95 % interval


class Trial(Record):
    """A network that was tried in a search: its size, and by how much the metric changed."""

    params: int
    metric: float
    change: float  # of the metric, against dense
    interval: tuple[float, float] | None  # 95 %, of the change; None where `evaluate` gives no score for each example


def scores(evaluate: Evaluate, model: nn.Module) -> Tensor:
    """What `evaluate` returns, in float64: one number, or `(N,)` of them.

    Raises:
        TenfoldError: if it is neither, or not finite.
    """
    check_callable(evaluate)

    def evaluated() -> dict[str, Tensor]:
        with undisturbed(model):
            found = evaluate(model)
        try:
            return {"scores": torch.as_tensor(found, dtype=torch.float64)}
        except (TypeError, ValueError, RuntimeError):
            raise TenfoldError(f"evaluate returned {found!r}; {_WANTED}.") from None

    values = kept("scores", lambda: (evaluate, model), evaluated)["scores"]
    if values.dim() > 1 or not len(values.reshape(-1)):
        raise TenfoldError(f"evaluate returned numbers of shape {tuple(values.shape)}; {_WANTED}.")
    if not values.isfinite().all():
        raise TenfoldError(f"evaluate returned {float(values.mean())}; {_WANTED}, all finite.")
    return values


def check_callable(evaluate: Any) -> None:
    """Refuse what cannot evaluate, before there is a network to give it."""
    if not callable(evaluate):
        raise TenfoldError(f"evaluate is {evaluate!r}; give a function of a network: {_WANTED}.")


_WANTED = "it must return one number, or a score for each example; higher is better"


def interval_text(ends: tuple[float, float] | None) -> str:
    """An interval of a change, in words; nothing for none."""
    return "" if ends is None else f"{ends[0]:+.4f} to {ends[1]:+.4f}"


def interval(small: Tensor, dense: Tensor) -> tuple[float, float] | None:
    """The 95 % interval of the change of the mean, from the differences example by example; None for single numbers.

    Examples that both get right, or both wrong, add no spread. Normal approximation.

    Raises:
        TenfoldError: if the scores are not of the same examples.
    """
    if small.shape != dense.shape:
        raise TenfoldError(
            f"evaluate returned {dense.numel():,} scores for the dense network and {small.numel():,} for the small "
            "one; give one for each of the same examples."
        )
    if small.dim() == 0 or len(small) < 2:
        return None
    differences = small - dense
    mean, half = float(differences.mean()), _Z * float(differences.std()) / len(differences) ** 0.5
    return mean - half, mean + half


class Judge:
    """Makes a network of a plan and evaluates it, once for each plan; remembers every trial."""

    def __init__(self, dense: nn.Module, evaluate: Evaluate, make: Callable[[Plan], nn.Module]) -> None:
        self._evaluate, self._make = evaluate, make
        self._dense = scores(evaluate, dense)
        self._seen: dict[Plan, Trial] = {}

    @property
    def trials(self) -> Sequence[Trial]:
        """Every trial, the smallest network first."""
        return sorted(self._seen.values(), key=lambda trial: trial.params)

    def __call__(self, plan: Plan) -> Trial:
        """The trial of a plan."""
        if plan not in self._seen:
            small = self._make(plan)
            found = scores(self._evaluate, small)
            trial = self._seen[plan] = Trial(
                params=sum(parameter.numel() for parameter in small.parameters()),
                metric=float(found.mean()),
                change=float(found.mean() - self._dense.mean()),
                interval=interval(found, self._dense),
            )
            log.info("tried %d parameters: the metric changes by %+.4g", trial.params, trial.change)
        return self._seen[plan]

    def warn(self, plan: Plan, allowed: float) -> None:
        """Warn if nothing smaller was found, or if the examples are too few to tell a drop as small as allowed."""
        if not plan.steps:
            least = max(trial.change for trial in self._seen.values()) if self._seen else 0.0
            text = (
                f"no smaller network was found within max_drop={allowed:g}: the metric falls by {-least:.4g} or more. "
                "The network stays as it is; allow more."
            )
            warnings.warn(text, TenfoldWarning, stacklevel=2)
            return
        trial = self._seen[plan]
        if trial.interval is None:
            return
        count = len(self._dense)
        # No difference in N examples leaves room for three in as many (95 %), each as large as a score.
        unseen = 3 / count * float(self._dense.abs().max())
        half = max((trial.interval[1] - trial.interval[0]) / 2, unseen)
        if half > allowed:
            needed = f"about {int(round(count * (half / allowed) ** 2, -2)):,}" if allowed else "many more"
            text = (
                f"max_drop={allowed:g} is less than {count:,} examples can tell: the change of the metric is known to "
                f"+-{half:.2g} only. Evaluate on {needed} examples, or allow more."
            )
            warnings.warn(text, TenfoldWarning, stacklevel=2)
