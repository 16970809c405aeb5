"""The page of documentation, from rows alone."""

from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from itertools import groupby

from benchmarks._folder import VARIABLE
from benchmarks._rows import change
from benchmarks._score import paired_interval, unpacked
from benchmarks.peers._environments import DENSE, PEERS
from benchmarks.peers._row import Found, Row

OURS = "tenfold"
Place = tuple[str, int, float]  # network, epochs, share


def page(rows: Sequence[Row]) -> str:
    """Who is ahead, then every table, then who failed."""
    rows = [row for row in rows if not row.quick]
    versions = ", ".join(sorted({row.version for row in rows}))
    made = sorted((row for row in rows if row.found), key=lambda row: (_place(row), -_of(row).accuracy, row.peer))
    small = [row for row in made if row.peer != DENSE]
    places = {place: list(group) for place, group in groupby(small, _place)}
    controls = {(row.net, row.epochs): row for row in made if row.peer == DENSE}
    tables = "\n".join(_table(place, group, controls.get(place[:2])) for place, group in places.items())
    return f"""# Beside other packages

Packages that make a smaller PyTorch network, on the same trained weights, the same 1,024 training images and the same
budget of parameters, each installed by itself beside the same torch. Those whose methods read labels get the labels of
the images. Of the settings that were tried with a package, the table has the one with the least loss on these images;
where re-estimating batch norms lowers that loss, they are re-estimated, for all alike. The largest network within the
budget counts, its parameters counted by torch. Fine-tuning, where there is any, is the same for all: from the dense
network's outputs and labels, by nothing that knows of a package's layers, at the better of two learning rates on
training images held back.

Parameters, multiply-adds and latency are small / dense; latency is from medians of interleaved runs on one image, in
one process. Intervals are those of differences on the same held-out images, one by one, at 95 %. Seconds are those of
the setting that is shown. Made with tenfold {versions} and `{VARIABLE}` set, by

```sh
python -m benchmarks.peers
python -m benchmarks.peers --tuned
```

## Who is ahead

Where {OURS} is not ahead, or not certainly, the verdict is in bold.

{_accuracy(places)}

At equal accuracy: the fastest network of another package, at any budget, that is not certainly less accurate. The dense
network itself has a latency of 1.

{_latency(places)}

{tables}
## Who made nothing

{_failures(rows)}

## The packages

{_packages()}
"""


def _place(row: Row) -> Place:
    return row.net, row.epochs, -row.asked  # the mildest budget first


def _of(row: Row) -> Found:
    assert row.found is not None
    return row.found


def _ours(rows: Iterable[Row]) -> Row | None:
    return next((row for row in rows if row.peer == OURS), None)


def _apart(row: Row, other: Row) -> tuple[float, tuple[float, float]]:
    """Accuracy of one less that of the other, in points, with its interval."""
    right = [unpacked(_of(each).right, _of(each).images) for each in (row, other)]
    return _of(row).accuracy - _of(other).accuracy, paired_interval(*right)


def _stage(epochs: int) -> str:
    return f"{epochs} epoch{'s' * (epochs > 1)}" if epochs else "none"


def _accuracy(places: dict[Place, list[Row]]) -> str:
    head = [
        f"| network | epochs of tuning | asked | best other | its accuracy, % | {OURS}, % | {OURS} less it | ahead |",
        "|---|---|--:|---|--:|--:|--:|---|",
    ]
    lines = []
    for (net, epochs, share), rows in places.items():
        ours, others = _ours(rows), [row for row in rows if row.peer != OURS]
        if ours is None or not others:
            continue
        best = others[0]
        points, (low, high) = _apart(ours, best)
        verdict = OURS if low > 0 else f"**{best.peer}**" if high < 0 else "**level**"
        lines.append(
            f"| {net} | {_stage(epochs)} | {-100 * share:g} % | {best.peer} | {_of(best).accuracy:.2f} "
            f"| {_of(ours).accuracy:.2f} | {change(points, (low, high))} | {verdict} |"
        )
    return "\n".join([*head, *lines])


def _latency(places: dict[Place, list[Row]]) -> str:
    head = [
        f"| network | epochs of tuning | asked of {OURS} | its accuracy, % | its latency | fastest other | asked of it "
        "| its accuracy, % | its latency | ahead |",
        "|---|---|--:|--:|--:|---|--:|--:|--:|---|",
    ]
    lines = []
    for (net, epochs, share), rows in places.items():
        ours = _ours(rows)
        if ours is None:
            continue
        every = [row for place, group in places.items() if place[:2] == (net, epochs) for row in group]
        equal = [row for row in every if row.peer != OURS and _apart(row, ours)[1][1] >= 0]
        accuracy, latency = _of(ours).accuracy, _of(ours).latency_ratio
        start = f"| {net} | {_stage(epochs)} | {-100 * share:g} % | {accuracy:.2f} | {latency:.2f} "
        if not equal:
            faster = OURS if latency < 1 else "**the dense network**"
            lines.append(start + f"| none as accurate | | | | {faster} |")
            continue
        fastest = min(equal, key=lambda row: _of(row).latency_ratio)
        times = {
            OURS: latency,
            f"**{fastest.peer}**": _of(fastest).latency_ratio,
            "**the dense network**": 1.0,
        }
        lines.append(
            start + f"| {fastest.peer} | {100 * fastest.asked:g} % | {_of(fastest).accuracy:.2f} "
            f"| {_of(fastest).latency_ratio:.2f} | {min(times, key=lambda name: times[name])} |"
        )
    return "\n".join([*head, *lines])


def _table(place: Place, rows: Sequence[Row], control: Row | None) -> str:
    net, epochs, share = place
    first, ours = rows[0], _ours(rows)
    dense = f"Dense: {_of(first).dense_accuracy:.2f} %"
    if control is not None:
        dense += f"; trained as long, {_of(control).accuracy:.2f} %"
    tuned = f", after {_stage(epochs)} of fine-tuning" if epochs else ""
    columns: dict[str, Callable[[Row], str]] = {
        "package": lambda row: f"**{_of(row).package}**" if row.peer == OURS else _of(row).package,
        "setting": lambda row: _of(row).setting + "; norms re-estimated" * _of(row).norms,
        "accuracy, %": lambda row: f"{_of(row).accuracy:.2f}",
        "less dense, points": lambda row: change(_of(row).accuracy - _of(row).dense_accuracy, _of(row).interval),
        f"less {OURS}, points": lambda row: "" if ours is None or row is ours else change(*_apart(row, ours)),
        "parameters": lambda row: f"{_of(row).params_ratio:.3f}",
        "multiply-adds": lambda row: f"{_of(row).macs_ratio:.3f}",
        "latency": lambda row: f"{_of(row).latency_ratio:.2f}",
        "seconds": lambda row: f"{_of(row).seconds:.0f}",
    }
    lines = ["| " + " | ".join(cell(row) for cell in columns.values()) + " |" for row in rows]
    return "\n".join(
        [
            f"## {net}, {-100 * share:g} % of the parameters{tuned}",
            "",
            f"{first.data}, {first.split} split. {dense}. Measured on {first.device}.",
            "",
            "| " + " | ".join(columns) + " |",
            "|---|---|" + "--:|" * (len(columns) - 2),
            *lines,
            "",
        ]
    )


def _failures(rows: Sequence[Row]) -> str:
    found: dict[tuple[str, str], list[str]] = {}
    for row in sorted(rows, key=lambda row: (row.peer, row.net, row.epochs, -row.asked)):
        if row.message is not None:
            where = f"{row.net} {100 * row.asked:g} %{' tuned' * bool(row.epochs)}"
            found.setdefault((row.peer, row.message.replace("|", "\\|")), []).append(where)
    if not found:
        return "None."
    lines = [f"| {peer} | {', '.join(where)} | {message} |" for (peer, message), where in found.items()]
    return "\n".join(["| package | where | its message |", "|---|---|---|", *lines])


def _packages() -> str:
    """What pip was told, and what the adapter says of its package."""
    lines = []
    for peer in PEERS:
        adapter = import_module(f"benchmarks.peers.{peer.replace('-', '_')}")
        installed = f" (`pip install {' '.join(adapter.INSTALL)}`)" if adapter.INSTALL else ""
        lines.append(f"- {' '.join(str(adapter.__doc__).split())}{installed}")
    return "\n".join(lines)
