"""The figures of the second seed system: SVG text that follows from the rows alone."""

import io
from collections.abc import Callable, Mapping, Sequence
from math import log2
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.seeds._methods_cases import BATCH, DENSE, METHODS, Part, Row

# The colours of Okabe and Ito, which the colour-blind can tell apart; markers for where there is no colour.
_COLOURS = {
    **{DENSE: "#000000", "svd": "#E69F00", "tucker": "#0072B2", "cp": "#009E73"},
    **{"tt": "#CC79A7", "tt-naive": "#56B4E9", "mix": "#D55E00"},
}
_MARKERS = {DENSE: "s", "svd": "o", "tucker": "^", "cp": "v", "tt": "D", "tt-naive": "X", "mix": "P"}
_STYLE = {
    "svg.hashsalt": "tenfold",  # the same rows give the same file
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.facecolor": "white",  # readable on a dark page too
}
_LATENCY = f"latency, small / dense\n({BATCH} images)"


def figures(rows: Sequence[Row]) -> dict[str, str]:
    """SVG by name, of the parts that have rows."""
    with rc_context(_STYLE):
        return {
            name: _svg(draw(own))
            for name, (part, draw) in _FIGURES.items()
            if (own := [row for row in rows if row.part == part and not row.refused])
        }


def quality(rows: Sequence[Row]) -> Figure:
    """Accuracy against compression, a column a scope: before training, and after."""
    figure, panels = _panels(rows, 2, "change of accuracy, points")
    for column, scope in enumerate(_values(rows, "scope")):
        before, after = panels[:, column]
        before.set_title(f"scope {scope}")
        for method, own in _by_method([row for row in rows if row.scope == scope]).items():
            x = _placed(method, [log2(row.fewer) for row in own], rows)
            before.plot(x, [row.accuracy_at_once - row.base_accuracy for row in own], **_look(method))
            _with_intervals(after, method, x, own)
    _axis_of_compression(panels, rows)
    for panel, what in zip(panels[:, 0], ("right after compression", "after fine-tuning"), strict=True):
        panel.set_ylabel(f"{panel.get_ylabel()}\n{what}")
    return figure


def latency(rows: Sequence[Row]) -> Figure:
    """Measured time against compression, a column a scope."""
    figure, panels = _panels(rows, 1, _LATENCY)
    for panel, scope in zip(panels[0], _values(rows, "scope"), strict=True):
        panel.set_title(f"scope {scope}")
        panel.axhline(1, color=_COLOURS[DENSE], linewidth=1)
        for method, own in _by_method([row for row in rows if row.scope == scope]).items():
            panel.plot(_placed(method, [log2(row.fewer) for row in own], rows), _ratios(own), **_look(method))
    _axis_of_compression(panels, rows)
    return figure


def epochs(rows: Sequence[Row]) -> Figure:
    """Accuracy against the epoch: the mean of the seeds in a band from the least to the greatest, a column a start."""
    starts = _values(rows, "start")
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, len(starts), squeeze=False, sharey=True)[0]
    for panel, start in zip(panels, starts, strict=True):
        panel.set_title(f"from {start} weights")
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        for method, own in _by_method([row for row in rows if row.start == start]).items():
            curves = np.array([row.curve for row in own])
            x = np.arange(1, curves.shape[1] + 1)
            panel.plot(x, curves.mean(0), color=_COLOURS[method], label=method)
            panel.fill_between(x, curves.min(0), curves.max(0), color=_COLOURS[method], alpha=0.15, linewidth=0)
    panels[0].set_ylabel("accuracy on images held back, %")
    _legend(figure, panels[0])
    return figure


def sizes(rows: Sequence[Row]) -> Figure:
    """Change of accuracy and measured time against the size of the image and the number of classes."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    panels = figure.subplots(2, 2, sharey="row", sharex="col")
    shared = _shared(rows)
    for column, (name, label) in enumerate({"size": "pixels of a side", "classes": "classes"}.items()):
        (held,) = {"size", "classes"} - {name}
        chosen = [row for row in rows if getattr(row, held) == shared[held]]
        change, time = panels[:, column]
        change.set_title(f"{shared[held]} {'pixels a side' if held == 'size' else 'classes'}")
        ticks = sorted(_values(chosen, name))
        time.axhline(1, color=_COLOURS[DENSE], linewidth=1)
        time.set_xticks(range(len(ticks)), [str(tick) for tick in ticks])
        time.set_xlabel(label)
        for method, own in _by_method(sorted(chosen, key=lambda row: getattr(row, name))).items():
            x = _placed(method, [ticks.index(getattr(row, name)) for row in own], rows)
            _with_intervals(change, method, x, own)
            time.plot(x, _ratios(own), **_look(method))
    panels[0, 0].set_ylabel("change of accuracy from dense,\npoints")
    panels[1, 0].set_ylabel(_LATENCY)
    _legend(figure, panels[1, 0])
    return figure


_FIGURES: Mapping[str, tuple[Part, Callable[[Sequence[Row]], Figure]]] = {
    "quality": ("scope", quality),
    "latency": ("scope", latency),
    "epochs": ("epochs", epochs),
    "sizes": ("sizes", sizes),
}


def _panels(rows: Sequence[Row], count: int, label: str) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(9, 1 + 2.7 * count), layout="constrained")
    panels = figure.subplots(count, len(_values(rows, "scope")), squeeze=False, sharey="row", sharex=True)
    for panel in panels[:, 0]:
        panel.set_ylabel(label)
    return figure, panels


def _axis_of_compression(panels: np.ndarray, rows: Sequence[Row]) -> None:
    ticks = _values(rows, "fewer")
    for panel in panels[-1]:
        panel.set_xticks([log2(tick) for tick in ticks], [f"{tick}x" for tick in ticks])
    figure = panels[0, 0].figure
    figure.supxlabel("times fewer parameters of the layers in scope (the budget)", fontsize="medium")
    _legend(figure, panels[0, 0])


def _with_intervals(panel: Axes, method: str, x: Sequence[float], rows: Sequence[Row]) -> None:
    changes = np.array([row.accuracy - row.control_accuracy for row in rows])
    low, high = np.array([row.interval for row in rows]).T
    panel.axhline(0, color=_COLOURS[DENSE], linewidth=1)
    panel.errorbar(x, changes, yerr=[changes - low, high - changes], capsize=2, **_look(method))


def _placed(method: str, x: Sequence[float], rows: Sequence[Row]) -> list[float]:
    # Beside each other: several methods come to the same on fully connected layers.
    methods = list(_by_method(rows))
    return [place + 0.06 * (methods.index(method) - (len(methods) - 1) / 2) for place in x]


def _look(method: str) -> dict[str, Any]:
    return {"color": _COLOURS[method], "marker": _MARKERS[method], "markersize": 4, "linewidth": 1, "label": method}


def _ratios(rows: Sequence[Row]) -> list[float]:
    return [row.latency_ratio for row in rows]


def _legend(figure: Figure, panel: Axes) -> None:
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)


def _by_method(rows: Sequence[Row]) -> dict[str, list[Row]]:
    grouped = {method: [row for row in rows if row.method == method] for method in (DENSE, *METHODS)}
    return {method: own for method, own in grouped.items() if own}


def _values(rows: Sequence[Row], name: str) -> list[Any]:
    return list(dict.fromkeys(getattr(row, name) for row in rows))


def _shared(rows: Sequence[Row]) -> dict[str, int]:
    # The size and the number of classes that most rows have: the one varies while the other stays there.
    values = {name: [getattr(row, name) for row in rows] for name in ("size", "classes")}
    return {name: max(dict.fromkeys(own), key=own.count) for name, own in values.items()}


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
