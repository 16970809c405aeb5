"""The page and the picture of the comparison with tensorly, from rows alone."""

import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks._decompositions_rows import (
    CHEAP_SECONDS,
    DATA,
    EQUAL,
    LAYERS,
    NAME,
    ROUNDS,
    SETTINGS,
    SPLIT,
    TENFOLD,
    TENSORLY,
    LayerRow,
    NetRow,
    Results,
    Row,
)
from benchmarks._fits import BYTES, CPU_SECONDS, FORMS, WALL_SECONDS
from benchmarks._folder import VARIABLE

CLEARLY = 0.001  # by how much of an error another is smaller than it, to be listed
LEAST_BYTES = 2**19  # of weights, for memory to be compared: below, a process's own pages are most of it


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

```sh
python -m benchmarks.decompositions
```

## In short

Tensorly over tenfold: geometric means over layers and ranks, least and most in brackets. Above 1, tenfold is better.
Memory counts where the weight has at least {LEAST_BYTES // 2**10} KiB, fits that failed nowhere. In the picture,
tenfold is faster right of 1, and has the smaller error above 1; wider layers have larger points.

![Time and error of tensorly over those of tenfold, one point for each fit]({NAME}.svg)

{_summary(results.layers)}
## The time to the same error

`{EQUAL}` against `{TENSORLY}`, geometric means over layers and ranks, least and most in brackets:

{_equal(results.layers)}
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
    theirs = [row for row in rows if row.by not in (TENFOLD, EQUAL) and row.error is not None]
    return [(row, ours[row.place]) for row in theirs if row.place in ours]


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
            cells = (spread(compared, "seconds"), spread(large, "peak_bytes"), spread(compared, "error"))
            lines.append(f"| {form} | {by} | {len(made)} | {stopped} | {failed} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def to_the_same_error(rows: Sequence[LayerRow], form: str) -> Pairs:
    """Tensorly's fits by its defaults, with tenfold's that took as long as it takes to their error."""
    theirs = {row.place: row for row in rows if row.by == TENSORLY and row.error is not None}
    ours = [row for row in rows if (row.form, row.by) == (form, EQUAL) and row.error is not None]
    return [(theirs[row.place], row) for row in ours]


def _equal(rows: Sequence[LayerRow]) -> str:
    lines = ["| form | fits | time, tensorly / tenfold | error, tensorly / tenfold |", "|---|--:|--:|--:|"]
    for form in FORMS:
        if compared := to_the_same_error(rows, form):
            cells = (spread(compared, "seconds"), spread(compared, "error"))
            lines.append(f"| {form} | {len(compared)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def spread(compared: Pairs, field: str) -> str:
    """Tensorly over tenfold: geometric mean, least and most."""
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
            for by, marker in zip([name for name in SETTINGS if name not in (TENFOLD, EQUAL)], "o^sD", strict=True):
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
