"""What the scale benchmark runs in processes of their own, so that each has its own peak of memory.

`python -m benchmarks._scale_runs decoder FOLDER SIZE OUT [--ray ADDRESS] [--lose]`: from files to files.
`python -m benchmarks._scale_runs layer WIDTH INPUTS METHOD`: curve and factors of one layer.
`python -m benchmarks._scale_runs count LAYERS`: the choice over so many layers.
`python -m benchmarks._scale_runs resnet50 closed|all`: all options and the choice, beside one SVD of every layer.

Each prints one line of JSON.
"""

import argparse
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import Any

import torch
from torch import nn

import tenfold
from benchmarks import _transformer
from tenfold._progress import listening
from tenfold._shards import mapped
from tenfold.methods import CP, SVD, SpatialSVD, Tucker

METHODS = {"svd": SVD(), "spatial": SpatialSVD(), "tucker": Tucker(), "cp": CP(3)}


def decoder(asked: argparse.Namespace) -> dict[str, Any]:
    """Plan and compress a decoder to half of its parameters, by SVD."""
    start, seconds = time.perf_counter(), {}
    model = tenfold.with_weights(_transformer.empty(asked.size), asked.folder)
    cluster = tenfold.workers(asked.ray) if asked.ray else nullcontext()
    with _Memory() as memory, cluster, listening(_lose_a_worker(seconds, start) if asked.lose else lambda *_: None):
        found = tenfold.options(model, example=torch.arange(16)[None], methods=[SVD()], freeze=["embed"])
        plan = found.plan(tenfold.Budget(params=0.5))
        seconds["plan"] = time.perf_counter() - start
        tenfold.apply_to(asked.out, model, plan)
    seconds["all"] = time.perf_counter() - start
    before, after = (sum(p.nbytes for p in mapped(place).values()) for place in (asked.folder, asked.out))
    digest = hashlib.sha256(plan.dumps().encode())
    for name, tensor in sorted(mapped(asked.out).items()):
        digest.update(name.encode() + tensor.view(torch.uint8).numpy().tobytes())
    return {
        "seconds": seconds,
        "steps": len(plan.steps),
        "bytes": [before, after],
        "peak": memory.peak,
        "digest": digest.hexdigest()[:16],
    }


def layer(asked: argparse.Namespace) -> dict[str, Any]:
    """The curve of one layer, and its factors at half of its parameters."""
    shape = (asked.width, asked.inputs)
    generator = torch.Generator().manual_seed(0)
    dense: Any = nn.Linear(asked.inputs, asked.width, bias=False)
    if asked.method != "svd":
        dense, shape = nn.Conv2d(asked.inputs, asked.width, 3, bias=False), (asked.width, asked.inputs, 3, 3)
    with torch.no_grad():
        dense.weight.copy_(torch.randn(shape, generator=generator))
    given = torch.zeros(1, asked.inputs, *[3] * (len(shape) - 2))
    warm_up()
    with _Memory() as memory:
        start = time.perf_counter()
        found = tenfold.options(nn.Sequential(dense), example=given, methods=[METHODS[asked.method]])
        plan, planned = found.plan(tenfold.Budget(params=0.5)), time.perf_counter()
        tenfold.apply(found.model, plan)
    seconds = {"plan": planned - start, "all": time.perf_counter() - start}
    return {"seconds": seconds, "peak": memory.peak, "bytes": [dense.weight.nbytes]}


def count(asked: argparse.Namespace) -> dict[str, Any]:
    """Options and choice of a network of so many small layers."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(asked.layers)))
    warm_up()
    start = time.perf_counter()
    with _Memory() as memory:
        found = tenfold.options(model, example=torch.zeros(1, 64), methods=[SVD()])
        plan, planned = found.plan(tenfold.Budget(params=0.6)), time.perf_counter()
        tenfold.apply(model, plan)
    return {"seconds": {"plan": planned - start, "all": time.perf_counter() - start}, "peak": memory.peak}


def warm_up() -> None:
    """What the first use of libraries takes is no layer's."""
    small = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 8))
    for method in METHODS.values():
        plan = tenfold.plan(small, tenfold.Budget(params=0.8), example=torch.zeros(1, 8, 3, 3), methods=[method])
        tenfold.apply(small, plan)


def resnet50(asked: argparse.Namespace) -> dict[str, Any]:
    """All options of a ResNet-50 with random weights, and the choice, beside one SVD of every layer."""
    from torchvision import models

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.resnet50(weights=None).eval()
    layers = [m.weight.detach().flatten(1) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    closed = [SVD(), SVD("input"), SpatialSVD(), Tucker()]
    methods = closed if asked.methods == "closed" else None

    def plan() -> None:
        tenfold.plan(model, tenfold.Budget(params=0.5), example=torch.zeros(1, 3, 224, 224), methods=methods)

    works: dict[str, Callable[[], object]] = {
        "plan": plan,
        "svd": lambda: [torch.linalg.svd(layer, full_matrices=False) for layer in layers],
        "full svd": lambda: [torch.linalg.svd(layer, full_matrices=True) for layer in layers],
        "full svd in double precision": lambda: [torch.linalg.svd(layer.double()) for layer in layers],
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(3):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return {"seconds": {name: median(values) for name, values in seconds.items()}}


class _Memory:
    """The peak of this process and of all below it: what is its own, and with the pages of files that it has read."""

    def __enter__(self) -> "_Memory":
        self.peak, self._done = {"own": 0, "all": 0}, Event()
        self._thread = Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._look()  # at what is held still, where nothing took long

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self._look()

    def _look(self) -> None:
        sizes = [_memory(pid) for pid in [os.getpid(), *_below(os.getpid())]]
        self.peak["own"] = max(self.peak["own"], sum(size["RssAnon"] + size["RssShmem"] for size in sizes))
        self.peak["all"] = max(self.peak["all"], sum(sum(size.values()) for size in sizes))


def _memory(pid: int) -> dict[str, int]:
    names = ("RssAnon", "RssFile", "RssShmem")
    with suppress(OSError):
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return {name: int(lines.get(name, "0 kB").split()[0]) * 1024 for name in names}
    return dict.fromkeys(names, 0)


def _below(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                found += [int(child), *_below(int(child))]
    return found


def _lose_a_worker(seconds: dict[str, float], start: float) -> Any:
    """Kill a worker once when half of the curves, and once when half of the factors, are done."""
    lost: set[str] = set()

    def listener(what: str, done: int, total: int | None) -> None:
        if what in ("curves", "factors") and what not in lost and total and done >= total // 2:
            lost.add(what)
            names = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in _below(os.getpid())}
            workers = (pid for pid, name in names.items() if name.startswith(("ray::_done", "ray::IDLE")))
            os.kill(max(workers, key=lambda pid: names[pid]), signal.SIGKILL)  # one that works first
            seconds[f"lost during {what}"] = time.perf_counter() - start

    return listener


def main() -> None:
    """Run what is asked and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks._scale_runs")
    parser.add_argument("--threads", type=int, default=1)
    kinds = parser.add_subparsers(required=True)
    one = kinds.add_parser("decoder")
    one.add_argument("folder", type=Path)
    one.add_argument("size", choices=_transformer.SIZES)
    one.add_argument("out", type=Path)
    one.add_argument("--ray")
    one.add_argument("--lose", action="store_true")
    one.set_defaults(run=decoder)
    one = kinds.add_parser("layer")
    one.add_argument("width", type=int)
    one.add_argument("inputs", type=int)
    one.add_argument("method", choices=METHODS)
    one.set_defaults(run=layer)
    one = kinds.add_parser("count")
    one.add_argument("layers", type=int)
    one.set_defaults(run=count)
    one = kinds.add_parser("resnet50")
    one.add_argument("methods", choices=("closed", "all"))
    one.set_defaults(run=resnet50)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    sys.stdout.write(json.dumps(asked.run(asked)) + "\n")


if __name__ == "__main__":
    main()
