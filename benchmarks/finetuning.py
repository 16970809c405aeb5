"""Fine-tuning after compression, beside the dense network trained as long: accuracy on held-out images.

`python -m benchmarks.finetuning` makes the rows that are missing from `benchmarks/results/finetuning.json`, then
`docs/finetuning.md` from that file. Whoever stops it may run it again: it goes on from the last minute. Finished
weights are kept under `benchmarks/runs` in half precision, and judged as kept. To measure anew, delete the rows; to
train anew, those weights as well. `--short` takes a fifth of the epochs, in rows of their own. `--quick` is for a look:
1,000 images, one epoch, rows in a file of their own and no page.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn

import tenfold
from benchmarks import _rows
from benchmarks._compress import IMAGES as CALIBRATION_IMAGES
from benchmarks._compress import applied, calibration, planned
from benchmarks._folder import VARIABLE, data_folder
from benchmarks._images import QUICK_IMAGES, first_images, training_images
from benchmarks._nets import NETS, trained
from benchmarks._score import judged
from benchmarks._train import Trained, announced, epochs_of, fit, flags, kept
from tenfold._apply import skeleton
from tenfold.train import Finetuned, Recipe

ROWS, QUICK_ROWS = _rows.RESULTS / "finetuning.json", _rows.RESULTS / "finetuning-quick.json"
DATA, SPLIT = "cifar10-jpeg", "test"
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
    short: bool
    quick: bool

    @property
    def command(self) -> str:
        """What makes this row and no other."""
        asked = f"--net {self.net} --params {self.recipe_of:g} --seed {self.seed}"
        return f"python -m benchmarks.finetuning {asked}{flags(short=self.short, quick=self.quick)}"

    @property
    def stem(self) -> str:
        """The name of this job's files."""
        network = "" if self.params is None else f"-{self.params:g}"
        return f"finetuning-{self.net}{network}-{self.recipe.epochs}-epochs-{self.seed}" + "-quick" * self.quick

    @property
    def control(self) -> "Job":
        """The dense network trained as long."""
        return replace(self, params=None)

    @property
    def recipe(self) -> Recipe:
        """How to train."""
        recipe = CASES[self.net, self.recipe_of]
        epochs = epochs_of(recipe.epochs, short=self.short, quick=self.quick)
        return recipe.model_copy(update={"seed": self.seed, "epochs": epochs})


def run(job: Job, runs: Path) -> _rows.Row:
    """Compress, train what the row needs, and judge it."""
    images = first_images(DATA, SPLIT, QUICK_IMAGES if job.quick else None)
    facts = {"net": job.net, "data": DATA, "split": SPLIT, "method": "mix", "quick": job.quick, "seed": job.seed}
    small, control, dense = network(job, runs), network(job.control, runs).model, trained(job.net, DATA)
    made = {"seconds": small.seconds, "command": job.command}
    return judged(small.model, dense, images, control=control, **made, **facts)


@cache
def network(job: Job, runs: Path) -> Trained:
    """The trained network as it is kept."""
    dense, batches = trained(job.net, DATA), calibration(DATA, job.seed)

    def plan() -> tenfold.Plan:
        if job.params is None:
            return tenfold.Plan()
        return planned(runs / f"{job.stem}.plan.json", lambda: dense, tenfold.Budget(params=job.params), batches)

    def shape() -> nn.Module:
        with torch.device("meta"):
            return skeleton(NETS[job.net](), plan())

    def train(folder: Path) -> Finetuned:
        small = applied(dense, plan(), runs, batches)
        return fit(small, dense, training_images(DATA, QUICK_IMAGES if job.quick else None), job.recipe, folder)

    return kept(runs / job.stem, shape, train)


def page(rows: Sequence[_rows.Row]) -> str:
    """The page of documentation, from rows alone."""
    versions = ", ".join(sorted({row.version for row in rows}))
    lines = [
        f"| {row.net} | {100 * row.params_ratio:.1f} % | {_epochs(row)} | {row.dense_accuracy:.2f} "
        f"| {row.control_accuracy:.2f} | {row.accuracy:.2f} "
        f"| {_rows.change(row.accuracy - row.dense_accuracy, row.interval)} "
        f"| {_rows.change(row.accuracy - (row.control_accuracy or 0), row.control_interval)} "
        f"| {row.seconds / 60:.0f} | {row.device} |"
        for row in sorted(rows, key=lambda row: (row.net, -row.params_ratio, row.seed))
    ]
    table = "\n".join(lines)
    return f"""# Fine-tuning

All methods compete for each layer under a budget of parameters, factors are fitted to {CALIBRATION_IMAGES:,} training
images, and `tenfold.train.finetune` then trains on the training split: batches of {SHORT.batch}, crops and flips,
{SHORT.distil:.0%} of the loss from the dense network's outputs, a learning rate of {SHORT.lr:g} in {SHORT.epochs}
epochs and of {LONG.lr:g} in {LONG.epochs} or (`--short`) a fifth of these, in bfloat16. The control is the dense
network trained in exactly that way. Accuracies are in percent of the held-out split, which is looked at once; changes
are in points, with the 95 % interval of the difference image by image. Made with tenfold {versions} and `{VARIABLE}`
set, by

```sh
python -m benchmarks.finetuning
```

| network | parameters | epochs | dense | control | small | small less dense | small less control | minutes | device |
|---|--:|--:|--:|--:|--:|--:|--:|--:|---|
{table}
"""


def _epochs(row: _rows.Row) -> int:
    full = next(recipe.epochs for (net, asked), recipe in CASES.items() if (net, asked) == (row.net, row.asked))
    return epochs_of(full, short=row.is_short, quick=row.quick)


def write_page(docs: Path) -> None:
    """The page, from the rows that there are."""
    _rows.replace_text(docs / "finetuning.md", page(_rows.read(ROWS)))


def main() -> None:
    """Make the missing rows, then the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.finetuning", description=str(__doc__).splitlines()[0])
    parser.add_argument("--net", nargs="+", choices=sorted({net for net, _ in CASES}))
    parser.add_argument("--params", nargs="+", type=float, choices=sorted({share for _, share in CASES}))
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--short", action="store_true", help="a fifth of the epochs")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_IMAGES:,} images and one epoch")
    parser.add_argument("--runs", type=Path, default=_rows.RUNS, help="weights and checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    data_folder()  # refuse before work starts
    torch.set_num_threads(asked.threads)
    announced()
    jobs = [
        Job(net, share, share, seed, asked.short, asked.quick)
        for net, share in CASES
        for seed in asked.seed
        if net in (asked.net or [net]) and share in (asked.params or [share])
    ]
    path = QUICK_ROWS if asked.quick else ROWS
    _rows.make_missing(path, _rows.Row, [(job.command, partial(run, job, asked.runs)) for job in jobs])
    if not asked.quick:
        write_page(_rows.DOCS)


if __name__ == "__main__":
    main()
