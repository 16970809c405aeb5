"""What is compared: every row of the second seed system, how its networks are trained, and what a row says."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Literal

from benchmarks._images import SPLITS
from benchmarks._rows import Record
from benchmarks.seeds._methods_images import Counts
from tenfold.methods import CP, DEFAULT, SVD, Method, TensorTrain, Tucker
from tenfold.train import Recipe

METHODS: Mapping[str, Sequence[Method]] = {
    "svd": (SVD("output"),),
    "tucker": (Tucker(),),
    "cp": (CP(3),),
    "tt": (TensorTrain(),),
    "tt-naive": (TensorTrain(form="naive"),),
    "mix": DEFAULT,
}
NAME = "seed-methods"
DENSE = "dense"
CIFAR, TINY = SPLITS
BATCH = 32  # images, for latency: one alone would mostly time the calls of layers as small as these

Part = Literal["base", "scope", "epochs", "sizes"]  # base: the dense networks that the others start from, no rows
Start = Literal["random", "trained"]


TUNE = Recipe(epochs=3, lr=0.01, batch=50, weight_decay=0, distil=0, held_back=0)
RECIPES: Mapping[Part, Recipe] = {
    "base": TUNE.model_copy(update={"epochs": 12, "lr": 0.02}),
    "scope": TUNE,
    # Under a falling rate every network is steady in the end.
    "epochs": TUNE.model_copy(update={"epochs": 18, "warm_up": 0, "schedule": "constant"}),
    "sizes": TUNE,
}


COUNTS = Counts(4_000, 2_000, 5_000)
QUICK = Counts(600, 200, 500)


@dataclass(frozen=True)
class Job:
    """One network, and the row that it makes."""

    part: Part
    method: str
    scope: str = "both"
    fewer: int = 4  # times fewer parameters of the layers in scope
    start: Start = "trained"  # from the weights of the dense base network, or from fresh ones
    data: str = CIFAR
    size: int = 32  # pixels of a side
    classes: int = 10
    seed: int = 0  # of fresh weights, and of all that training draws
    quick: bool = False

    @property
    def options(self) -> str:
        """What makes this row and no other."""
        return " ".join(f"--{name} {getattr(self, name)}" for name in CHOICES) + " --quick" * self.quick

    @property
    def command(self) -> str:
        """The row's identity."""
        return f"python -m benchmarks.seeds.methods {self.options}"

    @property
    def stem(self) -> str:
        """The name of this job's files."""
        return "-".join(["methods", *(str(getattr(self, name)) for name in CHOICES)]) + "-quick" * self.quick

    @property
    def control(self) -> "Job":
        """The dense network from the same start, trained in the same way."""
        return replace(self, method=DENSE, scope="both", fewer=1)

    @property
    def base(self) -> "Job":
        """The dense network that trained starts go out from."""
        return replace(self.control, part="base", start="random")

    @property
    def planned(self) -> "Job":
        """The job whose plan this one follows: rows of one shape share it."""
        return replace(self, part="scope", start="trained")

    @property
    def recipe(self) -> Recipe:
        """How to train it."""
        # Going on from the base with its seed would show it the very crops that it has seen.
        further = 1_000 * (self.start == "trained")
        recipe = RECIPES[self.part]
        epochs = min(recipe.epochs, 3) if self.quick else recipe.epochs
        return recipe.model_copy(update={"epochs": epochs, "seed": self.seed + further})

    @property
    def counts(self) -> Counts:
        """On how many images."""
        return QUICK if self.quick else COUNTS


CHOICES = tuple(field.name for field in fields(Job) if field.name != "quick")  # what tells one row from another


class Row(Record):
    """One network, compressed and trained in one way; or why it could not be."""

    part: Part
    method: str
    scope: str
    fewer: int  # what was asked for: times fewer parameters of the layers in scope
    start: Start
    data: str
    split: str
    size: int
    classes: int
    refused: str | None = None  # why there is no such network; then there are no figures below but the dense ones
    base_accuracy: float  # percent, of the dense base network
    control_accuracy: float  # percent, of the dense network from the same start, trained as long
    accuracy_at_once: float | None = None  # percent, right after compression; from fresh weights there is none
    accuracy: float | None = None  # percent, after training
    interval: tuple[float, float] | None = None  # 95 % interval of accuracy less control_accuracy, in points
    curve: tuple[float, ...] = ()  # percent on the images held back, after each epoch
    params_ratio: float | None = None  # this and the next two: small / dense
    macs_ratio: float | None = None
    latency_ratio: float | None = None
    latency_ms: float | None = None  # of the small network, a batch
    plan_seconds: float  # to find the options, choose among them and apply the plan
    train_seconds: float | None = None
    seed: int
    quick: bool
    device: str
    version: str  # of tenfold
    command: str

    def line(self) -> str:
        """The row in one line, for the terminal."""
        name = (
            f"{self.part} {self.method} {self.scope} {self.fewer}x {self.start} {self.size} px {self.classes} classes"
        )
        if self.accuracy is None:
            return f"{name}: {self.refused}"
        return (
            f"{name}: {self.accuracy:.2f} % (control {self.control_accuracy:.2f}), params x{self.params_ratio:.3f}, "
            f"multiply-adds x{self.macs_ratio:.3f}, latency x{self.latency_ratio:.2f}, {self.train_seconds:.0f} s"
        )


def jobs(quick: bool) -> list[Job]:
    """Every row, in the order of the page; or a few of each part."""
    few = (_scope((4,)), _epochs(("tucker",), 1), _sizes((32, 48), ()))
    parts = few if quick else (_scope(), _epochs(), _sizes())
    return [replace(job, quick=quick) for part in parts for job in part]


def _scope(fewer: Sequence[int] = (2, 4, 8)) -> Iterator[Job]:
    for scope, times, method in product(("conv", "fc", "both"), fewer, METHODS):
        yield Job("scope", method, scope, times)


def _epochs(methods: Sequence[str] = ("svd", "tucker", "cp", "tt", "tt-naive"), seeds: int = 3) -> Iterator[Job]:
    starts: tuple[Start, ...] = ("trained", "random")
    for seed, start in product(range(seeds), starts):
        first = Job("epochs", methods[0], start=start, seed=seed)
        yield first.control
        yield from (replace(first, method=method) for method in methods)


def _sizes(sizes: Sequence[int] = (32, 48, 64), classes: Sequence[int] = (10, 50)) -> Iterator[Job]:
    shapes = [(size, 25) for size in sizes] + [(32, count) for count in classes]
    for (size, count), method in product(shapes, ("tucker", "cp", "mix")):
        yield Job("sizes", method, data=TINY, size=size, classes=count)
