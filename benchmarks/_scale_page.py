"""The page and the picture of the scale benchmark."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.scale import BUDGET, COUNTS, Row, exponent

_WAYS = {
    "alone": "one process",
    "workers": "two workers of a Ray cluster",
    "lost": "the same, a worker killed in the middle of the curves and one in the middle of the factors",
    "hosts": "two hosts (network namespaces), a worker each",
}


def page(rows: Sequence[Row]) -> str:
    """The page of documentation, from rows alone."""
    versions, devices = (", ".join(sorted({getattr(row, name) for row in rows})) for name in ("version", "device"))
    return f"""# Scale

Every row is a process of its own, with {_threads(rows)} threads, on {devices}. Memory is the peak of the process and
all below it; the pages of files that it read, which the system may drop, are counted apart. Made with tenfold
{versions}, by

```sh
python -m benchmarks.scale
```

## A network that lies in files

A decoder of 1.06 billion parameters, random weights in bfloat16 in several files: planned by SVD to {BUDGET},
and compressed into files (`tenfold.with_weights`, `tenfold.apply_to`).

| way | planned, s | all, s | peak, GB | with pages of files, GB | plan and weights |
|---|--:|--:|--:|--:|---|
{_decoders([row for row in rows if row.what == "decoder"])}

With workers, the cluster's own processes are counted too where they are below this one: its object store, its servers
and its workers, which each hold torch; with two hosts, only the process that asks.

## ResNet-50

All options at all ranks and the choice for {BUDGET}, beside one SVD of every layer as a matrix of outputs
against the rest; medians of three, in turn. Closed: SVD of both sides, spatial SVD, Tucker. All: with CP and tensor
trains.

| methods | plan, s | one SVD, s | one full SVD, s | in double precision, s | plan / full SVD |
|---|--:|--:|--:|--:|--:|
{_resnets([row for row in rows if row.what == "resnet50"])}

A full SVD makes square factors, as `torch.linalg.svd` does unless told otherwise.

## One layer

A Linear layer by SVD, a 3x3 convolution by the others: all options and the choice of {BUDGET}, then the
factors.

![Seconds and bytes against width and number of layers](scale.svg)

| method | outputs x inputs | options, s | all, s | peak, GB | weight, GB |
|---|--:|--:|--:|--:|--:|
{_layers([row for row in rows if row.what == "layer"])}

Exponents of the time of options in the width, from 1024 (128 for convolutions) on: {_exponents(rows)}.

## Many layers

Linear layers of 64 x 64 by SVD, to 60 % of the parameters.

| layers | options, s | all, s |
|--:|--:|--:|
{_counts([row for row in rows if row.what == "count"])}

The exponent of all in the number of layers, from 300 on: {_count_exponent(rows)}.
"""


def _threads(rows: Sequence[Row]) -> str:
    return " or ".join(str(count) for count in sorted({row.threads for row in rows}))


def _decoders(rows: Sequence[Row]) -> str:
    first = next((row.digest for row in rows if row.setting.endswith("alone")), None)
    return "\n".join(
        f"| {_WAYS[row.setting.split()[1]]} | {row.seconds['plan']:.0f} | {row.seconds['all']:.0f} "
        f"| {_peak(row, 'own'):.2f} | {_peak(row, 'all'):.2f} "
        f"| `{row.digest}`{'' if row.digest == first else ', not the same'} |"
        for row in sorted(rows, key=lambda row: list(_WAYS).index(row.setting.split()[1]))
    )


def _peak(row: Row, name: str) -> float:
    return 0.0 if row.peak is None else row.peak[name] / 1e9


def _resnets(rows: Sequence[Row]) -> str:
    return "\n".join(
        f"| {row.setting} | "
        + " | ".join(f"{row.seconds[name]:.2f}" for name in ("plan", "svd", "full svd", "full svd in double precision"))
        + f" | {row.seconds['plan'] / row.seconds['full svd']:.2f} |"
        for row in rows
    )


def _layers(rows: Sequence[Row]) -> str:
    return "\n".join(
        f"| {method} | {width} x {inputs} | {row.seconds['plan']:.2f} | {row.seconds['all']:.2f} "
        f"| {_peak(row, 'own'):.2f} | {row.bytes[0] / 1e9:.3f} |"
        for row in rows
        for width, inputs, method in [row.setting.split()]
    )


def _square(rows: Sequence[Row], method: str) -> list[tuple[int, Row]]:
    parted = [(row.setting.split(), row) for row in rows if row.what == "layer"]
    return sorted(
        ((int(width), row) for (width, inputs, name), row in parted if name == method and width == inputs),
        key=lambda pair: pair[0],
    )


def _exponents(rows: Sequence[Row]) -> str:
    texts = []
    for method, least in (("svd", 1024), ("spatial", 128), ("tucker", 128), ("cp", 128)):
        points = [(width, row.seconds["plan"]) for width, row in _square(rows, method) if width >= least]
        if len(points) > 1:
            texts.append(f"{method} {exponent(*zip(*points, strict=True)):.1f}")
    return ", ".join(texts)


def _counts(rows: Sequence[Row]) -> str:
    ordered = sorted(rows, key=lambda row: int(row.setting))
    return "\n".join(f"| {row.setting} | {row.seconds['plan']:.2f} | {row.seconds['all']:.2f} |" for row in ordered)


def _count_exponent(rows: Sequence[Row]) -> str:
    points = [(int(row.setting), row.seconds["all"]) for row in rows if row.what == "count" and int(row.setting) >= 300]
    return f"{exponent(*zip(*points, strict=True)):.1f}" if len(points) > 1 else ""


def draw(rows: Sequence[Row], path: Path) -> None:
    """Time and memory against width, and time against the number of layers."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "tenfold"
    from matplotlib import pyplot as plt

    figure, (times, memory, counts) = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for method in ("svd", "spatial", "tucker", "cp"):
        points = _square(rows, method)
        widths = [width for width, _ in points]
        times.loglog(widths, [row.seconds["all"] for _, row in points], marker="o", label=method)
        memory.loglog(widths, [_peak(row, "own") for _, row in points], marker="o", label=method)
    of_counts = sorted((row for row in rows if row.what == "count"), key=lambda row: int(row.setting))
    counts.loglog([int(row.setting) for row in of_counts], [row.seconds["all"] for row in of_counts], marker="o")
    for axes, title, across in (
        (times, "seconds", "channels of the layer"),
        (memory, "peak, GB", "channels of the layer"),
        (counts, "seconds", "layers"),
    ):
        axes.set(title=title, xlabel=across)
        axes.grid(visible=True, which="major", alpha=0.3)
    counts.set_xlim(COUNTS[0] * 0.8, COUNTS[-1] * 1.25)
    times.legend()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
