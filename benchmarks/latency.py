"""Measured time: what budgets of multiply-adds and of time come to, and that the guard lets nothing get slower.

`python -m benchmarks.latency` makes the rows that are missing from `benchmarks/results/latency.json`, then
`docs/latency.md` from that file. Every row is one run: dense and small are timed in turn, medians, on one image or
eight, with as many threads as `--threads` says. Weights are random, because times do not depend on them; accuracy is
measured elsewhere. Needs torchvision. To measure anew, delete the file.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

import tenfold
from benchmarks import _rows
from benchmarks._compress import largest
from benchmarks._zoo import randomised
from tenfold._engines import Engine
from tenfold._timed import Clock
from tenfold.methods import SVD, FilterPruning, Method, SpatialSVD, Tucker

ROWS = _rows.RESULTS / "latency.json"
SIDE = 224
METHODS: tuple[Method, ...] = (SVD("output"), SVD("input"), SpatialSVD(), Tucker())
# The share of the multiply-adds, and how much more than that the time may be: in ONNX Runtime, and eager.
SHARES = {0.5: {"onnxruntime": 1.10, "eager": 1.20}, 0.25: {"onnxruntime": 1.10, "eager": 1.45}}
GUARDED = (
    *("alexnet", "densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5", "mnasnet1_0", "mobilenet_v2"),
    *("mobilenet_v3_large", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet34"),
    *("resnet50", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "squeezenet1_0", "squeezenet1_1", "vgg11", "swin_t"),
)
TARGETS = (("uniform", 0.5), ("uniform", 0.25), ("macs", 0.5), ("macs", 0.25), ("latency", 0.5), ("filters", 0.5))
SIZES = (0.7, 0.85, 0.95)  # of the parameters with the guard: the first that can be reached


@dataclass(frozen=True)
class Job:
    """One row to make."""

    net: str
    target: str  # "macs", "uniform", "latency", "filters" (removed until a limit of time is kept) or "guard"
    share: float
    engine: Engine
    batch: int
    threads: int
    device: str = "cpu"  # in half precision on any other

    @property
    def channels_last(self) -> bool:
        """How the dense network is stored."""
        return self.engine == "eager" and self.target != "guard"

    @property
    def command(self) -> str:
        """The row's identity."""
        asked = f"--net {self.net} --target {self.target} --share {self.share:g} --engine {self.engine}"
        where = "" if self.device == "cpu" else f" --device {self.device}"
        return f"python -m benchmarks.latency {asked} --batch {self.batch} --threads {self.threads}{where}"


class Row(_rows.Record):
    """A network, planned in one way, beside the dense one."""

    net: str
    target: str
    share: float
    engine: str
    batch: int
    threads: int
    channels_last: bool  # the small network
    params_ratio: float  # this and the next: small / dense
    macs_ratio: float
    time_ratio: float
    predicted: float | None  # the time ratio by the times of parts
    dense_ms: float
    replaced: int  # layers
    slow: int  # layers that nothing faster may replace
    refused: str | None  # what was said where no plan was found; then the network is dense
    device: str
    version: str
    command: str

    def line(self) -> str:
        """The row in one line, for the terminal."""
        return (
            f"{self.net} {self.target} {self.share:g} {self.engine} batch {self.batch}: time x{self.time_ratio:.3f} "
            f"(parts: {self.predicted or 0:.3f}), multiply-adds x{self.macs_ratio:.3f}, parameters "
            f"x{self.params_ratio:.3f}, {self.replaced} layers{', refused' if self.refused else ''}"
        )


def run(job: Job) -> Row:
    """Plan, apply, and time both networks side by side."""
    alone = ("guard", "filters")
    found = options(replace(job, target=job.target if job.target in alone else "any", share=1.0))
    refused = None
    try:
        plan = planned(job, found)
    except tenfold.TenfoldError as error:
        plan, refused = found.ordered([]), str(error)
    small, clock = tenfold.apply(found.model, plan), Clock(found)
    timed, cost = clock.network(plan, small), tenfold.measure(small, found.example)
    return Row(
        net=job.net,
        target=job.target,
        share=job.share,
        engine=job.engine,
        batch=job.batch,
        threads=job.threads,
        channels_last=plan.channels_last or job.channels_last,
        params_ratio=round(cost.params / found.dense.params, 5),
        macs_ratio=round(cost.macs / found.dense.macs, 5),
        time_ratio=round(timed.measured, 4),
        predicted=round(timed.predicted, 4) if timed.predicted is not None else None,
        dense_ms=round(timed.dense_ms, 3),
        replaced=len(plan.steps),
        slow=len(found.slow),
        refused=refused,
        device=timed.conditions.device,
        version=tenfold.__version__,
        command=job.command,
    )


def planned(job: Job, found: tenfold.Options) -> tenfold.Plan:
    """The plan that the row asks for."""
    if job.target in ("latency", "filters"):
        return found.plan(tenfold.Budget(latency=job.share))
    if job.target == "macs":
        return found.plan(tenfold.Budget(macs=job.share, latency=job.share * SHARES[job.share][job.engine]))
    if job.target == "uniform":
        return uniform(found, job.share)
    for size in SIZES:
        try:
            return found.plan(tenfold.Budget(params=size))
        except tenfold.TenfoldError as error:
            refusal = error
    raise refusal


def uniform(found: tenfold.Options, share: float) -> tenfold.Plan:
    """Tucker at the largest share of every layer's rank that keeps the multiply-adds, as people usually do."""
    tucker = tenfold.options(found.model, example=found.example, methods=[Tucker()], engine=found.engine)
    return largest(tucker, lambda rank: tenfold.Ranks(share=rank), "macs", share * found.dense.macs, 0.0, 10)


@cache
def options(job: Job) -> tenfold.Options:
    """All options of a job's network, timed under its conditions."""
    torch.set_num_threads(job.threads)
    model, example = dense(job.net), torch.randn(job.batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    if job.device != "cpu":
        model, example = model.to(job.device).half(), example.to(job.device).half()
    if job.channels_last:
        model, example = (each.to(memory_format=torch.channels_last) for each in (model, example))
    methods: Sequence[Any] = [FilterPruning()] if job.target == "filters" else METHODS
    return tenfold.options(model, example=example, methods=methods, guard=job.target == "guard", engine=job.engine)


def dense(net: str) -> nn.Module:
    """A network of torchvision with random weights."""
    from torchvision import models

    settings = {"init_weights": False, "aux_logits": False} if net == "googlenet" else {}
    with torch.random.fork_rng():
        return randomised(models.get_model(net, weights=None, **settings))


def page(rows: Sequence[Row]) -> str:
    """The page of documentation, from rows alone."""
    versions = ", ".join(sorted({row.version for row in rows}))
    budgets = [row for row in rows if row.target != "guard"]
    places = sorted({(row.engine, row.batch) for row in budgets})
    tables = "\n".join(_table([row for row in budgets if (row.engine, row.batch) == place], *place) for place in places)
    return f"""# Measured time

Dense and small are timed in turn in one run, medians; the ratio is small / dense. Times of layers and of candidates
are measured in the engine, at six ranks of each method at first and once more at those that are chosen, beside a layer
that is always the same, because processors change their pace; the whole network is then timed, and the plan corrected
where the sum of parts was wrong; what keeps a limit is timed twice before it is believed. Methods: SVD of both sides,
spatial SVD and Tucker; {SIDE} x {SIDE} images, random weights. Made with tenfold {versions}, by

```sh
python -m benchmarks.latency
```

`macs`: a budget of multiply-adds together with a limit of time, {_text("onnxruntime")} in ONNX Runtime and
{_text("eager")} eager with channels last. `uniform`: Tucker at one share of all ranks, for
comparison. `latency`: a limit of time alone. `filters`: the same, kept by removing filters.

{tables}
## The guard

A budget of parameters ({", ".join(f"{size:.0%}" for size in SIZES)}, the first that can be reached) with `guard=True`,
eager, one image: nothing may replace a layer that is not measurably faster, and the whole network is timed. Where the
network is faster with channels last, the small one stores its kernels so.

{_guarded([row for row in rows if row.target == "guard"])}"""


def _text(engine: str) -> str:
    return " and ".join(f"{more[engine]:.2f} times {share:g}" for share, more in SHARES.items())


def _table(rows: Sequence[Row], engine: str, batch: int) -> str:
    first = rows[0]
    how = f"{engine}{', channels last' if first.channels_last else ''}, batch {batch}"
    head = [
        f"## {first.net}, {how}",
        "",
        f"{first.threads} thread{'s' * (first.threads > 1)} of {first.device}; dense: {first.dense_ms:.1f} ms.",
        "",
        "| plan | share | multiply-adds | parameters | time | by its parts |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    order = {"uniform": 0, "macs": 1, "latency": 2, "filters": 3}
    cells = [
        f"| {row.target} | {row.share:g} | {row.macs_ratio:.3f} | {row.params_ratio:.3f} "
        f"| {row.time_ratio:.3f} | {'' if row.predicted is None else f'{row.predicted:.3f}'} |"
        for row in sorted(rows, key=lambda row: (order[row.target], -row.share))
    ]
    return "\n".join([*head, *cells]) + "\n"


def _guarded(rows: Sequence[Row]) -> str:
    head = [
        "| network | parameters | multiply-adds | time | layers replaced | left, nothing being faster "
        "| channels last | note |",
        "|---|--:|--:|--:|--:|--:|---|---|",
    ]
    cells = [
        f"| {row.net} | {row.params_ratio:.3f} | {row.macs_ratio:.3f} | {row.time_ratio:.3f} | {row.replaced} "
        f"| {row.slow} | {'yes' * row.channels_last} | {'left dense: no size can be reached' if row.refused else ''} |"
        for row in sorted(rows, key=lambda row: row.net)
    ]
    return "\n".join([*head, *cells]) + "\n"


def jobs(asked: argparse.Namespace) -> list[Job]:
    """The rows that the command line asks for."""
    on_cpu = asked.device == "cpu"
    engines: tuple[Engine, ...] = ("onnxruntime", "eager") if on_cpu else ("eager", "compile")
    every = [
        Job("resnet18", target, share, engine, batch, asked.threads, asked.device)
        for engine in engines
        for batch in ((1, 8) if on_cpu else (1, 64))
        for target, share in TARGETS
        if on_cpu or target != "macs"
    ]
    every += [Job(net, "guard", SIZES[0], "eager", 1, asked.threads, asked.device) for net in GUARDED]
    wanted = {"net": asked.net, "target": asked.target, "engine": asked.engine, "batch": asked.batch}
    wanted["share"] = asked.share
    return [job for job in every if all(not given or getattr(job, name) in given for name, given in wanted.items())]


def write_page(docs: Path) -> None:
    """The page, from the rows that there are."""
    _rows.replace_text(docs / "latency.md", page(_rows.read(ROWS, Row)))


def main() -> None:
    """Make the missing rows, then the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=str(__doc__).splitlines()[0])
    parser.add_argument("--net", nargs="+", choices=GUARDED)
    parser.add_argument("--target", nargs="+", choices=("uniform", "macs", "latency", "filters", "guard"))
    parser.add_argument("--share", nargs="+", type=float)
    parser.add_argument("--engine", nargs="+", choices=get_args(Engine))
    parser.add_argument("--batch", nargs="+", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="any other runs in half precision")
    asked = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("tenfold").setLevel(logging.INFO)
    _rows.make_missing(ROWS, Row, [(job.command, partial(run, job)) for job in jobs(asked)])
    write_page(_rows.DOCS)


if __name__ == "__main__":
    main()
