"""The page of the second seed system, from rows alone: tables, and the figures beside them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import groupby, product

import numpy as np

from benchmarks._folder import VARIABLE
from benchmarks.seeds._methods_cases import BATCH, COUNTS, DENSE, NAME, RECIPES, Row
from tenfold.train import Recipe


@dataclass(frozen=True)
class Steadiness:
    """How a curve ends, in points: the smaller, the steadier."""

    spread: float  # standard deviation over the last third of the epochs
    wobble: float  # the same around the straight line through them: without what is still gained or lost
    fall: float  # from the best epoch to the last

    @classmethod
    def of(cls, curve: Sequence[float]) -> "Steadiness":
        """Of the accuracies after each epoch."""
        last = np.array(curve[-(len(curve) // 3) :])
        epochs = np.arange(len(last))
        beside = last - np.polyval(np.polyfit(epochs, last, 1), epochs)
        wobble = np.sqrt(beside @ beside / max(len(last) - 2, 1))
        return cls(float(last.std(ddof=1)), float(wobble), max(curve) - curve[-1])


def page(rows: Sequence[Row]) -> str:
    """The page of documentation."""
    sections = {"scope": _scope, "epochs": _epochs, "sizes": _sizes}
    parts = _lines(make(own) for part, make in sections.items() if (own := [row for row in rows if row.part == part]))
    versions = ", ".join(sorted({row.version for row in rows}))
    devices = ", ".join(sorted({row.device for row in rows if not row.refused}))
    return f"""# CP, Tucker, tensor trains and SVD, compared

A small network of the VGG kind, five 3x3 convolutions and three fully connected layers
(`benchmarks/seeds/_small_net.py`), whose layers are decomposed by one method at a time: `svd` (output
side), `tucker`, `cp` (three factors), `tt` and `tt-naive` (trains of reshaped layers, and over input, rows, columns and
output), or `mix`, in which all methods of the library compete. Scope `conv` and `fc` leave the other kind of layer
dense; the first and the last layer always stay dense. On fully connected layers `tucker`, `cp` and `tt-naive` come to a
matrix of low rank, as `svd` does.

Ranks are chosen by a budget of parameters, and where layers are said to have 4x fewer parameters, that was the budget:
a method may take less. A budget admits no option that costs a layer more multiply-adds than it had, and those of trains
are counted factor by factor.

Trained on {COUNTS.train:,} images, always the same, with crops and flips, and judged on {COUNTS.judged:,} of the split
that is named or on all that it has: enough to compare, far from what these networks reach on all data.

- Dense networks:
  {_text(RECIPES["base"])}.
- Fine-tuned, from the weights of the dense network; the control is that network trained further in the same way:
  {_text(RECIPES["scope"])}.
- Curves:
  {_text(RECIPES["epochs"])}.

Parameters, multiply-adds and latency are of the whole network, small / dense; latency is from medians of interleaved
runs on {BATCH} images, in the form that the plan says. Changes are from the control, in points, with the 95 % interval
of the difference on the same images, one by one: it does not cover what another seed would change. Measured on
{devices}, with tenfold {versions} and `{VARIABLE}` set, by

```sh
python -m benchmarks.seeds.methods
```

A row alone: `python -m benchmarks.seeds.methods --part scope --scope both --fewer 4 --method mix`.

{parts}"""


def _scope(rows: Sequence[Row]) -> str:
    tables = _lines(_scope_table(list(own)) for _, own in groupby(rows, lambda row: row.scope))
    return f"""## Which layers, which method, how much

![Accuracy against compression]({NAME}-quality.svg)

![Latency against compression]({NAME}-latency.svg)

{_disturbance(rows)}

{tables}"""


def _scope_table(rows: Sequence[Row]) -> str:
    first = rows[0]
    lines = [
        f"### Scope {first.scope}",
        "",
        f"{first.data}, {first.split} split, {first.size} pixels a side, {first.classes} classes, seed {first.seed}. "
        f"Dense: {first.base_accuracy:.2f} %; control: {first.control_accuracy:.2f} %.",
        "",
        "| times fewer in scope | method | parameters | multiply-adds | latency | at once, % | tuned, % "
        "| change, points (95 % interval) | planning, s |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|",
        *(f"| {row.fewer} | {row.method} | {_figures(row)} | {row.plan_seconds:.1f} |" for row in rows),
    ]
    return _lines(lines) + "\n" + _refusals(rows)


def _epochs(rows: Sequence[Row]) -> str:
    starts, methods = (list(dict.fromkeys(getattr(row, name) for row in rows)) for name in ("start", "method"))
    kinds = [(start, method) for start, method in product(starts, methods)]
    curves = {kind: {r.seed: r for r in rows if (r.start, r.method) == kind and r.curve} for kind in kinds}
    made = {kind: own for kind, own in curves.items() if own}
    fewer, split, seeds = max(row.fewer for row in rows), rows[0].split, len({row.seed for row in rows})
    steadiness = _lines(_steady_line(kind, own) for kind, own in made.items())
    against_dense = _lines(line for start in starts for line in _against_dense(start, made))
    return f"""## Accuracy against the epoch

![Accuracy against the epoch]({NAME}-epochs.svg)

Dense and decomposed networks ({fewer}x fewer parameters in scope `both`), from the trained weights and from fresh ones
of the same shapes, {seeds} seeds. Every epoch is judged on {COUNTS.held_back:,} images held back from the training
split, the last one also on the {split} split. Over the last third of the epochs, `spread` is the standard deviation of
the accuracy, `wobble` the same around a straight line, without what is still gained or lost; `fall` is the best of all
epochs less the last one. All in points, mean (least to greatest) of the seeds: the smaller, the steadier.

| start | method | spread | wobble | fall | last epoch, % | {split} split, % |
|---|---|--:|--:|--:|--:|--:|
{steadiness}

The same less that of the dense network of the same start and seed: below zero, the decomposed network is the steadier
one. The last line of each start first takes the mean of all decomposed networks of a seed.

| start | method | spread | wobble | fall |
|---|---|--:|--:|--:|
{against_dense}
"""


def _steady_line(kind: tuple[str, str], rows: dict[int, Row]) -> str:
    steady = np.array([_vector(row) for row in rows.values()]).T
    ends = [row.curve[-1] for row in rows.values()], [row.accuracy for row in rows.values()]
    return f"| {' | '.join(kind)} | {' | '.join(_mean(values, '.2f') for values in (*steady, *ends))} |"


def _against_dense(start: str, made: dict[tuple[str, str], dict[int, Row]]) -> list[str]:
    dense = made.get((start, DENSE), {})
    apart = {
        method: {seed: _vector(row) - _vector(dense[seed]) for seed, row in own.items() if seed in dense}
        for (other, method), own in made.items()
        if other == start and method != DENSE
    }
    seeds = [seed for seed in dense if all(seed in own for own in apart.values())]
    lines = {method: list(own.values()) for method, own in apart.items()}
    if apart:
        lines["all of them"] = [np.mean([own[seed] for own in apart.values()], axis=0) for seed in seeds]
    return [
        f"| {start} | {method} | {' | '.join(_mean(values, '+.2f') for values in np.array(vectors).T)} |"
        for method, vectors in lines.items()
        if vectors
    ]


def _vector(row: Row) -> np.ndarray:
    steady = Steadiness.of(row.curve)
    return np.array([getattr(steady, field.name) for field in fields(steady)])


def _mean(values: Sequence[float], form: str) -> str:
    return f"{np.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def _sizes(rows: Sequence[Row]) -> str:
    first = rows[0]
    lines = _lines(
        f"| {row.size} | {row.classes} | {row.base_accuracy:.2f} | {row.control_accuracy:.2f} | {row.method} "
        f"| {_figures(row)} |"
        for row in rows
    )
    return f"""## Feature and response sizes

![Change of accuracy and latency against sizes]({NAME}-sizes.svg)

{first.data}, {first.split} split, resized; the first so many classes; {first.fewer}x fewer parameters in scope
`{first.scope}`, seed {first.seed}. The first fully connected layer grows with the image, the frozen last one with the
number of classes. Fewer classes also leave fewer images to judge on: the intervals are wider.

{_disturbance(rows)}

| pixels | classes | dense, % | control, % | method | parameters | multiply-adds | latency | at once, % | tuned, % \
| change, points (95 % interval) |
|--:|--:|--:|--:|---|--:|--:|--:|--:|--:|--:|
{lines}
{_refusals(rows)}"""


def _disturbance(rows: Sequence[Row]) -> str:
    """How far the times of one and the same dense network are apart, size by size."""
    times: dict[int, list[float]] = {}
    for row in rows:
        if row.latency_ms and row.latency_ratio:
            times.setdefault(row.size, []).append(row.latency_ms / row.latency_ratio)
    ranges = "; ".join(f"{min(own):.1f} to {max(own):.1f} ms at {size} pixels" for size, own in sorted(times.items()))
    return (
        f"The dense network was timed anew for every row: {ranges}.\n"
        "The wider that range, the more did other work on the machine disturb the ratios of latency."
    )


def _figures(row: Row) -> str:
    """Cells that every table has; dashes where there is no network."""
    if row.accuracy is None or row.interval is None:
        return " | ".join(["refused", *"-----"])
    change, (low, high) = row.accuracy - row.control_accuracy, row.interval
    return (
        f"{row.params_ratio:.3f} | {row.macs_ratio:.3f} | {row.latency_ratio:.2f} | {row.accuracy_at_once:.2f} "
        f"| {row.accuracy:.2f} | {change:+.2f} ({low:+.2f} to {high:+.2f})"
    )


def _refusals(rows: Sequence[Row]) -> str:
    lines = [
        f"- `{row.method}`, {row.fewer}x, {row.size} pixels, {row.classes} classes: {row.refused}"
        for row in rows
        if row.refused
    ]
    return _lines(["", "Refused:", "", *lines, ""]) if lines else ""


def _lines(texts: Iterable[str]) -> str:
    return "\n".join(texts)


def _text(recipe: Recipe) -> str:
    rate = "throughout" if recipe.schedule == "constant" else "after a warm-up, falling by a half cosine to 0"
    return (
        f"{recipe.epochs} epochs, batches of {recipe.batch}, momentum {recipe.momentum:g}, "
        f"learning rate {recipe.lr:g} {rate}"
    )
