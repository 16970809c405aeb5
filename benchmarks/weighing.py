"""How errors should be weighed across layers: the same options, chosen by different sums.

`python -m benchmarks.weighing` makes the rows that are missing from `benchmarks/results/weighing.json`, then
`docs/weighing.md` from that file. To measure anew, delete the file. Judged on images of the training split that took
no other part: nothing is tuned on held-out images.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

import tenfold
from benchmarks import _rows
from benchmarks._folder import VARIABLE, data_folder
from benchmarks._images import drawn_images
from benchmarks._nets import trained
from tenfold import _demo
from tenfold._choice import Offer, Pool, chosen, pooled
from tenfold.methods import CP, SVD, Method, SpatialSVD

ROWS = _rows.RESULTS / "weighing.json"
DATA, CALIBRATION, JUDGED, BATCH = "cifar10-jpeg", 1024, 3000, 128
METHODS: dict[str, Sequence[Method]] = {"svd": [SVD()], "three": [SVD(), SpatialSVD(), CP(3)]}
SHARES = {"svd": (0.5, 0.35), "three": (0.35, 0.2)}
DIGITS_SHARES = {"svd": (0.15, 0.1), "three": (0.1, 0.05)}  # it loses nothing before
NETS = ("resnet20", "resnet56", "digits")
Floats = NDArray[np.float64]


def _kept(e: Floats) -> Floats:
    return np.maximum(1 - e, 1e-3)


SUMS: dict[str, Callable[[Floats, float, float], Floats]] = {
    "e": lambda e, *_: e,
    "e / (1 - e)": lambda e, *_: e / _kept(e),
    "m e": lambda e, m, _: m * e,
    "m e / (1 - e)": lambda e, m, _: m * e / _kept(e),
    "sqrt(m) e / (1 - e)": lambda e, m, _: m**0.5 * e / _kept(e),
    "sqrt(m) e / sqrt(1 - e)": lambda e, m, _: m**0.5 * e / _kept(e) ** 0.5,
    "d e": lambda e, _, d: d * e,
    "sqrt(d) e / sqrt(1 - e)": lambda e, _, d: d**0.5 * e / _kept(e) ** 0.5,
}
TRIED_ERROR, TRIED_IMAGES = 0.2, 256  # d is measured with each layer alone at about this e


@dataclass(frozen=True)
class Weighed(tenfold.Target):
    """A share of the parameters, by a choice that adds up one of the sums."""

    share: float
    how: str
    measured: Mapping[Sequence[str], float]

    def steps(self, options: tenfold.Options) -> list[tenfold.Step]:
        """The steps of the least sum."""

        def price(pool: Pool) -> Floats:
            assert pool.moves is not None
            return SUMS[self.how](pool.errors[:, 0], float(pool.moves[0]), self.measured[pool.layers])

        return chosen(Offer.of(options), {"params": int(self.share * options.dense.params)}, price).steps


class Row(_rows.Record):
    """One choice. The command makes exactly this row, so it is also the row's identity."""

    net: str
    methods: str
    share: float  # of the parameters, asked for
    how: str  # the sum
    dense_accuracy: float  # percent, of images that took no other part
    accuracy: float
    drift: float  # squared change of the outputs over their variance
    params_ratio: float
    command: str

    def line(self) -> str:
        """The row in one line, for the terminal."""
        return f"{self.command}: {self.accuracy:.2f} %, drift {self.drift:.4f}"


@lru_cache(maxsize=1)
def network(net: str) -> tuple[nn.Module, list[Tensor], Tensor, Tensor]:
    """A trained network, batches for calibration, and images with labels to judge by."""
    if net == "digits":  # it fits its training images nearly perfectly
        train, judged = _demo._digits()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = _demo._trained(train)
        return model, [x for x, _ in DataLoader(train, batch_size=BATCH)], *judged.tensors
    images = drawn_images(DATA, "train", CALIBRATION + JUDGED, 0)
    (inputs, labels), *_ = images.batches(len(images))
    return trained(net, DATA), [*inputs[:CALIBRATION].split(BATCH)], inputs[CALIBRATION:], labels[CALIBRATION:]


@lru_cache(maxsize=1)
def options(net: str, methods: str) -> tenfold.Options:
    """Good for every share and sum."""
    model, batches, *_ = network(net)
    statistics = tenfold.calibrate(model, batches)
    return tenfold.options(model, example=batches[0][:1], statistics=statistics, methods=METHODS[methods])


@lru_cache(maxsize=1)
def measured(net: str, methods: str) -> dict[Sequence[str], float]:
    """Of each layer, the drift of the outputs when it alone is replaced, over e: d."""
    found, (model, batches, *_) = options(net, methods), network(net)
    inputs = torch.cat(batches)[:TRIED_IMAGES]
    drifts = {}
    for pool in pooled(ladder.cheaper() for ladder in found.ladders):
        index = int(np.abs(np.log(pool.worst / TRIED_ERROR)).argmin())
        small = tenfold.apply(model, tenfold.Plan([pool.step(index)]), found.statistics)
        drifts[pool.layers] = drift(small, model, inputs)[2] / float(pool.worst[index])
    return drifts


def drift(small: nn.Module, dense: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor, float]:
    """The outputs of both, and the squared difference over the variance."""
    with torch.inference_mode():
        before, after = (torch.cat([each(part) for part in inputs.split(500)]) for each in (dense, small))
    return before, after, float((after - before).square().sum() / (before - before.mean(0)).square().sum())


def command(net: str, methods: str, share: float, how: str) -> str:
    """What makes a row and no other."""
    return f'python -m benchmarks.weighing --net {net} --methods {methods} --share {share:g} --sum "{how}"'


def run(net: str, methods: str, share: float, how: str) -> Row:
    """Choose, apply and judge."""
    model, _, inputs, labels = network(net)
    found = options(net, methods)
    target = Weighed(share, how, measured(net, methods))
    small = tenfold.apply(model, found.plan(target), found.statistics)
    before, after, moved = drift(small, model, inputs)
    return Row(
        net=net,
        methods=methods,
        share=share,
        how=how,
        dense_accuracy=round(100 * float((before.argmax(1) == labels).float().mean()), 2),
        accuracy=round(100 * float((after.argmax(1) == labels).float().mean()), 2),
        drift=round(moved, 4),
        params_ratio=round(tenfold.measure(small, inputs[:1]).params / found.dense.params, 4),
        command=command(net, methods, share, how),
    )


def page(rows: Sequence[Row]) -> str:
    """The page of documentation, from rows alone."""
    head = [f"| network | methods | share | dense | {' | '.join(SUMS)} |", "|---|---|--:|--:|" + "--:|" * len(SUMS)]
    found = {(row.net, row.methods, row.share, row.how): row for row in rows}
    lines = []
    for net, methods, share in dict.fromkeys(key[:3] for key in found):
        cells = [found.get((net, methods, share, how)) for how in SUMS]
        shown = " | ".join("" if row is None else f"{row.accuracy:.2f} ({row.drift:.3f})" for row in cells)
        dense = next(row.dense_accuracy for row in cells if row is not None)
        lines.append(f"| {net} | {methods} | {100 * share:g} % | {dense:.2f} | {shown} |")
    table = "\n".join([*head, *lines])
    return f"""# How layers are weighed against each other

The same options, in the metric of the data, chosen by different sums over layers: accuracy in percent, and the relative
drift of the outputs in parentheses. e is the relative squared error of an option; m what moves in the outputs if the
layer is lost, to first order, from gradients; d the drift measured with that layer alone replaced, over its e (about
{TRIED_ERROR:g}, on {TRIED_IMAGES} calibration images). `svd` is the SVD alone, `three` are SVD, spatial SVD and CP.
Statistics are of {CALIBRATION:,} training images; accuracy is of {JUDGED:,} others of the training split, after no
recovery. The digits network fits its training images nearly perfectly, and is judged on images that it has not seen.
Made with `{VARIABLE}` set, by

```sh
python -m benchmarks.weighing
```

{table}
"""


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weighing", description=str(__doc__).splitlines()[0])
    parser.add_argument("--net", nargs="+", choices=NETS, default=NETS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--share", nargs="+", type=float, help="of the parameters")
    parser.add_argument("--sum", nargs="+", choices=SUMS, default=[*SUMS])
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def write_page(docs: Path) -> None:
    """The page, from the rows that there are."""
    _rows.replace_text(docs / "weighing.md", page(_rows.read(ROWS, Row)))


def main() -> None:
    """Make the missing rows, then the page."""
    asked = arguments()
    data_folder()  # refuse before work starts
    torch.set_num_threads(asked.threads)
    jobs: list[tuple[Any, ...]] = [
        (net, methods, share, how)
        for net in asked.net
        for methods in asked.methods
        for share in asked.share or (DIGITS_SHARES if net == "digits" else SHARES)[methods]
        for how in asked.sum
    ]
    _rows.make_missing(ROWS, Row, [(command(*job), partial(run, *job)) for job in jobs])
    write_page(_rows.DOCS)


if __name__ == "__main__":
    main()
