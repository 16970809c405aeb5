"""What a report says, section by section, from the two files of a folder."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from tenfold._plan import Plan, Step
from tenfold._predicted import Point
from tenfold._tables import label, short
from tenfold._verify import Report
from tenfold.report._figures import (
    LAYERS,
    Layer,
    chosen_spectra,
    history_figure,
    layers_figure,
    spectra_figure,
    times_figure,
    tradeoff_figure,
    trials_figure,
)
from tenfold.report._page import Chart, Code, Column, Fact, Facts, Section, Table, Text

_COUNT, _SHARE, _ERROR = ",d", ".1%", ".2%"


def lead(plan: Plan, report: Report) -> str:
    """The whole in a sentence or two."""
    dense, small = report.dense.params, report.small.params
    replaced = len({name for step in plan.steps for name in step.layers})
    known = f" of {len(report.predicted.layers)}" if report.predicted else ""
    text = (
        f"{small:,} of {dense:,} parameters are left ({small / max(dense, 1):.1%}); {replaced}{known} layers changed."
    )
    return text + (f" Asked was {report.asked}." if report.asked else "")


def sections(plan: Plan, report: Report) -> list[Section]:
    """All that there is something to say about."""
    layers = _layers(plan, report)
    found = [
        _before_and_after(report),
        _tradeoff(report),
        _trials(report),
        _layer_by_layer(layers),
        _stays_dense(layers),
        _spectra(plan, report),
        _time(report),
        _training(report),
        _making(plan, report),
    ]
    return [section for section in found if section is not None]


def _before_and_after(report: Report) -> Section:
    table = Table(
        "Before and after, exactly",
        [Column("what"), Column("dense", ",.10g"), Column("small", ",.10g"), Column("small / dense", ".3f")],
        list(_rows(report)),
    )
    return Section("Before and after", [Facts(list(_facts(report))), table])


def _facts(report: Report) -> Iterator[Fact]:
    dense, small = report.dense, report.small
    for name, before, after, shown in (
        ("Parameters", dense.params, small.params, short),
        ("Multiply-adds", dense.macs, small.macs, short),
        ("Size of the weights", dense.bytes, small.bytes, _bytes),
    ):
        yield Fact(name, shown(after), shown(before), _share(after / max(before, 1)))
    if (timed := report.timed) and timed.small_ms is not None:
        engine = timed.conditions.engine
        yield Fact(
            f"Time, {engine}",
            f"{timed.small_ms:.3g} ms",
            f"{timed.dense_ms:.3g} ms",
            _share(timed.small_ms / timed.dense_ms),
        )
    elif dense.milliseconds and small.milliseconds:
        share = _share(small.milliseconds / dense.milliseconds)
        yield Fact("Time of the first batch", f"{small.milliseconds:.3g} ms", f"{dense.milliseconds:.3g} ms", share)
    if report.metric:
        metric = report.metric
        note = f"changes by {_signed(metric.small - metric.dense)}"
        if metric.interval:
            note += f", 95 % interval {' to '.join(map(_signed, metric.interval))}"
        yield Fact("Metric", f"{metric.small:.4f}", f"{metric.dense:.4f}", note)
    drift = report.drift
    batches = f"{drift.batches} batch{'es' * (drift.batches != 1)}"
    yield Fact("Drift of the outputs", f"{drift.relative:.3g}", note=f"of their norm, over {batches}")


def _bytes(number: int) -> str:
    text = short(number)
    return f"{text} B" if text[-1].isdigit() else f"{text[:-1]} {text[-1]}B"


def _signed(number: float) -> str:
    return f"{number:+.4f}".replace("-", "−")  # noqa: RUF001  a minus does not break off


def _share(ratio: float) -> str:
    return f"{ratio:.1%} of what it was"


def _rows(report: Report) -> Iterator[tuple[str, float, float, float | None]]:
    dense, small = report.dense, report.small
    for name, before, after in (
        ("parameters", dense.params, small.params),
        ("multiply-adds of one run", dense.macs, small.macs),
        ("bytes of parameters and buffers", dense.bytes, small.bytes),
        ("peak bytes of activations", dense.activation_bytes, small.activation_bytes),
        ("milliseconds, first batch", dense.milliseconds, small.milliseconds),
        ("metric", *((report.metric.dense, report.metric.small) if report.metric else (None, None))),
    ):
        if before is not None and after is not None:
            counts = before and name != "metric"
            yield name, _digits(before), _digits(after), after / before if counts else None


def _digits(number: float) -> float:
    """Six digits of what was measured, all of what was counted."""
    return number if isinstance(number, int) else float(f"{number:.6g}")


def _tradeoff(report: Report) -> Section | None:
    told = report.predicted
    if told is None:
        return None
    if not told.tradeoff:
        return Section("Size and error", [Text("With filters or the guard, other budgets were not looked at.")])
    seen = "as calibration data sees them" if told.on_data else "of the weights alone"
    place = ""
    if told.plan:
        place = f" This plan: {_at(told.plan)}."
    summary = (
        "What each share of the parameters costs in error, as a budget adds it up over layers: errors are those "
        f"{seen}, before recovery. {_at(told.tradeoff[-1])} of the parameters, {_at(told.tradeoff[0])}.{place}"
    )
    columns = [Column("plan"), Column("parameters", _SHARE), Column("multiply-adds", _SHARE), Column("error", ".4g")]
    points = [(f"budget of {point.params:.0%}", point) for point in told.tradeoff]
    points += [("this plan", told.plan)] if told.plan else []
    rows = [(name, point.params, point.macs, point.error) for name, point in points]
    table = Table("Plans and their predicted errors", columns, rows)
    return Section("Size and error", [Chart(tradeoff_figure(told.tradeoff, told.plan), summary, table)])


def _at(point: Point) -> str:
    return f"{point.error:.3g} at {point.params:.1%}"


def _trials(report: Report) -> Section | None:
    trials = report.trials
    if not trials or report.metric is None:
        return None
    chosen = next((n for n, trial in enumerate(trials) if trial.params == report.small.params), None)
    dense = (report.dense.params, report.metric.dense)
    kept = "" if chosen is None else f" The one that was chosen keeps {trials[chosen].params / dense[0]:.1%}."
    summary = (
        f"{len(trials)} networks were made and evaluated; bars are 95 % intervals of the change against the dense "
        f"network, whose metric is {dense[1]:.4f}.{kept}"
    )
    columns = [
        Column("network"),
        Column("parameters", _COUNT),
        Column("small / dense", _SHARE),
        Column("metric", ".4f"),
    ]
    columns += [Column("change", "+.4f"), Column("from", "+.4f"), Column("to", "+.4f")]
    rows = [
        (
            "chosen" if number == chosen else "tried",
            trial.params,
            trial.params / dense[0],
            trial.metric,
            trial.change,
            *(trial.interval or (None, None)),
        )
        for number, trial in enumerate(trials)
    ]
    table = Table(
        "Every network that was tried; the last two columns are the 95 % interval of the change", columns, rows
    )
    return Section("Networks that were tried", [Chart(trials_figure(trials, dense, chosen), summary, table)])


def _layers(plan: Plan, report: Report) -> list[Layer]:
    """Every layer that is known of, in the order of the network."""
    told = report.predicted
    replaced = {each.layer: each for each in report.replaced}
    steps = _steps(plan)
    sizes = dict(told.layers) if told else {}
    sizes = {**sizes, **{name: each.dense_params for name, each in replaced.items()}}
    return [
        Layer(
            name=name,
            method=steps[name][-1].method.name if name in steps else None,
            label=", then ".join(map(label, steps[name])) if name in steps else "",
            rank=", ".join("x".join(map(str, step.rank)) for step in steps.get(name, ())),
            before=sizes.get(name, 0),
            after=replaced[name].params if name in replaced else sizes.get(name, 0),
            error=told.errors.get(name) if told else None,
            why="" if name in steps else report.left_dense.get(name, ""),
        )
        for name in dict.fromkeys([*sizes, *report.left_dense])
    ]


def _steps(plan: Plan) -> dict[str, list[Step]]:
    found: dict[str, list[Step]] = {}
    for step in plan.steps:
        for name in step.layers:
            found.setdefault(name, []).append(step)
    return found


def _layer_by_layer(layers: Sequence[Layer]) -> Section:
    if not layers:
        return Section("Layer by layer", [Text("Nothing was replaced, and nothing is known of the layers.")])
    counts: dict[str, int] = {}
    for layer in layers:
        if layer.method:
            name = layer.method.replace("_", " ")
            counts[name] = counts.get(name, 0) + 1
    by_method = ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
    saved = sorted(layers, key=lambda layer: layer.after - layer.before)[0]
    summary = (
        f"Parameters of {len(layers)} layers from the first to the last, dense (open circles) and small (filled), and "
        f"the predicted error of what was replaced, relative to losing the layer. Layers by method: {by_method}."
    )
    if len(layers) > LAYERS:
        summary += f" The chart has the {LAYERS} with the most parameters, the table has all."
    if saved.after < saved.before:
        summary += f" Most is saved in {saved.name}: {saved.before:,} to {saved.after:,}."
    columns = [Column("layer"), Column("method"), Column("rank"), Column("before", _COUNT), Column("after", _COUNT)]
    columns += [Column("after / before", _SHARE), Column("error", _ERROR)]
    rows = [
        (
            layer.name,
            layer.label or ("dense" if layer.after == layer.before else "reads fewer channels"),
            layer.rank,
            layer.before,
            layer.after,
            layer.after / layer.before if layer.before else None,
            layer.error,
        )
        for layer in layers
    ]
    table = Table("Every layer: its parameters before and after, and its predicted error", columns, rows, filters=True)
    return Section("Layer by layer", [Chart(layers_figure(layers), summary, table, folded=False)])


def _stays_dense(layers: Sequence[Layer]) -> Section:
    title = "What stays dense, and why"
    rows = [(layer.name, layer.before, layer.why) for layer in layers if layer.why]
    if not rows:
        return Section(
            title, [Text("Of no layer is a reason known: each was replaced, or the options were not at hand.")]
        )
    columns = [Column("layer"), Column("parameters", _COUNT), Column("because")]
    return Section(title, [Table(f"{len(rows)} layers that stay dense", columns, rows, filters=True)])


def _spectra(plan: Plan, report: Report) -> Section | None:
    told = report.predicted
    if told is None or not told.spectra:
        return None
    steps = _steps(plan)
    ranks = {
        name: own[0].rank[0]
        for name, own in steps.items()
        if len(own) == 1 and own[0].method.name == "svd" and own[0].method.fields.get("side") == "output"
    }
    of = "their outputs on calibration data" if told.on_data else "their weights"
    marked = " Diamonds are the ranks that the plan keeps." if any(s.layer in ranks for s in told.spectra) else ""
    summary = (
        f"The share of the energy of {of} that singular values beyond each rank hold, for {len(told.spectra)} layers; "
        f"what falls early can be cut far.{marked}"
    )
    rows = [(s.layer, s.ranks[-1], *(_rank_at(s.ranks, s.left, left) for left in _LEVELS)) for s in told.spectra]
    columns = [Column("layer"), Column("all ranks", _COUNT)]
    columns += [Column(f"{left:.0%} left", _COUNT) for left in _LEVELS]
    table = Table(
        "The least rank, of those looked at, beyond which no more than a share of the energy is left", columns, rows
    )
    named = chosen_spectra(told.spectra)
    detail = Table(
        "Energy left, in percent, at shares of all ranks, for the layers that are named in the chart",
        [Column("layer"), *(Column(f"{share:.0%}", ".3%") for share in _RANKS)],
        [(s.layer, *(_left_at(s.ranks, s.left, share) for share in _RANKS)) for s in named],
    )
    return Section("Singular values", [Chart(spectra_figure(told.spectra, ranks), summary, detail), table])


_LEVELS, _RANKS = (0.5, 0.1, 0.01), (0.1, 0.25, 0.5, 0.75)


def _rank_at(ranks: Sequence[int], left: Sequence[float], most: float) -> int | None:
    return next((rank for rank, beyond in zip(ranks, left, strict=True) if beyond <= most), None)


def _left_at(ranks: Sequence[int], left: Sequence[float], share: float) -> float:
    return min(zip(ranks, left, strict=True), key=lambda pair: abs(pair[0] / ranks[-1] - share))[1]


def _time(report: Report) -> Section | None:
    times, where = _times(report)
    if not times:
        return None
    told = "; ".join(f"{name}: {ms:.3g} ms" for name, ms in times.items())
    columns = [Column("network"), Column("milliseconds", ".4g")]
    table = Table("Medians of runs side by side", columns, list(times.items()))
    return Section("Time", [Chart(times_figure(times), f"{told}. Medians of runs side by side, {where}.", table)])


def _times(report: Report) -> tuple[dict[str, float], str]:
    """Milliseconds by name, and under which conditions."""
    dense, small, timed = report.dense.milliseconds, report.small.milliseconds, report.timed
    if timed is None:
        times = {"dense": dense, "small": small}
        return {name: ms for name, ms in times.items() if ms is not None}, f"on the first batch ({report.device})"
    planned = None if timed.predicted is None else timed.predicted * timed.dense_ms
    at = timed.conditions
    times = {"dense, measured": timed.dense_ms, "small, planned": planned, "small, measured": timed.small_ms}
    return (
        {name: ms for name, ms in times.items() if ms is not None},
        f"on the example, {at.engine}, {at.device}, {at.threads} thread{'s' * (at.threads != 1)}",
    )


def _training(report: Report) -> Section | None:
    epochs = list(chain.from_iterable(report.history))
    if not epochs:
        return None
    summary = f"Loss of {len(epochs)} epochs in {len(report.history)} round{'s' * (len(report.history) != 1)}: "
    summary += f"{epochs[0].loss:.4g} in the first, {epochs[-1].loss:.4g} in the last."
    if epochs[-1].metric is not None:
        summary += f" The metric on what is held back ends at {epochs[-1].metric:.4f}."
    columns = [Column("epoch"), Column("round", "d"), Column("loss", ".4f"), Column("held-back metric", ".4f")]
    columns += [Column("seconds", ".1f")]
    rows = [
        (str(epoch.epoch), number, epoch.loss, epoch.metric, epoch.seconds)
        for number, of_round in enumerate(report.history, 1)
        for epoch in of_round
    ]
    return Section("Training", [Chart(history_figure(report.history), summary, Table("Every epoch", columns, rows))])


def _making(plan: Plan, report: Report) -> Section:
    facts: Mapping[str, str | None] = {
        "model": plan.reference,
        "target": report.asked,
        "seed": None if report.seed is None else str(report.seed),
        "device": report.device,
        "tenfold": report.version,
        "torch": report.torch_version,
        "Python": report.python_version,
        "platform": report.platform,
        "fingerprint of the dense network": plan.fingerprint.sha256 if plan.fingerprint else None,
    }
    rows = [(name, value) for name, value in facts.items() if value is not None]
    table = Table("What it was made from, and with", [Column("what"), Column("value")], rows)
    command = [Code(report.command)] if report.command else [Text("It was made from Python, not by a command line.")]
    return Section("How it was made", [*command, table])
