"""Accuracy after compression without labels: methods alone and together, by each rule, from weights or from data.

`python -m benchmarks.oneshot` makes the rows that are missing from `benchmarks/results/oneshot.json`, then
`docs/oneshot.md` from that file. To measure anew, delete the file. `--quick` is for a look: 500 images, the small
network, rows in a file of their own and no page.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import tenfold
from benchmarks import _rows
from benchmarks._compress import IMAGES as CALIBRATION_IMAGES
from benchmarks._compress import calibration, largest
from benchmarks._folder import VARIABLE, data_folder
from benchmarks._images import Images, drawn_images, first_images
from benchmarks._nets import trained
from benchmarks._score import judged, paired_interval, percent, unpacked
from tenfold.methods import CP, SVD, Method, SpatialSVD, TensorTrain, Tucker

ROWS, QUICK_ROWS = _rows.RESULTS / "oneshot.json", _rows.RESULTS / "oneshot-quick.json"
NETS = ("resnet20", "resnet56")
DATA, SPLIT = "cifar10-jpeg", "test"
BUDGETS = (0.7, 0.5, 0.35)  # shares of the dense network's parameters
ALONE: dict[str, Method] = {
    "svd-output": SVD("output"),
    "svd-input": SVD("input"),
    "spatial": SpatialSVD(),
    "tucker": Tucker(),
    "cp3": CP(3),
    "cp4": CP(4),
    "tt": TensorTrain(),
}
MIXES: dict[str, Sequence[Method]] = {
    **{name: [method] for name, method in ALONE.items()},
    "tt-naive": [TensorTrain(form="naive")],  # for the order of the two forms; the mix does without
    "mix": [*ALONE.values()],
}
NORMS = "+norms"  # batch norms re-estimated after compression
DATA_FITTED = "+data"  # statistics of training images choose ranks and fit factors
RECOVERED = ("+data+refit", "+data+blocks")  # and then `tenfold.recover` by this way
RULED = ("tucker", "cp3", "mix")  # that every rule is tried with, where no method is asked for, and norms
METHODS = (
    *(mix + norms for mix in MIXES for norms in ("", NORMS) if mix in RULED or not norms),
    *(mix + DATA_FITTED for mix in MIXES),
    *("mix" + recovered for recovered in RECOVERED),
)
RULED_BUDGET = 0.5
BUDGET = "budget"  # the library's own choice: all layers at once
GREEDY_IMAGES, GREEDY_LEVELS = 512, 5  # every layer is judged alone on these training images at these many sizes
HELD_OUT, QUICK_IMAGES, QUICK_NETS = 10_000, 500, ("resnet20",)
SEED, SEEDS = 0, (0, 1, 2)  # draw the training images; several where factors are fitted to them


@dataclass(frozen=True)
class Job:
    """One row to make."""

    net: str
    method: str
    rule: str
    params: float | None  # None for a rule that takes no budget
    threads: int
    quick: bool
    seed: int

    @property
    def command(self) -> str:
        """What makes this row and no other."""
        seed = f" --seed {self.seed}" if DATA_FITTED in self.method else ""
        params = "" if self.params is None else f" --params {self.params:g}"
        asked = f"--net {self.net} --method {self.method} --rule {self.rule}{params} --threads {self.threads}"
        return f"python -m benchmarks.oneshot {asked}{seed}" + " --quick" * self.quick


def run(job: Job) -> _rows.Row:
    """Compress, recover if asked, and judge on the held-out images."""
    dense, images = dense_net(job.net), held_out(job.quick)
    start = time.perf_counter()  # includes curves and factors where this row is the first to need them
    mix, *ways = job.method.split("+")
    small = compressed(job.net, mix, job.rule, job.params, job.seed if "data" in ways else None)
    if "norms" in ways:
        small = tenfold.reestimate_norms(small, calibration(DATA, job.seed))
    for how in {"refit", "blocks"}.intersection(ways):
        small = tenfold.recover(small, dense, calibration(DATA, job.seed), how=how, seed=job.seed)
    seconds = round(time.perf_counter() - start, 2)
    facts = {"net": job.net, "data": DATA, "split": SPLIT, "method": job.method, "quick": job.quick, "seed": job.seed}
    rule = None if job.rule == BUDGET else job.rule
    return judged(small, dense, images, rule=rule, seconds=seconds, command=job.command, **facts)


def within(found: tenfold.Options, params: float, rule: Callable[[float], tenfold.Target]) -> tenfold.Plan:
    """The largest number for a rule that meets the budget, so that rules without one compare."""
    return largest(found, rule, "params", params * found.dense.params, 1e-6, 12)


def greedy(found: tenfold.Options, params: float) -> tenfold.Plan:
    """Per-layer tables of what each layer does by itself to the loss on training images."""
    images = drawn_images(DATA, "train", GREEDY_IMAGES, SEED)

    def less_loss(model: nn.Module) -> float:
        with torch.inference_mode():
            losses = [F.cross_entropy(model(inputs), labels, reduction="sum") for inputs, labels in images.batches(256)]
        return -float(sum(losses)) / len(images)

    return found.plan(tenfold.Greedy(tenfold.Budget(params=params), less_loss, GREEDY_LEVELS))


RULES: dict[str, Callable[[tenfold.Options, float], tenfold.Plan]] = {
    BUDGET: lambda found, params: found.plan(tenfold.Budget(params=params)),
    "min-max": lambda found, params: found.plan(tenfold.MinMax(tenfold.Budget(params=params))),
    "greedy": greedy,
    "energy": lambda found, params: within(found, params, tenfold.Energy),
    "ranks": lambda found, params: within(found, params, lambda share: tenfold.Ranks(share=share)),
    "evbmf": lambda found, _: found.plan(tenfold.EVBMF()),
}
WITHOUT_BUDGET, WITHOUT_MATRICES = ("evbmf",), ("cp3",)  # a rule, and a method, that it can do nothing for


# What several rows share is made once.


@lru_cache(maxsize=1)  # rows with and without what follows compression follow each other
def compressed(net: str, mix: str, rule: str, params: float | None, seed: int | None) -> nn.Module:
    """The network, smaller; by what the data of a seed tells, if one is given."""
    plan = RULES[rule](options(net, mix, seed), params or 0.0)
    return tenfold.apply(dense_net(net), plan, None if seed is None else statistics(net, seed))


@lru_cache(maxsize=1)
def statistics(net: str, seed: int) -> tenfold.Statistics:
    """What training images tell."""
    return tenfold.calibrate(dense_net(net), calibration(DATA, seed), seed=seed)


@cache
def dense_net(net: str) -> nn.Module:
    """The trained network."""
    return trained(net, DATA)


@cache
def held_out(quick: bool) -> Images:
    """The images that decide."""
    return first_images(DATA, SPLIT, QUICK_IMAGES if quick else HELD_OUT)


@cache
def example() -> Tensor:
    """One image."""
    return calibration(DATA, SEED)[0][:1]


@lru_cache(maxsize=2)
def options(net: str, mix: str, seed: int | None) -> tenfold.Options:
    """All options of a network, good for every budget."""
    told = None if seed is None else statistics(net, seed)
    return tenfold.options(dense_net(net), example=example(), statistics=told, methods=MIXES[mix])


def page(rows: Sequence[_rows.Row]) -> str:
    """The page of documentation, from rows alone."""
    versions = ", ".join(sorted({row.version for row in rows}))
    return f"""# Accuracy right after compression

Trained networks compressed to a share of their parameters and judged as they are, without any use of labels.
`mix` lets all methods compete for each layer. What follows is made of {CALIBRATION_IMAGES:,} training images without
labels: `{NORMS}` re-estimates batch norms; with `{DATA_FITTED}`, statistics of the images choose the ranks and
the factors are fitted to them; `{RECOVERED[0]}` and `{RECOVERED[1]}` then recover accuracy in that way. Where images
are drawn by several seeds, a row is the mean over them, with the interval of one.

Parameters, multiply-adds and latency are small / dense; latency is from medians of interleaved runs on one image.
A method with and without `{NORMS}` has the same layers, so what their latencies differ by is noise. The interval is
that of the difference on the same images, one by one. Made with tenfold {versions} and `{VARIABLE}` set, by

```sh
python -m benchmarks.oneshot
```

{_verdict(rows)}

{_rows.tables([row for row in rows if row.rule is None])}
# Rank rules

By rank rules instead of the budget's choice of all layers at once, which is repeated here. `energy` and
`ranks` (a share of each layer's full rank) have their number found by bisection, such that they meet the budget;
`min-max` and `greedy` take one; `evbmf` finds a size of its own. `greedy` sees the loss on {GREEDY_IMAGES} training
images at {GREEDY_LEVELS} sizes of each layer.

{_rows.tables([row for row in rows if row.rule or (row.method in RULED and row.asked == RULED_BUDGET)])}"""


def _verdict(rows: Sequence[_rows.Row]) -> str:
    """How the mix compares with the best single method at every size, image by image, in the mean over seeds."""
    right: dict[tuple[str, float | None, str], list[Tensor]] = {}
    for row in rows:
        if row.rule is None and row.right and "threads 1" in row.command:
            right.setdefault((row.net, row.asked, row.method), []).append(unpacked(row.right, HELD_OUT).double())
    means = {key: torch.stack(found).mean(0) for key, found in right.items()}
    lines = []
    for (net, asked, method), mix in means.items():
        way = method.removeprefix("mix")
        alone = {name + way: means[net, asked, name + way] for name in ALONE if (net, asked, name + way) in means}
        if method in ("mix", "mix" + DATA_FITTED) and len(alone) == len(ALONE):
            best = max(alone, key=lambda name: float(alone[name].mean()))
            low, high = paired_interval(mix, alone[best])
            lines.append(
                f"| {net} | {100 * float(asked or 0):g} % | {best} | {percent(alone[best]):.2f} "
                f"| {percent(mix):.2f} | {percent(mix) - percent(alone[best]):+.2f} ({low:+.2f} to {high:+.2f}) |"
            )
    head = [
        "| network | asked | best single method | its accuracy, % | mix, % | mix less best (95 % interval) |",
        "|---|--:|---|--:|--:|--:|",
    ]
    return "\n".join([*head, *lines])


def jobs(asked: argparse.Namespace) -> list[Job]:
    """The rows that the command line asks for, in the order of the page."""
    return [
        Job(net, method, rule, params, asked.threads, asked.quick, seed)
        for net in asked.net or (QUICK_NETS if asked.quick else NETS)
        for rule in asked.rule
        for params in _budgets(rule, asked)
        for method in asked.method or (METHODS if rule == BUDGET else RULED)
        for seed in (asked.seed if DATA_FITTED in method else [SEED])
        if not (rule in WITHOUT_BUDGET and method in WITHOUT_MATRICES)
    ]


def _budgets(rule: str, asked: argparse.Namespace) -> Sequence[float | None]:
    if rule in WITHOUT_BUDGET:
        return [None]
    return asked.params or (BUDGETS if rule == BUDGET else [RULED_BUDGET])


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.oneshot", description=str(__doc__).splitlines()[0])
    parser.add_argument("--net", nargs="+", choices=NETS)
    parser.add_argument("--method", nargs="+", choices=METHODS)
    parser.add_argument("--rule", nargs="+", choices=RULES, default=[*RULES])
    parser.add_argument("--params", nargs="+", type=float, help="shares of the dense parameters")
    parser.add_argument("--seed", nargs="+", type=int, default=SEEDS, help="of methods that data is fitted to")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_IMAGES} images; without --net, {QUICK_NETS[0]} only"
    )
    return parser.parse_args()


def write_page(docs: Path) -> None:
    """The page, from the rows that there are."""
    _rows.replace_text(docs / "oneshot.md", page(_rows.read(ROWS)))


def main() -> None:
    """Make the missing rows, then the page."""
    asked = arguments()
    data_folder()  # refuse before work starts
    torch.set_num_threads(asked.threads)
    path = QUICK_ROWS if asked.quick else ROWS
    _rows.make_missing(path, _rows.Row, [(job.command, partial(run, job)) for job in jobs(asked)])
    if not asked.quick:
        write_page(_rows.DOCS)


if __name__ == "__main__":
    main()
