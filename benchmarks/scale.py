"""Time and memory against the width and the number of layers, and networks that lie in files, also on several hosts.

`python -m benchmarks.scale` makes the rows that are missing from `benchmarks/results/scale.json`, then `docs/scale.md`
and its picture from that file. Every row is a process of its own. `--runs` is a folder for weights in files: 5 GB for
the decoder of a billion parameters. Needs torchvision and matplotlib; `ray` for the rows on workers; root and
`iproute2` for two hosts, which are network namespaces. To measure anew, delete the file.
"""

import argparse
import json
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import tenfold
from benchmarks import _rows, _transformer

ROWS = _rows.RESULTS / "scale.json"
WIDTHS = {
    "svd": [(n, n) for n in (256, 512, 1024, 2048, 4096)] + [(14336, 4096)],
    "spatial": [(n, n) for n in (64, 128, 256, 512)],
    "tucker": [(n, n) for n in (64, 128, 256, 512)],
    "cp": [(n, n) for n in (64, 128, 256, 512)],
}
COUNTS = (30, 100, 300, 1000, 3000)
WAYS = ("alone", "workers", "lost", "hosts")
BUDGET = "half of the parameters"


@dataclass(frozen=True)
class Job:
    """One row to make."""

    what: str  # "layer", "count", "resnet50" or "decoder"
    setting: str
    threads: int

    @property
    def command(self) -> str:
        """The row's identity."""
        return f'python -m benchmarks.scale --what {self.what} --setting "{self.setting}" --threads {self.threads}'


class Row(_rows.Record):
    """What one process took."""

    what: str
    setting: str
    threads: int
    seconds: dict[str, float]
    peak: dict[str, int] | None = None  # bytes at most: its own and shared ones, and all with pages of files
    bytes: tuple[int, ...] = ()  # of the weights, before and after
    steps: int | None = None
    digest: str | None = None  # of the plan and all weights
    device: str
    version: str
    command: str

    def line(self) -> str:
        """The row in one line, for the terminal."""
        times = ", ".join(f"{name} {value:.1f} s" for name, value in self.seconds.items())
        peak = "" if self.peak is None else f", {self.peak['all'] / 1e9:.2f} GB"
        return f"{self.what} {self.setting}: {times}{peak} {self.digest or ''}"


def run(job: Job, runs: Path) -> Row:
    """Run it in a process of its own."""
    found = decoded(job, runs) if job.what == "decoder" else called([job.what, *job.setting.split()], job.threads)
    common = {"device": f"{platform.machine()}, {os.cpu_count()} cores", "version": tenfold.__version__}
    return Row(what=job.what, setting=job.setting, threads=job.threads, **found, **common, command=job.command)


def called(words: Sequence[str], threads: int, before: Sequence[str] = ()) -> dict[str, Any]:
    """What a process of `_scale_runs` says, run behind the words `before`."""
    command = [*before, sys.executable, "-W", "ignore", "-m", "benchmarks._scale_runs", "--threads", str(threads)]
    done = subprocess.run([*command, *words], cwd=_rows.ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def decoded(job: Job, runs: Path) -> dict[str, Any]:
    """The decoder, from files to files."""
    size, way = job.setting.split()
    weights, out = runs / "scale" / size, runs / "scale" / f"{size}-{way}"
    if not weights.exists():
        _transformer.write(size, weights, seed=0)
    words = ["decoder", str(weights), size, str(out)]
    try:
        if way == "hosts":
            with two_hosts(job.threads) as (address, here):
                return called([*words, "--ray", address], job.threads, here)
        more = {"alone": [], "workers": ["--ray", "local"], "lost": ["--ray", "local", "--lose"]}
        return called([*words, *more[way]], job.threads)
    finally:
        shutil.rmtree(out, ignore_errors=True)


@contextmanager
def two_hosts(threads: int) -> Iterator[tuple[str, list[str]]]:
    """A Ray cluster of two network namespaces, joined by a cable; its address, and what runs a command in the first."""
    names, cluster = ("tenfold-a", "tenfold-b"), "10.77.0.1:6399"
    ray, free = str(Path(sys.executable).parent / "ray"), ["env", "RAY_AUTH_MODE=disabled"]  # nobody else is there

    def do(*words: str) -> None:
        subprocess.run(words, check=True, capture_output=True)

    try:
        for name in names:
            do("ip", "netns", "add", name)
        cable = ("type", "veth", "peer", "name", "end-b", "netns", names[1])
        do("ip", "link", "add", "name", "end-a", "netns", names[0], *cable)
        for number, (name, end) in enumerate(zip(names, ("end-a", "end-b"), strict=True), 1):
            inside = ("ip", "-n", name)
            do(*inside, "addr", "add", f"10.77.0.{number}/24", "dev", end)
            do(*inside, "link", "set", end, "up")
            do(*inside, "link", "set", "lo", "up")
            joins = [f"--address={cluster}"] if number > 1 else ["--head", "--port=6399", "--include-dashboard=false"]
            place = [f"--node-ip-address=10.77.0.{number}", f"--num-cpus={threads}"]
            do("ip", "netns", "exec", name, *free, ray, "start", *joins, *place)
        yield cluster, ["ip", "netns", "exec", names[0], *free]
    finally:
        for name in names:
            inside = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
            for pid in map(int, inside.stdout.split()):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        latest = Path(tempfile.gettempdir()) / "ray" / "ray_current_cluster"  # which Ray would look for next time
        if latest.exists() and latest.read_text().strip() == cluster:
            latest.unlink()


def jobs(asked: argparse.Namespace) -> list[Job]:
    """The rows that the command line asks for."""
    layers = [f"{width} {inputs} {method}" for method, sizes in WIDTHS.items() for width, inputs in sizes]
    every = {
        "layer": layers,
        "count": list(map(str, COUNTS)),
        "resnet50": ["closed", "all"],
        "decoder": [f"1b {way}" for way in WAYS],
    }
    chosen = [(what, setting) for what, settings in every.items() for setting in settings]
    return [
        Job(what, setting, asked.threads)
        for what, setting in chosen
        if asked.what in (None, what) and (not asked.setting or setting in asked.setting)
    ]


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of the straight line through logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def write_page(docs: Path) -> None:
    """The page and its picture, from the rows that there are."""
    from benchmarks._scale_page import draw, page

    rows = _rows.read(ROWS, Row)
    _rows.replace_text(docs / "scale.md", page(rows))
    draw(rows, docs / "scale.svg")


def main() -> None:
    """Make the missing rows, then the page and the picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=str(__doc__).splitlines()[0])
    parser.add_argument("--what", choices=("layer", "count", "resnet50", "decoder"))
    parser.add_argument("--setting", nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=Path, default=_rows.RUNS)
    asked = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    _rows.make_missing(ROWS, Row, [(job.command, partial(run, job, asked.runs)) for job in jobs(asked)])
    write_page(_rows.DOCS)


if __name__ == "__main__":
    main()
