"""The page that says what all benchmarks come to, and its pictures: from rows alone."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import median

from benchmarks import _rows
from benchmarks._decompositions_page import pairs, spread, to_the_same_error
from benchmarks._decompositions_rows import TENSORLY
from benchmarks._evidence import Evidence
from benchmarks._fits import FORMS
from benchmarks._folder import VARIABLE
from benchmarks._goals import NOT_RUN, Goal, Order, goals, orders
from benchmarks._results_plots import draw
from benchmarks.architectures import Row as ArchitectureRow
from benchmarks.latency import Row as LatencyRow
from benchmarks.peers._page import accuracies, latencies

_PEERS = "python -m benchmarks.peers"
Judged = tuple[Goal, _rows.Row | None]  # and the row that counts


def write_page(docs: Path) -> None:
    """The page and its pictures."""
    rows = Evidence()
    _rows.replace_text(docs / "results.md", page(rows))
    draw(rows.peers, docs)


def page(rows: Evidence) -> str:
    """The page of documentation."""
    asked, compared = [(goal, goal.best(rows)) for goal in goals()], orders(rows)
    return f"""# Results

What the benchmarks come to. Every figure and picture on this page is computed from the rows in `benchmarks/results`,
and each row was printed by one command, which is stored with it; `python -m benchmarks.pages` writes this page and all
pages that it names from these rows, and no data is needed for that. A row is made again by deleting it and calling its
command with `{VARIABLE}` set. Changes are in points of accuracy from the dense network on held-out images, with the
95 % interval of the difference image by image. Networks, images and recipes are said on the pages named.

## What was to be beaten

Reached is what loses no more than `to reach` says, in the row of the first seed.

{_goals(asked)}

{_commands([(row or goal).command for goal, row in asked])}

## The published order of methods

| | published | here | seen again |
|--:|---|---|---|
{_orders(compared)}

{_reasons(compared)}

{_commands([" && ".join(order.commands) or "none yet" for order in compared])}

## Other packages

The same weights, images and budgets; every table and setting is in [Other packages](peers.md). Where tenfold is not
ahead, or not certainly, the verdict is in bold. By `{_PEERS}` and `{_PEERS} --tuned`.

![Accuracy against the share of parameters, by package](results-peers.svg)

{accuracies(rows.peers)}

In time, at equal accuracy:

![Accuracy against latency, by package](results-latency.svg)

{latencies(rows.peers)}

## Measured time

Networks of [Measured time](latency.md), by `python -m benchmarks.latency`: small / dense, timed in turn in one run.

| asked | share | runs | time, median (least to most) | multiply-adds | parameters |
|---|--:|--:|--:|--:|--:|
{_times(rows.latency)}

## The decomposition itself

{_decompositions(rows)}
{_scale(rows)}

## Many architectures

By `python -m benchmarks.architectures`, stage by stage in [Many architectures](architectures.md):

{_architectures(rows)}

## What was not reached

{_missed(asked, compared)}
"""


def _goals(asked: Sequence[Judged]) -> str:
    lines = [
        "| | | published | to reach | here | times fewer | time | on | reached |",
        "|--:|---|---|--:|--:|--:|--:|---|---|",
    ]
    for number, (goal, row) in enumerate(asked, 1):
        here = " | | | "
        if row is not None:
            apart = _rows.change(row.accuracy - row.dense_accuracy, row.interval)
            here = f"{apart} | {1 / row.params_ratio:.2f} | {row.latency_ratio:.2f} | {row.device}"
        lines.append(f"| {number} | {goal.what} | {goal.published} | {goal.least:+g} | {here} | {goal.verdict(row)} |")
    return "\n".join(lines)


def _orders(compared: Sequence[Order]) -> str:
    words = {True: "yes", False: "**no**", None: f"**{NOT_RUN}**"}
    return "\n".join(
        f"| {number} | {order.published} | {order.here} | {words[order.seen]} |"
        for number, order in enumerate(compared, 1)
    )


def _reasons(compared: Sequence[Order]) -> str:
    return "\n".join(
        f"- {number}: {order.reason}."
        for number, order in enumerate(compared, 1)
        if order.reason and order.seen is not True
    )


def _commands(commands: Sequence[str]) -> str:
    lines = "\n".join(f"{number}: {command}" for number, command in enumerate(commands, 1))
    return f"Made by, number by number:\n\n```text\n{lines}\n```"


def _times(rows: Sequence[LatencyRow]) -> str:
    def kind(row: LatencyRow) -> tuple[str, float]:
        return row.target, -row.share

    lines = []
    for (target, share), group in groupby(sorted(rows, key=kind), kind):
        own = list(group)
        times = [row.time_ratio for row in own]
        costs = [[getattr(row, name) for row in own] for name in ("macs_ratio", "params_ratio")]
        medians = " | ".join(f"{median(values):.2f}" for values in costs)
        lines.append(
            f"| {target} | {-share:g} | {len(own)} | {median(times):.2f} ({min(times):.2f} to {max(times):.2f}) "
            f"| {medians} |"
        )
    return "\n".join(lines)


def _decompositions(rows: Evidence) -> str:
    lines = [
        "Tensorly with its defaults over tenfold, on the same layers at the same ranks: geometric mean, least and most",
        "([CP and Tucker](decompositions.md), by `python -m benchmarks.decompositions`).",
        "",
        "| form | fits | time | error |",
        "|---|--:|--:|--:|",
    ]
    layers = rows.decompositions.layers
    for form in FORMS:
        whole = [pair for pair in pairs(row for row in layers if row.form == form) if pair[0].by == TENSORLY]
        for name, compared in ((form, whole), (f"{form}, to the same error", to_the_same_error(layers, form))):
            if compared:
                figures = " | ".join(spread(compared, field) for field in ("seconds", "error"))
                lines.append(f"| {name} | {len(compared)} | {figures} |")
    return "\n".join([*lines, ""])


def _scale(rows: Evidence) -> str:
    plans = [row for row in rows.scale if row.what == "resnet50"]
    decoders = [row for row in rows.scale if row.what == "decoder" and row.peak]
    lines = ["[Scale](scale.md), by `python -m benchmarks.scale`:", ""]
    lines += [
        f"- All options of ResNet-50's layers at all ranks and a choice, {row.setting} methods: "
        f"{row.seconds['plan']:.1f} s, {row.seconds['plan'] / row.seconds['full svd']:.2f} times one full SVD a layer."
        for row in plans
    ]
    lines += [
        f"- A decoder of a billion parameters, {row.setting}: {row.seconds['all']:.0f} s, at most "
        f"{(row.peak or {})['all'] / 1e9:.1f} GB of memory with pages of files, weights and plan `{row.digest}`."
        for row in decoders
    ]
    return "\n".join(lines)


def _architectures(rows: Evidence) -> str:
    lines = ["| library | networks | all stages well |", "|---|--:|--:|"]

    def kind(row: ArchitectureRow) -> tuple[bool, str]:
        return row.small, row.library

    for (small, library), group in groupby(sorted(rows.architectures, key=kind), kind):
        own = list(group)
        name = library + ", small networks, every method" * small
        lines.append(f"| {name} | {len(own)} | {sum(row.green for row in own)} |")
    return "\n".join(lines)


def _came_to(row: _rows.Row) -> str:
    """The change from the dense network, and that of the dense network by the same training."""
    small = _rows.change(row.accuracy - row.dense_accuracy, row.interval)
    if row.control_accuracy is None:
        return small
    return f"{small}; the dense network, trained as long, changes by {row.control_accuracy - row.dense_accuracy:+.2f}"


def _missed(asked: Sequence[Judged], compared: Sequence[Order]) -> str:
    lines = []
    for goal, row in asked:
        if not goal.reached(row):
            state = NOT_RUN if row is None else f"not reached: {_came_to(row)}"
            lines.append(f"- {goal.what}, {goal.least:+g}: {state}.")
    lines += [f"- Not seen: {order.published}." for order in compared if order.seen is False]
    lines += [f"- Not run: {order.published}." for order in compared if order.seen is None]
    return "\n".join(lines) or "Nothing."
