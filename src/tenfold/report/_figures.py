"""Figures, as plotly.js takes them. Text has the colours of the page, so that they follow it into the dark."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from math import ceil, floor, log10
from typing import Any

from tenfold._judge import Trial
from tenfold._predicted import Point, Spectrum
from tenfold._verify import Epoch

Figure = dict[str, Any]

# Each has a contrast of 3 or more on white and on the dark ground; shapes tell methods apart as well.
STYLES = {
    "svd": ("#3b7dd8", "circle"),
    "spatial": ("#d55e00", "square"),
    "tucker": ("#00936b", "diamond"),
    "cp": ("#c566a0", "triangle-up"),
    "tt": ("#a87d00", "triangle-down"),
    "joint": ("#7b61c9", "star"),
    "filters": ("#a0522d", "cross"),
}
OTHER = ("#6f7f8f", "hexagon")  # a method from elsewhere
GREY, ACCENT = "#868e98", "#3b7dd8"
# From early layers to late ones; dashes tell them apart as well.
_RAMP = ("#c77700", "#c9566b", "#9a5bb5", "#5b6fd0", "#2288b5", "#0e8f7a")
_DASHES = ("solid", "dash", "dot", "dashdot", "3px,2px", "7px,2px,2px,2px,2px,2px")
LAYERS = 400  # shown at most, those with the most parameters
_TALL, _LEAST, _ALL = 17, 4, 1280  # pixels of a row, and of all rows where there are many
_FLOOR = 1e-6  # of the energy: what is left below is rounding
_LEGEND = {"orientation": "h", "x": 0, "y": 1, "xanchor": "left", "yanchor": "top", "yref": "container"}


@dataclass(frozen=True)
class Layer:
    """A layer of the dense network and what became of it."""

    name: str
    method: str | None  # its name; None where the layer stays as it is
    label: str  # the method in words
    rank: str
    before: int  # parameters
    after: int
    error: float | None  # predicted
    why: str  # it stays dense


def style(method: str | None) -> tuple[str, str]:
    """The colour and the shape of a method, the same in every chart."""
    return STYLES.get(method or "", OTHER)


def layers_figure(layers: Sequence[Layer]) -> Figure:
    """A row for each layer: its parameters before and after, by method; and beside it the error."""
    shown = _largest(layers)
    tall = min(_TALL, max(_LEAST, _ALL // max(len(shown), 1)))
    size = 9 if tall == _TALL else max(5, tall - 2)
    top, every = 84, ceil(_TALL / tall)
    changed = [(number, layer) for number, layer in enumerate(shown) if layer.after != layer.before]
    ticks = range(0, len(shown), every)
    sizes = [size for layer in shown for size in (layer.before, layer.after)]
    errors = [layer.error for layer in shown if layer.error is not None]
    return {
        "data": [
            _lines(
                x=list(chain.from_iterable((layer.before, layer.after, None) for _, layer in changed)),
                y=list(chain.from_iterable((number, number, None) for number, _ in changed)),
                line={"color": GREY, "width": 1.5 if size > 5 else 1},
                hoverinfo="skip",
                showlegend=False,
            ),
            _dense(shown, size),
            *_methods(shown, size),
        ],
        "layout": {
            "height": top + 24 + tall * len(shown),
            "margin": {"t": top, "r": 12},
            "legend": _LEGEND,
            "xaxis": {"domain": [0, 0.6], "side": "top", **_log("parameters", sizes, "~s")},
            "xaxis2": {"domain": [0.7, 1], "side": "top", **_log("error", errors, "~%")},
            "yaxis": {
                "range": [len(shown) - 0.4, -0.6],
                "tickvals": list(ticks),
                "tickfont": {"size": 12 if every == 1 else 10},
                "ticktext": [_escaped(shortened(shown[number].name)) for number in ticks],
                "zeroline": False,
            },
        },
    }


def _largest(layers: Sequence[Layer]) -> list[Layer]:
    """Those with the most parameters, where there are too many, in the order of the network."""
    kept = sorted(range(len(layers)), key=lambda number: -layers[number].before)[:LAYERS]
    return [layers[number] for number in sorted(kept)]


def _dense(layers: Sequence[Layer], size: int) -> Figure:
    places = [(number, layer) for number, layer in enumerate(layers) if layer.before]
    marker = {"symbol": "circle-open", "color": GREY, "size": size, "line": {"width": 1.5}}
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "dense",
        "x": [layer.before for _, layer in places],
        "y": [number for number, _ in places],
        "text": [_told(layer) for _, layer in places],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": marker,
    }


def _methods(layers: Sequence[Layer], size: int) -> list[Figure]:
    """For each method its layers, and their errors on the second axis."""
    found: list[Figure] = []
    for method in dict.fromkeys(layer.method for layer in layers if layer.method):
        own = [(number, layer) for number, layer in enumerate(layers) if layer.method == method]
        colour, symbol = style(method)
        common = {
            "type": "scatter",
            "mode": "markers",
            "name": method.replace("_", " "),
            "legendgroup": method,
            "hovertemplate": "%{text}<extra></extra>",
            "marker": {"color": colour, "symbol": symbol, "size": size},
        }
        told = [(layer.after, number, _told(layer)) for number, layer in own if layer.after]
        found.append(common | _columns(told))
        errors = [(layer.error, number, _told(layer)) for number, layer in own if layer.error]
        if errors:
            found.append(common | _columns(errors) | {"xaxis": "x2", "showlegend": False})
    return found


def _columns(rows: Sequence[tuple[float | None, int, str]]) -> Figure:
    return {name: [row[place] for row in rows] for place, name in enumerate(("x", "y", "text"))}


def _told(layer: Layer) -> str:
    """What is read when the pointer is on a layer. Plotly reads markup in it, so there must be none."""
    lines = [f"<b>{_escaped(layer.name)}</b>"]
    if layer.method:
        lines += [f"{_escaped(layer.label)}, rank {layer.rank}" if layer.rank else _escaped(layer.label)]
    if layer.after != layer.before:
        lines += [f"{layer.before:,} → {layer.after:,} parameters"]
    else:
        lines += [f"{layer.before:,} parameters"]
    lines += [f"error {layer.error:.2%}"] if layer.error is not None else []
    return "<br>".join(lines)


def tradeoff_figure(points: Sequence[Point], own: Point | None) -> Figure:
    """Error over the share of the parameters, this plan marked."""
    notes: list[Figure] = []
    data = [
        _lines(
            mode="lines+markers",
            x=[point.params for point in points],
            y=[point.error for point in points],
            customdata=[point.macs for point in points],
            hovertemplate="%{x:.1%} of the parameters<br>%{customdata:.1%} of the multiply-adds<br>error %{y:.4g}"
            "<extra></extra>",
            line={"color": GREY, "width": 2},
            marker={"size": 6},
        )
    ]
    if own is not None and own.error > 0:
        data.append(_marked(own.params, own.error))
        notes.append(_pointer(own.params, log10(own.error), f"this plan, {own.params:.1%}", up=True))
    return _over_params(data, notes, _log("predicted error, summed", [point.error for point in points], "~g"), top=16)


def trials_figure(trials: Sequence[Trial], dense: tuple[int, float], chosen: int | None) -> Figure:
    """The metric of each network that was tried, over its size, with 95 % intervals; the dense one is a line."""
    params, level = dense
    x, y = [trial.params / params for trial in trials], [trial.metric for trial in trials]
    hover = "%{x:.1%} of the parameters<br>metric %{y:.4f}<extra></extra>"
    label = {"x": 1, "y": level, "xanchor": "right", "yanchor": "bottom", "text": f"dense {level:.4f}"}
    data = [
        _lines(mode="markers", x=x, y=y, error_y=_bars(trials), marker={"color": GREY, "size": 8}, hovertemplate=hover),
        _lines(x=[0, 1.02], y=[level, level], line={"color": GREY, "width": 1.5, "dash": "dash"}, hoverinfo="skip"),
    ]
    notes: list[Figure] = [{**label, "showarrow": False}]
    if chosen is not None:
        data.append(_marked(x[chosen], y[chosen]))
        notes.append(_pointer(x[chosen], y[chosen], f"chosen, {x[chosen]:.1%}", up=False))
    return _over_params(data, notes, {"title": {"text": "metric"}}, top=24)


def _over_params(data: list[Figure], notes: list[Figure], yaxis: Figure, *, top: int) -> Figure:
    """Networks over the share of their parameters."""
    return {
        "data": data,
        "layout": {
            "height": 360,
            "margin": {"r": 24, "t": top},
            "showlegend": False,
            "annotations": notes,
            "xaxis": {"range": [0, 1.02], "tickformat": ".0%", "title": {"text": "parameters, small / dense"}},
            "yaxis": yaxis,
        },
    }


def _bars(trials: Sequence[Trial]) -> Figure:
    """The intervals of the change, around the metric."""
    ends = [trial.interval or (trial.change, trial.change) for trial in trials]
    above = [high - trial.change for trial, (_, high) in zip(trials, ends, strict=True)]
    below = [trial.change - low for trial, (low, _) in zip(trials, ends, strict=True)]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "color": GREY, "thickness": 1.5}


def chosen_spectra(spectra: Sequence[Spectrum]) -> list[Spectrum]:
    """As many as can be told apart, from the first layer to the last."""
    most = min(len(spectra), len(_RAMP))
    return [spectra[round(number * (len(spectra) - 1) / max(most - 1, 1))] for number in range(most)]


def spectra_figure(spectra: Sequence[Spectrum], ranks: Mapping[str, int]) -> Figure:
    """The energy that is left beyond each rank: a few layers by name, their ranks marked, the others in grey."""
    named = chosen_spectra(spectra)
    others = [spectrum for spectrum in spectra if spectrum not in named]
    styled = list(zip(named, _RAMP, _DASHES, strict=False))
    return {
        "data": [
            *([_in_grey(others)] if others else []),
            *(_spectrum(spectrum, colour, dash) for spectrum, colour, dash in styled),
            *(
                _kept(spectrum, ranks[spectrum.layer], colour)
                for spectrum, colour, _ in styled
                if spectrum.layer in ranks
            ),
        ],
        "layout": {
            "height": 440,
            "margin": {"t": 16, "r": 28},
            "legend": {"orientation": "h", "x": 0, "y": 0, "yanchor": "bottom", "yref": "container"},
            "xaxis": {"range": [0, 1], "tickformat": ".0%", "title": {"text": "rank, share of all"}},
            "yaxis": _log("energy left beyond it", [y for each in spectra for y in _pairs(each)[1]], "~g"),
        },
    }


def _in_grey(spectra: Sequence[Spectrum]) -> Figure:
    pairs = [_pairs(spectrum) for spectrum in spectra]
    return _lines(
        x=list(chain.from_iterable([*x, None] for x, _ in pairs)),
        y=list(chain.from_iterable([*y, None] for _, y in pairs)),
        line={"color": GREY, "width": 1},
        opacity=0.35,
        hoverinfo="skip",
        name=f"{len(spectra)} other layer{'s' * (len(spectra) > 1)}",
    )


def _spectrum(spectrum: Spectrum, colour: str, dash: str) -> Figure:
    x, y = _pairs(spectrum)
    hover = f"<b>{_escaped(spectrum.layer)}</b><br>%{{x:.0%}} of {spectrum.ranks[-1]} ranks<br>%{{y:.2%}} left"
    return _lines(
        x=x,
        y=y,
        name=_escaped(shortened(spectrum.layer)),
        line={"color": colour, "dash": dash, "width": 2},
        hovertemplate=f"{hover}<extra></extra>",
    )


def _kept(spectrum: Spectrum, rank: int, colour: str) -> Figure:
    """The rank that the plan keeps, at the energy left beyond the nearest that is known."""
    left = min(zip(spectrum.ranks, spectrum.left, strict=True), key=lambda pair: abs(pair[0] - rank))[1]
    return _lines(
        mode="markers",
        x=[rank / spectrum.ranks[-1]],
        y=[max(left, _FLOOR)],
        marker={"color": colour, "size": 10, "symbol": "diamond"},
        hovertemplate=f"{_escaped(spectrum.layer)}: rank {rank} is kept<extra></extra>",
        showlegend=False,
    )


def _pairs(spectrum: Spectrum) -> tuple[list[float], list[float]]:
    pairs = [(rank / spectrum.ranks[-1], left) for rank, left in zip(spectrum.ranks, spectrum.left, strict=True)]
    kept = [(0.0, 1.0), *(pair for pair in pairs if pair[1] > _FLOOR)]
    return [x for x, _ in kept], [y for _, y in kept]


def times_figure(times: Mapping[str, float]) -> Figure:
    """Milliseconds, a bar each."""
    colours = [GREY if name.startswith("dense") else ACCENT for name in times]
    pattern = {"shape": ["/" if "planned" in name else "" for name in times], "fgcolor": "#ffffff", "size": 6}
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": [*times],
        "x": [*times.values()],
        "text": [f"{ms:.3g} ms" for ms in times.values()],
        "textposition": "outside",
        "cliponaxis": False,
        "marker": {"color": colours, "pattern": pattern},
        "hovertemplate": "%{y}: %{x:.4g} ms<extra></extra>",
    }
    return {
        "data": [bars],
        "layout": {
            "height": 64 + 44 * len(times),
            "margin": {"r": 16},
            "bargap": 0.3,
            "xaxis": {"range": [0, 1.2 * max(times.values())], "title": {"text": "milliseconds"}},
            "yaxis": {"autorange": "reversed"},
        },
    }


def history_figure(history: Sequence[Sequence[Epoch]]) -> Figure:
    """Loss, and below it the metric on what is held back, over the epochs of all rounds."""
    epochs = list(chain.from_iterable(history))
    measured = any(epoch.metric is not None for epoch in epochs)
    starts = [sum(map(len, history[:number])) + 0.5 for number in range(len(history))]
    data = [_series([[epoch.loss for epoch in each] for each in history], "loss", STYLES["spatial"][0], "y")]
    if measured:
        data.append(_series([[epoch.metric for epoch in each] for each in history], "metric", ACCENT, "y2"))
    begins = [{"type": "line", "x0": at, "x1": at, "y0": 0, "y1": 1, "yref": "paper"} for at in starts[1:]]
    names = [
        {"x": at, "y": 1, "yref": "paper", "text": f"round {number}", "xanchor": "left", "yanchor": "bottom"}
        for number, at in enumerate(starts, 1)
        if len(history) > 1
    ]
    layout: Figure = {
        "height": 460 if measured else 300,
        "margin": {"t": 28, "r": 16},
        "showlegend": False,
        "shapes": [{**line, "line": {"color": GREY, "width": 1, "dash": "dot"}} for line in begins],
        "annotations": [{**name, "showarrow": False} for name in names],
        "xaxis": {"title": {"text": "epoch"}, "range": [0.5, len(epochs) + 0.5], "anchor": "y2" if measured else "y"},
        "yaxis": {"title": {"text": "loss"}, "domain": [0.56, 1] if measured else [0, 1], "rangemode": "tozero"},
    }
    if len(epochs) <= 12:
        layout["xaxis"]["dtick"] = 1
    if measured:
        layout["yaxis2"] = {"title": {"text": "held-back metric"}, "domain": [0, 0.48]}
    return {"data": data, "layout": layout}


def _series(rounds: Sequence[Sequence[float | None]], name: str, colour: str, axis: str) -> Figure:
    """A line for each round, over all epochs."""
    numbers = count(1)
    x = list(chain.from_iterable([*(next(numbers) for _ in each), None] for each in rounds))
    y = list(chain.from_iterable([*each, None] for each in rounds))
    hover = f"epoch %{{x}}: {name} %{{y:.4f}}<extra></extra>"
    line = {"color": colour, "width": 2}
    return _lines(mode="lines+markers", x=x, y=y, name=name, line=line, yaxis=axis, hovertemplate=hover)


def _marked(x: float, y: float) -> Figure:
    """A point that stands out."""
    return _lines(mode="markers", x=[x], y=[y], marker={"color": ACCENT, "size": 13, "symbol": "diamond"})


def _pointer(x: float, y: float, text: str, *, up: bool) -> Figure:
    """A label off to the side of a point where there is room; `y` is a logarithm on a logarithmic axis."""
    right = x < 0.75
    return {
        "x": x,
        "y": y,
        "text": text,
        "ax": 44 if right else -44,
        "ay": -30 if up else 44,
        "xanchor": "left" if right else "right",
        "showarrow": True,
        "arrowhead": 0,
        "arrowwidth": 1,
        "arrowcolor": GREY,
        "standoff": 8,
    }


def _log(title: str, values: Sequence[float], form: str) -> Figure:
    """A logarithmic axis around values, with ticks at powers of ten, or closer where these are few."""
    logs = [log10(value) for value in values if value > 0] or [0.0]
    room = 0.06 * (max(logs) - min(logs)) + 0.05
    low, high = min(logs) - room, max(logs) + room
    powers = range(floor(low), ceil(high) + 1)
    ticks = [10.0**power for power in powers if low <= power <= high]
    if len(ticks) < 3:
        every = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
        low = max(log10(tick) for tick in every if log10(tick) <= low)
        high = min(log10(tick) for tick in every if log10(tick) >= high)
        ticks = [tick for tick in every if low <= log10(tick) <= high]
    axis = {"type": "log", "range": [low, high], "tickvals": ticks, "tickformat": form, "zeroline": False}
    return axis | {"title": {"text": title}}


def _lines(**fields: Any) -> Figure:
    return {"type": "scatter", "mode": "lines", **fields}


def shortened(name: str, most: int = 24) -> str:
    """A layer's name whose end, which tells more, is kept."""
    return name if len(name) <= most else "…" + name[1 - most :]


def _escaped(text: str) -> str:
    """Text in which Plotly finds no markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("%{", "% {")
