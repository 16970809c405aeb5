"""What is compared: layers that share factors beside layers by themselves, on the networks of Chen et al. 2021."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
from torch import nn

import tenfold
from benchmarks._nets import NETS as EVERY
from benchmarks._rows import Record
from benchmarks._train import epochs_of, flags
from tenfold._apply import skeleton
from tenfold.methods import DEFAULT, JointSVD, Method, SpatialSVD, Tucker
from tenfold.train import Recipe

NETS = ("resnet18", "resnet34", "resnet50")
DATA: Mapping[str, tuple[int, int]] = {  # classes, pixels of a side
    "cifar10-jpeg": (10, 32),
    "tiny-imagenet-50": (50, 64),
}
RATES = (0.04, 0.08)
FROZEN = ("conv1", "layer1", "*downsample*", "fc")  # which the authors leave dense
ALL_JOINT = (JointSVD("right"), JointSVD("left"), JointSVD("both"))
SCHEMES: Mapping[str, Sequence[Method]] = {
    "spatial": (SpatialSVD(),),
    "rjsvd-1": (JointSVD("right"), SpatialSVD()),
    "rjsvd-2": (JointSVD("right", odd="alone"), SpatialSVD()),
    "ljsvd": (JointSVD("left", odd="alone"), SpatialSVD()),
    **{f"bi-{share}": (JointSVD("both", share=share, odd="alone"), SpatialSVD()) for share in (0.3, 0.5, 0.7)},
}
# At the size of the spatial SVD: ranks by the library's choice over all layers but those that are frozen, or all.
CHOSEN: Mapping[str, tuple[Sequence[Method], Sequence[str]]] = {
    "tucker": ((Tucker(),), FROZEN),
    "mix": ((*DEFAULT, *ALL_JOINT), ()),
}
DENSE, CONTROL = "dense", "dense-longer"  # the control goes on from the dense network as the small ones do
Start = Literal["random", "trained"]

FRESH = Recipe(epochs=100, lr=0.1, distil=0.0, precision="bfloat16")
FURTHER = Recipe(epochs=60, lr=0.01, precision="bfloat16")

# Top-1 on CIFAR-10 (means of five runs): by network and rate, of dense and of each scheme.
_PUBLISHED = {
    ("resnet18", 0.04): (94.80, 92.49, 93.19, 92.75, 92.88, 92.81, 92.70, 93.11, 91.93),
    ("resnet18", 0.08): (94.80, 93.55, 93.75, 93.47, 93.62, 93.77, 93.49, 93.84, 92.42),
    ("resnet34", 0.04): (95.11, 93.66, 93.82, 93.77, 93.97, 93.66, 93.69, 93.77, 92.83),
    ("resnet34", 0.08): (95.11, 93.95, 94.23, 93.94, 94.39, 94.17, 94.08, 94.02, 93.04),
    ("resnet50", 0.04): (95.02, 92.38, 93.28, 92.75, 93.08, 92.97, 92.90, 92.84),
    ("resnet50", 0.08): (95.02, 92.99, 92.97, 93.24, 93.39, 92.86, 93.08, 93.06),
}


def published(net: str, method: str, rate: float) -> float | None:
    """The published change from dense, in points."""
    figures = _PUBLISHED.get((net, rate))
    order = [*SCHEMES, "tucker"]
    if figures is None or method not in order or order.index(method) + 1 >= len(figures):
        return None
    return figures[order.index(method) + 1] - figures[0]


@dataclass(frozen=True)
class Job:
    """One network."""

    net: str
    data: str
    method: str
    rate: float = 0.0  # 0 where nothing is decomposed
    start: Start = "random"
    seed: int = 0
    short: bool = False
    quick: bool = False

    @property
    def options(self) -> str:
        """What makes this network and no other."""
        named = f"--net {self.net} --data {self.data} --method {self.method} --rate {self.rate:g} --start {self.start}"
        return f"{named} --seed {self.seed}" + flags(short=self.short, quick=self.quick)

    @property
    def command(self) -> str:
        """The row's identity."""
        return f"python -m benchmarks.seeds.joint {self.options}"

    @property
    def stem(self) -> str:
        """The name of this job's files."""
        parts = (self.net, self.data, self.method, f"{self.rate:g}", self.start, self.seed)
        return "-".join(["joint", *map(str, parts)]) + flags(short=self.short, quick=self.quick).replace(" --", "-")

    @property
    def dense(self) -> "Job":
        """The dense network that this one starts from, or is compared with."""
        return replace(self, method=DENSE, rate=0.0, start="random")

    @property
    def control(self) -> "Job":
        """The dense network trained as long as this one."""
        return self.dense if self.start == "random" else replace(self, method=CONTROL, rate=0.0)

    @property
    def recipe(self) -> Recipe:
        """How to train it."""
        recipe = FRESH if self.start == "random" else FURTHER
        epochs = epochs_of(recipe.epochs, short=self.short, quick=self.quick)
        # Going on from the dense network with its seed would show it the very crops that it has seen.
        seed = self.seed + 1_000 * (self.start == "trained")
        return recipe.model_copy(update={"epochs": epochs, "seed": seed})


def jobs(net: str, data: str, seed: int, **how: bool) -> Iterator[Job]:
    """Every row of a network, dense first."""
    first = Job(net, data, DENSE, seed=seed, **how)
    yield first
    yield replace(first, method=CONTROL, start="trained")
    for rate in RATES:
        for method in (*SCHEMES, *CHOSEN):
            starts: tuple[Start, ...] = ("trained", "random") if method in SCHEMES else ("trained",)
            yield from (replace(first, method=method, rate=rate, start=start) for start in starts)


def dense_shape(net: str, data: str) -> nn.Module:
    """The dense network on the meta device."""
    with torch.device("meta"):
        return EVERY[net](classes=DATA[data][0])


@cache
def rate_plan(net: str, data: str, method: str, rate: float) -> tenfold.Plan:
    """The plan of a scheme by the authors' rule, which looks at shapes only."""
    size = DATA[data][1]
    with torch.random.fork_rng():
        dense = EVERY[net](classes=DATA[data][0]).eval()
    found = tenfold.options(dense, example=torch.zeros(1, 3, size, size), methods=SCHEMES[method], freeze=FROZEN)
    return found.plan(tenfold.JointRate(rate))


def parameters(net: str, data: str, method: str, rate: float) -> int:
    """Of the scheme's network."""
    return sum(p.numel() for p in skeleton(dense_shape(net, data), rate_plan(net, data, method, rate)).parameters())


class Sizes(Record):
    """How many times fewer numbers than dense the networks of all schemes have, as the authors count."""

    net: str
    data: str
    classes: int
    rate: float
    fewer: dict[str, float]  # by scheme
    version: str  # of tenfold
    command: str

    def line(self) -> str:
        """The row in one line, for the terminal and for the page."""
        cells = " ".join(f"{self.fewer[method]:8.3f}" for method in SCHEMES)
        return f"{self.net:9} {self.classes:7} {self.rate:5} {cells}"


def sizes(net: str, data: str, rate: float) -> Sizes:
    """Counted from the built networks; no training is needed."""
    dense = dense_shape(net, data)
    small = {method: skeleton(dense, rate_plan(net, data, method, rate)) for method in SCHEMES}
    return Sizes(
        net=net,
        data=data,
        classes=DATA[data][0],
        rate=rate,
        fewer={method: round(_counted(dense) / _counted(model), 3) for method, model in small.items()},
        version=tenfold.__version__,
        command=sizes_command(net, data, rate),
    )


def sizes_command(net: str, data: str, rate: float) -> str:
    """The row's identity."""
    return f"python -m benchmarks.seeds.joint --structure --net {net} --data {data} --rate {rate:g}"


def sizes_table(rows: Sequence[Sizes]) -> str:
    """All of them, as text."""
    head = f"{'net':9} {'classes':>7} {'rate':>5} " + " ".join(f"{name:>8}" for name in SCHEMES)
    return "\n".join([head, *(row.line() for row in rows)])


def _counted(model: nn.Module) -> int:
    # Convolutions and the last layer with its bias, without norms.
    return sum(p.numel() for name, p in model.named_parameters() if p.dim() > 1 or name == "fc.bias")
