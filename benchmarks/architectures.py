"""What works on which architecture: every stage from building a network to running its exported files.

`python -m benchmarks.architectures` makes the rows that are missing from `benchmarks/results/architectures.json`,
then `docs/architectures.md` from that file. To measure anew, delete the file. `--small` takes forty small networks,
with all methods together and with each alone.

Besides the library it needs torchvision, timm, transformers and what ONNX export needs, and Linux, for its limits.
"""

import argparse
import copy
import logging
import multiprocessing
import platform
import re
import resource
import signal
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import tenfold
from benchmarks import _rows, _zoo
from tenfold import Budget
from tenfold.methods import CP, DEFAULT, SVD, Method, SpatialSVD, TensorTrain, Tucker

NAME = "architectures"
ROWS = _rows.RESULTS / f"{NAME}.json"
SHARE, LEAST_SHARE = 0.5, 0.49  # of the parameters: what is asked for, and what a choice of ranks should use of it
QUICK, MIX = "quick", "mix"
METHODS: dict[str, Sequence[Method]] = {
    QUICK: (SVD("output"), SVD("input"), SpatialSVD(), Tucker()),
    MIX: DEFAULT,
    "svd-output": (SVD("output"),),
    "svd-input": (SVD("input"),),
    "spatial": (SpatialSVD(),),
    "tucker": (Tucker(),),
    "cp3": (CP(3),),
    "cp4": (CP(4),),
    "tt": (TensorTrain(),),
    "tt-naive": (TensorTrain("naive"),),
}
ALONE = tuple(name for name in METHODS if name not in (QUICK, MIX))
CPU_SECONDS = 1800  # that a network may take: other work of the machine takes none of it
WALL_SECONDS = 3600
BYTES = 12 * 2**30  # that a network may take
OK, UNREACHED = "ok", "not reached"

# Each process is a fork of one that has done nothing but these imports.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["benchmarks._zoo", "tenfold", "timm", "torchvision.models", "transformers"])

STAGES = {
    "build": "the network is made, and gets random weights and statistics of norms.",
    "options": "`tenfold.options`: it is traced, and every layer gets its curves.",
    "plan": f"`options.plan(Budget(params={SHARE:g}))`; if refused, the least that the refusal names is taken.",
    "apply": f"`tenfold.apply` leaves at most {SHARE:g} of the parameters, and at least {LEAST_SHARE:g}.",
    "forward": "outputs are finite, and of the dense network's structure and shapes.",
    "backward": "in training mode, the outputs' squares (a detector's losses') give every factor a finite gradient.",
    "save": "`tenfold.save`.",
    "load": "`tenfold.load(folder, dense)` gives the same outputs, bit for bit.",
    "onnx": "`tenfold.export` to `.onnx`.",
    "pt2": "`tenfold.export` to `.pt2`.",
}
NEEDS = {
    "options": "build",
    "plan": "options",
    "apply": "plan",
    "forward": "apply",
    "backward": "apply",
    "save": "apply",
    "load": "save",
    "onnx": "apply",
    "pt2": "apply",
}


@dataclass(frozen=True)
class Job:
    """One row to make."""

    library: str
    name: str
    small: bool
    methods: str

    @property
    def command(self) -> str:
        """What makes this row and no other."""
        asked = f"--library {self.library} --name {self.name} --methods {self.methods}"
        return f"python -m benchmarks.{NAME} {asked}" + " --small" * self.small


class Row(_rows.Record):
    """What became of one network. The command makes exactly this row, so it is also the row's identity."""

    library: str
    name: str
    small: bool
    methods: str
    params: int | None  # of the dense network
    ratio: float | None  # small / dense parameters
    stages: dict[str, str]  # "ok", or why not
    any_batch: bool | None  # whether both exported files take batches of any size
    difference: float | None  # relative, the worse of both files'
    seconds: float | None  # of CPU time
    device: str
    versions: str
    command: str

    @property
    def green(self) -> bool:
        """Whether every stage went well."""
        return all(text == OK for text in self.stages.values())

    def line(self) -> str:
        """The row in one line, for the terminal."""
        wrong = [f"{stage}: {text}" for stage, text in self.stages.items() if text not in (OK, UNREACHED)]
        ratio = "" if self.ratio is None else f" x{self.ratio:.3f}"
        return f"{self.library} {self.name} {self.methods}{ratio}, {self.seconds or 0:.1f} s: {'; '.join(wrong) or OK}"


@dataclass(frozen=True)
class Ended:
    """How a stage ended, and what is known by then."""

    stage: str
    text: str
    facts: dict[str, Any]  # fields of a row


class Trial:
    """A network on its way through the stages.

    Each stage is a method of its name. It returns why the result is wrong, or None; where it raises, the stages that
    need it are not reached.
    """

    def __init__(self, entry: _zoo.Entry, methods: Sequence[Method], folder: Path) -> None:
        self.entry, self.methods, self.folder = entry, methods, folder
        self.facts: dict[str, Any] = {}
        self.refused = False  # whether the budget was

    def build(self) -> None:
        """The dense network."""
        self.dense = _zoo.randomised(self.entry.build())
        self.facts["params"] = _params(self.dense)

    def options(self) -> None:
        """Trace and curves."""
        self.found = tenfold.options(self.dense, example=self.example, methods=self.methods)
        _ = self.found.ladders  # made when first asked for

    def plan(self) -> str | None:
        """The plan for the budget, or for the least that can be reached."""
        try:
            self.chosen = self.found.plan(Budget(params=SHARE))
        except tenfold.TenfoldError as refusal:
            least = re.search(r"reach ([\d,]+) parameters", str(refusal))
            if least is None:
                raise
            self.refused = True
            self.chosen = self.found.plan(Budget(params=int(least[1].replace(",", ""))))
            return str(refusal)
        return None

    def apply(self) -> str | None:
        """The small network."""
        self.small = tenfold.apply(self.dense, self.chosen)
        self.facts["ratio"] = ratio = _params(self.small) / self.facts["params"]
        promised = self.found.predicted(self.chosen.steps)[0]
        if _params(self.small) != promised:
            return f"{_params(self.small):,} parameters; the plan promised {promised:,}"
        if not (LEAST_SHARE <= ratio <= SHARE or self.refused):
            return f"{ratio:.3f} of the parameters are left; asked for were {SHARE:g}"
        return None

    def forward(self) -> str | None:
        """Outputs like the dense network's."""
        before, after = self._outputs(self.dense), self._outputs(self.small)
        if not _finite(before):
            return "the dense network's outputs are not finite"
        if not _finite(after):
            return "outputs are not finite"
        return None if self._form(before) == self._form(after) else "outputs have another structure or other shapes"

    def backward(self) -> str | None:
        """A gradient for every factor."""
        small = copy.deepcopy(self.small).train()
        inputs = (*self.example, self.entry.targets()) if self.entry.targets else self.example
        outputs = [leaf for leaf in _tensors(_called(small, inputs)) if leaf.is_floating_point()]
        sum(leaf.square().sum() for leaf in outputs).backward()  # type: ignore[union-attr]
        wrong = [
            f"{name}.{inside}"
            for name, module in small.named_modules()
            if isinstance(module, tenfold.Factored)
            for inside, factor in module.named_parameters()
            if factor.requires_grad and (factor.grad is None or not factor.grad.isfinite().all())
        ]
        return f"no finite gradient: {wrong[0]}, {len(wrong)} in all" if wrong else None

    def save(self) -> None:
        """The folder."""
        tenfold.save(self.folder / "small", self.small, self.chosen)

    def load(self) -> str | None:
        """The same network from the folder."""
        loaded = tenfold.load(self.folder / "small", self.dense)
        before, after = _tensors(self._outputs(self.small)), _tensors(self._outputs(loaded))
        same = len(before) == len(after) and all(map(torch.equal, before, after))
        return None if same else "outputs are not the same bit for bit"

    def onnx(self) -> None:
        """An ONNX file."""
        self._export("small.onnx")

    def pt2(self) -> None:
        """A file of torch.export."""
        self._export("small.pt2")

    @cached_property
    def example(self) -> Any:
        """What goes into the network."""
        return self.entry.example()

    def _export(self, name: str) -> None:
        exported = tenfold.export(self.small, self.example, self.folder / name)
        self.facts["any_batch"] = exported.any_batch and self.facts.get("any_batch", True)
        self.facts["difference"] = max(exported.relative, self.facts.get("difference", 0.0))

    def _outputs(self, model: nn.Module) -> Any:
        with torch.no_grad():
            return _called(model, self.example)

    def _form(self, outputs: Any) -> Any:
        leaves, structure = pytree.tree_flatten(outputs)
        first = 1 if self.entry.detects else 0  # how many boxes there are depends on the weights
        return structure, [tuple(leaf.shape[first:]) for leaf in leaves if isinstance(leaf, Tensor)]


def row(job: Job) -> Row:
    """Take a network through all stages, in a process of its own: one that is killed is a row like any other."""
    stages, facts = dict.fromkeys(STAGES, UNREACHED), {}
    with tempfile.TemporaryDirectory() as folder:
        for ended in _watched(job, Path(folder)):
            stages[ended.stage] = ended.text
            facts.update(ended.facts)
    return Row(
        library=job.library,
        name=job.name,
        small=job.small,
        methods=job.methods,
        params=facts.get("params"),
        ratio=_rounded(facts.get("ratio")),
        stages=stages,
        any_batch=facts.get("any_batch"),
        difference=_rounded(facts.get("difference")),
        seconds=facts.get("seconds"),
        device=f"{platform.machine()} CPU, 1 thread",
        versions=", ".join(f"{name} {version(name)}" for name in ("tenfold", "torch", "onnxruntime", job.library)),
        command=job.command,
    )


def _watched(job: Job, folder: Path) -> Iterator[Ended]:
    receiver, sender = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=_run, args=(sender, job, folder))
    process.start()
    sender.close()
    end, ahead = time.monotonic() + WALL_SECONDS, list(STAGES)
    try:
        while receiver.poll(max(0.0, end - time.monotonic())):
            ended = receiver.recv()
            ahead = ahead[ahead.index(ended.stage) + 1 :]
            yield ended
        process.kill()
        yield Ended(ahead[0], f"stopped after {WALL_SECONDS} s", {})
    except EOFError:
        process.join()
        if process.exitcode and ahead:
            yield Ended(ahead[0], _death(process.exitcode), {})
    finally:
        process.join()


def _death(exitcode: int) -> str:
    if exitcode == -signal.SIGXCPU:
        return f"stopped after {CPU_SECONDS} CPU seconds"
    return f"traceback: the process ended with exit code {exitcode}"


def _run(sender: Connection, job: Job, folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of exporters, about their own code
    logging.disable(logging.WARNING)
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, resource.RLIM_INFINITY))
    entry = _zoo.entries(job.library, small=job.small)[job.name]
    trial, passed = Trial(entry, METHODS[job.methods], folder), set()
    for stage in STAGES:
        if stage not in NEEDS or NEEDS[stage] in passed:
            text, completed = _ended(getattr(trial, stage))
            passed |= {stage} if completed else set()
            sender.send(Ended(stage, text, {**trial.facts, "seconds": round(time.process_time(), 1)}))


def _ended(stage: Callable[[], str | None]) -> tuple[str, bool]:
    """How a stage ended, and whether the stages that need it may run."""
    try:
        return stage() or OK, True
    except tenfold.TenfoldError as error:
        return _first_line(error), False
    except Exception as error:  # noqa: BLE001  whatever else is raised is what this benchmark looks for
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            return f"more than {BYTES >> 30} GiB of memory", False
        return f"traceback: {type(error).__name__}: {_first_line(error)}", False


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


def _params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _called(model: nn.Module, example: Any) -> Any:
    if isinstance(example, dict):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _finite(outputs: Any) -> bool:
    return all(bool(leaf.isfinite().all()) for leaf in _tensors(outputs))


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def page(rows: Sequence[Row]) -> str:
    """The page of documentation, from rows alone."""
    groups: defaultdict[str, list[Row]] = defaultdict(list)
    small = [one for one in rows if one.small]
    for one in sorted(rows, key=lambda row: (row.small, [*_zoo.LIBRARIES].index(row.library), row.name)):
        if one.methods not in ALONE:
            groups[f"Small networks, {one.library}" if one.small else one.library].append(one)
    stages = "\n".join(f"- `{stage}`: {text}" for stage, text in STAGES.items())
    devices = "; ".join(sorted({one.device for one in rows}))
    versions = sorted({package for one in rows for package in one.versions.split(", ")})
    return f"""# Architectures

Networks with random weights, taken through every stage from building to exported files. `ok` is a stage that went
well; a number is the reason below the table why it did not, and `-` a stage that was not reached after that.

{stages}

Methods are {", ".join(f"`{method!r}`" for method in METHODS[QUICK])}; for small networks all of
`tenfold.methods.DEFAULT`.
Images are about as small as a network takes, and batches hold two. A network may take {CPU_SECONDS} seconds of one CPU
and {BYTES >> 30} GiB. `batch` is whether both files take batches of any size or that of the example alone;
`difference` is ||file - model|| / ||model||, the worse of both. Made on {devices} with {", ".join(versions)}, by

```sh
python -m benchmarks.{NAME}
python -m benchmarks.{NAME} --small
```

## Cells that are ok

{_summary(groups)}
{_differences(small)}{"".join(_section(title, group) for title, group in groups.items())}"""


def _summary(groups: dict[str, list[Row]]) -> str:
    lines = [f"| | networks | all ok | {' | '.join(STAGES)} |", "|---|--:|--:|" + "--:|" * len(STAGES)]
    for title, rows in groups.items():
        counts = [sum(row.stages[stage] == OK for row in rows) for stage in STAGES]
        cells = " | ".join(map(str, counts))
        lines.append(f"| {title} | {len(rows)} | {sum(row.green for row in rows)} | {cells} |")
    return "\n".join(lines) + "\n"


def _differences(rows: Sequence[Row]) -> str:
    found = {(one.library, one.name, one.methods): one for one in rows}
    nets = sorted({(one.library, one.name) for one in rows})
    reasons: dict[str, int] = {}

    def cell(one: Row | None) -> str:
        if one is None or one.ratio == 1:
            return ""
        wrong = [text for stage, text in one.stages.items() if stage != "plan" and text not in (OK, UNREACHED)]
        return str(reasons.setdefault(wrong[0], len(reasons) + 1)) if wrong else _number(one.difference, ".0e")

    lines = [f"| network | {' | '.join((MIX, *ALONE))} |", "|---|" + "--:|" * (1 + len(ALONE))]
    for net in nets:
        lines.append(f"| {' '.join(net)} | {' | '.join(cell(found.get((*net, name))) for name in (MIX, *ALONE))} |")
    listed = [f"{number}. {text}" for text, number in reasons.items()]
    return (
        "\n".join(
            [
                "## Exported files against the model, each method alone\n",
                "||file - model|| / ||model||, worse of both files, for small networks at half of their parameters,",
                "or at the least that the method reaches. Blank where the method has no layer to make smaller.\n",
                *lines,
                "",
                *listed,
            ]
        ).rstrip()
        + "\n"
    )


def _section(title: str, rows: Sequence[Row]) -> str:
    reasons: dict[str, int] = {}
    lines = [
        f"| network | parameters | ratio | {' | '.join(STAGES)} | batch | difference | seconds |",
        "|---|--:|--:|" + "---|" * (len(STAGES) + 1) + "--:|--:|",
    ]
    for one in rows:
        cells = " | ".join(_cell(text, reasons) for text in one.stages.values())
        lines.append(
            f"| {one.name} | {_number(one.params, ',')} | {_number(one.ratio, '.3f')} | {cells} | {_batch(one)} "
            f"| {_number(one.difference, '.1e')} | {_number(one.seconds, '.0f')} |"
        )
    listed = [f"{number}. {text}" for text, number in reasons.items()]
    return "\n".join([f"\n## {title}\n", *lines, "", *listed]).rstrip() + "\n"


def _cell(text: str, reasons: dict[str, int]) -> str:
    if text == UNREACHED:
        return "-"
    return OK if text == OK else str(reasons.setdefault(text, len(reasons) + 1))


def _batch(row: Row) -> str:
    return "" if row.any_batch is None else "any" if row.any_batch else "fixed"


def _number(value: float | None, spec: str) -> str:
    return "" if value is None else f"{value:{spec}}"


def jobs(asked: argparse.Namespace) -> list[Job]:
    """The rows that the command line asks for."""
    return [
        Job(library, name, asked.small, methods)
        for methods in asked.methods or ((MIX, *ALONE) if asked.small else (QUICK,))
        for library in asked.library
        for name in _zoo.entries(library, small=asked.small)
        if any(fnmatchcase(name, pattern) for pattern in asked.name)
    ]


def made(missing: Sequence[Job], count: int, minutes: float | None) -> Iterator[Row]:
    """Rows as they are done, `count` at a time; none is begun after so many minutes."""
    end = float("inf") if minutes is None else time.monotonic() + 60 * minutes

    def in_time(job: Job) -> Row | None:
        return row(job) if time.monotonic() < end else None

    with ThreadPoolExecutor(count) as threads:
        for done in as_completed([threads.submit(in_time, job) for job in missing]):
            if (new := done.result()) is not None:
                yield new


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=str(__doc__).splitlines()[0])
    parser.add_argument("--library", nargs="+", choices=_zoo.LIBRARIES, default=[*_zoo.LIBRARIES])
    parser.add_argument("--name", nargs="+", default=["*"], help="shell patterns of names")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="those that compete")
    parser.add_argument("--small", action="store_true", help="forty small networks")
    parser.add_argument("--minutes", type=float, help="begin no row after so many")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time, each on one thread")
    return parser.parse_args()


def write_page(docs: Path) -> None:
    """The page, from the rows that there are."""
    _rows.replace_text(docs / f"{NAME}.md", page(_rows.read(ROWS, Row)))


def main() -> None:
    """Make the missing rows, then the page."""
    asked = arguments()
    done = {known.command for known in _rows.read(ROWS, Row)}
    for new in made([job for job in jobs(asked) if job.command not in done], asked.jobs, asked.minutes):
        _rows.add(ROWS, new)
        print(new.line(), flush=True)
    write_page(_rows.DOCS)


if __name__ == "__main__":
    main()
