"""CP and partial Tucker against tensorly: time, memory and error on the same trained layers at the same ranks.

`python -m benchmarks.decompositions` makes the rows that are missing from `benchmarks/results/decompositions.json`,
then `docs/decompositions.md` and its picture from that file. To measure anew, delete the file. `--quick` is for a
look: one small layer, rows in a file of their own and no page.

Besides the library it needs tensorly and matplotlib, and Linux: peaks of memory are read from `/proc`.
"""

import argparse
import copy
import math
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from benchmarks._fits import (
    BYTES,
    CPU_SECONDS,
    FORMS,
    LONG,
    WALL_SECONDS,
    Fitter,
    Outcome,
    Rank,
    Shape,
    Tenfold,
    Tensorly,
    measured,
)
from benchmarks._folder import VARIABLE, data_folder
from benchmarks._images import Images, first_images
from benchmarks._nets import trained
from benchmarks._rows import replace_text
from benchmarks._score import correct, paired_interval, percent

ROOT = Path(__file__).parent.parent
NAME = "decompositions"
DATA, SPLIT = "cifar10-jpeg", "test"
LAYERS = (
    "resnet20.layer1.1.conv1",
    "resnet56.layer3.0.conv1",
    "resnet56.layer3.4.conv1",
    "resnet18.layer2.1.conv1",
    "resnet18.layer3.1.conv1",
    "resnet18.layer4.1.conv1",
)
SHARES = (0.7, 0.5, 0.25)  # of the layer's parameters
NETS, NET_SHARES = ("resnet56",), (0.5,)
QUICK_LAYERS, QUICK_SHARES = LAYERS[:1], (0.5,)
ROUNDS, CHEAP_SECONDS = 3, 5.0  # fits as short as that are repeated
CLEARLY = 0.001  # by how much of an error another is smaller than it, to be listed
LEAST_BYTES = 2**19  # of weights, for memory to be compared: below, a process's own pages are most of it


@dataclass(frozen=True)
class Setting:
    """A way to fit, and where it is tried: a whole table of the slow ones would take hours."""

    fitter: Fitter
    text: str
    forms: Sequence[str] = tuple(FORMS)
    widest: int = 512  # channels
    shares: Sequence[float] | None = None
    nets: bool = False

    def serves(self, form: str, shape: Shape, share: float) -> bool:
        """Whether it is tried on a layer."""
        return form in self.forms and max(shape) <= self.widest and (self.shares is None or share in self.shares)


TENFOLD = "tenfold"
SETTINGS = {
    TENFOLD: Setting(
        Tenfold(), "`tenfold.apply` with a plan of one step, which copies the layer and works in float64.", nets=True
    ),
    "tensorly": Setting(
        Tensorly(),
        "`parafac` or `partial_tucker` with its defaults, on the weight as it is, in float32.",
        nets=True,
    ),
    "tensorly-random": Setting(
        Tensorly(init="random"), "the same from random factors.", forms=("cp3", "cp4"), widest=128, nets=True
    ),
    "tensorly-float64": Setting(Tensorly(dtype=torch.float64), "the defaults, on the weight in float64.", widest=64),
    "tensorly-long": Setting(
        Tensorly(dtype=torch.float64, long=True),
        f"in float64, up to {LONG['n_iter_max']:,} sweeps, until one changes the relative error (not squared) by less "
        f"than {LONG['tol']:g}.",
        widest=64,
        shares=(0.5,),
    ),
}


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


class Row(BaseModel):
    """What rows of layers and of networks have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: str
    share: float  # of the parameters, that may be left
    by: str
    seconds: float | None
    peak_bytes: int | None  # beyond what the process held before the fit
    error: float | None  # ||W - What||^2 / ||W||^2
    note: str  # why it ended early, or failed
    device: str
    versions: str
    command: str


class LayerRow(Row):
    """One layer, fitted in one way; medians where it was repeated."""

    layer: str
    shape: Shape
    rank: Rank
    rounds: int
    cancellation: float | None  # sum_r ||term_r||^2 / ||W||^2
    sweeps: int | None

    @property
    def weight_bytes(self) -> int:
        """Of the dense weight, in float32."""
        return 4 * math.prod(self.shape)

    @property
    def place(self) -> tuple[str, str, float, str]:
        """What the rows to compare with have in common."""
        return self.layer, self.form, self.share, self.device

    def line(self) -> str:
        """The row in one line, for the terminal."""
        if self.error is None or self.seconds is None or self.peak_bytes is None:
            return f"{self.layer} {self.form} {100 * self.share:g} % {self.by}: {self.note}"
        return (
            f"{self.layer} {self.form} {100 * self.share:g} % {self.by}: error {self.error:.5f}, {self.seconds:.3f} s, "
            f"{self.peak_bytes / 2**20:.1f} MiB {self.note}"
        ).rstrip()


class NetRow(Row):
    """A network with every 3x3 convolution but the first fitted in one way: seconds, peak and error of all of them."""

    net: str
    layers: int
    dense_accuracy: float  # percent
    accuracy: float | None  # percent
    interval: tuple[float, float] | None  # 95 % interval of accuracy less dense_accuracy, in points

    def line(self) -> str:
        """The row in one line, for the terminal."""
        result = self.note if self.accuracy is None else f"{self.accuracy:.2f} % (dense {self.dense_accuracy:.2f})"
        return f"{self.net} {self.form} {100 * self.share:g} % {self.by}: {result}"


class Results(BaseModel):
    """All rows of a file."""

    layers: tuple[LayerRow, ...] = ()
    nets: tuple[NetRow, ...] = ()

    @property
    def commands(self) -> set[str]:
        """What is done."""
        return {row.command for row in (*self.layers, *self.nets)}


def read(path: Path) -> Results:
    """The rows of a file; none if there is no file yet."""
    return Results.model_validate_json(path.read_text()) if path.exists() else Results()


def add(path: Path, row: LayerRow | NetRow) -> None:
    """Add a row to a file."""
    known = read(path)
    kind = "layers" if isinstance(row, LayerRow) else "nets"
    changed = known.model_copy(update={kind: (*getattr(known, kind), row)})
    replace_text(path, changed.model_dump_json(indent=2) + "\n")


def layer_rows(jobs: Sequence[Job]) -> Iterator[LayerRow]:
    """Fit one layer in several ways, in turn, so that a busy moment of the machine meets all of them."""
    outcomes: dict[Job, list[Outcome]] = {job: [] for job in jobs}
    for _ in range(ROUNDS):
        for job, known in outcomes.items():
            if not known or (known[0].error is not None and (known[0].seconds or 0) <= CHEAP_SECONDS):
                known.append(fit(weight(job.name), job))
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


def fit(weight_OIHW: Tensor, job: Job) -> Outcome:
    """One fit of one layer."""
    rank = FORMS[job.form].rank(tuple(weight_OIHW.shape), job.share)
    return measured(weight_OIHW.detach().numpy(), job.form, rank, SETTINGS[job.by].fitter, job.threads)


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


def page(results: Results) -> str:
    """The page of documentation, from rows alone."""
    versions = "; ".join(sorted({row.versions for row in (*results.layers, *results.nets)}))
    settings = "\n".join(f"- `{name}`: {setting.text}" for name, setting in SETTINGS.items())
    ordered = sorted(results.layers, key=lambda row: (row.device, LAYERS.index(row.layer), *_order(row)))
    tables = "\n".join(_layer_table(list(rows)) for _, rows in groupby(ordered, lambda row: (row.layer, row.device)))
    return f"""# CP and Tucker against tensorly

Trained convolutions, decomposed by both libraries at the same ranks: `cp3` is a sum of rank-one terms with the kernel
whole, (O, HW, I); `cp4` one over (O, I, H, W); `tucker` is Tucker-2, over O and I. Ranks are the largest that leave at
most the stated share of the layer's parameters: R(I + HW + O), R(I + H + W + O), and I R1 + R1 R2 HW + R2 O with
R1 = t I and R2 = t O, rounded down.

Who fits:

{settings}

How the figures are taken:

- Every fit starts from the same float32 layer, in a fresh process that has fitted a tiny layer before. Where it takes
  at most {CHEAP_SECONDS:g} s, figures are medians of {ROUNDS} processes, in turn with those of the other rows;
  otherwise it ran once. Other work on the machine lengthens times, most of all of fits that ran once.
- MiB is the peak of resident memory during the fit less what was held before (`VmHWM` of Linux, reset before the fit
  through `clear_refs`): copies, workspace and results, and what the allocator keeps. Beside it in multiples of the
  float32 weight. Tensorly keeps the error of every sweep as a tensor, around which the heap fragments, so its peaks
  grow with the sweeps and vary.
- A fit that asks for more than {BYTES // 2**30} GiB fails. After {CPU_SECONDS} CPU seconds of all threads, tensorly's
  CP is stopped and what it has is taken, so its time is a lower bound; any fit is killed after {WALL_SECONDS} s.
- Error is ||W - What||² / ||W||². Cancellation is the sum of the squared norms of the rank-one terms over ||W||²: at
  most 1 where they are orthogonal, large where terms nearly cancel. Both are taken in float64 from the factors.
- Settings of tensorly that take many minutes on wide layers are tried on narrower ones only.

Made with {versions} and `{VARIABLE}` set, by

```
python -m benchmarks.decompositions
```

## In short

Tensorly over tenfold: geometric means over layers and ranks, least and most in brackets. Above 1, tenfold is better.
Memory counts where the weight has at least {LEAST_BYTES // 2**10} KiB, fits that failed nowhere. In the picture,
tenfold is faster right of 1, and has the smaller error above 1; wider layers have larger points.

![Time and error of tensorly over those of tenfold, one point for each fit]({NAME}.svg)

{_summary(results.layers)}
## Where tensorly's error is smaller

By more than {CLEARLY:.1%}:

{_better_errors(ordered)}
## Networks

Every 3x3 convolution but the first decomposed, and nothing trained afterwards. The interval is that of the difference
from dense on the same {SPLIT} images, one by one.

{_net_table(results.nets)}
## Layers

A ratio is that of the figure before it, tensorly over tenfold; where tenfold is worse, it is bold.

{tables}"""


Pairs = list[tuple[LayerRow, LayerRow]]  # of tensorly, and of tenfold at the same place


def pairs(rows: Iterable[LayerRow]) -> Pairs:
    """Every fit of tensorly that gave factors, with tenfold's."""
    rows = list(rows)
    ours = {row.place: row for row in rows if row.by == TENFOLD}
    return [(row, ours[row.place]) for row in rows if row.by != TENFOLD and row.error is not None and row.place in ours]


def _order(row: Row) -> tuple[Any, ...]:
    return list(FORMS).index(row.form), -row.share, list(SETTINGS).index(row.by)


def _summary(rows: Sequence[LayerRow]) -> str:
    lines = [
        "| form | by | fits | stopped | failed | time | memory | error |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for form, by in ((form, by) for form in FORMS for by in SETTINGS):
        made = [row for row in rows if (row.form, row.by) == (form, by)]
        compared = pairs([row for row in rows if row.form == form and row.by in (by, TENFOLD)])
        if compared:
            failed = sum(row.error is None for row in made)
            stopped = sum(bool(row.note) for row in made) - failed
            large = [pair for pair in compared if pair[0].weight_bytes >= LEAST_BYTES]
            cells = (_spread(compared, "seconds"), _spread(large, "peak_bytes"), _spread(compared, "error"))
            lines.append(f"| {form} | {by} | {len(made)} | {stopped} | {failed} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(compared: Pairs, field: str) -> str:
    ratios = [getattr(theirs, field) / getattr(ours, field) for theirs, ours in compared]
    return f"{geometric_mean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""


def _better_errors(rows: Sequence[LayerRow]) -> str:
    lines = [
        "| layer | form | left | rank | by | error | cancellation | seconds | tenfold | cancellation | seconds |",
        "|---|---|--:|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for theirs, ours in pairs(rows):
        if (theirs.error or 0) < (1 - CLEARLY) * (ours.error or 0):
            figures = " | ".join(
                f"{row.error:.4f} | {_number(row.cancellation, '.1f')} | {row.seconds:.2f}" for row in (theirs, ours)
            )
            place = f"{theirs.layer} | {theirs.form} | {100 * theirs.share:g} % | {_rank(theirs)}"
            lines.append(f"| {place} | {theirs.by} | {figures} |")
    return "\n".join(lines) + "\n"


def _net_table(rows: Sequence[NetRow]) -> str:
    lines = [
        "| net | layers | form | left | by | seconds | error | accuracy, % | change, points (95 % interval) |",
        "|---|--:|---|--:|---|--:|--:|--:|--:|",
    ]
    for row in sorted(rows, key=lambda row: (row.device, row.net, *_order(row))):
        head = f"| {row.net} | {row.layers} | {row.form} | {100 * row.share:g} % | {row.by}"
        if row.accuracy is None or row.interval is None:
            lines.append(f"{head} | | | | {row.note} |")
        else:
            change, (low, high) = row.accuracy - row.dense_accuracy, row.interval
            lines.append(
                f"{head} | {row.seconds:.1f} | {row.error:.4f} "
                f"| {row.accuracy:.2f} | {change:+.2f} ({low:+.2f} to {high:+.2f}) |"
            )
    return "\n".join(lines) + "\n"


def _layer_table(rows: Sequence[LayerRow]) -> str:
    first = rows[0]
    outputs, inputs, height, width = first.shape
    head = (
        f"### {first.layer}: {inputs} inputs, {outputs} outputs, {height}x{width}",
        "",
        f"{DATA}, {first.weight_bytes / 2**20:.2f} MiB of weights. Measured on {first.device}.",
        "",
        "| form | left | rank | by | seconds | ratio | MiB | weights | ratio | error | ratio | cancels | sweeps | |",
        "|---|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    )
    ours = {row.place: row for row in rows if row.by == TENFOLD}
    return "\n".join([*head, *(_cells(row, ours.get(row.place)) for row in rows)]) + "\n"


def _cells(row: LayerRow, ours: LayerRow | None) -> str:
    peak = None if row.peak_bytes is None else row.peak_bytes / 2**20
    over = None if row.peak_bytes is None else row.peak_bytes / row.weight_bytes
    return (
        f"| {row.form} | {100 * row.share:g} % | {_rank(row)} | {row.by} "
        f"| {_number(row.seconds, '.3f')} | {_times(row, ours, 'seconds')} "
        f"| {_number(peak, '.1f')} | {_number(over, '.1f')} | {_times(row, ours, 'peak_bytes')} "
        f"| {_number(row.error, '.4f')} | {_times(row, ours, 'error')} "
        f"| {_number(row.cancellation, '.1f')} | {_number(row.sweeps, 'd')} | {row.note} |"
    )


def _times(row: LayerRow, ours: LayerRow | None, field: str) -> str:
    if ours is None or row is ours or row.error is None:
        return ""
    text = f"{getattr(row, field) / getattr(ours, field):.2f}"
    return f"**{text}**" if float(text) < 1 else text


def _number(value: float | None, spec: str) -> str:
    return "" if value is None else f"{value:{spec}}"


def _rank(row: LayerRow) -> str:
    return ", ".join(map(str, row.rank))


def draw(rows: Sequence[LayerRow], path: Path) -> None:
    """Time and error over tenfold's, a panel for each form, a point for each fit of tensorly."""
    settings = {"svg.hashsalt": NAME, "svg.fonttype": "none", "font.size": 9}  # the same rows give the same file
    with rc_context(settings):
        figure = Figure(figsize=(10, 3.8), layout="constrained")
        panels = figure.subplots(1, len(FORMS), sharex=True, sharey=True)
        for panel, form in zip(panels, FORMS, strict=True):
            panel.set(xscale="log", yscale="log", title=form, xlabel="time, tensorly / tenfold")
            for axis in (panel.xaxis, panel.yaxis):
                axis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter("{x:g}")
            panel.axhline(1, color="grey", linewidth=0.8)
            panel.axvline(1, color="grey", linewidth=0.8)
            for by, marker in zip([name for name in SETTINGS if name != TENFOLD], "o^sD", strict=True):
                compared = [pair for pair in pairs(rows) if (pair[0].form, pair[0].by) == (form, by)]
                panel.scatter(
                    [theirs.seconds / ours.seconds for theirs, ours in compared],
                    [theirs.error / ours.error for theirs, ours in compared],
                    s=[6 * math.log2(max(theirs.shape)) ** 1.1 for theirs, _ in compared],
                    marker=marker,
                    alpha=0.7,
                    label=by,
                )
        panels[0].set_ylabel("squared error, tensorly / tenfold")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(SETTINGS))
        figure.savefig(path, metadata={"Date": None})


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


def main() -> None:
    """Make the missing rows, then the page and the picture."""
    asked = arguments()
    data_folder()  # refuse before work starts
    torch.set_num_threads(asked.threads)
    path = ROOT / "benchmarks" / "results" / f"{NAME}{'-quick' * asked.quick}.json"
    done = read(path).commands
    groups, of_nets = jobs(asked)
    for group in groups:
        for row in layer_rows([job for job in group if job.command not in done]):
            add(path, row)
            print(row.line(), flush=True)
    for job in of_nets:
        if job.command not in done:
            row = net_row(job)
            add(path, row)
            print(row.line(), flush=True)
    if not asked.quick:
        results = read(path)
        replace_text(ROOT / "docs" / f"{NAME}.md", page(results))
        draw(results.layers, ROOT / "docs" / f"{NAME}.svg")


if __name__ == "__main__":
    main()
