"""What the comparison with tensorly tries, and what a row of it says."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel

from benchmarks._fits import FORMS, LONG, Fitter, Rank, Shape, Tenfold, TenfoldUntil, Tensorly
from benchmarks._rows import Record, replace_text

NAME = "decompositions"
DATA, SPLIT = "cifar10-jpeg", "test"
LAYERS = (
    "resnet20.layer1.1.conv1",
    "resnet56.layer3.0.conv1",
    "resnet56.layer3.4.conv1",
    "resnet18.layer2.1.conv1",
    "resnet18.layer3.1.conv1",
    "resnet18.layer4.1.conv1",
)
ROUNDS, CHEAP_SECONDS = 3, 5.0  # fits as short as that are repeated


@dataclass(frozen=True)
class Setting:
    """A way to fit, and where it is tried: a whole table of the slow ones would take hours."""

    fitter: Fitter
    text: str
    forms: Sequence[str] = tuple(FORMS)
    widest: int = 512  # channels
    shares: Sequence[float] | None = None
    nets: bool = False

    def serves(self, form: str, shape: Shape, share: float) -> bool:
        """Whether it is tried on a layer."""
        return form in self.forms and max(shape) <= self.widest and (self.shares is None or share in self.shares)


TENFOLD, TENSORLY, EQUAL = "tenfold", "tensorly", "tenfold-equal"
SETTINGS = {
    TENFOLD: Setting(Tenfold(), "`tenfold.apply` with a plan of one step, which copies the layer.", nets=True),
    TENSORLY: Setting(
        Tensorly(),
        "`parafac` or `partial_tucker` with its defaults, on the weight as it is, in float32.",
        nets=True,
    ),
    EQUAL: Setting(
        TenfoldUntil(),
        "CP of tenfold, stopped as soon as its error is that of `tensorly`: compared in time alone.",
        forms=("cp3", "cp4"),
    ),
    "tensorly-random": Setting(
        Tensorly(init="random"), "the same from random factors.", forms=("cp3", "cp4"), widest=128, nets=True
    ),
    "tensorly-float64": Setting(Tensorly(dtype=torch.float64), "the defaults, on the weight in float64.", widest=64),
    "tensorly-long": Setting(
        Tensorly(dtype=torch.float64, long=True),
        f"in float64, up to {LONG['n_iter_max']:,} sweeps, until one changes the relative error (not squared) by less "
        f"than {LONG['tol']:g}.",
        widest=64,
        shares=(0.5,),
    ),
}


class Row(Record):
    """What rows of layers and of networks have in common."""

    form: str
    share: float  # of the parameters, that may be left
    by: str
    seconds: float | None
    peak_bytes: int | None  # beyond what the process held before the fit
    error: float | None  # ||W - What||^2 / ||W||^2
    note: str  # why it ended early, or failed
    device: str
    versions: str
    command: str


class LayerRow(Row):
    """One layer, fitted in one way; medians where it was repeated."""

    layer: str
    shape: Shape
    rank: Rank
    rounds: int
    cancellation: float | None  # sum_r ||term_r||^2 / ||W||^2
    sweeps: int | None

    @property
    def weight_bytes(self) -> int:
        """Of the dense weight, in float32."""
        return 4 * math.prod(self.shape)

    @property
    def place(self) -> tuple[str, str, float, str]:
        """What the rows to compare with have in common."""
        return self.layer, self.form, self.share, self.device

    def line(self) -> str:
        """The row in one line, for the terminal."""
        if self.error is None or self.seconds is None or self.peak_bytes is None:
            return f"{self.layer} {self.form} {100 * self.share:g} % {self.by}: {self.note}"
        return (
            f"{self.layer} {self.form} {100 * self.share:g} % {self.by}: error {self.error:.5f}, {self.seconds:.3f} s, "
            f"{self.peak_bytes / 2**20:.1f} MiB {self.note}"
        ).rstrip()


class NetRow(Row):
    """A network with every 3x3 convolution but the first fitted in one way: seconds, peak and error of all of them."""

    net: str
    layers: int
    dense_accuracy: float  # percent
    accuracy: float | None  # percent
    interval: tuple[float, float] | None  # 95 % interval of accuracy less dense_accuracy, in points

    def line(self) -> str:
        """The row in one line, for the terminal."""
        result = self.note if self.accuracy is None else f"{self.accuracy:.2f} % (dense {self.dense_accuracy:.2f})"
        return f"{self.net} {self.form} {100 * self.share:g} % {self.by}: {result}"


class Results(BaseModel):
    """All rows of a file."""

    layers: tuple[LayerRow, ...] = ()
    nets: tuple[NetRow, ...] = ()

    @property
    def commands(self) -> set[str]:
        """What is done."""
        return {row.command for row in (*self.layers, *self.nets)}


def read(path: Path) -> Results:
    """The rows of a file; none if there is no file yet."""
    return Results.model_validate_json(path.read_text()) if path.exists() else Results()


def add(path: Path, row: LayerRow | NetRow) -> None:
    """Add a row to a file."""
    known = read(path)
    kind = "layers" if isinstance(row, LayerRow) else "nets"
    changed = known.model_copy(update={kind: (*getattr(known, kind), row)})
    replace_text(path, changed.model_dump_json(indent=2) + "\n")
