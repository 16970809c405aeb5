"""Accuracy right after compression, without training: each method alone and all together, at three sizes.

`python -m benchmarks.oneshot` makes the rows that are missing from `benchmarks/results/oneshot.json`, then
`docs/oneshot.md` from that file. To measure anew, delete the file. `--quick` is for a look: 500 images, the small
network, rows in a file of their own and no page.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

import tenfold
from benchmarks import _rows
from benchmarks._folder import VARIABLE, data_folder
from benchmarks._images import Images, drawn_images, first_images
from benchmarks._nets import trained
from benchmarks._score import correct, paired_interval, percent
from tenfold.methods import CP, SVD, Method, SpatialSVD, TensorTrain, Tucker

ROOT = Path(__file__).parent.parent
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
MIXES: dict[str, Sequence[Method]] = {**{name: [method] for name, method in ALONE.items()}, "mix": [*ALONE.values()]}
NORMS = "+norms"  # batch norms re-estimated after compression
METHODS = tuple(mix + norms for mix in MIXES for norms in ("", NORMS))
NORM_IMAGES, NORM_BATCH = 1024, 256
QUICK_IMAGES, QUICK_NETS = 500, ("resnet20",)
SEED = 0  # draws the training images for the norms


@dataclass(frozen=True)
class Job:
    """One row to make."""

    net: str
    method: str
    params: float
    threads: int
    quick: bool

    @property
    def command(self) -> str:
        """What makes this row and no other."""
        asked = f"--net {self.net} --method {self.method} --params {self.params:g} --threads {self.threads}"
        return f"python -m benchmarks.oneshot {asked}" + " --quick" * self.quick


def run(job: Job) -> _rows.Row:
    """Compress, re-estimate norms if asked, and judge on the held-out images."""
    dense, images = dense_net(job.net), held_out(job.quick)
    dense_correct = correct_when_dense(job.net, job.quick)
    start = time.perf_counter()  # includes the curves where this row is the first to need them
    plan = options(job.net, job.method.removesuffix(NORMS)).plan(tenfold.Budget(params=job.params))
    small = tenfold.apply(dense, plan)
    if job.method.endswith(NORMS):
        small = tenfold.reestimate_norms(small, norm_batches())
    small_correct = correct(small, images)
    # Costs, and the times of interleaved runs, are those of one image: what a single request waits for.
    report = tenfold.verify(small, dense, [example()])
    low, high = paired_interval(small_correct, dense_correct)
    return _rows.Row(
        net=job.net,
        data=DATA,
        split=SPLIT,
        method=job.method,
        trained=False,
        quick=job.quick,
        dense_accuracy=round(percent(dense_correct), 4),
        control_accuracy=None,
        accuracy=round(percent(small_correct), 4),
        interval=(round(low, 4), round(high, 4)),
        params_ratio=round(report.small.params / report.dense.params, 5),
        macs_ratio=round(report.small.macs / report.dense.macs, 5),
        latency_ratio=round(report.small.milliseconds / report.dense.milliseconds, 4),
        seed=SEED,
        device=report.device,
        seconds=round(time.perf_counter() - start, 2),
        version=tenfold.__version__,
        command=job.command,
    )


# What several rows share is made once.


@cache
def dense_net(net: str) -> nn.Module:
    """The trained network."""
    return trained(net, DATA)


@cache
def held_out(quick: bool) -> Images:
    """The images that decide."""
    return first_images(DATA, SPLIT, QUICK_IMAGES if quick else None)


@cache
def correct_when_dense(net: str, quick: bool) -> Tensor:
    """What the trained network gets right."""
    return correct(dense_net(net), held_out(quick))


@cache
def norm_batches() -> list[Tensor]:
    """Training images for the norms."""
    images = drawn_images(DATA, "train", NORM_IMAGES, SEED)
    return [inputs for inputs, _ in images.batches(NORM_BATCH)]


@cache
def example() -> Tensor:
    """One image."""
    return norm_batches()[0][:1]


@cache
def options(net: str, mix: str) -> tenfold.Options:
    """All options of a network, good for every budget."""
    return tenfold.options(dense_net(net), example=example(), methods=MIXES[mix])


def page(rows: Sequence[_rows.Row]) -> str:
    """The page of documentation, from rows alone."""
    versions = ", ".join(sorted({row.version for row in rows}))
    return f"""# Accuracy right after compression

Trained networks compressed to a share of their parameters and judged as they are, without any training.
`mix` lets all methods compete for each layer; `{NORMS}` re-estimates batch norms on {NORM_IMAGES:,} training
images, without labels.

Parameters, multiply-adds and latency are small / dense; latency is from medians of interleaved runs on one image.
A method with and without `{NORMS}` has the same layers, so what their latencies differ by is noise. The interval is
that of the difference on the same images, one by one. Made with tenfold {versions} and `{VARIABLE}` set, by

```
python -m benchmarks.oneshot
```

{_rows.tables(rows)}"""


def jobs(asked: argparse.Namespace) -> list[Job]:
    """The rows that the command line asks for, in the order of the page."""
    return [
        Job(net, method, params, asked.threads, asked.quick)
        for net in asked.net or (QUICK_NETS if asked.quick else NETS)
        for params in asked.params
        for method in asked.method
    ]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.oneshot", description=str(__doc__).splitlines()[0])
    parser.add_argument("--net", nargs="+", choices=NETS)
    parser.add_argument("--method", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--params", nargs="+", type=float, default=BUDGETS, help="shares of the dense parameters")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--quick", action="store_true", help=f"{QUICK_IMAGES} images; without --net, {QUICK_NETS[0]} only"
    )
    return parser.parse_args()


def main() -> None:
    """Make the missing rows, then the page."""
    asked = arguments()
    data_folder()  # refuse before work starts
    torch.set_num_threads(asked.threads)
    path = ROOT / "benchmarks" / "results" / ("oneshot-quick.json" if asked.quick else "oneshot.json")
    done = {row.command for row in _rows.read(path)}
    for job in jobs(asked):
        if job.command not in done:
            row = run(job)
            _rows.add(path, row)
            print(row.line(), flush=True)
    if not asked.quick:
        _rows.replace_text(ROOT / "docs" / "oneshot.md", page(_rows.read(path)))


if __name__ == "__main__":
    main()
