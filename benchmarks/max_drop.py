"""The smallest network that loses no more than allowed: found on training images, then judged once on held-out ones.

`python -m benchmarks.max_drop` makes the rows that are missing from `benchmarks/results/max-drop.json`, then
`docs/max-drop.md` from that file. To measure anew, delete the file. Finished work is kept in `benchmarks/runs`.
"""

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import tenfold
from benchmarks import _rows
from benchmarks._folder import VARIABLE, data_folder
from benchmarks._images import Images, drawn_images, first_images
from benchmarks._nets import trained
from benchmarks._score import correct, paired_interval, percent

ROWS = _rows.RESULTS / "max-drop.json"
NETS, DATA = ("resnet20", "resnet56"), "cifar10-jpeg"
CALIBRATION, JUDGED, BATCH = 1024, 10_000, 128  # training images, all different
ALLOWED = (0.5, 1.0, 2.0)  # points


class Row(_rows.Record):
    """One search. The command makes exactly this row, so it is also the row's identity."""

    net: str
    allowed: float  # points that the accuracy may fall by, like all accuracies below in percent
    tried: int  # networks
    params_ratio: float
    dense_judged: float  # on the training images that judge
    small_judged: float
    judged: tuple[float, float]  # 95 % interval of the change there
    dense_held_out: float
    small_held_out: float
    held_out: tuple[float, float]
    seconds: float
    device: str
    version: str
    command: str

    def line(self) -> str:
        """The row in one line, for the terminal."""
        return f"{self.command}: {self.params_ratio:.3f} of the parameters, {self.small_held_out} %"


def run(net: str, allowed: float, threads: int) -> Row:
    """Search, and judge what was found."""
    dense = trained(net, DATA)
    drawn = drawn_images(DATA, "train", CALIBRATION + JUDGED, 0)
    calibration = Images(drawn.pixels[:CALIBRATION], drawn.labels[:CALIBRATION])
    judge = Images(drawn.pixels[CALIBRATION:], drawn.labels[CALIBRATION:])

    def evaluate(model: nn.Module) -> Tensor:
        return 100 * correct(model, judge).double()

    start = time.perf_counter()
    batches = [inputs for inputs, _ in calibration.batches(BATCH)]
    result = tenfold.compress(
        dense, tenfold.Budget(max_drop=allowed), example=batches[0][:1], calibration=batches, evaluate=evaluate
    )
    seconds = time.perf_counter() - start
    images = first_images(DATA, "test")
    before, after = correct(dense, images), correct(result.model, images)
    metric = result.report.metric
    assert metric is not None
    assert metric.interval is not None
    return Row(
        net=net,
        allowed=allowed,
        tried=len(result.report.trials),
        params_ratio=round(result.report.small.params / result.report.dense.params, 4),
        dense_judged=round(metric.dense, 2),
        small_judged=round(metric.small, 2),
        judged=metric.interval,
        dense_held_out=round(percent(before), 2),
        small_held_out=round(percent(after), 2),
        held_out=paired_interval(after, before),
        seconds=round(seconds, 1),
        device=result.report.device,
        version=tenfold.__version__,
        command=command(net, allowed, threads),
    )


def command(net: str, allowed: float, threads: int) -> str:
    """What makes a row and no other."""
    return f"python -m benchmarks.max_drop --net {net} --max-drop {allowed:g} --threads {threads}"


def page(rows: Sequence[Row]) -> str:
    """The page of documentation, from rows alone."""
    lines = [
        f"| {row.net} | {row.allowed:g} | {100 * row.params_ratio:.1f} % | {row.tried} "
        f"| {_change(row.small_judged, row.dense_judged, row.judged)} "
        f"| {_change(row.small_held_out, row.dense_held_out, row.held_out)} | {row.seconds / 60:.0f} | {row.device} |"
        for row in sorted(rows, key=lambda row: (row.net, row.allowed))
    ]
    table = "\n".join(lines)
    return f"""# The smallest network that loses no more than allowed

`Budget(max_drop=...)` with all methods, {CALIBRATION:,} calibration images and recovery by blocks, both without labels.
The search judges by {JUDGED:,} other training images; the held-out images are looked at once, when it is over. These
networks know their training images better than others, so what they lose on held-out images may differ. Changes are
in points, with 95 % intervals from differences image by image. Made with `{VARIABLE}` set, by

```sh
python -m benchmarks.max_drop
```

| network | allowed | parameters | tried | change on judging images | change on held-out images | minutes | device |
|---|--:|--:|--:|--:|--:|--:|---|
{table}
"""


def _change(small: float, dense: float, interval: tuple[float, float]) -> str:
    return f"{small - dense:+.2f} ({interval[0]:+.2f} to {interval[1]:+.2f}), to {small:.2f} %"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.max_drop", description=str(__doc__).splitlines()[0])
    parser.add_argument("--net", nargs="+", choices=NETS, default=NETS)
    parser.add_argument("--max-drop", nargs="+", type=float, default=ALLOWED, help="points of accuracy")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def write_page(docs: Path) -> None:
    """The page, from the rows that there are."""
    _rows.replace_text(docs / "max-drop.md", page(_rows.read(ROWS, Row)))


def main() -> None:
    """Make the missing rows, then the page."""
    asked = arguments()
    data_folder()  # refuse before work starts
    torch.set_num_threads(asked.threads)
    jobs = [(net, allowed, asked.threads) for net in asked.net for allowed in asked.max_drop]
    with tenfold.resumable(_rows.RUNS / "max-drop"):
        _rows.make_missing(ROWS, Row, [(command(*job), partial(run, *job)) for job in jobs])
    write_page(_rows.DOCS)


if __name__ == "__main__":
    main()
