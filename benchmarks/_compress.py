"""Plans and compressed networks, searched and fitted once: whoever is stopped goes on with what is finished."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

from torch import Tensor, nn

import tenfold
from benchmarks import _rows
from benchmarks._images import drawn_images
from tenfold._cost import LIMITED
from tenfold.methods import Method

IMAGES, BATCH = 1024, 128  # of training data without labels, for calibration


@cache
def calibration(data: str, seed: int) -> list[Tensor]:
    """Training images without labels."""
    return [inputs for inputs, _ in drawn_images(data, "train", IMAGES, seed).batches(BATCH)]


def bisected(fits: Callable[[float], bool], low: float, steps: int) -> float:
    """The largest number from `low` to 1 that fits, found in so many halvings."""
    high = 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def largest(
    found: tenfold.Options, rule: Callable[[float], tenfold.Target], column: str, most: float, low: float, steps: int
) -> tenfold.Plan:
    """The plan by the largest number for a rule, from `low` to 1, whose network has at most so many of one cost."""

    def plan(number: float) -> tenfold.Plan:
        return found.plan(rule(number))

    place = LIMITED.index(column)
    return plan(bisected(lambda number: found.predicted(plan(number).steps)[place] <= most, low, steps))


def planned(
    path: Path,
    dense: Callable[[], nn.Module],
    target: tenfold.Target,
    batches: Sequence[Tensor],
    *,
    methods: Sequence[Method] | None = None,
    freeze: Iterable[str] = (),
) -> tenfold.Plan:
    """The plan in the file, which is made if it is not there, by what the batches tell."""
    if not path.exists():
        with tenfold.resumable(path.parent / "compressing"):
            model = dense()
            told = tenfold.calibrate(model, batches)
            found = tenfold.options(model, example=batches[0][:1], statistics=told, methods=methods, freeze=freeze)
            _rows.replace_text(path, found.plan(target).dumps())
    return tenfold.Plan.loads(path.read_text(), str(path))


def applied(dense: nn.Module, plan: tenfold.Plan, runs: Path, batches: Sequence[Tensor] | None) -> nn.Module:
    """The network made smaller, its factors fitted to the batches, if there are any."""
    if not plan.steps:
        return dense
    with tenfold.resumable(runs / "compressing"):
        return tenfold.apply(dense, plan, None if batches is None else tenfold.calibrate(dense, batches))
