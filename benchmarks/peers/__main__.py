"""Every living peer on the same weights, data and budget, right after compression or fine-tuned alike.

`python -m benchmarks.peers` makes the rows that are missing from `benchmarks/results/peers.json`, then `docs/peers.md`
from that file. A peer gets an environment of its own under `--runs`, installed from the package registry; what fails is
a row with its message. `--tuned` makes the rows after fine-tuning, beside the dense network trained as long. To measure
anew, delete the rows. `--quick` is for a look: 500 images, the small network, rows in a file of their own and no page.
"""

import argparse
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import tenfold
from benchmarks import _rows
from benchmarks._folder import data_folder
from benchmarks._images import SPLITS
from benchmarks.peers._environments import DENSE, PEERS, Unavailable, python_of
from benchmarks.peers._make import dense_net
from benchmarks.peers._page import page
from benchmarks.peers._row import USUAL, Found, Job, Row

ROWS, QUICK_ROWS = _rows.RESULTS / "peers.json", _rows.RESULTS / "peers-quick.json"
NETS, QUICK_NETS = ("resnet20", "resnet56"), ("resnet20",)  # without --net; resnet18 has to be trained first
BUDGETS, TUNED_BUDGETS = (0.7, 0.5, 0.35, 0.2), (0.5, 0.35)
TUNED_NETS, EPOCHS = ("resnet20",), 1
MOST_S = 3_600  # of one peer at one budget, besides fine-tuning


def run(job: Job, runs: Path, threads: int) -> Row:
    """Have a row made in the peer's environment."""
    found, message = None, None
    try:
        found = made(job, runs, threads)
    except (Unavailable, Failed) as error:
        message = str(error)
    return Row(
        **{"net": job.net, "data": job.data, "split": SPLITS[job.data], "peer": job.peer, "asked": job.params},
        **{"epochs": job.epochs, "quick": job.quick, "seed": job.seed, "found": found, "message": message},
        device=f"{platform.machine()} CPU, {threads} threads",
        version=tenfold.__version__,
        command=job.command,
    )


class Failed(Exception):  # noqa: N818  a fact about a peer, no error of ours
    """The peer does not run."""


def made(job: Job, runs: Path, threads: int) -> Found:
    """What the peer's process found.

    Raises:
        Unavailable: if the peer cannot be installed.
        Failed: with the first line of its message, if it cannot be imported or fails.
    """
    python = python_of(job.peer, runs / "envs")
    paths = os.pathsep.join([str(_rows.ROOT / "src"), str(_rows.ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / "found.json", runs / f"{job.stem}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        further = ["--runs", str(runs), "--threads", str(threads), "--out", str(out)]
        command = [str(python), "-W", "ignore", "-m", "benchmarks.peers._make", *job.options, *further]
        most = None if job.epochs else MOST_S
        with log.open("w") as writer:
            try:
                code = subprocess.run(
                    command, env=environment, stdout=writer, stderr=subprocess.STDOUT, timeout=most, check=False
                ).returncode
            except subprocess.TimeoutExpired:
                raise Failed(f"not finished after {MOST_S} s") from None
        if code:
            raise Failed(first_line(log.read_text(errors="replace")) or f"ended with code {code}")
        return Found.model_validate_json(out.read_text())


def first_line(log: str) -> str:
    """The first line of the exception that ended a process."""
    _, _, raised = log.rpartition("Traceback (most recent call last)")
    lines = [line for line in raised.splitlines()[1:] if line and not line.startswith((" ", "\t"))]
    return lines[0].removeprefix("benchmarks.peers._adapter.") if lines else ""


def jobs(asked: argparse.Namespace) -> Iterator[Job]:
    """The rows that the command line asks for."""
    nets = asked.net or (QUICK_NETS if asked.quick else TUNED_NETS if asked.tuned else NETS)
    epochs = asked.epochs if asked.tuned else 0
    for net in nets:
        data = asked.data or USUAL[net]
        for seed in asked.seed:
            peers = asked.peer or PEERS
            if epochs and (not asked.peer or DENSE in asked.peer):
                yield Job(net, data, DENSE, 1.0, seed, epochs, asked.quick)
            for share in asked.params or (TUNED_BUDGETS if asked.tuned else BUDGETS):
                yield from (Job(net, data, peer, share, seed, epochs, asked.quick) for peer in peers if peer != DENSE)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=str(__doc__).splitlines()[0])
    parser.add_argument("--net", nargs="+", choices=USUAL)
    parser.add_argument("--data", choices=SPLITS)
    parser.add_argument("--peer", nargs="+", choices=(*PEERS, DENSE))
    parser.add_argument("--params", nargs="+", type=float, help="shares of the dense parameters")
    parser.add_argument("--tuned", action="store_true", help="after fine-tuning")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of fine-tuning, over all training images")
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--runs", type=Path, default=_rows.RUNS, help="environments, checkpoints, logs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="500 images; without --net, the small network only")
    return parser.parse_args()


def write_page(docs: Path) -> None:
    """The page, from the rows that there are."""
    _rows.replace_text(docs / "peers.md", page(_rows.read(ROWS, Row)))


def main() -> None:
    """Make the missing rows, then the page."""
    asked = arguments()
    data_folder()  # refuse before work starts
    path = QUICK_ROWS if asked.quick else ROWS
    runs, todo = asked.runs.resolve(), list(jobs(asked))
    for net, data in {(job.net, job.data) for job in todo}:
        dense_net(net, data, runs)  # refuse here too
    _rows.make_missing(path, Row, [(job.command, partial(run, job, runs, asked.threads)) for job in todo])
    if not asked.quick:
        write_page(_rows.DOCS)


if __name__ == "__main__":
    main()
