"""What is compared: networks trained to be small, by singular values or by filters, and the library's mix."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from benchmarks._train import epochs_of, flags
from benchmarks.seeds._joint_cases import FRESH, FURTHER
from tenfold.train import Recipe, SVDTraining

NETS = ("resnet18", "resnet56", "resnet20")
AT_HAND = {("resnet20", "cifar10-jpeg"), ("resnet56", "cifar10-jpeg")}  # trained to the end; others are trained first
SIZES = (0.5, 0.3, 0.2, 0.1)  # shares of the parameters
Start = Literal["random", "trained"]
Stage = Literal["whole", "wide", "small"]  # all epochs at once, those before cutting, and those after
STARTS: tuple[Start, ...] = get_args(Start)

# Within the published range for Hoyer, .001 to .1; not tuned.
SPARSITY: Mapping[str, float] = {"hoyer": 0.03, "hoyer-square": 0.003, "l1": 0.003}
SVD = {f"svd-{form}-{regulariser}": (form, regulariser) for form in ("channel", "spatial") for regulariser in SPARSITY}
# Of each group of filters the same share goes, as published, or what a budget of all groups together says.
FILTERS = {
    "sfp": ("constant", "uniform"),
    "asfp": ("asymptotic", "uniform"),
    "asfp-budget": ("asymptotic", "budget"),
}
MIX = "mix"
DENSE, CONTROL = "dense", "dense-longer"
METHODS = (*SVD, *FILTERS, MIX)


@dataclass(frozen=True)
class Job:
    """One network."""

    net: str
    data: str
    method: str
    params: float = 1.0  # the share of the dense network's parameters
    start: Start = "trained"
    seed: int = 0
    short: bool = False
    quick: bool = False
    sparsity: float | None = None  # instead of the usual one

    @property
    def options(self) -> str:
        """What makes this network and no other."""
        named = f"--net {self.net} --data {self.data} --method {self.method} --params {self.params:g}"
        strength = "" if self.sparsity is None else f" --sparsity {self.sparsity:g}"
        return f"{named} --start {self.start} --seed {self.seed}{strength}" + flags(short=self.short, quick=self.quick)

    @property
    def command(self) -> str:
        """The row's identity."""
        return f"python -m benchmarks.seeds.structure {self.options}"

    @property
    def stem(self) -> str:
        """The name of this job's files."""
        strength = "" if self.sparsity is None else f"{self.sparsity:g}"
        parts = [self.net, self.data, self.method, f"{self.params:g}", self.start, str(self.seed), strength]
        return "-".join(["structure", *filter(None, parts)]) + flags(short=self.short, quick=self.quick).replace(
            " --", "-"
        )

    @property
    def dense(self) -> "Job":
        """The dense network that this one is compared with: what it starts from, or trained as long up to the cut."""
        return replace(self, method=DENSE, params=1.0, sparsity=None)

    @property
    def control(self) -> "Job":
        """The dense network trained as long as this one to the end."""
        return replace(self.dense, method=CONTROL)

    @property
    def wide(self) -> "Job":
        """What comes before cutting: of singular values, one network for all sizes."""
        return replace(self, params=1.0) if self.method in SVD else self

    @property
    def training(self) -> SVDTraining:
        """Of the first stage; of the second without sparsity."""
        form, regulariser = SVD[self.method]
        strength = SPARSITY[regulariser] if self.sparsity is None else self.sparsity
        return SVDTraining(form, sparsity=strength, regulariser=regulariser)  # type: ignore[arg-type]

    def recipe(self, stage: Stage) -> Recipe:
        """How to train a stage."""
        recipe = FRESH if self.start == "random" and stage != "small" else FURTHER
        full = {"random": (100, 30), "trained": (30, 30)}[self.start]
        epochs = [epochs_of(count, short=self.short, quick=self.quick) for count in full]
        if self.start == "random":  # a network from scratch has no better teacher than the labels
            recipe = recipe.model_copy(update={"distil": 0.0})
        count = sum(epochs) if stage == "whole" else epochs[stage == "small"]
        # Going on with the seed of what was trained before would show it the very crops that it has seen.
        seed = self.seed + 1_000 * (1 + (stage == "small"))
        return recipe.model_copy(update={"epochs": count, "seed": seed})


def jobs(net: str, data: str, start: Start, seed: int, **how: bool) -> Iterator[Job]:
    """Every row of a network, in the order of the page."""
    for params in SIZES:
        for method in METHODS:
            if not (method == MIX and start == "random"):  # it is fitted to what the dense network sees
                yield Job(net, data, method, params, start, seed, **how)
