"""Tensor-train networks of Garipov et al. 2016 (arXiv 1611.03214), rebuilt, and what this library makes instead.

`python -m benchmarks.seeds.tensor_train` trains what is missing, makes the rows that are missing from
`benchmarks/results/seed-tensor-train.json`, then `docs/seed-tensor-train.md` from that file. Whoever stops it may run
it again: it goes on from the last minute. Finished weights are kept under `--runs` in half precision, and judged as
kept. To measure anew, delete the file of rows; to train anew, those under `--runs` as well.

`--short` trains for a fifth of the epochs, which is what a CPU can do. `--structure` prints the parameters of every
network, counted, beside the published ones; it needs no data. `--lr` trains at another rate, prints the accuracy on
training images that were held back, and makes no row. `--quick` is for a look: 1,000 images, one epoch, rows in a
file of their own and no page.
"""

import argparse
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn

import tenfold
from benchmarks import _rows
from benchmarks._compress import applied, calibration, planned
from benchmarks._folder import data_folder
from benchmarks._fresh import fresh
from benchmarks._images import QUICK_IMAGES, Images, first_images, training_images
from benchmarks._score import judged
from benchmarks._train import Trained, announced, epochs_of, fit, flags, kept
from benchmarks.seeds._cases import (
    CASES,
    CONTROL,
    DATA,
    DENSE,
    FROZEN,
    Case,
    dense_shape,
    in_fast_forms,
    ranks_plan,
    shape,
)
from benchmarks.seeds._garipov import NETS
from benchmarks.seeds._page import page
from tenfold.train import Finetuned, Recipe

NAME = "seed-tensor-train"
ROWS, QUICK_ROWS = _rows.RESULTS / f"{NAME}.json", _rows.RESULTS / f"{NAME}-quick.json"
METHODS = tuple(dict.fromkeys(method for _, method in CASES))


@dataclass(frozen=True)
class Job:
    """One row to make."""

    net: str
    method: str
    seed: int
    short: bool
    quick: bool
    lr: float | None = None  # instead of the recipe's

    @property
    def case(self) -> Case:
        """What to build."""
        return CASES[self.net, self.method]

    @property
    def options(self) -> str:
        """What makes this row and no other."""
        named = f"--net {self.net} --method {self.method} --seed {self.seed}"
        rate = "" if self.lr is None else f" --lr {self.lr:g}"
        return named + rate + flags(short=self.short, quick=self.quick)

    @property
    def command(self) -> str:
        """The row's identity."""
        return f"python -m benchmarks.seeds.tensor_train {self.options}"

    @property
    def stem(self) -> str:
        """The name of this job's files."""
        words = [word.removeprefix("--") for word in self.options.split()[1:] if word not in ("--method", "--seed")]
        return "-".join(["garipov", *words])

    @property
    def dense(self) -> "Job":
        """The dense network that this one starts from, or is compared with."""
        return replace(self, method=DENSE, lr=None)

    @property
    def control(self) -> "Job":
        """The dense network trained as long as this one."""
        return self.dense if self.case.start == "random" else replace(self, method=CONTROL)

    @property
    def recipe(self) -> Recipe:
        """How to train it."""
        recipe = self.case.recipe
        epochs = epochs_of(recipe.epochs, short=self.short, quick=self.quick)
        # Going on from the dense network with its seed would show it the very crops that it has seen.
        seed = self.seed + 1_000 * (self.case.start == "trained")
        return recipe.model_copy(update={"epochs": epochs, "seed": seed, "lr": self.lr or recipe.lr})


def run(job: Job, runs: Path) -> _rows.Row:
    """Train what the row needs, and judge it."""
    small, control, dense = (network(each, runs) for each in (job, job.control, job.dense))
    facts = {"net": f"garipov-{job.net}", "data": DATA, "split": "test", "method": job.method, "quick": job.quick}
    images = judged_images(job.quick)
    made = {"seconds": small.seconds, "seed": job.seed, "command": job.command}
    return judged(small.model, dense.model, images, control=control.model, **made, **facts)


@cache
def network(job: Job, runs: Path) -> Trained:
    """The trained network as it is kept."""

    def train(folder: Path) -> Finetuned:
        if job.case.start == "trained":
            dense, found = network(job.dense, runs).model, plan(job, runs)
            assert found is not None, "the library builds what starts from trained weights"
            small = applied(dense, found, runs, calibration(DATA, job.seed) if job.case.fewer else None)
        else:
            dense = fresh(dense_shape(job.net), torch.device("cpu"), job.seed)
            small = fresh(shape(job.case), torch.device("cpu"), job.seed)
        return fit(small, dense, training_images(DATA, QUICK_IMAGES if job.quick else None), job.recipe, folder)

    return kept(runs / job.stem, lambda: shape(job.case, plan(job, runs)), train)


@cache
def plan(job: Job, runs: Path) -> tenfold.Plan | None:
    """The plan of a network that the library builds: of its ranks, or searched once and kept."""
    if not job.case.from_library:
        return None
    if job.case.fewer is None:
        return ranks_plan(job.case)
    found = planned(
        runs / f"{replace(job, lr=None).stem}.plan.json",
        lambda: network(job.dense, runs).model,
        tenfold.Budget(params=1 / job.case.fewer),
        calibration(DATA, job.seed),
        freeze=FROZEN[job.net],
    )
    return in_fast_forms(found)


@cache
def judged_images(quick: bool) -> Images:
    """Images that decide."""
    return first_images(DATA, "test", QUICK_IMAGES if quick else None)


def structure() -> str:
    """Every network whose shape needs no training, its parameters counted."""
    lines = [f"{'net':8} {'method':20} {'parameters':>10} {'x fewer':>8} {'published':>9}  ranks"]
    dense = {net: _count(shape(CASES[net, DENSE])) for net in NETS}
    for case in CASES.values():
        if case.fewer is None:
            count = _count(shape(case))
            claimed = f"{case.published.fewer:.2f}" if case.published else "-"
            steps = {step.layers[0]: step.rank for step in ranks_plan(case).steps} if case.from_library else case.ranks
            ranks = " ".join(f"{name}{rank}".replace(" ", "") for name, rank in steps.items())
            cells = f"{case.net:8} {case.method:20} {count:>10,} {dense[case.net] / count:>8.2f} {claimed:>9}  {ranks}"
            lines.append(cells.rstrip())
    return "\n".join(lines)


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def jobs(asked: argparse.Namespace) -> list[Job]:
    """The rows that the command line asks for, in the order of the page."""
    return [
        Job(net, method, seed, asked.short, asked.quick, asked.lr if asked.lr != CASES[net, method].recipe.lr else None)
        for net, method in CASES
        for seed in asked.seed
        if net in asked.net and method in asked.method
    ]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.seeds.tensor_train", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--net", nargs="+", choices=NETS, default=[*NETS])
    parser.add_argument("--method", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--short", action="store_true", help="a fifth of the epochs")
    parser.add_argument("--lr", type=float, help="try another rate on training images; makes no row")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_IMAGES:,} images and one epoch")
    parser.add_argument("--structure", action="store_true", help="count parameters, and stop")
    parser.add_argument("--runs", type=Path, default=_rows.RUNS, help="weights and checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def write_page(docs: Path) -> None:
    """The page, from the rows that there are."""
    _rows.replace_text(docs / f"{NAME}.md", page(_rows.read(ROWS)))


def main() -> None:
    """Make the missing rows, then the page."""
    asked = arguments()
    if asked.structure:
        print(structure())
        return
    data_folder()  # refuse before work starts
    torch.set_num_threads(asked.threads)
    announced()
    if asked.lr:
        for job in jobs(asked):
            print(f"{job.stem}: {network(job, asked.runs).metrics[-1]:.2f} % of training images held back")
        return
    path = QUICK_ROWS if asked.quick else ROWS
    _rows.make_missing(path, _rows.Row, [(job.command, partial(run, job, asked.runs)) for job in jobs(asked)])
    if not asked.quick:
        write_page(_rows.DOCS)


if __name__ == "__main__":
    main()
