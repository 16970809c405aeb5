"""Many networks made by one file: every net by every method under every budget with every seed, and none twice."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from tenfold._calibrate import calibrate
from tenfold._candidates import Options, options
from tenfold._compress import made
from tenfold._cost import Cost, measure
from tenfold._errors import TenfoldError
from tenfold._given import batches_for, device_named, lies_in_shards, methods_named, network, shaped
from tenfold._plan import Record
from tenfold._progress import track
from tenfold._resume import digest, forget, refuse_file, resumable, write_text
from tenfold._run import device_of
from tenfold._sources import imported, named
from tenfold._store import load_plan
from tenfold._sweep_rows import Row, read_rows, write_rows
from tenfold._sweep_setting import DENSE, Limits, Net, Sweep
from tenfold._timed import Clock
from tenfold._verify import drift_of, evaluated, ran_on
from tenfold._version import __version__
from tenfold._workers import each
from tenfold.methods import FilterPruning

ROWS, SETTING, PAGE, WORK = "rows.parquet", "setting.json", "sweep.html", "work"
_FOLDERS = ("rows", "plans", "times", WORK)


@dataclass(frozen=True)
class Job:
    """What becomes a row: a net as it is, or made smaller by a method under a budget with a seed."""

    net: Net
    key: str  # the name of its files: who it is, and a digest of all that it is made from
    method: str = DENSE
    budget: Limits | None = None
    seed: int | None = None

    def row(self, **found: Any) -> Row:
        """Its row."""
        budget = None if self.budget is None else str(self.budget)
        about: dict[str, Any] = {"net": self.net.name, "method": self.method, "budget": budget, "seed": self.seed}
        return Row(version=__version__, torch=torch.__version__, **about, **found)


class Times(Record):
    """How long a network takes beside the dense one."""

    dense_ms: float | None = None
    small_ms: float | None = None
    time_share: float | None = None
    engine: str
    device: str
    error: str | None = None


@dataclass(frozen=True)
class Loaded:
    """A net of a sweep, made real."""

    model: nn.Module
    inputs: Any
    score: Callable[[nn.Module], Any]


def run_sweep(sweep: Sweep, folder: Path) -> list[Row]:
    """Make every row that `folder` does not hold yet, and write all of them to its `rows.parquet`.

    A refused job is a row with its reason. Networks are timed after all of them are made, one after the other, in this
    process, so that nothing of the sweep runs beside them.

    Raises:
        TenfoldError: if something that the file names is not there, before anything is made.
    """
    _refuse_taken(folder)
    _check_packages(sweep)
    with _about("rows"):
        others = [row for file in sweep.rows for row in read_rows(Path(file), [net.name for net in sweep.nets])]
    jobs = [job for net in sweep.nets for job in _jobs(sweep, net)]
    write_text(folder / SETTING, sweep.model_dump_json(indent=2) + "\n")
    with resumable(folder / WORK):
        _make(sweep, jobs, folder)
    _time(sweep, jobs, folder)
    rows = [*_collected(jobs, folder), *others]
    write_rows(folder / ROWS, rows)
    forget(folder / WORK)
    return rows


def _refuse_taken(folder: Path) -> None:
    """Refuse a folder that exists and holds anything but an earlier sweep."""
    refuse_file(folder)
    ours = (ROWS, SETTING, PAGE, *_FOLDERS)
    others = sorted(path.name for path in folder.iterdir() if path.name not in ours) if folder.is_dir() else []
    others = [name for name in others if not name.startswith(".")]  # left by a write that was stopped
    if others:
        raise TenfoldError(f"{folder} holds other files ({others[0]}); name a new folder.")


def _check_packages(sweep: Sweep) -> None:
    """What is not installed is said now, not in rows of refused jobs."""
    for package in ("pyarrow", "jinja2", "plotly"):
        imported(package, "a sweep's rows and page (pip install tenfold[sweep])")
    if any(isinstance(method, FilterPruning) for names in sweep.methods.values() for method in methods_named(names)):
        imported("torch_pruning", "finding filters (pip install tenfold[prune])")
    if sweep.engine == "onnxruntime":
        imported("onnxruntime", "timing in ONNX Runtime (pip install tenfold[export])")


def _jobs(sweep: Sweep, net: Net) -> list[Job]:
    loaded = _loaded(sweep, net)
    _batches(sweep, net, loaded.inputs, 0, count=1)  # data that are not there are refused now
    made_from = (loaded.model, loaded.score, net.model_dump_json(exclude={"name", "model", "weights", "evaluate"}))
    base = digest(*made_from, sweep.device)

    def job(method: str, budget: Limits, seed: int) -> Job:
        said = (sweep.methods[method], str(budget), seed, sweep.calibration, sweep.recover, sweep.guard, sweep.engine)
        key = f"{net.name}-{method}-{budget}-{seed}-{digest(base, *said)[:12]}"
        return Job(net, key, method, budget, seed)

    return [
        Job(net, f"{net.name}-{DENSE}-{base[:12]}"),
        *(job(method, budget, seed) for method in sweep.methods for budget in sweep.budgets for seed in sweep.seeds),
    ]


def _loaded(sweep: Sweep, net: Net) -> Loaded:
    """A net with its weights on its device, its example and its metric; a refusal names the key."""
    weights, score = Path(net.weights), net.evaluate or sweep.evaluate
    with _about(f"nets.{net.name}.weights"):
        if lies_in_shards(weights):
            raise TenfoldError(f"{weights}: a sweep takes weights in one file.")
        if not weights.is_file():
            raise TenfoldError(f"there is no file {weights}.")
    with _about("device"):
        device = device_named(sweep.device)
    with _about(f"nets.{net.name}.model"):
        model = network(net.model, weights).to(device)
    with _about(f"nets.{net.name}.input"):
        inputs = shaped([net.input])
    with _about(f"nets.{net.name}.evaluate" if net.evaluate else "evaluate"):
        return Loaded(model, inputs, named(score))


def _batches(sweep: Sweep, net: Net, inputs: Any, seed: int, count: int | None = None) -> list[Any]:
    with _about(f"nets.{net.name}.data"):
        return batches_for(net.data, count or sweep.calibration, inputs, net.mean, net.std, seed=seed)


@contextmanager
def _about(key: str) -> Iterator[None]:
    try:
        yield
    except TenfoldError as error:
        raise TenfoldError(f"{key}: {error}") from None


def _make(sweep: Sweep, jobs: Sequence[Job], folder: Path) -> None:
    """Every row that is not there: what jobs share first, then by net, method and seed, budgets one after the other."""
    place = folder.absolute()
    missing = [job for job in jobs if not _file(place, "rows", job).exists()]
    of_nets = [(job, place) for job in missing if job.method == DENSE]
    rest = [job for job in missing if job.method != DENSE]
    seeds = [*dict.fromkeys((job.net, job.seed) for job in rest)]
    units = [*dict.fromkeys((job.net, job.method, job.seed) for job in rest)]
    shared = [[job for job in rest if (job.net, job.method, job.seed) == unit] for unit in units]
    for _ in each("dense networks", _dense_row, of_nets, (sweep,)):
        pass
    for _ in each("calibrated networks", _calibrated, seeds, (sweep,)):
        pass
    for rows in each("sweep", _small_rows, [(unit, place) for unit in shared], (sweep,)):
        for job, row in rows:  # from a worker on another machine
            _write(place, job, row)


def _dense_row(sweep: Sweep, job: Job, place: Path) -> None:
    loaded = _loaded(sweep, job.net)
    cost = _size(loaded, loaded.model)
    with _about(f"nets.{job.net.name}.evaluate" if job.net.evaluate else "evaluate"):
        metric = evaluated(loaded.model, loaded.model, loaded.score).dense
    shares = {f"{name}_share": 1.0 for name in ("params", "macs", "bytes")}
    _write(place, job, job.row(**cost, **shares, dense_metric=metric, metric=metric, drift=0.0))


def _calibrated(sweep: Sweep, net: Net, seed: int) -> None:
    """Statistics, which stay on disk for all methods."""
    loaded = _loaded(sweep, net)
    batches = _batches(sweep, net, loaded.inputs, seed)
    with _about(f"nets.{net.name}.data"):
        calibrate(loaded.model, batches, seed=seed)


def _small_rows(sweep: Sweep, jobs: Sequence[Job], place: Path) -> list[tuple[Job, Row]]:
    """The rows of one net, method and seed: curves are found once, and serve every budget."""
    first = jobs[0]
    assert first.seed is not None, "networks as they are have rows of their own"
    loaded = _loaded(sweep, first.net)
    batches = _batches(sweep, first.net, loaded.inputs, first.seed)
    statistics = calibrate(loaded.model, batches, seed=first.seed)
    how: dict[str, Any] = {"freeze": first.net.freeze, "guard": sweep.guard, "engine": sweep.engine}
    chosen, start = methods_named(sweep.methods[first.method]), time.perf_counter()
    found: Options | TenfoldError
    try:
        found = options(loaded.model, example=loaded.inputs, statistics=statistics, methods=chosen, **how)
        if found.pruning is None:  # else curves are of what removal leaves
            _ = found.ladders
    except TenfoldError as error:
        found = error
    curves_seconds, rows = time.perf_counter() - start, []
    for job in track(jobs, "budgets"):
        row = _small_row(sweep, job, loaded, batches, found, place).model_copy(
            update={"curves_seconds": curves_seconds}
        )
        _write(place, job, row)
        rows.append((job, row))
    return rows


def _small_row(
    sweep: Sweep, job: Job, loaded: Loaded, batches: list[Any], found: Options | TenfoldError, place: Path
) -> Row:
    start = time.perf_counter()
    try:
        if isinstance(found, TenfoldError):
            raise found
        assert job.budget is not None, "a small network has a budget"
        task: dict[str, Any] = {"calibration": batches, "evaluate": loaded.score, "seed": job.seed}
        small, plan, _ = made(job.budget.budget, found, how=sweep.recover, **task)
        metric = evaluated(small, loaded.model, loaded.score)
        drift, _ = drift_of(small, loaded.model, batches)
    except TenfoldError as error:
        return job.row(error=str(error), seconds=time.perf_counter() - start)
    seconds, file = time.perf_counter() - start, _file(place, "plans", job)
    write_text(file, plan.model_copy(update={"reference": job.net.model}).dumps())
    cost, dense = _size(loaded, small), found.dense
    low, high = metric.interval or (None, None)
    return job.row(
        **cost,
        **{f"{name}_share": value / max(getattr(dense, name), 1) for name, value in cost.items()},
        dense_metric=metric.dense,
        metric=metric.small,
        change_low=low,
        change_high=high,
        drift=drift.relative,
        seconds=seconds,
        plan=str(file.relative_to(place)),
    )


def _size(loaded: Loaded, model: nn.Module) -> dict[str, int]:
    cost: Cost = measure(model, loaded.inputs)
    return {"params": cost.params, "macs": cost.macs, "bytes": cost.bytes}


def _time(sweep: Sweep, jobs: Sequence[Job], folder: Path) -> None:
    """Time what was made and not timed yet, of drawn values: kernels do not ask what they multiply."""
    rows = {job: _row(folder, job) for job in jobs}
    waiting = [job for job in jobs if rows[job].plan and not _file(folder, "times", job).exists()]
    clocks: dict[Net, Clock] = {}
    for job in track(waiting, "times"):
        if job.net not in clocks:
            loaded = _loaded(sweep, job.net)
            clocks = {job.net: Clock(options(loaded.model, example=loaded.inputs, engine=sweep.engine))}
        times = _timed(clocks[job.net], sweep.engine, folder / str(rows[job].plan))
        write_text(_file(folder, "times", job), times.model_dump_json(indent=2, exclude_none=True) + "\n")


def _timed(clock: Clock, engine: str, plan: Path) -> Times:
    where: dict[str, Any] = {"engine": engine, "device": ran_on(device_of(clock.options.model))}
    try:
        dense_ms, small_ms = clock.compared(clock.drawn(load_plan(plan)))
    except TenfoldError as error:
        return Times(**where, error=f"not timed: {error}")
    return Times(**where, dense_ms=dense_ms, small_ms=small_ms, time_share=small_ms / dense_ms)


def _collected(jobs: Sequence[Job], folder: Path) -> list[Row]:
    rows = []
    for job in jobs:
        row, file = _row(folder, job), _file(folder, "times", job)
        if file.exists():
            row = row.model_copy(update=dict(Times.loads(file.read_text(encoding="utf-8"), name=str(file))))
        rows.append(row)
    return [_dense_timed(row, rows) if row.method == DENSE else row for row in rows]


def _dense_timed(dense: Row, rows: Sequence[Row]) -> Row:
    """The row of a net as it is, with the median of the times that it took beside others."""
    beside = [row for row in rows if row.net == dense.net and row.dense_ms is not None]
    if not beside:
        return dense
    ms = median(row.dense_ms for row in beside if row.dense_ms is not None)
    same = {"time_share": 1.0, "engine": beside[0].engine, "device": beside[0].device}
    return dense.model_copy(update={"dense_ms": ms, "small_ms": ms, **same})


def _file(place: Path, kind: str, job: Job) -> Path:
    return place / kind / f"{job.key}.json"


def _row(place: Path, job: Job) -> Row:
    file = _file(place, "rows", job)
    return Row.loads(file.read_text(encoding="utf-8"), name=str(file))


def _write(place: Path, job: Job, row: Row) -> None:
    if not _file(place, "rows", job).exists():
        write_text(_file(place, "rows", job), row.model_dump_json(indent=2, exclude_none=True) + "\n")
