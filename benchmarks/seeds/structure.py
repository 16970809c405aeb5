"""Optimising the structure while it trains: SVD training and soft filter pruning, as ITMO compares them.

`python -m benchmarks.seeds.structure` makes the rows that are missing from `benchmarks/results/seed-structure.json`,
then `docs/seed-structure.md` from that file. Whoever stops it may run it again: it goes on from the last minute.
Finished weights are kept under `--runs` in half precision, and judged as kept.

`--short` takes a fifth of the epochs, in rows of their own. `--quick` is for a look: 1,000 images, one epoch, rows in a
file of their own and no page. `--sparsity` tries another strength on training images that are held back; no row.
"""

import argparse
import copy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

import tenfold
from benchmarks import _rows
from benchmarks._compress import applied, bisected, calibration, largest, planned
from benchmarks._folder import data_folder
from benchmarks._fresh import fresh
from benchmarks._images import QUICK_IMAGES, SPLITS, first_images, training_images
from benchmarks._nets import trained
from benchmarks._score import correct, in_bulk, judged, percent
from benchmarks._train import Trained, announced, fit, kept
from benchmarks.seeds import joint
from benchmarks.seeds._joint_cases import DATA, dense_shape
from benchmarks.seeds._structure_cases import (
    AT_HAND,
    CONTROL,
    DENSE,
    FILTERS,
    METHODS,
    MIX,
    NETS,
    SIZES,
    STARTS,
    SVD,
    Job,
    Stage,
    jobs,
)
from benchmarks.seeds._structure_page import Row, page
from tenfold._apply import skeleton
from tenfold.methods import FilterPruning
from tenfold.train import Finetuned, Hooks, SoftFilterPruning, SVDTraining

NAME = "seed-structure"
ROWS, QUICK_ROWS = _rows.RESULTS / f"{NAME}.json", _rows.RESULTS / f"{NAME}-quick.json"


def run(job: Job, runs: Path) -> Row:
    """Train what the row needs, and judge it before cutting, right after, and trained further."""
    images = first_images(job.data, SPLITS[job.data], QUICK_IMAGES if job.quick else None)
    small, control, dense = network(job, runs), network(job.control, runs).model, dense_of(job, runs)
    facts = {"net": job.net, "data": job.data, "split": SPLITS[job.data], "method": job.method, "quick": job.quick}
    row = judged(small.model, dense, images, control=control, seed=job.seed, command=job.command, **facts)
    if job.method == MIX:
        return Row(**row.model_dump(exclude={"seconds"}), seconds=small.seconds)
    first = wide(job, runs)
    before, after = (percent(correct(in_bulk(model), images)) for model in (first.model, cut(job, runs)))
    seconds = round(first.seconds + small.seconds, 1)
    return Row(**row.model_dump(exclude={"seconds"}), seconds=seconds, before=before, after=after)


def dense_of(job: Job, runs: Path) -> nn.Module:
    """The dense network that a row is compared with."""
    return begun(job, runs) if job.start == "trained" else network(job.dense, runs).model


@cache
def begun(job: Job, runs: Path) -> nn.Module:
    """What training starts from."""
    if job.start == "random":
        return fresh(dense_shape(job.net, job.data), torch.device("cpu"), job.seed)
    if (job.net, job.data) in AT_HAND:
        return trained(job.net, job.data)
    return joint.network(
        joint.Job(job.net, job.data, DENSE, seed=job.seed, short=job.short, quick=job.quick), runs
    ).model


@cache
def network(job: Job, runs: Path) -> Trained:
    """The trained network as it is kept."""

    def train(folder: Path) -> Finetuned:
        start = begun(job, runs)
        if job.method in SVD:
            training = SVDTraining(job.training.form)  # type: ignore[arg-type]
            done = fitted(job, cut(job, runs), start, "small", folder, training)
            return Finetuned(training.finished(done.model, start)[0], done.history)
        if job.method in FILTERS:
            return fitted(job, cut(job, runs), start, "small", folder)
        if job.method == MIX:
            small = applied(start, plan(job, runs), runs, calibration(job.data, job.seed))
            return fitted(job, small, start, "whole", folder)
        return fitted(job, start, start, "wide" if job.method == DENSE else "whole", folder)

    return kept(runs / job.stem, lambda: skeleton(dense_shape(job.net, job.data), plan(job, runs)), train)


@cache
def wide(job: Job, runs: Path) -> Trained:
    """The network before it is cut: factorised at full rank, or with filters that are 0."""
    first, start = job.wide, begun(job, runs)

    def shape() -> nn.Module:
        return first.training.factorised(start) if job.method in SVD else copy.deepcopy(start)

    def train(folder: Path) -> Finetuned:
        return fitted(first, shape(), start, "wide", folder, hook(job, runs))

    return kept(runs / f"{first.stem}-wide", shape, train)


def hook(job: Job, runs: Path) -> Hooks:
    """What the first stage trains with."""
    if job.method in SVD:
        return job.training
    return SoftFilterPruning(begun(job, runs), plan(job, runs), schedule=FILTERS[job.method][0])  # type: ignore[arg-type]


def cut(job: Job, runs: Path) -> nn.Module:
    """The network right after it is cut to size."""
    first = wide(job, runs).model
    if job.method in FILTERS:
        return tenfold.apply(first, plan(job, runs))
    dense = begun(job, runs)
    most = job.params * sum(p.numel() for p in dense.parameters())

    def at(share: float) -> tuple[nn.Module, tenfold.Plan]:
        small = job.training.cut(first, share)
        return small, job.training.finished(small, dense)[1]

    def fits(share: float) -> bool:
        return sum(p.numel() for p in skeleton(dense, at(share)[1]).parameters()) <= most

    small, found = at(bisected(fits, 1e-3, 10))
    _rows.replace_text(_plan_of(job, runs), found.dumps())
    return small


@cache
def plan(job: Job, runs: Path) -> tenfold.Plan:
    """The plan of a network: searched once, or found when singular values are cut."""
    if job.method in (DENSE, CONTROL):
        return tenfold.Plan()
    path, batches = _plan_of(job, runs), calibration(job.data, job.seed)
    if job.method in SVD:
        if not path.exists():
            cut(job, runs)
        return tenfold.Plan.loads(path.read_text(), str(path))
    budget, start = tenfold.Budget(params=job.params), begun(job, runs)
    if job.method == MIX:
        return planned(path, lambda: start, budget, batches)
    if FILTERS[job.method][1] == "budget":
        return planned(path, lambda: start, budget, batches, methods=[FilterPruning()])
    return uniform(start, batches[0][:1], job.params)


def uniform(dense: nn.Module, example: Tensor, params: float) -> tenfold.Plan:
    """The same share of every group stays: the largest that meets the size."""
    found = tenfold.options(dense, example=example, methods=[FilterPruning()])
    return largest(found, lambda share: tenfold.Ranks(share=share), "params", params * found.dense.params, 1e-3, 10)


def fitted(job: Job, small: nn.Module, dense: nn.Module, stage: Stage, folder: Path, *hooks: Hooks) -> Finetuned:
    """Train one stage."""
    images = training_images(job.data, QUICK_IMAGES if job.quick else None)
    return fit(small, dense, images, job.recipe(stage), folder, hooks=hooks)


def _plan_of(job: Job, runs: Path) -> Path:
    return runs / f"{job.stem}.plan.json"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.seeds.structure", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--net", nargs="+", choices=NETS, default=[*NETS])
    parser.add_argument("--data", nargs="+", choices=DATA, default=[*DATA])
    parser.add_argument("--method", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--params", nargs="+", type=float, choices=SIZES, default=SIZES)
    parser.add_argument("--start", nargs="+", choices=STARTS, default=STARTS)
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--sparsity", type=float, help="try another strength on training images; makes no row")
    parser.add_argument("--short", action="store_true", help="a fifth of the epochs")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_IMAGES:,} images and one epoch")
    parser.add_argument("--runs", type=Path, default=_rows.RUNS, help="weights and checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def chosen(asked: argparse.Namespace) -> list[Job]:
    """The rows that the command line asks for, in the order of the page."""
    return [
        replace(job, sparsity=asked.sparsity)
        for net in asked.net
        for data in asked.data
        for start in asked.start
        for seed in asked.seed
        for job in jobs(net, data, start, seed, short=asked.short, quick=asked.quick)
        if job.method in asked.method and job.params in asked.params
    ]


def write_page(docs: Path) -> None:
    """The page, from the rows that there are."""
    _rows.replace_text(docs / f"{NAME}.md", page(_rows.read(ROWS, Row)))


def main() -> None:
    """Make the missing rows, then the page."""
    asked = arguments()
    data_folder()  # refuse before work starts
    torch.set_num_threads(asked.threads)
    announced()
    if asked.sparsity is not None:
        for job in chosen(asked):
            print(f"{job.stem}: {network(job, asked.runs).metrics[-1]:.2f} % of training images held back")
        return
    path = QUICK_ROWS if asked.quick else ROWS
    _rows.make_missing(path, Row, [(job.command, partial(run, job, asked.runs)) for job in chosen(asked)])
    if not asked.quick:
        write_page(_rows.DOCS)


if __name__ == "__main__":
    main()
