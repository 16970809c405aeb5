"""Tables for the terminal, 80 columns wide."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from rich.table import Table

from tenfold._candidates import Options
from tenfold._judge import interval_text
from tenfold._plan import Plan, Step
from tenfold._sweep_rows import Row, alike, mean_of
from tenfold._verify import Report
from tenfold.methods import FilterPruning, find
from tenfold.train import Epoch

KEPT = 0.9  # the share of a weight's energy at which `inspect` shows what each method could save


def inspected(options: Options) -> list[dict[str, Any]]:
    """Every layer: its cost, its share of the parameters, and what each method makes of it at 90% of its energy."""
    rows = []
    for name, layer in options.graph.layers.items():
        params, macs, _ = (int(cost) for cost in options.dense_costs[name])
        saves: dict[str, float] = {}
        for ladder in options.ladders:
            if name not in ladder.candidate.site.layers:
                continue
            enough = ladder.errors.max(1) <= 1 - KEPT
            left = 1 + int(ladder.costs[enough, 0].min()) / int(ladder.dense[0])
            method = ladder.candidate.method.name
            saves[method] = min(left, saves.get(method, np.inf))
        rows.append(
            {
                "layer": name,
                "type": type(layer.module).__name__,
                "shape": _weight_shape(layer.module),
                "params": params,
                "macs": macs,
                "share": params / options.dense.params,
                "left_at_90_percent_energy": saves,
                "stays_dense_because": options.obstacle(name),
            }
        )
    return rows


def inspect_table(rows: list[dict[str, Any]]) -> Table:
    """The rows of `inspected`; the methods' columns show the share of the layer's parameters that would be left."""
    methods = list(dict.fromkeys(method for row in rows for method in row["left_at_90_percent_energy"]))
    table = _table("layer", "shape", "params", "multiply\nadds", "of all", *methods)
    for row in rows:
        saves = row["left_at_90_percent_energy"]
        table.add_row(
            row["layer"],
            "x".join(map(str, row["shape"])),
            short(row["params"]),
            short(row["macs"]),
            f"{row['share']:.1%}",
            *(f"{saves[method]:.0%}" if method in saves else "" for method in methods),
        )
    return table


def planned(options: Options, plan: Plan) -> list[dict[str, Any]]:
    """Every step with what it does to the cost."""
    return [
        {
            "layers": list(step.layers),
            "method": label(step),
            "rank": list(step.rank),
            "of": step.links[0].filters if step.links else None,
            "params": [int(before[0]), int(after[0])],
            "macs": [int(before[1]), int(after[1])],
        }
        for step, (before, after) in zip(plan.steps, options.costs(plan.steps), strict=True)
    ]


def plan_table(rows: list[dict[str, Any]]) -> Table:
    """The rows of `planned`."""
    table = _table("layer", "method", "rank", "params", "multiply-adds")
    for row in rows:
        table.add_row(
            _together(row["layers"]),
            row["method"],
            "x".join(map(str, row["rank"])) + (f" of {row['of']}" if row["of"] else ""),
            " -> ".join(map(short, row["params"])),
            " -> ".join(map(short, row["macs"])),
        )
    return table


def saved(options: Options, rows: list[dict[str, Any]]) -> str:
    """One line: what the plan leaves of the whole model."""
    changes = {name: sum(row[name][1] - row[name][0] for row in rows) for name in ("params", "macs")}
    replaced = len({name for row in rows for name in row["layers"]})
    params, macs = options.dense.params + changes["params"], options.dense.macs + changes["macs"]
    return (
        f"{replaced} of {len(options.graph.layers)} layers: {params:,} of {options.dense.params:,} parameters "
        f"({params / options.dense.params:.1%}), {macs:,} of {options.dense.macs:,} multiply-adds "
        f"({macs / max(options.dense.macs, 1):.1%})."
    )


def reasons_table(reasons: Mapping[str, str]) -> Table:
    """Layers that stay dense, gathered by reason."""
    by_reason: dict[str, list[str]] = {}
    for layer, reason in reasons.items():
        by_reason.setdefault(reason, []).append(layer)
    table = _table("stays dense", "because", numbers=False)
    for reason, layers in by_reason.items():
        shown = ", ".join(layers[:6]) + (f" and {len(layers) - 6} more" if len(layers) > 6 else "")
        table.add_row(shown, reason)
    return table


def report_table(report: Report, metric: str = "metric") -> Table:
    """Before and after."""
    table = _table("", "dense", "small", "small / dense")
    for line in report.lines(metric):
        table.add_row(*line)
    return table


def trials_table(report: Report) -> Table:
    """The trade-off: every network that was tried, the smallest first."""
    table = _table("parameters tried", "small / dense", "metric", "change", "95 % interval")
    for trial in report.trials:
        table.add_row(
            f"{trial.params:,}",
            f"{trial.params / report.dense.params:.3f}",
            f"{trial.metric:.4f}",
            f"{trial.change:+.4f}",
            interval_text(trial.interval),
        )
    return table


def history_table(history: Sequence[Sequence[Epoch]]) -> Table:
    """Every epoch of every round."""
    table = _table("round", "epoch", "loss", "held-back metric")
    for number, epochs in enumerate(history, 1):
        for epoch in epochs:
            metric = "" if epoch.metric is None else f"{epoch.metric:.4f}"
            table.add_row(str(number), str(epoch.epoch), f"{epoch.loss:.4f}", metric)
    return table


def sweep_table(rows: Sequence[Row]) -> Table:
    """Every net, method and budget, in the mean over seeds."""
    table = _table("net", "method", "budget", "params\n/ dense", "time\n/ dense", "metric", "change")
    for column in table.columns[:3]:
        column.justify, column.no_wrap = "left", False
    for some in alike(rows):
        shown = [some[0].net, some[0].label, some[0].budget or ""]
        if all(row.metric is None for row in some):
            table.add_row(*shown, "", "", "refused", "")
            continue
        means = [mean_of(some, name) for name in ("params_share", "time_share", "metric", "dense_metric")]
        change = None if means[2] is None or means[3] is None else means[2] - means[3]
        numbers = zip((*means[:3], change), (".3f", ".3f", ".4f", "+.4f"), strict=True)
        table.add_row(*shown, *("" if number is None else format(number, form) for number, form in numbers))
    return table


def short(number: int) -> str:
    """A number in four characters or so: `36.9K`."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if number >= size:
            return f"{number / size:.3g}{suffix}"
    return str(number)


def label(step: Step) -> str:
    """The method with its first field, and those others that are not as usual."""
    method = FilterPruning.of(step.method) if step.links else find(step.method)
    usual = {each.name: each.default for each in fields(method)}  # type: ignore[arg-type]
    shown = [
        str(value)
        for number, (name, value) in enumerate(step.method.fields.items())
        if not number or value != usual[name]
    ]
    return f"{step.method.name} {'/'.join(shown)}".strip()


def _together(layers: Sequence[str]) -> str:
    """`layer2.*.conv1 (3)` for layers at the same place of repeated blocks."""
    if len(layers) == 1:
        return layers[0]
    paths = [name.split(".") for name in layers]
    if len({len(path) for path in paths}) > 1:
        return ", ".join(layers)
    steps = [part[0] if len(set(part)) == 1 else "*" for part in zip(*paths, strict=True)]
    return f"{'.'.join(steps)} ({len(layers)})"


def _weight_shape(module: Any) -> list[int]:
    shapes = [list(p.shape) for p in module._parameters.values() if p is not None and p.dim() >= 2]
    return shapes[0]


def _table(*columns: str, numbers: bool = True) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0) if len(columns) > 5 else (0, 1))
    for index, column in enumerate(columns):
        right = numbers and index > 0
        table.add_column(column, justify="right" if right else "left", overflow="fold", no_wrap=right)
    return table
