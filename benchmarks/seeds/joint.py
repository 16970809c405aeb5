"""Joint decomposition of Chen et al. 2021 (arXiv 2107.04386), rebuilt, and what this library makes instead.

`python -m benchmarks.seeds.joint` makes the rows that are missing from `benchmarks/results/seed-joint.json` and
`seed-joint-oneshot.json` beside it, then `docs/seed-joint.md` from these files. Whoever stops it may run it
again: it goes on from the last minute. Finished weights are kept under `--runs` in half precision, and judged as kept.

`--structure` makes only the rows of how many times smaller every network is, counted from the built networks; it needs
no data.
`--oneshot` makes only the rows of shared networks right after compression, without training. `--short` takes a fifth of
the epochs, in rows of their own. `--quick` is for a look: 1,000 images, one epoch, rows in files of their own and no
page.
"""

import argparse
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path

import torch
from torch import nn

import tenfold
from benchmarks import _rows
from benchmarks._compress import applied, calibration, planned
from benchmarks._folder import data_folder
from benchmarks._fresh import fresh
from benchmarks._images import QUICK_IMAGES, SPLITS, first_images, training_images
from benchmarks._nets import trained
from benchmarks._score import judged
from benchmarks._train import Trained, announced, fit, kept
from benchmarks.seeds._joint_cases import (
    ALL_JOINT,
    CHOSEN,
    DATA,
    NETS,
    RATES,
    SCHEMES,
    Job,
    Sizes,
    dense_shape,
    jobs,
    parameters,
    rate_plan,
    sizes,
    sizes_command,
)
from benchmarks.seeds._joint_page import page
from tenfold._apply import skeleton
from tenfold.methods import DEFAULT, Method, SpatialSVD
from tenfold.train import Finetuned

NAME = "seed-joint"
ROWS, ONESHOT_ROWS, SIZES_ROWS, QUICK_ROWS, QUICK_ONESHOT_ROWS = (
    _rows.RESULTS / f"{NAME}{part}.json" for part in ("", "-oneshot", "-structure", "-quick", "-oneshot-quick")
)
ONESHOT_NETS, ONESHOT_DATA = ("resnet20", "resnet56"), "cifar10-jpeg"
ONESHOT: dict[str, list[Method]] = {
    "separate": [SpatialSVD()],
    **{f"joint-{method.shared}": [method] for method in ALL_JOINT},
    "joint-or-separate": [*ALL_JOINT, SpatialSVD()],
    "mix": [*DEFAULT, *ALL_JOINT],
}
ONESHOT_SHARES = (0.5, 0.35)


def run(job: Job, runs: Path) -> _rows.Row:
    """Train what the row needs, and judge it."""
    small, control, dense = (network(each, runs) for each in (job, job.control, job.dense))
    facts = {"net": job.net, "data": job.data, "split": SPLITS[job.data], "method": job.method, "quick": job.quick}
    images = first_images(job.data, SPLITS[job.data], QUICK_IMAGES if job.quick else None)
    made = {"seconds": small.seconds, "seed": job.seed, "command": job.command}
    return judged(small.model, dense.model, images, control=control.model, **made, **facts)


@cache
def network(job: Job, runs: Path) -> Trained:
    """The trained network as it is kept."""

    def shape() -> nn.Module:
        return skeleton(dense_shape(job.net, job.data), plan(job, runs))

    def train(folder: Path) -> Finetuned:
        if job.start == "trained":
            dense = network(job.dense, runs).model
            batches = calibration(job.data, job.seed) if job.method in CHOSEN else None
            small = applied(dense, plan(job, runs), runs, batches)
        else:
            dense = fresh(dense_shape(job.net, job.data), torch.device("cpu"), job.seed)
            small = fresh(shape(), torch.device("cpu"), job.seed)
        return fit(small, dense, training_images(job.data, QUICK_IMAGES if job.quick else None), job.recipe, folder)

    return kept(runs / job.stem, shape, train)


def plan(job: Job, runs: Path) -> tenfold.Plan:
    """By the authors' rule, or by the library's choice at the size that the spatial SVD has by that rule."""
    if job.method in SCHEMES:
        return rate_plan(job.net, job.data, job.method, job.rate)
    if job.method not in CHOSEN:
        return tenfold.Plan()
    methods, frozen = CHOSEN[job.method]
    target = tenfold.Budget(params=parameters(job.net, job.data, "spatial", job.rate))
    batches, path = calibration(job.data, job.seed), runs / f"{job.stem}.plan.json"
    return planned(path, lambda: network(job.dense, runs).model, target, batches, methods=methods, freeze=frozen)


@dataclass(frozen=True)
class OneShot:
    """One row of a shared network right after compression, factors fitted to data."""

    net: str
    method: str
    params: float
    seed: int
    quick: bool

    @property
    def command(self) -> str:
        """The row's identity."""
        asked = f"--net {self.net} --method {self.method} --params {self.params:g} --seed {self.seed}"
        return f"python -m benchmarks.seeds.joint --oneshot {asked}" + " --quick" * self.quick


def run_oneshot(job: OneShot) -> _rows.Row:
    """Compress, and judge."""
    dense, found = trained(job.net, ONESHOT_DATA), options(job.net, job.method, job.seed)
    small = tenfold.apply(dense, found.plan(tenfold.Budget(params=job.params)), found.statistics)
    images = first_images(ONESHOT_DATA, "test", QUICK_IMAGES if job.quick else None)
    facts = {"net": job.net, "data": ONESHOT_DATA, "split": "test", "method": job.method, "quick": job.quick}
    return judged(small, dense, images, seed=job.seed, command=job.command, **facts)


@lru_cache(maxsize=1)
def options(net: str, method: str, seed: int) -> tenfold.Options:
    """All options of a shared network, as the data sees them."""
    dense, batches = trained(net, ONESHOT_DATA), calibration(ONESHOT_DATA, seed)
    told = tenfold.calibrate(dense, batches, seed=seed)
    return tenfold.options(dense, example=batches[0][:1], statistics=told, methods=ONESHOT[method])


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.seeds.joint", description=str(__doc__).splitlines()[0])
    parser.add_argument("--net", nargs="+", choices=(*NETS, *ONESHOT_NETS))
    parser.add_argument("--data", nargs="+", choices=DATA, default=[*DATA])
    parser.add_argument("--method", nargs="+")
    parser.add_argument("--rate", nargs="+", type=float)
    parser.add_argument("--start", nargs="+", choices=("random", "trained"), default=["random", "trained"])
    parser.add_argument("--params", nargs="+", type=float, default=ONESHOT_SHARES, help="of --oneshot")
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--oneshot", action="store_true", help="shared networks right after compression, only")
    parser.add_argument("--short", action="store_true", help="a fifth of the epochs")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_IMAGES:,} images and one epoch")
    parser.add_argument("--structure", action="store_true", help="count, and stop")
    parser.add_argument("--runs", type=Path, default=_rows.RUNS, help="weights and checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def chosen(asked: argparse.Namespace) -> list[Job]:
    """The trained rows that the command line asks for."""
    every = [
        job
        for net in NETS
        for data in asked.data
        for seed in asked.seed
        for job in jobs(net, data, seed, short=asked.short, quick=asked.quick)
    ]
    wanted = {"net": asked.net, "method": asked.method, "rate": asked.rate, "start": asked.start}
    return [job for job in every if all(not given or getattr(job, name) in given for name, given in wanted.items())]


def count(asked: argparse.Namespace) -> None:
    """Make the missing rows of sizes, then the page."""
    places = [(net, data, rate) for net in asked.net or NETS for data in asked.data for rate in asked.rate or RATES]
    _rows.make_missing(SIZES_ROWS, Sizes, [(sizes_command(*place), partial(sizes, *place)) for place in places])
    write_page(_rows.DOCS)


def write_page(docs: Path) -> None:
    """The page, from the rows that there are."""
    text = page(_rows.read(ROWS), _rows.read(ONESHOT_ROWS), _rows.read(SIZES_ROWS, Sizes))
    _rows.replace_text(docs / f"{NAME}.md", text)


def main() -> None:
    """Make the missing rows, then the page."""
    asked = arguments()
    if asked.structure:
        count(asked)
        return
    data_folder()  # refuse before work starts
    torch.set_num_threads(asked.threads)
    announced()
    trained_path, oneshot_path = (QUICK_ROWS, QUICK_ONESHOT_ROWS) if asked.quick else (ROWS, ONESHOT_ROWS)
    shots = [
        OneShot(net, method, share, seed, asked.quick)
        for net in ONESHOT_NETS
        for method in ONESHOT
        for seed in asked.seed
        for share in asked.params
        if net in (asked.net or [net]) and method in (asked.method or [method])
    ]
    _rows.make_missing(oneshot_path, _rows.Row, [(shot.command, partial(run_oneshot, shot)) for shot in shots])
    if not asked.oneshot:
        todo = [(job.command, partial(run, job, asked.runs)) for job in chosen(asked)]
        _rows.make_missing(trained_path, _rows.Row, todo)
    if not asked.quick:
        write_page(_rows.DOCS)


if __name__ == "__main__":
    main()
