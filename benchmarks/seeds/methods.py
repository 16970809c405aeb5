"""CP, Tucker, tensor trains and SVD on convolutions and fully connected layers: a comparison of 2023, made anew.

`python -m benchmarks.seeds.methods` trains what is missing, makes the rows that are missing from
`benchmarks/results/seed-methods.json`, then `docs/seed-methods.md` and its figures from that file. `--minutes 9` stops
in time, and the same command goes on from there, epoch by epoch. Finished weights are kept under `--runs` in half
precision, and judged as kept. To measure anew, delete the file of rows; to train anew, those under `--runs` as well.

Other options choose among the rows: `--part scope --scope fc --method tt cp`. `--quick` is for a look: a few rows, few
images and epochs, rows in a file of their own and no page.
"""

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from pydantic import BaseModel
from torch import Tensor, nn

import tenfold
from benchmarks import _weights
from benchmarks._folder import data_folder
from benchmarks._fresh import fresh
from benchmarks._images import Images
from benchmarks._rows import make_missing, read, replace_text
from benchmarks._score import correct, paired_interval, percent
from benchmarks._train import Clock, OutOfTimeError, run_in_kernels, train
from benchmarks.seeds._methods_cases import BATCH, CHOICES, DENSE, METHODS, NAME, Job, Row, jobs
from benchmarks.seeds._methods_images import SPLITS, Split, split_images
from benchmarks.seeds._methods_page import page
from benchmarks.seeds._small_net import FROZEN, small_net
from tenfold._apply import skeleton

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Place:
    """Where and how long to work; no part of what a row is."""

    device: torch.device
    runs: Path
    clock: Clock


class Compression(BaseModel):
    """What is known before training: the plan, or why there is none."""

    plan: tenfold.Plan = tenfold.Plan()
    refused: str | None = None
    seconds: float = 0.0  # to find the options, choose among them and apply the plan
    accuracy: float | None = None  # percent, right after


def run(job: Job, place: Place) -> Row:
    """Compress, train what the row needs, and judge it."""
    known = compression(job.planned, place)
    if known.refused:
        return row(job, place, known)
    small, seconds = network(job, place)
    dense, _ = network(job.control, place)
    report = tenfold.verify(small, dense, [example(job, place, BATCH)])
    low, high = paired_interval(right_answers(job, place), right_answers(job.control, place))
    return row(job, place, known).model_copy(
        update={
            "accuracy_at_once": known.accuracy if job.start == "trained" else None,
            "accuracy": round(percent(right_answers(job, place)), 4),
            "interval": (round(low, 4), round(high, 4)),
            "curve": tuple(known_curve(curve_path(job, place))),
            "params_ratio": round(report.small.params / report.dense.params, 5),
            "macs_ratio": round(report.small.macs / report.dense.macs, 5),
            "latency_ratio": round(report.small.milliseconds / report.dense.milliseconds, 4),
            "latency_ms": round(report.small.milliseconds, 4),
            "train_seconds": round(seconds, 1),
            "device": report.device,
        }
    )


def row(job: Job, place: Place, known: Compression) -> Row:
    """A row without the figures of the small network."""
    return Row(
        **{name: getattr(job, name) for name in (*CHOICES, "quick", "command")},
        split=SPLITS[job.data],
        refused=known.refused,
        base_accuracy=round(percent(right_answers(job.base, place)), 4),
        control_accuracy=round(percent(right_answers(job.control, place)), 4),
        plan_seconds=round(known.seconds, 2),
        device=str(place.device),
        version=tenfold.__version__,
    )


@cache
def network(job: Job, place: Place) -> tuple[nn.Module, float]:
    """The trained network as it is kept, and the seconds that its training took."""
    stem = place.runs / job.stem
    if not _weights.complete(stem):
        checkpoint = stem.with_name(f"{stem.name}.pt")
        # Where training goes on, the checkpoint brings the weights.
        model = empty(job, place) if checkpoint.exists() else started(job, place)
        run_in_kernels(model)
        _weights.save(stem, model, trained(model, job, place, checkpoint))
        checkpoint.unlink()
    model = empty(job, place)
    seconds = _weights.load(stem, model)
    return model.eval(), seconds


def trained(model: nn.Module, job: Job, place: Place, checkpoint: Path) -> float:
    """Train a network where it is, and return the seconds; where it is a curve that is asked for, judge every epoch."""
    images = images_of(job).train
    on_device = Images(images.pixels.to(place.device), images.labels.to(place.device))
    if job.part == "epochs":
        path = curve_path(job, place)
        curve = known_curve(path)
        # The rate is constant, so that a shorter recipe is the beginning of a longer one.
        for epoch in range(len(curve) + 1, job.recipe.epochs + 1):
            train(model, on_device, replace(job.recipe, epochs=epoch), checkpoint=checkpoint, clock=place.clock)
            curve.append(round(percent(correct(model, images_of(job).held_back)), 4))
            replace_text(path, json.dumps(curve))
    return train(model, on_device, job.recipe, checkpoint=checkpoint, clock=place.clock)


def curve_path(job: Job, place: Place) -> Path:
    """Where the accuracies of a job's epochs are kept."""
    return place.runs / f"{job.stem}.curve.json"


def known_curve(path: Path) -> list[float]:
    """The accuracies after the epochs so far."""
    return json.loads(path.read_text()) if path.exists() else []


def shape(job: Job, plan: tenfold.Plan) -> nn.Module:
    """The job's network on the meta device."""
    with torch.device("meta"):
        return skeleton(small_net(job.size, job.classes), plan)


def empty(job: Job, place: Place) -> nn.Module:
    """The network without values."""
    return shape(job, compression(job.planned, place).plan).to_empty(device=place.device)


def started(job: Job, place: Place) -> nn.Module:
    """The network before training."""
    plan = compression(job.planned, place).plan
    if job.start == "random":
        return fresh(shape(job, plan), place.device, job.seed)
    return tenfold.apply(network(job.base, place)[0], plan)


@cache
def compression(job: Job, place: Place) -> Compression:
    """The plan of a job, searched once and kept."""
    if job.method == DENSE:
        return Compression()
    path = place.runs / f"{job.stem}.plan.json"
    if not path.exists():
        replace_text(path, compressed(job, place).model_dump_json(indent=2))
    return Compression.model_validate_json(path.read_text())


def compressed(job: Job, place: Place) -> Compression:
    """Choose the ranks under the budget, and judge what comes of it."""
    dense, _ = network(job.base, place)
    start = time.perf_counter()
    options = tenfold.options(
        dense, example=example(job, place, 1), methods=METHODS[job.method], freeze=FROZEN[job.scope]
    )
    in_scope = sum(layer.module.weight.numel() for layer in options.graph.free)
    try:
        plan = options.plan(tenfold.Budget(params=options.dense.params - in_scope + in_scope // job.fewer))
    except tenfold.TenfoldError as refusal:
        return Compression(refused=str(refusal), seconds=time.perf_counter() - start)
    small = tenfold.apply(dense, plan)
    seconds = time.perf_counter() - start
    at_once = percent(correct(small, images_of(job).judged))
    return Compression(plan=plan, seconds=seconds, accuracy=round(at_once, 4))


@cache
def right_answers(job: Job, place: Place) -> Tensor:
    """Which of the images that decide a network gets right."""
    return correct(network(job, place)[0], images_of(job).judged)


def images_of(job: Job) -> Split:
    """The job's images."""
    return split_images(job.data, job.size, job.classes, job.counts)


def example(job: Job, place: Place, count: int) -> Tensor:
    """A batch of images."""
    inputs, _ = next(images_of(job).judged.batches(count))
    return inputs.to(place.device)


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
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop in time; run again to go on")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "benchmarks" / "runs", help="weights, plans and checkpoints"
    )
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def make_rows(asked: Iterable[Job], path: Path, place: Place) -> None:
    """Make the missing rows.

    Raises:
        OutOfTimeError: where the time is over first.
    """
    make_missing(path, Row, [(job.command, partial(run, job, place)) for job in asked])


def publish(rows: list[Row]) -> None:
    """Write the figures and the page that shows them."""
    from benchmarks.seeds._methods_plots import figures  # rows can be made where nothing can be drawn

    order = {job.command: place for place, job in enumerate(jobs(quick=False))}
    rows = sorted(rows, key=lambda row: order[row.command])
    for name, svg in figures(rows).items():
        replace_text(ROOT / "docs" / f"{NAME}-{name}.svg", svg)
    replace_text(ROOT / "docs" / f"{NAME}.md", page(rows))


def main() -> None:
    """Make the missing rows, then the page."""
    asked = arguments()
    data_folder()  # refuse before work starts
    torch.set_num_threads(asked.threads)
    place = Place(torch.device(asked.device), asked.runs, Clock(asked.minutes))
    path = ROOT / "benchmarks" / "results" / f"{NAME}{'-quick' * asked.quick}.json"
    try:
        make_rows(chosen(asked), path, place)
        print("all rows are made")
    except OutOfTimeError:
        print("time is over; run the same command again to go on")
    if not asked.quick and (rows := read(path, Row)):
        publish(rows)


if __name__ == "__main__":
    main()
