"""The page of a sweep: for every net its quality, size and time by method, and every row."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenfold._sweep_rows import Row, alike, mean_of
from tenfold._sweep_setting import DENSE, Sweep
from tenfold.report._figures import GREY, STYLES
from tenfold.report._page import Chart, Column, Section, Table, Text, page
from tenfold.report._pareto import pareto

_COLUMNS = (  # heading, column of the rows, how numbers are written
    ("net", "net", None),
    ("method", "label", None),
    ("budget", "budget", None),
    ("seed", "seed", "d"),
    ("metric", "metric", ".4f"),
    ("95 % from", "change_low", "+.4f"),
    ("to", "change_high", "+.4f"),
    ("params", "params_share", ".1%"),
    ("multiply-adds", "macs_share", ".1%"),
    ("bytes", "bytes_share", ".1%"),
    ("time", "time_share", ".3f"),
    ("ms", "small_ms", ".3f"),
    ("drift", "drift", ".4f"),
    ("seconds", "seconds", ".1f"),
)
_ALL = (
    "All networks. Params, multiply-adds, bytes and time are small / dense; the 95 % interval is that of the change of "
    "the metric; seconds went into planning, recovery and evaluation."
)
_ALIKE = 2  # decimals of a share, so that no network leads by a parameter or two


@dataclass(frozen=True)
class Axis:
    """What a chart shows along one side."""

    column: str  # of the rows
    title: str
    form: str
    higher_is_better: bool = False

    @property
    def name(self) -> str:
        """The title without what it is a share of."""
        return self.title.partition(",")[0]


_SIZE = Axis("params_share", "parameters, small / dense", ".0%")
_TIME = Axis("time_share", "time, small / dense", ".2f")


def sweep_page(rows: Sequence[Row], sweep: Sweep) -> str:
    """The HTML page of a sweep.

    Raises:
        TenfoldError: if plotly or jinja2 are not installed.
    """
    made = [row for row in rows if row.metric is not None]
    refused = [row for row in rows if row.error]
    nets = list(dict.fromkeys(row.net for row in rows))
    lead = (
        f"{len(made)} networks: {_counted(nets, 'net')}, {_counted(sweep.methods, 'method')}, "
        f"{_counted(sweep.budgets, 'budget')}, {_counted(sweep.seeds, 'seed')}; {len(refused)} refused."
    )
    sections = [
        *(_net_section([row for row in rows if row.net == net], sweep) for net in nets),
        Section("Every row", [_rows_table(made)]),
    ]
    if refused:
        sections.append(Section("Refused", [_refused_table(refused)]))
    return page(f"Sweep of {', '.join(nets)}", lead, sections)


def _counted(things: Iterable[Any], name: str) -> str:
    count = len(list(things))
    return f"{count} {name}{'' if count == 1 else 's'}"


def _net_section(rows: Sequence[Row], sweep: Sweep) -> Section:
    dense = next(row for row in rows if row.method == DENSE)
    net = next(net for net in sweep.nets if net.name == dense.net)
    metric = Axis("metric", (net.evaluate or sweep.evaluate).partition(":")[2], ".4f", higher_is_better=True)
    timed = f", {dense.small_ms:.2f} ms for an input of {net.input} in {dense.engine}" if dense.small_ms else ""
    where = f" on {dense.device}" if dense.device else ""
    text = f"Dense: {metric.title} {dense.metric:.4f}, {dense.params or 0:,} parameters{timed}{where}."
    charts = [_chart(rows, *axes) for axes in ((_SIZE, metric), (_TIME, metric), (_SIZE, _TIME))]
    return Section(dense.net, [Text(text), *(chart for chart in charts if chart)])


def _chart(rows: Sequence[Row], across: Axis, up: Axis) -> Chart | None:
    """One axis over another: the mean over seeds of every method and budget, every seed, and the front."""
    shown = [row for row in rows if None not in (getattr(row, across.column), getattr(row, up.column))]
    if len({row.label for row in shown}) < 2:  # dense alone
        return None
    groups = alike(shown)
    points = np.array([[mean_of(some, axis.column) for axis in (across, up)] for some in groups])
    best = pareto(np.stack([_cost(axis, column) for axis, column in zip((across, up), points.T, strict=True)], 1))
    found = [(some[0], *point, on) for some, point, on in zip(groups, points.tolist(), best, strict=True)]
    front = [" at ".join(filter(None, (row.label, row.budget))) for row, _, _, on in found if on]
    axes = [Column(axis.title, axis.form) for axis in (across, up)]
    table = Table(
        f"{up.name} over {across.name}, mean over seeds",
        [Column("method"), Column("budget"), *axes, Column("front")],
        [[row.label, row.budget, x, y, "yes" if on else ""] for row, x, y, on in found],
    )
    summary = (
        f"{up.name[0].upper()}{up.name[1:]} over {across.name}; large marks are means over seeds, small ones seeds. "
        f"On the Pareto front, shares rounded to 1 %: {', '.join(front)}."
    )
    data = [_front(points[best]), *_series(shown, groups, points, across, up)]
    return Chart({"data": data, "layout": _layout(across, up)}, summary, table)


def _cost(axis: Axis, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is less the better it is."""
    return -values if axis.higher_is_better else values.round(_ALIKE)


def _front(points: NDArray[np.float64]) -> dict[str, Any]:
    ordered = points[np.lexsort(points.T[::-1])]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": "Pareto front",
        "x": ordered[:, 0].tolist(),
        "y": ordered[:, 1].tolist(),
        "line": {"color": GREY, "width": 7, "shape": "hv"},  # up to the next the one before is the best there is
        "marker": {"color": GREY, "size": 18},
        "opacity": 0.45,
        "hoverinfo": "skip",
    }


def _series(
    rows: Sequence[Row], groups: Sequence[Sequence[Row]], points: NDArray[np.float64], across: Axis, up: Axis
) -> Iterator[dict[str, Any]]:
    """For each method its means, joined by a line, and its seeds."""
    for label, (colour, symbol) in _styles(row.label for row in rows).items():
        own = [(*point, some[0]) for some, point in zip(groups, points.tolist(), strict=True) if some[0].label == label]
        own.sort(key=lambda one: one[:2])
        common = {"type": "scatter", "legendgroup": label, "name": escape(label)}
        yield common | {
            "mode": "lines+markers",
            "x": [x for x, _, _ in own],
            "y": [y for _, y, _ in own],
            "text": [escape(row.budget or "") for _, _, row in own],
            "hovertemplate": f"<b>{escape(label)}</b> %{{text}}<br>{across.title} %{{x:{across.form}}}<br>"
            f"{up.title} %{{y:{up.form}}}<extra></extra>",
            "line": {"color": colour, "width": 1.5},
            "marker": {"color": colour, "symbol": symbol, "size": 10},
        }
        seeds = [row for row in rows if row.label == label and row.seed is not None]
        if seeds:
            yield common | {
                "mode": "markers",
                "x": [getattr(row, across.column) for row in seeds],
                "y": [getattr(row, up.column) for row in seeds],
                "text": [f"seed {row.seed}" for row in seeds],
                "hovertemplate": f"{escape(label)}, %{{text}}: %{{y:{up.form}}}<extra></extra>",
                "marker": {"color": colour, "symbol": symbol, "size": 5, "opacity": 0.55},
                "showlegend": False,
            }


def _styles(labels: Iterable[str]) -> dict[str, tuple[str, str]]:
    """A colour and a shape for each method: its own where it has one, else one that is free."""
    found = list(dict.fromkeys(labels))
    free = [style for name, style in STYLES.items() if name not in found]
    styles = {DENSE: (GREY, "circle-open")} | STYLES
    others = [label for label in found if label not in styles]
    return {label: styles.get(label) or free[others.index(label) % len(free)] for label in found}


def _layout(across: Axis, up: Axis) -> dict[str, Any]:
    return {
        "height": 420,
        "margin": {"t": 56},
        "legend": {"orientation": "h", "x": 0, "y": 1, "xanchor": "left", "yanchor": "top", "yref": "container"},
        "xaxis": {"title": {"text": across.title}, "tickformat": across.form, "zeroline": False},
        "yaxis": {"title": {"text": up.title}, "zeroline": False},
    }


def _rows_table(rows: Sequence[Row]) -> Table:
    columns = [Column(heading, form) for heading, _, form in _COLUMNS]
    values = [[getattr(row, name) for _, name, _ in _COLUMNS] for row in rows]
    return Table(_ALL, columns, values, filters=True)


def _refused_table(rows: Sequence[Row]) -> Table:
    columns = [Column("net"), Column("method"), Column("budget"), Column("seed", "d"), Column("reason")]
    values = [[row.net, row.label, row.budget, row.seed, row.error] for row in rows]
    return Table("Jobs without a network, or without a time", columns, values)
