"""The page of documentation, from rows alone."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import groupby

from benchmarks._folder import VARIABLE
from benchmarks._rows import change
from benchmarks._score import paired_interval, unpacked
from benchmarks.peers._environments import DENSE, PEERS
from benchmarks.peers._row import Found, Row

OURS = "tenfold"
ALL_OURS = (OURS, "tenfold-fast", "tenfold-fastest")
THEIRS = "**the other**"
USEFUL = 0.5  # of the dense accuracy, which a network keeps to be compared in time
NOISE = 0.05  # of a latency, by which it differs from one run to the next
Place = tuple[str, int, float]  # network, epochs, share


def page(rows: Sequence[Row]) -> str:
    """Who is ahead, then every table, then who failed."""
    rows = [row for row in rows if not row.quick]
    versions = ", ".join(sorted({row.version for row in rows}))
    places = _places(rows)
    controls = _controls(rows)
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
one process, on a shared machine, of each network, the dense one too, in the memory format in which it is faster
(contiguous or channels last). Intervals are those of differences on the same held-out images, one by one, at 95 %.
Seconds are those of the setting that is shown. Made with tenfold {versions} and `{VARIABLE}` set, by

```sh
python -m benchmarks.peers
python -m benchmarks.peers --tuned
```

## Who is ahead

Where {OURS} is not ahead, or not certainly, the verdict is in bold.

{accuracies(rows)}

At equal accuracy: the dense network, and each network of another package at any budget that no other of them beats in
both accuracy and latency, if it keeps {USEFUL:.0%} of the dense network's accuracy; beside it the fastest network of
this library that is not certainly less accurate. Latencies less than {NOISE:.0%} apart are level, and the certainly
more accurate of the two is ahead. Below: where the other is ahead, what the most accurate of this library that takes
less time comes to.

{latencies(rows)}

{tables}
## Who made nothing

{_failures(rows)}

## The packages

{_packages()}
"""


def _places(rows: Sequence[Row]) -> dict[Place, list[Row]]:
    """Networks that are small, by place, the best first."""
    small = [row for row in rows if row.found and row.peer != DENSE]
    ordered = sorted(small, key=lambda row: (_place(row), -_of(row).accuracy, row.peer))
    return {place: list(group) for place, group in groupby(ordered, _place)}


def _place(row: Row) -> Place:
    return row.network, row.epochs, -row.asked  # the mildest budget first


def _of(row: Row) -> Found:
    assert row.found is not None
    return row.found


def _ours(rows: Iterable[Row]) -> Row | None:
    return next((row for row in rows if row.peer == OURS), None)


def _apart(row: Row, other: Row) -> tuple[float, tuple[float, float]]:
    """Accuracy of one less that of the other, in points, with its interval."""
    right = [unpacked(_of(each).right, _of(each).images) for each in (row, other)]
    return _of(row).accuracy - _of(other).accuracy, paired_interval(*right)


def stage(epochs: int) -> str:
    """How long networks were fine-tuned, in words."""
    return f"{epochs} epoch{'s' * (epochs > 1)}" if epochs else "none"


def accuracies(rows: Sequence[Row]) -> str:
    """Who is ahead in accuracy, place by place."""
    head = [
        f"| network | epochs of tuning | asked | best other | its accuracy, % | {OURS}, % | {OURS} less it | ahead |",
        "|---|---|--:|---|--:|--:|--:|---|",
    ]
    lines, controls = [], _controls(rows)
    for (net, epochs, share), group in _places(rows).items():
        ours, others = _ours(group), [row for row in group if row.peer not in ALL_OURS]
        if ours is None or not others:
            continue
        best = others[0]
        points, (low, high) = _apart(ours, best)
        level = _level([ours, best], controls.get((net, epochs)))
        verdict = OURS if low > 0 else f"**{best.peer}**" if high < 0 else level
        lines.append(
            f"| {net} | {stage(epochs)} | {-100 * share:g} % | {best.peer} | {_of(best).accuracy:.2f} "
            f"| {_of(ours).accuracy:.2f} | {change(points, (low, high))} | {verdict} |"
        )
    return "\n".join([*head, *lines])


def _level(pair: Sequence[Row], control: Row | None) -> str:
    """Of two networks that are not certainly apart: which of them are certainly less accurate than the dense one."""
    below = [row.peer for row in pair if _from_dense(row, control)[1] < 0]
    who = "only " + below[0] if len(below) == 1 else "both" if below else "neither"
    return f"**level**; {who} certainly less accurate than dense{' trained as long' * (control is not None)}"


def _from_dense(row: Row, control: Row | None) -> tuple[float, float]:
    """The interval to the dense network as it is, or, of what is fine-tuned, to that trained as long."""
    return _of(row).interval if control is None else _apart(row, control)[1]


def _controls(rows: Sequence[Row]) -> dict[tuple[str, int], Row]:
    """The dense networks that were trained as long, by network and epochs."""
    return {(row.network, row.epochs): row for row in rows if row.found and row.peer == DENSE}


def latencies(rows: Sequence[Row]) -> str:
    """The dense network and those of other packages that none of them beats in both, and what is ours beside each.

    Below the table, what ours that take less time come to, where the other is ahead.
    """
    head = [
        f"| network | epochs of tuning | of another package | its accuracy, % | its latency | fastest of {OURS} "
        "| its accuracy, % | its latency | ahead |",
        "|---|---|---|--:|--:|---|--:|--:|---|",
    ]
    places = _places(rows)
    lines, notes, controls = [], [], _controls(rows)
    for net, epochs in dict.fromkeys(place[:2] for place in places):
        every = [row for place, group in places.items() if place[:2] == (net, epochs) for row in group]
        ours = sorted((row for row in every if row.peer in ALL_OURS), key=lambda row: _of(row).latency_ratio)
        if not ours:
            continue
        others = [_dense_beside(ours, controls.get((net, epochs)))]
        for other in _front([row for row in every if row.peer not in ALL_OURS]):
            apart = [(row, _apart(row, other)[1]) for row in ours]
            others.append(Beside(_asked(other), _of(other).accuracy, _of(other).latency_ratio, apart))
        lines += [f"| {net} | {stage(epochs)} {one.line}" for one in others]
        when = f"after {stage(epochs)}" if epochs else "not tuned"
        notes += [f"- {net}, {when}, {one.name}: {one.note}" for one in others if one.verdict == THEIRS]
    return "\n".join([*head, *lines, *([""] if notes else []), *notes])


@dataclass(frozen=True)
class Beside:
    """A network that is not ours, and ours, the fastest first, each with its interval to it."""

    name: str
    accuracy: float
    latency: float
    ours: Sequence[tuple[Row, tuple[float, float]]]

    @property
    def equal(self) -> tuple[Row, float] | None:
        """The fastest that is not certainly less accurate, and the least that it can be ahead by."""
        return next(((row, low) for row, (low, high) in self.ours if high >= 0), None)

    @property
    def verdict(self) -> str:
        """Who is ahead; bold where not we."""
        if self.equal is None:
            return THEIRS
        row, low = self.equal
        slower = _of(row).latency_ratio / self.latency - 1
        level = abs(slower) < NOISE
        return OURS if (low > 0 if level else slower < 0) else "**level**" if level else THEIRS

    @property
    def line(self) -> str:
        """The cells of the table."""
        cells = "none as accurate | |"
        if self.equal is not None:
            found = _of(self.equal[0])
            cells = f"{_asked(self.equal[0])} | {found.accuracy:.2f} | {found.latency_ratio:.2f}"
        return f"| {self.name} | {self.accuracy:.2f} | {self.latency:.2f} | {cells} | {self.verdict} |"

    @property
    def note(self) -> str:
        """What ours that take less time come to."""
        faster = [one for one in self.ours if _of(one[0]).latency_ratio < self.latency * (1 - NOISE)]
        if not faster:
            return f"no network of {OURS} was asked to take so little time."
        row, interval = max(faster, key=lambda one: _of(one[0]).accuracy)
        found, points = _of(row), change(_of(row).accuracy - self.accuracy, interval)
        return f"in {found.latency_ratio:.2f} of the dense time, {_asked(row)} has {found.accuracy:.2f} %, {points}."


def _dense_beside(ours: Sequence[Row], control: Row | None) -> Beside:
    """The dense network as it is, or, beside what is fine-tuned, trained as long."""
    apart = [(row, _from_dense(row, control)) for row in ours]
    if control is None:
        return Beside("the dense network", _of(ours[0]).dense_accuracy, 1.0, apart)
    return Beside("the dense network, trained as long", _of(control).accuracy, _of(control).latency_ratio, apart)


def _front(rows: Sequence[Row]) -> list[Row]:
    """Networks than which none is both as accurate and as fast, of those that are of some use."""
    front: list[Row] = []
    useful = [row for row in rows if _of(row).accuracy >= USEFUL * _of(row).dense_accuracy]
    for row in sorted(useful, key=lambda row: (-_of(row).accuracy, _of(row).latency_ratio)):
        if all(_of(row).latency_ratio < _of(known).latency_ratio for known in front):
            front.append(row)
    return front


def _asked(row: Row) -> str:
    return f"{row.peer}, {100 * row.asked:g} %"


def _table(place: Place, rows: Sequence[Row], control: Row | None) -> str:
    net, epochs, share = place
    first, ours = rows[0], _ours(rows)
    dense = f"Dense: {_of(first).dense_accuracy:.2f} %"
    if control is not None:
        dense += f"; trained as long, {_of(control).accuracy:.2f} %"
    tuned = f", after {stage(epochs)} of fine-tuning" if epochs else ""
    columns: dict[str, Callable[[Row], str]] = {
        "package": lambda row: f"**{_of(row).package}**" if row.peer in ALL_OURS else _of(row).package,
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
    for row in sorted(rows, key=lambda row: (row.peer, row.network, row.epochs, -row.asked)):
        if row.message is not None:
            where = f"{row.network} {100 * row.asked:g} %{' tuned' * bool(row.epochs)}"
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
