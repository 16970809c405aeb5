"""The page of the fourth seed system: our rows with the published figures beside them."""

import shlex
from collections.abc import Sequence
from itertools import groupby

from benchmarks import _rows
from benchmarks._folder import VARIABLE
from benchmarks._score import paired_interval, percent, unpacked
from benchmarks._train import SHORTER
from benchmarks.seeds._joint_cases import FRESH, FROZEN, FURTHER, Sizes, published, sizes_table


def page(trained: Sequence[_rows.Row], oneshot: Sequence[_rows.Row], sizes: Sequence[Sizes]) -> str:
    """The page of documentation, from rows alone."""
    tables = "\n".join(_table(list(group)) for _, group in groupby(sorted(trained, key=_place), _of_table))
    return f"""# Layers that share factors

Joint decomposition of Chen et al. 2021 ([arXiv 2107.04386](https://arxiv.org/abs/2107.04386)), rebuilt: layers at the
same place of repeated blocks share the right factor of their spatial unfoldings (`rjsvd-1` with the first block of a
stage, whose inputs differ, `rjsvd-2` without), the left one (`ljsvd`), or a part of each (`bi-`, the share of the left
rank); `spatial` is the same without sharing. Left dense: {", ".join(FROZEN)}.

## Sizes

How many times fewer numbers than dense, convolutions and the last layer counted as the authors do, from the built
networks, by `python -m benchmarks.seeds.joint --structure`:

```text
{sizes_table(sizes)}
```

## Right after compression

Trained networks at equal shares of their parameters, factors fitted to training images without labels, judged on the
held-out split: `separate` is the spatial SVD of each layer, `joint-or-separate` lets both compete, `mix` all methods of
the library and all three joint ones. The last column compares with the best of the other rows of the same size, image
by image (95 % interval). By `python -m benchmarks.seeds.joint --oneshot`:

{_oneshot(oneshot)}
{_trained_head() if trained else ""}{tables}"""


def _oneshot(rows: Sequence[_rows.Row]) -> str:
    lines = [
        "| network | asked | method | parameters | multiply-adds | accuracy, % | change (95 %) | mix less best |",
        "|---|--:|---|--:|--:|--:|--:|--:|",
    ]

    def size(row: _rows.Row) -> tuple[str, float]:
        return row.net, -(row.asked or 0)

    for _, group in groupby(sorted(rows, key=size), size):
        lines += _of_size(list(group))
    return "\n".join(lines) + "\n"


def _of_size(rows: Sequence[_rows.Row]) -> list[str]:
    others = [row for row in rows if row.method != "mix"]
    lines = []
    for row in sorted(rows, key=lambda row: row.method == "mix"):
        against = ""
        if row.method == "mix" and others:
            best = max(others, key=lambda other: other.accuracy)
            right, best_right = (unpacked(each.right or "", 10_000).double() for each in (row, best))
            low, high = paired_interval(right, best_right)
            against = f"{percent(right) - percent(best_right):+.2f} ({low:+.2f} to {high:+.2f}), {best.method}"
        lines.append(
            f"| {row.net} | {100 * (row.asked or 0):g} % | {row.method} | {row.params_ratio:.3f} "
            f"| {row.macs_ratio:.3f} | {row.accuracy:.2f} "
            f"| {_rows.change(row.accuracy - row.dense_accuracy, row.interval)} | {against} |"
        )
    return lines


def _trained_head() -> str:
    return f"""## Trained

From fresh weights ({FRESH.epochs} epochs at {FRESH.lr:g}) and from the dense network ({FURTHER.epochs} epochs at
{FURTHER.lr:g}, {FURTHER.distil:.0%} of the loss from its outputs). `short` tables are from {SHORTER} times fewer
epochs, the dense network's too. The control is the dense network trained as long. `tucker` and `mix` have the size of
`spatial`; their ranks are chosen and their factors fitted by training images. Published changes are of CIFAR-10. Made
with `{VARIABLE}` set, by `python -m benchmarks.seeds.joint`.

"""


def _place(row: _rows.Row) -> tuple[tuple[str, str, bool, str], float, str]:
    return _of_table(row), _asked(row, "--rate"), _start(row)


def _of_table(row: _rows.Row) -> tuple[str, str, bool, str]:
    return row.net, row.data, row.is_short, row.device


def _asked(row: _rows.Row, option: str) -> float:
    words = shlex.split(row.command)
    return float(words[words.index(option) + 1])


def _start(row: _rows.Row) -> str:
    words = shlex.split(row.command)
    return words[words.index("--start") + 1]


def _table(rows: Sequence[_rows.Row]) -> str:
    net, data, short, device = _of_table(rows[0])
    head = [
        f"### {net}, {data}, {rows[0].split} split" + ", short" * short,
        "",
        f"Dense: {rows[0].dense_accuracy:.2f} %. Measured on {device}.",
        "",
        "| method | rate | start | x fewer | accuracy, % | change from dense (95 %) | from the control "
        "| multiply-adds | latency | published change |",
        "|---|--:|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    return "\n".join([*head, *map(_cells, rows)]) + "\n"


def _cells(row: _rows.Row) -> str:
    claimed = published(row.net, row.method, _asked(row, "--rate")) if row.data.startswith("cifar10") else None
    return (
        f"| {row.method} | {_asked(row, '--rate'):g} | {_start(row)} | {1 / row.params_ratio:.2f} | {row.accuracy:.2f} "
        f"| {_rows.change(row.accuracy - row.dense_accuracy, row.interval)} "
        f"| {_rows.change(row.accuracy - (row.control_accuracy or 0), row.control_interval)} "
        f"| {row.macs_ratio:.3f} | {row.latency_ratio:.2f} | {'' if claimed is None else f'{claimed:+.2f}'} |"
    )
