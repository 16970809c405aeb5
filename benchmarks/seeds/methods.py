"""CP, Tucker, tensor trains and SVD on convolutions and fully connected layers: a comparison of 2023, made anew.

`python -m benchmarks.seeds.methods` trains what is missing, makes the rows that are missing from
`benchmarks/results/seed-methods.json`, then `docs/seed-methods.md` and its figures from that file. Whoever stops it may
run it again: it goes on from the last minute. Finished weights are kept under `--runs` in half
precision, and judged as kept. To measure anew, delete the file of rows; to train anew, those under `--runs` as well.

Other options choose among the rows: `--part scope --scope fc --method tt cp`. `--quick` is for a look: a few rows, few
images and epochs, rows in a file of their own and no page.
"""

import argparse
import time
from functools import cache, partial
from pathlib import Path

import torch
from pydantic import BaseModel
from torch import Tensor, nn

import tenfold
from benchmarks._folder import data_folder
from benchmarks._fresh import fresh
from benchmarks._images import SPLITS
from benchmarks._rows import DOCS, RESULTS, RUNS, make_missing, read, replace_text
from benchmarks._score import correct, in_bulk, paired_interval, percent
from benchmarks._train import Trained, fit, kept
from benchmarks.seeds._methods_cases import BATCH, CHOICES, DENSE, METHODS, NAME, Job, Row, jobs
from benchmarks.seeds._methods_images import Split, split_images
from benchmarks.seeds._methods_page import page
from benchmarks.seeds._small_net import FROZEN, small_net
from tenfold._apply import skeleton
from tenfold.train import Finetuned

ROWS, QUICK_ROWS = RESULTS / f"{NAME}.json", RESULTS / f"{NAME}-quick.json"


class Compression(BaseModel):
    """What is known before training: the plan, or why there is none."""

    plan: tenfold.Plan = tenfold.Plan()
    refused: str | None = None
    seconds: float = 0.0  # to find the options, choose among them and apply the plan
    accuracy: float | None = None  # percent, right after


def run(job: Job, runs: Path) -> Row:
    """Compress, train what the row needs, and judge it."""
    known = compression(job.planned, runs)
    if known.refused:
        return row(job, runs, known)
    small = network(job, runs)
    dense = network(job.control, runs)
    report = tenfold.verify(small.model, dense.model, [example(job, BATCH)])
    low, high = paired_interval(right_answers(job, runs), right_answers(job.control, runs))
    return row(job, runs, known).model_copy(
        update={
            "accuracy_at_once": known.accuracy if job.start == "trained" else None,
            "accuracy": round(percent(right_answers(job, runs)), 4),
            "interval": (round(low, 4), round(high, 4)),
            "curve": small.metrics,
            "params_ratio": round(report.small.params / report.dense.params, 5),
            "macs_ratio": round(report.small.macs / report.dense.macs, 5),
            "latency_ratio": round(report.small.milliseconds / report.dense.milliseconds, 4),
            "latency_ms": round(report.small.milliseconds, 4),
            "train_seconds": small.seconds,
            "device": report.device,
        }
    )


def row(job: Job, runs: Path, known: Compression) -> Row:
    """A row without the figures of the small network."""
    return Row(
        **{name: getattr(job, name) for name in (*CHOICES, "quick", "command")},
        split=SPLITS[job.data],
        refused=known.refused,
        base_accuracy=round(percent(right_answers(job.base, runs)), 4),
        control_accuracy=round(percent(right_answers(job.control, runs)), 4),
        plan_seconds=round(known.seconds, 2),
        device="cpu",
        version=tenfold.__version__,
    )


@cache
def network(job: Job, runs: Path) -> Trained:
    """The trained network as it is kept."""

    def train(folder: Path) -> Finetuned:
        split, found = images_of(job), compression(job.planned, runs).plan
        if job.start == "trained":
            dense = network(job.base, runs).model
            small = tenfold.apply(dense, found)
        else:
            dense = fresh(small_net(job.size, job.classes), torch.device("cpu"), job.seed)
            small = fresh(shape(job, found), torch.device("cpu"), job.seed)

        def held_back(model: nn.Module) -> Tensor:
            return correct(model, split.held_back).double()

        return fit(small, dense, split.train, job.recipe, folder, held_back if job.part == "epochs" else None)

    return kept(runs / job.stem, lambda: shape(job, compression(job.planned, runs).plan), train)


def shape(job: Job, plan: tenfold.Plan) -> nn.Module:
    """The job's network on the meta device."""
    with torch.device("meta"):
        return skeleton(small_net(job.size, job.classes), plan)


@cache
def compression(job: Job, runs: Path) -> Compression:
    """The plan of a job, searched once and kept."""
    if job.method == DENSE:
        return Compression()
    path = runs / f"{job.stem}.plan.json"
    if not path.exists():
        replace_text(path, compressed(job, runs).model_dump_json(indent=2))
    return Compression.model_validate_json(path.read_text())


def compressed(job: Job, runs: Path) -> Compression:
    """Choose the ranks under the budget, and judge what comes of it."""
    dense = network(job.base, runs).model
    start = time.perf_counter()
    options = tenfold.options(dense, example=example(job, 1), methods=METHODS[job.method], freeze=FROZEN[job.scope])
    in_scope = sum(layer.module.weight.numel() for layer in options.graph.free)
    try:
        plan = options.plan(tenfold.Budget(params=options.dense.params - in_scope + in_scope // job.fewer))
    except tenfold.TenfoldError as refusal:
        return Compression(refused=str(refusal), seconds=time.perf_counter() - start)
    small = tenfold.apply(dense, plan)
    seconds = time.perf_counter() - start
    at_once = percent(correct(in_bulk(small), images_of(job).judged))
    return Compression(plan=plan, seconds=seconds, accuracy=round(at_once, 4))


@cache
def right_answers(job: Job, runs: Path) -> Tensor:
    """Which of the images that decide a network gets right."""
    return correct(in_bulk(network(job, runs).model), images_of(job).judged)


def images_of(job: Job) -> Split:
    """The job's images."""
    return split_images(job.data, job.size, job.classes, job.counts)


def example(job: Job, count: int) -> Tensor:
    """A batch of images."""
    inputs, _ = next(images_of(job).judged.batches(count))
    return inputs


def chosen(asked: argparse.Namespace) -> list[Job]:
    """The rows that the command line asks for, in the order of the page."""
    return [
        job
        for job in jobs(asked.quick)
        if all(getattr(job, name) in wanted for name in CHOICES if (wanted := getattr(asked, name)))
    ]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.seeds.methods", description=str(__doc__).splitlines()[0]
    )
    every = jobs(quick=False)
    for name in CHOICES:
        values = list(dict.fromkeys(getattr(job, name) for job in every))
        parser.add_argument(f"--{name}", nargs="+", choices=values, type=type(values[0]), help="rows with these only")
    parser.add_argument("--quick", action="store_true", help="few rows, images and epochs")
    parser.add_argument("--runs", type=Path, default=RUNS, help="weights, plans and checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def write_page(docs: Path) -> None:
    """The page and its pictures, from the rows that there are."""
    from benchmarks.seeds._methods_plots import figures  # rows can be made where nothing can be drawn

    order = {job.command: place for place, job in enumerate(jobs(quick=False))}
    rows = sorted(read(ROWS, Row), key=lambda row: order[row.command])
    for name, svg in figures(rows).items():
        replace_text(docs / f"{NAME}-{name}.svg", svg)
    replace_text(docs / f"{NAME}.md", page(rows))


def main() -> None:
    """Make the missing rows, then the page."""
    asked = arguments()
    data_folder()  # refuse before work starts
    torch.set_num_threads(asked.threads)
    path = QUICK_ROWS if asked.quick else ROWS
    make_missing(path, Row, [(job.command, partial(run, job, asked.runs)) for job in chosen(asked)])
    if not asked.quick:
        write_page(DOCS)


if __name__ == "__main__":
    main()
