"""CP and partial Tucker against tensorly: time, memory and error on the same trained layers at the same ranks.

`python -m benchmarks.decompositions` makes the rows that are missing from `benchmarks/results/decompositions.json`,
then `docs/decompositions.md` and its picture from that file. To measure anew, delete the file. `--quick` is for a
look: one small layer, rows in a file of their own and no page.

Besides the library it needs tensorly and matplotlib, and Linux: peaks of memory are read from `/proc`.
"""

import argparse
import copy
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._decompositions_page import draw, page
from benchmarks._decompositions_rows import (
    CHEAP_SECONDS,
    DATA,
    LAYERS,
    NAME,
    ROUNDS,
    SETTINGS,
    SPLIT,
    TENSORLY,
    LayerRow,
    NetRow,
    add,
    read,
)
from benchmarks._fits import FORMS, Outcome, TenfoldUntil, measured
from benchmarks._folder import data_folder
from benchmarks._images import Images, first_images
from benchmarks._nets import trained
from benchmarks._rows import DOCS, RESULTS, replace_text
from benchmarks._score import correct, paired_interval, percent

ROWS, QUICK_ROWS = RESULTS / f"{NAME}.json", RESULTS / f"{NAME}-quick.json"
SHARES = (0.7, 0.5, 0.25)  # of the layer's parameters
NETS, NET_SHARES = ("resnet56",), (0.5,)
QUICK_LAYERS, QUICK_SHARES = LAYERS[:1], (0.5,)


@dataclass(frozen=True)
class Job:
    """One row to make: of a layer, or of all layers of a network."""

    what: str  # "layer" or "net"
    name: str
    form: str
    share: float
    by: str
    threads: int
    quick: bool

    @property
    def command(self) -> str:
        """What makes this row and no other."""
        asked = f"--{self.what} {self.name} --form {self.form} --share {self.share:g} --by {self.by}"
        return f"python -m benchmarks.decompositions {asked} --threads {self.threads}" + " --quick" * self.quick

    @property
    def place(self) -> tuple[str, str, float]:
        """What the other rows beside it have in common."""
        return self.name, self.form, self.share


def layer_rows(jobs: Sequence[Job], made: Sequence[LayerRow]) -> Iterator[LayerRow]:
    """Fit one layer in several ways, in turn, so that a busy moment of the machine meets all of them.

    What is to reach the error of tensorly takes it from these jobs, or from the row that was made before.
    """
    goals = {(row.layer, row.form, row.share): row.error for row in made if row.by == TENSORLY}
    outcomes: dict[Job, list[Outcome]] = {job: [] for job in jobs}
    for _ in range(ROUNDS):
        for job, known in outcomes.items():
            if not known or (known[0].error is not None and (known[0].seconds or 0) <= CHEAP_SECONDS):
                known.append(fit(weight(job.name), job, goals.get(job.place)))
                if job.by == TENSORLY:
                    goals[job.place] = known[0].error
    for job, known in outcomes.items():
        shape, first = tuple(weight(job.name).shape), known[0]
        yield LayerRow(
            **_common(job),
            layer=job.name,
            shape=shape,
            rank=FORMS[job.form].rank(shape, job.share),
            rounds=len(known),
            seconds=_median([outcome.seconds for outcome in known], 4),
            peak_bytes=_median([outcome.peak_bytes for outcome in known]),
            error=_rounded(first.error),
            cancellation=_rounded(first.cancellation),
            sweeps=first.sweeps,
            note=first.note,
        )


def net_row(job: Job) -> NetRow:
    """Fit every 3x3 convolution but the first, and judge the network with the weights that the factors stand for.

    It computes what the network of factors does, whichever library found them.
    """
    small = copy.deepcopy(net(job.name))
    convolutions = {name: module for name, module in small.named_modules() if _is_3x3(module)}
    convolutions.pop(next(iter(convolutions)))
    dense = torch.cat([conv.weight.detach().flatten().double() for conv in convolutions.values()])
    outcomes = {name: fit(conv.weight, job) for name, conv in convolutions.items()}
    notes = [f"{name}: {outcome.note}" for name, outcome in outcomes.items() if outcome.weight is None]
    row: dict[str, Any] = {
        **_common(job),
        "net": job.name,
        "layers": len(outcomes),
        "dense_accuracy": round(percent(correct_when_dense(job.name)), 4),
        "note": "; ".join(notes),
    }
    if notes:
        return NetRow(**row, seconds=None, peak_bytes=None, error=None, accuracy=None, interval=None)
    for name, conv in convolutions.items():
        conv.weight.data = torch.from_numpy(outcomes[name].weight)
    found = torch.cat([conv.weight.detach().flatten().double() for conv in convolutions.values()])
    right = correct(small, held_out())
    low, high = paired_interval(right, correct_when_dense(job.name))
    return NetRow(
        **row,
        seconds=round(sum(outcome.seconds or 0 for outcome in outcomes.values()), 3),
        peak_bytes=max(outcome.peak_bytes or 0 for outcome in outcomes.values()),
        error=_rounded(float((dense - found).square().sum() / dense.square().sum())),
        accuracy=round(percent(right), 4),
        interval=(round(low, 4), round(high, 4)),
    )


def fit(weight_OIHW: Tensor, job: Job, goal: float | None = None) -> Outcome:
    """One fit of one layer; `goal` is the error to reach, where one is to be reached."""
    rank, fitter = FORMS[job.form].rank(tuple(weight_OIHW.shape), job.share), SETTINGS[job.by].fitter
    if isinstance(fitter, TenfoldUntil):
        if goal is None:
            return Outcome(note="there is no error of tensorly to reach")
        fitter = TenfoldUntil(goal)
    return measured(weight_OIHW.detach().numpy(), job.form, rank, fitter, job.threads)


def _common(job: Job) -> dict[str, Any]:
    return {
        "form": job.form,
        "share": job.share,
        "by": job.by,
        "device": f"{platform.machine()} CPU, {job.threads} threads",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("tenfold", "tensorly", "torch")),
        "command": job.command,
    }


def _median(values: Sequence[float | None], digits: int | None = None) -> float | None:
    known = [value for value in values if value is not None]
    return round(median(known), digits) if known else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _is_3x3(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)


# What several rows share is made once.


@cache
def net(name: str) -> nn.Module:
    """The trained network."""
    return trained(name, DATA)


def weight(layer: str) -> Tensor:
    """The trained weight of a layer that `LAYERS` names."""
    name, _, inside = layer.partition(".")
    return net(name).get_parameter(f"{inside}.weight").detach()


@cache
def held_out() -> Images:
    """The images that decide."""
    return first_images(DATA, SPLIT)


@cache
def correct_when_dense(name: str) -> Tensor:
    """What the trained network gets right."""
    return correct(net(name), held_out())


def jobs(asked: argparse.Namespace) -> tuple[list[list[Job]], list[Job]]:
    """The rows that the command line asks for: of layers, those to fit in turn together, and of networks."""
    alone = bool(asked.layer or asked.net)
    layers = asked.layer or ([] if alone else QUICK_LAYERS if asked.quick else LAYERS)
    nets = asked.net or ([] if alone or asked.quick else NETS)
    shares = asked.share or (QUICK_SHARES if asked.quick else SHARES)
    of_layers = [
        Job("layer", name, form, share, by, asked.threads, asked.quick)
        for name in layers
        for form in asked.form
        for share in shares
        for by in asked.by
        if SETTINGS[by].serves(form, tuple(weight(name).shape), share)
    ]
    of_nets = [
        Job("net", name, form, share, by, asked.threads, asked.quick)
        for name in nets
        for form in asked.form
        for share in asked.share or NET_SHARES
        for by in asked.by
        if SETTINGS[by].nets and form in SETTINGS[by].forms
    ]
    return [list(group) for _, group in groupby(of_layers, lambda job: job.place)], of_nets


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decompositions", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--layer", nargs="+", choices=LAYERS, help="these layers, and no network unless --net")
    parser.add_argument("--net", nargs="+", choices=NETS, help="these networks, and no single layer unless --layer")
    parser.add_argument("--form", nargs="+", choices=FORMS, default=[*FORMS])
    parser.add_argument("--share", nargs="+", type=float, help="shares of the layers' parameters that may be left")
    parser.add_argument("--by", nargs="+", choices=SETTINGS, default=[*SETTINGS])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_LAYERS[0]} only, at {QUICK_SHARES[0]:.0%}")
    return parser.parse_args()


def write_page(docs: Path) -> None:
    """The page and its picture, from the rows that there are."""
    results = read(ROWS)
    replace_text(docs / f"{NAME}.md", page(results))
    draw(results.layers, docs / f"{NAME}.svg")


def main() -> None:
    """Make the missing rows, then the page and the picture."""
    asked = arguments()
    data_folder()  # refuse before work starts
    torch.set_num_threads(asked.threads)
    path = QUICK_ROWS if asked.quick else ROWS
    done = read(path).commands
    groups, of_nets = jobs(asked)
    for group in groups:
        for row in layer_rows([job for job in group if job.command not in done], read(path).layers):
            add(path, row)
            print(row.line(), flush=True)
    for job in of_nets:
        if job.command not in done:
            row = net_row(job)
            add(path, row)
            print(row.line(), flush=True)
    if not asked.quick:
        write_page(DOCS)


if __name__ == "__main__":
    main()
