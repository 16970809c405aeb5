"""Tensor-train networks of Garipov et al. 2016 (arXiv 1611.03214), rebuilt, and what this library makes instead.

`python -m benchmarks.seeds.tensor_train` trains what is missing, makes the rows that are missing from
`benchmarks/results/seed-tensor-train.json`, then `docs/seed-tensor-train.md` from that file. `--minutes 9` stops in
time, and the same command goes on from there, epoch by epoch. Finished weights are kept under `--runs` in half
precision, and judged as kept.

`--structure` prints the parameters of every network, counted, beside the published ones; it needs no data. `--plan`
makes the plans that need a search, where the dense networks are trained, and stops: the rest then needs no solver.
`--tune` judges on a tenth of the training split, held back from all training, and rows go to a file of their own.
`--quick` is for a look: 1,000 images, one epoch, rows in a file of their own and no page.
"""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

import tenfold
from benchmarks import _rows, _weights
from benchmarks._folder import data_folder
from benchmarks._fresh import fresh
from benchmarks._images import Images, drawn_images, first_images
from benchmarks._score import correct, paired_interval, percent
from benchmarks._train import Clock, OutOfTimeError, Recipe, run_in_kernels, train
from benchmarks.seeds._cases import CASES, CONTROL, DATA, DENSE, FROZEN, Case, in_fast_forms, ranks_plan, shape
from benchmarks.seeds._garipov import NETS
from benchmarks.seeds._page import page

ROOT = Path(__file__).parent.parent.parent
NAME = "seed-tensor-train"
TRAIN, TEST, HELD_BACK = "train", "test", "train, held back"
METHODS = tuple(dict.fromkeys(method for _, method in CASES))
IMAGES, QUICK_IMAGES = 50_000, 1_000


@dataclass(frozen=True)
class Job:
    """One row to make."""

    net: str
    method: str
    seed: int
    quick: bool
    tune: bool
    epochs: int | None = None  # this and the next: instead of the recipe's
    lr: float | None = None

    @property
    def case(self) -> Case:
        """What to build."""
        return CASES[self.net, self.method]

    @property
    def options(self) -> str:
        """What makes this row and no other."""
        named = {"epochs": self.epochs, "lr": self.lr}
        changed = "".join(f" --{name} {value:g}" for name, value in named.items() if value is not None)
        return (
            f"--net {self.net} --method {self.method} --seed {self.seed}{changed}"
            + " --tune" * self.tune
            + " --quick" * self.quick
        )

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
        return replace(self, method=DENSE, epochs=None, lr=None)

    @property
    def control(self) -> "Job":
        """The dense network trained as long as this one."""
        return self.dense if self.case.start == "random" else replace(self, method=CONTROL)

    @property
    def recipe(self) -> Recipe:
        """How to train it."""
        # Going on from the dense network with its seed would show it the very crops that it has seen.
        further = 1_000 * (self.case.start == "trained")
        recipe = replace(self.case.recipe, seed=self.seed + further)
        epochs = self.epochs or (1 if self.quick else recipe.epochs)
        return replace(recipe, epochs=epochs, lr=self.lr or recipe.lr)


@dataclass(frozen=True)
class Place:
    """Where and how long to work; no part of what a row is."""

    device: torch.device
    runs: Path
    clock: Clock
    graph: bool


def run(job: Job, place: Place) -> _rows.Row:
    """Train what the row needs, and judge it."""
    (small, seconds), (dense, _) = network(job, place), network(job.dense, place)
    right, right_dense = right_answers(job, place), right_answers(job.dense, place)
    # Costs, and the times of interleaved runs, are those of one image: what a single request waits for.
    report = tenfold.verify(small, dense, [example(job, place)])
    low, high = paired_interval(right, right_dense)
    return _rows.Row(
        net=f"garipov-{job.net}",
        data=DATA,
        split=HELD_BACK if job.tune else TEST,
        method=job.method,
        trained=True,
        quick=job.quick,
        dense_accuracy=round(percent(right_dense), 4),
        control_accuracy=round(percent(right_answers(job.control, place)), 4),
        accuracy=round(percent(right), 4),
        interval=(round(low, 4), round(high, 4)),
        params_ratio=round(report.small.params / report.dense.params, 7),
        macs_ratio=round(report.small.macs / report.dense.macs, 5),
        latency_ratio=round(report.small.milliseconds / report.dense.milliseconds, 4),
        seed=job.seed,
        device=report.device,
        seconds=round(seconds, 1),
        version=tenfold.__version__,
        command=job.command,
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
        images, _ = split_images(job.quick, job.tune)
        on_device = Images(images.pixels.to(place.device), images.labels.to(place.device))
        teacher = network(job.dense, place)[0] if job.recipe.distil and job.case.start == "trained" else None
        seconds = train(
            model, on_device, job.recipe, checkpoint=checkpoint, clock=place.clock, teacher=teacher, graph=place.graph
        )
        _weights.save(stem, model, seconds)
        checkpoint.unlink()
    model = empty(job, place)
    seconds = _weights.load(stem, model)
    return model.eval(), seconds


def empty(job: Job, place: Place) -> nn.Module:
    """The network without values."""
    return shape(job.case, plan(job, place)).to_empty(device=place.device)


def started(job: Job, place: Place) -> nn.Module:
    """The network before training."""
    if job.case.start == "random":
        return fresh(shape(job.case), place.device, job.seed)
    dense, _ = network(job.dense, place)
    return tenfold.apply(dense, plan(job, place))


@cache
def plan(job: Job, place: Place) -> tenfold.Plan | None:
    """The plan of a network that the library builds: of its ranks, or searched once and kept."""
    if not job.case.from_library:
        return None
    if job.case.fewer is None:
        return ranks_plan(job.case)
    path = plan_path(job, place)
    if not path.exists():
        dense, _ = network(job.dense, place)
        options = tenfold.options(dense, example=example(job, place), freeze=FROZEN[job.net])
        found = in_fast_forms(options.plan(tenfold.Budget(params=1 / job.case.fewer)))
        _rows.replace_text(path, found.dumps())
    return tenfold.Plan.loads(path.read_text(), str(path))


def plan_path(job: Job, place: Place) -> Path:
    """Plans for published rows stay with the source, others with the runs. Tuned numbers do not change a plan."""
    folder = place.runs if job.quick or job.tune else ROOT / "benchmarks" / "plans"
    return folder / f"{replace(job, epochs=None, lr=None).stem}.json"


@cache
def right_answers(job: Job, place: Place) -> Tensor:
    """Which of the images that decide a network gets right."""
    _, judged = split_images(job.quick, job.tune)
    return correct(network(job, place)[0], judged)


@cache
def split_images(quick: bool, tune: bool) -> tuple[Images, Images]:
    """Images to train on, and images that decide."""
    drawn = drawn_images(DATA, TRAIN, QUICK_IMAGES if quick else IMAGES, seed=0)
    if not tune:
        return drawn, first_images(DATA, TEST, QUICK_IMAGES if quick else None)
    held = len(drawn) // 10
    judged, kept = (Images(drawn.pixels[part], drawn.labels[part]) for part in (slice(held), slice(held, None)))
    return kept, judged


def example(job: Job, place: Place) -> Tensor:
    """One image."""
    inputs, _ = next(split_images(job.quick, job.tune)[1].batches(1))
    return inputs.to(place.device)


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


def line(row: _rows.Row) -> str:
    """A row in one line, for the terminal."""
    low, high = row.interval
    return (
        f"{row.net} {row.method}: {row.accuracy:.2f} % (dense {row.dense_accuracy:.2f}, "
        f"change {low:+.2f} to {high:+.2f}), {1 / row.params_ratio:.2f}x fewer parameters, "
        f"multiply-adds x{row.macs_ratio:.3f}, latency x{row.latency_ratio:.2f}, {row.seconds:.0f} s"
    )


def jobs(asked: argparse.Namespace) -> list[Job]:
    """The rows that the command line asks for, in the order of the page."""
    return [
        Job(net, method, asked.seed, asked.quick, asked.tune, asked.epochs, asked.lr)
        for net, method in CASES
        if net in asked.net and method in asked.method
    ]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.seeds.tensor_train", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--net", nargs="+", choices=NETS, default=[*NETS])
    parser.add_argument("--method", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="instead of the recipe's, to tune")
    parser.add_argument("--lr", type=float, help="instead of the recipe's, to tune")
    parser.add_argument("--tune", action="store_true", help="judge on a tenth of the training split, held back")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_IMAGES:,} images and one epoch")
    parser.add_argument("--structure", action="store_true", help="count parameters, and stop")
    parser.add_argument("--plan", action="store_true", help="make the plans that are missing, and stop")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop in time; run again to go on")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--graph", action="store_true", help="replay passes as CUDA graphs")
    parser.add_argument("--runs", type=Path, default=ROOT / "benchmarks" / "runs", help="weights and checkpoints")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    if (asked.epochs or asked.lr) and not (asked.tune or asked.quick):
        parser.error("--epochs and --lr are for --tune and --quick: published rows follow the recipes.")
    return asked


def make_rows(asked: Iterable[Job], path: Path, place: Place) -> None:
    """Make the missing rows.

    Raises:
        OutOfTimeError: where the time is over first.
    """
    done = {row.command for row in _rows.read(path)}
    for job in asked:
        if job.command not in done:
            row = run(job, place)
            _rows.add(path, row)
            print(line(row), flush=True)


def main() -> None:
    """Make the missing rows, then the page."""
    asked = arguments()
    if asked.structure:
        print(structure())
        return
    data_folder()  # refuse before work starts
    torch.set_num_threads(asked.threads)
    place = Place(torch.device(asked.device), asked.runs, Clock(asked.minutes), asked.graph)
    kind = "-tune" * asked.tune + "-quick" * asked.quick
    path = ROOT / "benchmarks" / "results" / f"{NAME}{kind}.json"
    try:
        if asked.plan:
            for job in jobs(asked):
                plan(job, place)
        else:
            make_rows(jobs(asked), path, place)
            print("all rows are made")
    except OutOfTimeError:
        print("time is over; run the same command again to go on")
    if not kind and (rows := _rows.read(path)):
        _rows.replace_text(ROOT / "docs" / f"{NAME}.md", page(rows))


if __name__ == "__main__":
    main()
