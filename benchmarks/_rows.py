"""Rows of results: read, added one at a time, shown as a table."""

import json
import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

ROOT = Path(__file__).parent.parent
RESULTS, RUNS, DOCS = ROOT / "benchmarks" / "results", ROOT / "benchmarks" / "runs", ROOT / "docs"
R = TypeVar("R", bound=BaseModel)  # has `command` and `line()`


class Record(BaseModel):
    """Plain data that does not change."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Row(Record):
    """One network, compressed in one way. The command makes exactly this row, so it is also the row's identity."""

    net: str
    data: str
    split: str
    method: str
    rule: str | None = None  # what chose the ranks, where it was not the budget itself
    trained: bool  # whether the small network was trained after compression
    quick: bool  # on a part of the split, for a look; never published
    dense_accuracy: float  # percent
    control_accuracy: float | None  # percent, of the dense network trained as long as the small one
    accuracy: float  # percent, of the small network
    interval: tuple[float, float]  # 95 % interval of accuracy less dense_accuracy, in points
    control_interval: tuple[float, float] | None = None  # the same of accuracy less control_accuracy
    right: str | None = None  # which images the small network gets right, packed, to compare two rows image by image
    params_ratio: float  # this and the next two: small / dense
    macs_ratio: float
    latency_ratio: float
    seed: int
    device: str
    seconds: float | None = None  # that making and judging the row took, or its training where there was one
    version: str  # of tenfold
    command: str

    @property
    def asked(self) -> float | None:
        """The share of parameters that was asked for, read from the command; None where the rule takes none."""
        words = shlex.split(self.command)
        return float(words[words.index("--params") + 1]) if "--params" in words else None

    @property
    def is_short(self) -> bool:
        """Whether it was trained for a fifth of the epochs."""
        return "--short" in shlex.split(self.command)

    @property
    def title(self) -> str:
        """What made the network smaller."""
        return self.method if self.rule is None else f"{self.method}, {self.rule}"

    def line(self) -> str:
        """The row in one line, for the terminal."""
        low, high = self.interval
        return (
            f"{self.net} {self.title} {_percent(self.asked)}: {self.accuracy:.2f} % (dense {self.dense_accuracy:.2f}, "
            f"change {low:+.2f} to {high:+.2f}), parameters x{self.params_ratio:.3f}, "
            f"multiply-adds x{self.macs_ratio:.3f}, latency x{self.latency_ratio:.2f}, {self.seconds or 0:.1f} s"
        )


def read(path: Path, kind: type[R] = Row) -> list[R]:  # type: ignore[assignment]
    """All rows of a file, of a benchmark's own kind; none if there is no file yet."""
    return [kind.model_validate(row) for row in json.loads(path.read_text())] if path.exists() else []


def add(path: Path, row: BaseModel) -> None:
    """Add a row to a file. It is read again first, so that two benchmarks may write to it in turn."""
    rows = [known.model_dump(mode="json") for known in [*read(path, type(row)), row]]
    replace_text(path, json.dumps(rows, indent=2) + "\n")


def make_missing(path: Path, kind: type[R], jobs: Iterable[tuple[str, Callable[[], R]]]) -> None:
    """Make, add and print the rows whose commands the file does not have yet."""
    for command, make in jobs:
        if command not in {known.command for known in read(path, kind)}:
            row = make()
            add(path, row)
            print(row.line(), flush=True)


def replace_text(path: Path, text: str) -> None:
    """Write a file in one step: whoever is killed meanwhile leaves the old one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)


def change(points: float, interval: tuple[float, float] | None) -> str:
    """A change in points, with its interval; 0 of what is compared with itself."""
    return f"{points:+.2f} ({interval[0]:+.2f} to {interval[1]:+.2f})" if interval and any(interval) else "0"


def tables(rows: Sequence[Row]) -> str:
    """A Markdown table for each network and device, the mildest compression first."""

    def place(row: Row) -> tuple[str, str, str]:
        return row.net, row.data, row.device

    ordered = sorted(_means(rows), key=lambda row: (*place(row), -(row.asked or 0), row.title))
    return "\n".join(_table(list(group)) for _, group in groupby(ordered, place))


def _means(rows: Sequence[Row]) -> list[Row]:
    """One row for all seeds, with the means of what they found."""

    def alike(row: Row) -> tuple[str, ...]:
        return row.net, row.data, row.device, row.title, str(row.asked)

    means = []
    for _, group in groupby(sorted(rows, key=alike), alike):
        same = list(group)
        numbers = {
            name: fmean(getattr(row, name) for row in same)
            for name in ("accuracy", "params_ratio", "macs_ratio", "latency_ratio")
        }
        interval = tuple(fmean(row.interval[end] for row in same) for end in (0, 1))
        means.append(same[0].model_copy(update={**numbers, "interval": interval}))
    return means


def _table(rows: Sequence[Row]) -> str:
    first = rows[0]
    head = (
        f"## {first.net}, {first.data}, {first.split} split",
        "",
        f"Dense: {first.dense_accuracy:.2f} %. Measured on {first.device}.",
        "",
        "| asked | method | parameters | multiply-adds | latency | accuracy, % | change, points (95 % interval) |",
        "|--:|---|--:|--:|--:|--:|--:|",
    )
    return "\n".join([*head, *map(_cells, rows)]) + "\n"


def _cells(row: Row) -> str:
    return (
        f"| {_percent(row.asked)} | {row.title} "
        f"| {row.params_ratio:.3f} | {row.macs_ratio:.3f} | {row.latency_ratio:.2f} "
        f"| {row.accuracy:.2f} | {change(row.accuracy - row.dense_accuracy, row.interval)} |"
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:g} %"
