"""Compress a little, train a little: several rounds, each planned from what the network has become."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tenfold._apply import apply
from tenfold._budget import Budget
from tenfold._calibrate import calibrate
from tenfold._candidates import options
from tenfold._errors import TenfoldError
from tenfold._judge import Evaluate
from tenfold._method import Method
from tenfold._pair import replaced
from tenfold._plan import Plan, Record
from tenfold._predicted import Predicted, predicted
from tenfold._resume import resumable
from tenfold._run import copied, unwrapped
from tenfold._verify import Epoch
from tenfold.methods import FilterPruning
from tenfold.train._finetune import Loss, finetune
from tenfold.train._recipe import Recipe


class Round(Record):
    """The limits that a round compresses to, as in `Budget`, and how it trains then."""

    params: float | int | None = None
    macs: float | int | None = None
    bytes: float | int | None = None
    recipe: Recipe = Recipe()

    @property
    def budget(self) -> Budget:
        """The limits."""
        return Budget(params=self.params, macs=self.macs, bytes=self.bytes)


@dataclass(frozen=True)
class Progressed:
    """The network after the last round, the plan of its layers, and every round's epochs."""

    model: nn.Module
    plan: Plan
    history: tuple[tuple[Epoch, ...], ...]
    left_dense: dict[str, str]  # by the last plan, and why
    predicted: Predicted | None  # what the options of the last round had said


def progressive(
    dense: nn.Module,
    rounds: Sequence[Round],
    examples: Any,
    *,
    example: Any,
    calibration: Iterable[Any],
    methods: Sequence[Method | FilterPruning] | None = None,
    freeze: Iterable[str] = (),
    loss: Loss | None = None,
    augment: Callable[[Any, Tensor], Any] | None = None,
    evaluate: Evaluate | None = None,
    folder: str | Path | None = None,
) -> Progressed:
    """Compress and fine-tune in rounds.

    After a round, factors are multiplied out to dense layers, and the next round calibrates, plans and compresses these
    anew. The first network teaches in every round.

    Args:
        dense: the trained network; it is not modified.
        rounds: limits and recipes, one after the other.
        examples: as `finetune` takes them.
        example: as `compress` takes it.
        calibration: batches of training data, as `compress` takes them.
        methods: those that compete; by default `tenfold.methods.DEFAULT`, one layer at a time.
        freeze: names of layers to leave dense, as shell patterns.
        loss: as `finetune` takes it.
        augment: as `finetune` takes it.
        evaluate: as `finetune` takes it.
        folder: where finished work and checkpoints are kept; a run that was killed goes on from there.

    Raises:
        TenfoldError: if there are no rounds, a limit cannot be reached, or the data do not fit.
    """
    if not rounds:
        raise TenfoldError("there are no rounds; give at least one, such as Round(params=0.5).")
    if any(isinstance(method, FilterPruning) for method in methods or ()):
        raise TenfoldError("rounds keep the dense shapes; remove filters first, by compress or apply, and train that.")
    budgets = [each.budget for each in rounds]  # refused before work starts
    now, place = unwrapped(dense), None if folder is None else Path(folder)
    histories = []
    with nullcontext() if place is None else resumable(place):
        for number, (each, budget) in enumerate(zip(rounds, budgets, strict=True), 1):
            statistics = calibrate(now, calibration, seed=each.recipe.seed)
            found = options(now, example=example, statistics=statistics, methods=methods, freeze=freeze)
            plan = found.plan(budget)
            done = finetune(
                apply(now, plan, statistics),
                dense,
                examples,
                each.recipe,
                loss=loss,
                augment=augment,
                evaluate=evaluate,
                folder=None if place is None else place / f"round-{number}",
            )
            histories.append(done.history)
            now = multiplied_out(done.model, now)
    return Progressed(done.model, plan, tuple(histories), found.left_dense(plan), predicted(found, plan))


def multiplied_out(small: nn.Module, dense: nn.Module) -> nn.Module:
    """A copy of the dense network with the weights that a compressed one stands for."""
    new = copied(dense)
    state = small.state_dict()
    for name in replaced(small):
        factored: Any = small.get_submodule(name)
        state[f"{name}.weight"] = factored.rebuilt().detach()
        if factored.bias is not None:
            state[f"{name}.bias"] = factored.bias.detach()
    new.load_state_dict({name: state[name] for name in new.state_dict()})
    return new
