"""What was published and is to be beaten, and in what order methods came: what the rows say of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from benchmarks._evidence import Evidence
from benchmarks._rows import Row, change
from benchmarks._score import paired_interval, percent, unpacked
from benchmarks.seeds._methods_page import Steadiness

NOT_RUN = "not run"
IMAGES = 10_000  # of the CIFAR-10 test split


@dataclass(frozen=True)
class Goal:
    """A published figure, and how much accuracy may change at its size, or at a smaller one, to beat it."""

    what: str
    published: str
    least: float  # points of change from the dense network
    rows: Callable[[Evidence], Sequence[Row]]  # the networks that are small enough
    command: str  # makes the row in full
    faster: bool = False  # than the dense network, too

    def best(self, evidence: Evidence) -> Row | None:
        """The row of the first seed, in full length or else in a fifth of it; none is picked by what it says."""
        return _first(self.rows(evidence))

    def reached(self, row: Row | None) -> bool:
        """Whether the row keeps the goal."""
        if row is None:
            return False
        return row.accuracy - row.dense_accuracy >= self.least and (row.latency_ratio < 1 or not self.faster)

    def verdict(self, row: Row | None) -> str:
        """The same in words; bold where it does not."""
        if row is None:
            return f"**{NOT_RUN}**"
        kept = "yes" if row.interval[0] >= self.least else "yes, not certainly"
        return (kept if self.reached(row) else "**no**") + ", in a fifth of the epochs" * row.is_short


@dataclass(frozen=True)
class Order:
    """Which of two ways came out ahead in what was published, and here."""

    published: str
    here: str  # with figures
    seen: bool | None  # whether the published order is seen again; None where nothing was run
    reason: str  # of an order that is not: what was tested
    commands: tuple[str, ...]


def goals() -> list[Goal]:
    """Every figure that is to be beaten."""
    return [
        Goal(
            "Garipov's `conv`, at least 4 times fewer parameters",
            "-2.0 at 4.02x (Garipov et al. 2016)",
            -0.5,
            lambda rows: _small(rows.tensor_train, "garipov-conv", 1 / 4, "mix-4x"),
            "python -m benchmarks.seeds.tensor_train --net conv --method mix-4x --seed 0",
        ),
        Goal(
            "Garipov's `conv-fc`, at least 100 times fewer",
            "-1.1 at 82.87x (Garipov et al. 2016)",
            -1.0,
            lambda rows: _small(rows.tensor_train, "garipov-conv-fc", 1 / 100, "mix-100x"),
            "python -m benchmarks.seeds.tensor_train --net conv-fc --method mix-100x --seed 0",
        ),
        Goal(
            "ResNet-18, 80 % fewer, and faster",
            "-1.15 of F1 at 78.8 % fewer, no faster (ITMO 2022, land-use scenes)",
            -0.5,
            lambda rows: _small(rows.structure, "resnet18", 0.2),
            "python -m benchmarks.seeds.structure --net resnet18 --data cifar10-jpeg --method mix --params 0.2 "
            "--start trained --seed 0",
            faster=True,
        ),
        *(_joint_goal(*case) for case in _JOINT),
        Goal(
            "ResNet-20, 70.4 % fewer, fine-tuned",
            "+1.25 (SPARK)",
            1.25,
            lambda rows: _small(rows.finetuning, "resnet20", 0.3),
            "python -m benchmarks.finetuning --net resnet20 --params 0.3 --seed 0",
        ),
        Goal(
            "ResNet-56, 65 % fewer, fine-tuned",
            "+1.17 at 67 % fewer (HODEC)",
            1.17,
            lambda rows: _small(rows.finetuning, "resnet56", 0.35),
            "python -m benchmarks.finetuning --net resnet56 --params 0.35 --seed 0",
        ),
        Goal(
            "ResNet-20, 50 % fewer, not trained",
            "-25 (ALDS)",
            -25.0,
            lambda rows: _small(rows.oneshot, "resnet20", 0.5, _UNTRAINED),
            _ONESHOT.format(0.5),
        ),
        Goal(
            "ResNet-20, 30 % fewer, not trained",
            "-3.4 (ALDS)",
            -3.4,
            lambda rows: _small(rows.oneshot, "resnet20", 0.7, _UNTRAINED),
            _ONESHOT.format(0.7),
        ),
    ]


def orders(rows: Evidence) -> list[Order]:
    """Every published order of methods."""
    made = (_trains, _kinds_of_layers, _steadier, _values_or_filters, _rates, _shared)
    return [order(rows) for order in made]


_UNTRAINED = "mix+data+blocks"
_ONESHOT = f"python -m benchmarks.oneshot --net resnet20 --method {_UNTRAINED} --rule budget --params {{:g}} --seed 0"
# Network, times fewer, published change and scheme, what may be lost at most.
_JOINT = (
    ("resnet18", 17.7, "-1.61 at 17.76x (RJSVD-1", 0.8, 0.04),
    ("resnet34", 22.0, "-1.14 at 22.07x (LJSVD", 0.6, 0.04),
    ("resnet50", 6.2, "-1.74 at 6.28x (RJSVD-1", 0.9, 0.04),
)


def _joint_goal(net: str, fewer: float, published: str, loss: float, rate: float) -> Goal:
    return Goal(
        f"ResNet-{net.removeprefix('resnet')}, at least {fewer:g} times fewer, batch norms not counted",
        f"{published}, Chen et al. 2021)",
        -loss,
        lambda rows: _joint_rows(rows, net, "mix", rate),  # which has the size of the published scheme
        f"{_joint_command(net, 'mix', rate)} --seed 0",
    )


def _joint_command(net: str, method: str, rate: float) -> str:
    """But for the seed, and for how long."""
    named = f"--net {net} --data cifar10-jpeg --method {method} --rate {rate:g} --start trained"
    return f"python -m benchmarks.seeds.joint {named}"


def _joint_rows(rows: Evidence, net: str, method: str, rate: float) -> list[Row]:
    return [row for row in rows.joint if row.command.startswith(f"{_joint_command(net, method, rate)} ")]


def _small(rows: Sequence[Row], net: str, share: float, method: str = "mix") -> list[Row]:
    return [
        row
        for row in rows
        if (row.net, row.method, row.rule) == (net, method, None) and 0.9 * share <= row.params_ratio <= share
    ]


def _first(rows: Sequence[Row]) -> Row | None:
    return min(rows, key=lambda row: (row.is_short, row.seed), default=None)


def _trains(rows: Evidence) -> Order:
    conv = {(row.method, row.fewer): row for row in rows.methods if (row.part, row.scope) == ("scope", "conv")}
    sizes = [fewer for (method, fewer), row in conv.items() if method == "tt-naive" and row.accuracy is not None]
    pairs = [[conv[form, fewer].accuracy or 0.0 for form in ("tt", "tt-naive")] for fewer in sizes]
    texts = [f"{fewer}x {pair[0]:.2f} and {pair[1]:.2f} %" for fewer, pair in zip(sizes, pairs, strict=True)]
    first = [row for row in rows.oneshot if (row.net, row.asked, row.rule, row.seed) == ("resnet20", 0.5, None, 0)]
    untrained = [
        f"{row.accuracy:.2f} %" for name in ("tt+data", "tt-naive+data") for row in first if row.method == name
    ]
    return Order(
        "Tensor trains: over factors of the channels 89.9 %, naive 88.3 %, at 2.02x (Garipov et al. 2016)",
        f"Convolutions of a small network, fine-tuned: {', '.join(texts)}. Not trained it is the other way round: "
        f"ResNet-20 at half of its parameters {' and '.join(untrained)}",
        all(reshaped > naive for reshaped, naive in pairs) if pairs else None,
        "",
        ("python -m benchmarks.seeds.methods --part scope --scope conv --method tt tt-naive",),
    )


def _kinds_of_layers(rows: Evidence) -> Order:
    found = [row for row in rows.methods if row.part == "scope" and row.fewer == 4 and row.interval is not None]
    texts, means, times = [], [], []
    for scope in ("conv", "fc"):
        own = [row for row in found if row.scope == scope]
        means.append(fmean((row.accuracy or 0) - row.control_accuracy for row in own))
        times.append(fmean(row.latency_ratio or 1 for row in own))
        texts.append(f"{scope} {means[-1]:+.2f} points, {times[-1]:.2f} of the time")
    return Order(
        "Decomposed convolutions help quality and time, fully connected layers less so (student project, 2023)",
        f"4x fewer of their own parameters, means of {len(own)} methods: {'; '.join(texts)}",
        means[0] > means[1] and times[0] < times[1],
        "At equal shares of their own parameters it is the fully connected layers that lose less and the convolutions "
        "that gain time: most parameters are in the former, most multiply-adds in the latter",
        ("python -m benchmarks.seeds.methods --part scope --fewer 4",),
    )


def _steadier(rows: Evidence) -> Order:
    found = [row for row in rows.methods if row.part == "epochs" and row.curve]
    dense = {(row.start, row.seed): Steadiness.of(row.curve).wobble for row in found if row.method == "dense"}
    apart = [Steadiness.of(row.curve).wobble - dense[row.start, row.seed] for row in found if row.method != "dense"]
    share = fmean(value < 0 for value in apart)
    return Order(
        "Decomposed networks are steadier over many epochs (student project, 2023)",
        f"wobble less that of the dense network, {len(apart)} networks: mean {fmean(apart):+.2f} points, "
        f"{min(apart):+.2f} to {max(apart):+.2f}, below zero in {share:.0%}",
        fmean(apart) < 0,
        "Three seeds, from trained and from fresh weights, at a constant learning rate",
        ("python -m benchmarks.seeds.methods --part epochs",),
    )


def _values_or_filters(rows: Evidence) -> Order:
    found = [row for row in rows.structure if (row.net, row.asked) == ("resnet20", 0.5)]
    return _beside(
        "SVD training F1 .9258 at 78.8 % fewer, soft filter pruning .8841 at 80 % (ITMO 2022)",
        "ResNet-20 at half of its parameters, from trained weights",
        _best_of(found, ("svd-",)) + _best_of(found, ("sfp", "asfp")),
        "",
    )


def _rates(rows: Evidence) -> Order:
    found = [row for row in rows.structure if (row.net, row.asked) == ("resnet20", 0.5)]
    return _beside(
        "Asymptotic soft pruning 68.02 %, at a constant rate 60.79 % (ResNet-18, ImageNet; the WHC paper); "
        "on ResNet-56 93.12 and 93.35 %",
        "ResNet-20 at half of its parameters, from trained weights",
        [_first([row for row in found if row.method == name]) for name in ("asfp", "sfp")],
        "Published in both orders; what is trained on after removal ends alike",
    )


def _shared(rows: Evidence) -> Order:
    ways = [_first(_joint_rows(rows, "resnet18", method, 0.04)) for method in ("rjsvd-1", "spatial")]
    length = "In a fifth of the epochs. " * any(row is not None and row.is_short for row in ways)
    return _beside(
        "Shared factors 93.19 %, separate ones 92.49 % at 17.76x (ResNet-18; Chen et al. 2021)",
        "ResNet-18 at the published size, from trained weights",
        ways,
        f"{length}ResNet-56 at half of its parameters, not trained, keeps {_untrained(rows.joint_oneshot)}: "
        "sharing binds blocks that differ",
    )


def _untrained(rows: Sequence[Row]) -> str:
    found = [row for row in rows if (row.net, row.asked) == ("resnet56", 0.5)]
    best = [*_best_of(found, ("joint-left", "joint-right", "joint-both")), *_best_of(found, ("separate",))]
    ways = zip(best, ("shared factors", "separate ones"), strict=False)  # fewer where some were not run
    return " and ".join(f"{row.accuracy:.2f} % by {way}" for row, way in ways)


def _best_of(rows: Sequence[Row], starts: tuple[str, ...]) -> list[Row]:
    own = [row for row in rows if row.method.startswith(starts)]
    return [max(own, key=lambda row: row.accuracy)] if own else []


def _beside(published: str, where: str, ways: Sequence[Row | None], reason: str) -> Order:
    """The first of two rows is the one that is ahead in what was published."""
    both = [row for row in ways if row is not None]
    if len(both) < 2:
        return Order(published, NOT_RUN, None, reason, ())
    ahead, behind = both
    rights = [unpacked(row.right or "", IMAGES) for row in both]
    low, high = paired_interval(*rights)
    apart = change(percent(rights[0]) - percent(rights[1]), (low, high))
    texts = " and ".join(f"{row.method} {row.accuracy:.2f} %" for row in both)
    commands = (ahead.command, behind.command)
    return Order(published, f"{where}: {texts}, apart by {apart}", low > 0, reason, commands)
