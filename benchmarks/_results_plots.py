"""Pictures of other packages beside this one, the same bytes from the same rows."""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.peers._page import ALL_OURS, OURS, stage
from benchmarks.peers._row import Found, Row

_SHOWN = 30  # points below the dense network; the rest is in the tables
_MARKERS = dict(zip(ALL_OURS, "osD", strict=True))
_STYLE = {"svg.hashsalt": "tenfold", "svg.fonttype": "none", "font.size": 9}
Axis = Callable[[Found], float]


def draw(rows: Sequence[Row], docs: Path) -> None:
    """Accuracy against parameters, and against latency: a panel for each network before and after fine-tuning."""
    made = sorted((row for row in rows if row.found and row.asked < 1), key=_panel)
    panels = {name: list(group) for name, group in groupby(made, _panel)}
    others = sorted({row.peer for row in made} - {*ALL_OURS})
    colours = {peer: f"C{n % 10}" for n, peer in enumerate(others)} | dict.fromkeys(ALL_OURS, "black")
    for name, label, axis, line in (
        ("results-peers", "parameters, small / dense", lambda found: found.params_ratio, "-"),
        ("results-latency", "latency, small / dense", lambda found: found.latency_ratio, "none"),
    ):
        with rc_context(_STYLE):
            figure = Figure(figsize=(4.2 * len(panels), 4.4), layout="constrained")
            axes = figure.subplots(1, len(panels), squeeze=False)[0]
            for (net, epochs), place in zip(panels, axes, strict=True):
                _fill(place, panels[net, epochs], axis, line, colours)
                tuned = f", {stage(epochs)} of tuning" if epochs else ", not trained"
                place.set(title=net + tuned, xlabel=label)
            axes[0].set_ylabel("accuracy, %")
            lines = [line for place in axes for line in place.get_lines()]
            known = {line.get_label(): line for line in lines if line.get_label() in colours}
            figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=5)
            figure.savefig(docs / f"{name}.svg", metadata={"Date": None})


def _panel(row: Row) -> tuple[str, int]:
    return row.network, row.epochs


def _fill(place: Axes, rows: Sequence[Row], axis: Axis, line: str, colours: dict[str, str]) -> None:
    dense = max(row.found.dense_accuracy for row in rows if row.found)
    place.axhline(dense, color="grey", linewidth=0.8)
    for peer, group in groupby(sorted(rows, key=lambda row: (row.peer, row.asked)), lambda row: row.peer):
        found = [row.found for row in group if row.found]
        ours = peer in ALL_OURS
        place.plot(
            [axis(one) for one in found],
            [one.accuracy for one in found],
            linestyle=line,
            marker=_MARKERS.get(peer, "."),
            markerfacecolor="white" if ours and peer != OURS else None,
            color=colours[peer],
            linewidth=2 if ours else 1,
            label=peer,
        )
    place.set_ylim(dense - _SHOWN, dense + 1.5)
