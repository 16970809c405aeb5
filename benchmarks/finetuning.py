"""Fine-tuning after compression, beside the dense network trained as long: accuracy on held-out images.

`python -m benchmarks.finetuning` makes the rows that are missing from `benchmarks/results/finetuning.json`, then
`docs/finetuning.md` from that file. Whoever stops it may run it again: it goes on from the last minute. Finished
weights are kept under `benchmarks/runs` in half precision, and judged as kept. To measure anew, delete the rows; to
train anew, those weights as well. `--quick` is for a look: 1,000 images, rows in a file of their own and no page.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

import tenfold
from benchmarks import _rows
from benchmarks._folder import VARIABLE, data_folder
from benchmarks._images import Images, drawn_images, first_images
from benchmarks._nets import NETS, trained
from benchmarks._score import correct, in_bulk, packed, paired_interval, percent
from benchmarks._train import Trained, fit, kept
from tenfold._apply import skeleton
from tenfold.train import Finetuned, Recipe

ROOT = Path(__file__).parent.parent
DATA = "cifar10-jpeg"
IMAGES, QUICK_IMAGES = 50_000, 1_000
CALIBRATION_IMAGES, CALIBRATION_BATCH = 1024, 128
SHORT = Recipe(epochs=3, precision="bfloat16")
LONG = Recipe(epochs=30, lr=0.01, precision="bfloat16")
CASES = {("resnet20", 0.5): SHORT, ("resnet20", 0.3): LONG, ("resnet56", 0.35): LONG}


@dataclass(frozen=True)
class Job:
    """One row to make."""

    net: str
    params: float | None  # None for the dense network, trained as long as the case of `recipe_of`
    recipe_of: float
    seed: int
    quick: bool

    @property
    def command(self) -> str:
        """What makes this row and no other."""
        asked = f"--net {self.net} --params {self.recipe_of:g} --seed {self.seed}"
        return f"python -m benchmarks.finetuning {asked}" + " --quick" * self.quick

    @property
    def stem(self) -> str:
        """The name of this job's files."""
        epochs = f"-{self.recipe.epochs}-epochs" if self.params is None else f"-{self.params:g}"
        return f"finetuning-{self.net}{epochs}-{self.seed}" + "-quick" * self.quick

    @property
    def control(self) -> "Job":
        """The dense network trained as long."""
        return replace(self, params=None)

    @property
    def recipe(self) -> Recipe:
        """How to train."""
        recipe = CASES[self.net, self.recipe_of]
        return recipe.model_copy(update={"seed": self.seed, "epochs": 1 if self.quick else recipe.epochs})


def run(job: Job, runs: Path) -> _rows.Row:
    """Compress, train what the row needs, and judge it."""
    small, control, dense = network(job, runs), network(job.control, runs), trained(job.net, DATA)
    judged = first_images(DATA, "test", QUICK_IMAGES if job.quick else None)
    right, right_control, right_dense = (
        correct(in_bulk(model), judged) for model in (small.model, control.model, dense)
    )
    report = tenfold.verify(small.model, dense, [judged[:1][0]])
    return _rows.Row(
        net=job.net,
        data=DATA,
        split="test",
        method="mix",
        trained=True,
        quick=job.quick,
        dense_accuracy=round(percent(right_dense), 4),
        control_accuracy=round(percent(right_control), 4),
        accuracy=round(percent(right), 4),
        interval=paired_interval(right, right_dense),
        control_interval=paired_interval(right, right_control),
        right=packed(right),
        params_ratio=round(report.small.params / report.dense.params, 5),
        macs_ratio=round(report.small.macs / report.dense.macs, 5),
        latency_ratio=round(report.small.milliseconds / report.dense.milliseconds, 4),
        seed=job.seed,
        device=report.device,
        seconds=small.seconds,
        version=tenfold.__version__,
        command=job.command,
    )


@cache
def network(job: Job, runs: Path) -> Trained:
    """The trained network as it is kept."""
    dense = trained(job.net, DATA)

    def shape() -> nn.Module:
        with torch.device("meta"):
            return skeleton(NETS[job.net](), plan(job, runs))

    def train(folder: Path) -> Finetuned:
        with tenfold.resumable(runs / "compressing"):
            small = tenfold.apply(dense, plan(job, runs), None if job.params is None else statistics(job.net, job.seed))
        return fit(small, dense, training_images(job.quick), job.recipe, folder)

    return kept(runs / job.stem, shape, train)


@cache
def plan(job: Job, runs: Path) -> tenfold.Plan:
    """Searched once and kept."""
    if job.params is None:
        return tenfold.Plan()
    path = runs / f"{job.stem}.plan.json"
    if not path.exists():
        with tenfold.resumable(runs / "compressing"):
            told = statistics(job.net, job.seed)
            options = tenfold.options(trained(job.net, DATA), example=calibration(job.seed)[0][:1], statistics=told)
            _rows.replace_text(path, options.plan(tenfold.Budget(params=job.params)).dumps())
    return tenfold.Plan.loads(path.read_text(), str(path))


@cache
def statistics(net: str, seed: int) -> tenfold.Statistics:
    """What training images tell."""
    return tenfold.calibrate(trained(net, DATA), calibration(seed), seed=seed)


def calibration(seed: int) -> list[Tensor]:
    """Training images without labels."""
    images = drawn_images(DATA, "train", CALIBRATION_IMAGES, seed)
    return [inputs for inputs, _ in images.batches(CALIBRATION_BATCH)]


@cache
def training_images(quick: bool) -> Images:
    """Images to train on."""
    return drawn_images(DATA, "train", QUICK_IMAGES if quick else IMAGES, seed=0)


def page(rows: Sequence[_rows.Row]) -> str:
    """The page of documentation, from rows alone."""
    versions = ", ".join(sorted({row.version for row in rows}))
    lines = [
        f"| {row.net} | {100 * row.params_ratio:.1f} % | {_epochs(row)} | {row.dense_accuracy:.2f} "
        f"| {row.control_accuracy:.2f} | {row.accuracy:.2f} "
        f"| {_change(row.accuracy - row.dense_accuracy, row.interval)} "
        f"| {_change(row.accuracy - (row.control_accuracy or 0), row.control_interval)} "
        f"| {row.seconds / 60:.0f} | {row.device} |"
        for row in sorted(rows, key=lambda row: (row.net, -row.params_ratio, row.seed))
    ]
    table = "\n".join(lines)
    return f"""# Fine-tuning

All methods compete for each layer under a budget of parameters, factors are fitted to {CALIBRATION_IMAGES:,} training
images, and `tenfold.train.finetune` then trains on the training split: batches of {SHORT.batch}, crops and flips,
{SHORT.distil:.0%} of the loss from the dense network's outputs, a learning rate of {SHORT.lr:g} in {SHORT.epochs}
epochs and of {LONG.lr:g} in {LONG.epochs}, in bfloat16. The control is the dense network trained in exactly that way.
Accuracies are in percent of the held-out split, which is looked at once; changes are in points, with the 95 % interval
of the difference image by image. Made with tenfold {versions} and `{VARIABLE}` set, by

```
python -m benchmarks.finetuning
```

| network | parameters | epochs | dense | control | small | small less dense | small less control | minutes | device |
|---|--:|--:|--:|--:|--:|--:|--:|--:|---|
{table}
"""


def _epochs(row: _rows.Row) -> int:
    return next(recipe.epochs for (net, asked), recipe in CASES.items() if (net, asked) == (row.net, row.asked))


def _change(points: float, interval: tuple[float, float] | None) -> str:
    low, high = interval or (0.0, 0.0)
    return f"{points:+.2f} ({low:+.2f} to {high:+.2f})"


def main() -> None:
    """Make the missing rows, then the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.finetuning", description=str(__doc__).splitlines()[0])
    parser.add_argument("--net", nargs="+", choices=sorted({net for net, _ in CASES}))
    parser.add_argument("--params", nargs="+", type=float, choices=sorted({share for _, share in CASES}))
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_IMAGES:,} images and one epoch")
    parser.add_argument("--runs", type=Path, default=ROOT / "benchmarks" / "runs", help="weights and checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    data_folder()  # refuse before work starts
    torch.set_num_threads(asked.threads)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("tenfold").setLevel(logging.INFO)  # every epoch, as it ends
    jobs = [
        Job(net, share, share, seed, asked.quick)
        for net, share in CASES
        for seed in asked.seed
        if net in (asked.net or [net]) and share in (asked.params or [share])
    ]
    path = ROOT / "benchmarks" / "results" / f"finetuning{'-quick' * asked.quick}.json"
    _rows.make_missing(path, _rows.Row, [(job.command, partial(run, job, asked.runs)) for job in jobs])
    if not asked.quick:
        _rows.replace_text(ROOT / "docs" / "finetuning.md", page(_rows.read(path)))


if __name__ == "__main__":
    main()
