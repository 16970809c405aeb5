"""The page of the third seed system: our rows with the published figures beside them."""

import shlex
from collections.abc import Sequence
from itertools import groupby

from benchmarks import _rows
from benchmarks._folder import VARIABLE
from benchmarks._train import SHORTER
from benchmarks.seeds._joint_cases import FRESH, FURTHER
from benchmarks.seeds._structure_cases import METHODS, SPARSITY

# Of ResNet-18 on land-use scenes: megabytes and F1 by method and size; dense .9373 at 44.79.
_PUBLISHED = """
| method | size | F1 | change, points |
|---|--:|--:|--:|
| SVD, spatial, orthogonality 100 | 23.9 % | .9288 | -0.85 |
| | 21.2 % | .9258 | -1.15 |
| | 14.2 % | .8820 | -5.53 |
| SVD, channel, from the trained network | 31.4 % | .9355 | -0.18 |
| | 10.0 % | .9053 | -3.20 |
| soft filter pruning, 50 % of each layer | 40.7 % | .9282 | -0.91 |
| 70 % | 17.4 % | .9147 | -2.26 |
| 80 % | 8.4 % | .8841 | -5.32 |
| 90 % | 2.4 % | .6706 | -26.67 |
"""


class Row(_rows.Row):
    """A row with what the network had before it was cut to size, and right after."""

    before: float | None = None  # percent
    after: float | None = None


def page(rows: Sequence[Row]) -> str:
    """The page of documentation, from rows alone."""
    ordered = sorted(rows, key=lambda row: (*_of_table(row), -(row.asked or 0), METHODS.index(row.method), row.seed))
    tables = "\n".join(_table(list(group)) for _, group in groupby(ordered, _of_table))
    versions = ", ".join(sorted({row.version for row in rows}))
    strengths = ", ".join(f"{name} {value:g}" for name, value in SPARSITY.items())
    return f"""# Trained to be small

The comparison of ITMO's structure optimisation (2022): networks whose structure is found while they train, from random
weights and from a trained network.

- `svd-*`: SVD training in its two forms, orthogonality 1, sparsity of singular values by one of three regularisers
  ({strengths}); then the least are cut by energy, the same share in every layer, until the network has the size
  asked for, and factors are trained on without sparsity.
- `sfp`, `asfp`: soft filter pruning at a constant and at an asymptotic rate; the same share of every group of filters
  that can go. `asfp-budget`: as many of each as a budget of the whole network says by calibration data. Then the
  filters are removed, and the network is trained on.
- `mix`: every method of the library under the budget, fitted to calibration data, fine-tuned for all epochs.

From random weights: {FRESH.epochs} epochs at {FRESH.lr:g}, then {FURTHER.epochs // 2} at {FURTHER.lr:g}, by labels.
From the trained network: twice {FURTHER.epochs // 2} at {FURTHER.lr:g}, {FURTHER.distil:.0%} of the loss from its
outputs. The control is the dense network trained for as many epochs in the same way. `short` tables are from {SHORTER}
times fewer epochs. Accuracies are percent of the held-out split, as the network came out of training, right after it
was cut, and after training on. Changes are in points, with the 95 % interval of the difference on the same images.
Multiply-adds and latency are small / dense, on one image. Made with tenfold {versions} and `{VARIABLE}` set, by

```sh
python -m benchmarks.seeds.structure
```

{tables}
## Published

ResNet-18 on land-use scenes, 21 classes (dense: F1 .9373). Their SVD networks ran no faster, because layers rebuilt
their weights, and their removal of filters changed outputs.
{_PUBLISHED}
Elsewhere: ResNet-56 on CIFAR-10 loses 0.24 points by soft filter pruning at 52.6 % fewer multiply-adds, and 0.47 in the
asymptotic form; ResNet-20 loses 1.37 at 42.2 % (as the WHC paper reports).
"""


def _of_table(row: Row) -> tuple[str, str, str, bool, str]:
    words = shlex.split(row.command)
    return row.net, row.data, words[words.index("--start") + 1], row.is_short, row.device


def _table(rows: Sequence[Row]) -> str:
    net, data, start, short, device = _of_table(rows[0])
    first = rows[0]
    head = (
        f"## {net}, {data}, {start} start" + ", short" * short,
        "",
        f"Dense: {first.dense_accuracy:.2f} %, control: {first.control_accuracy:.2f} % of the {first.split} split. "
        f"Measured on {device}.",
        "",
        "| asked | method | parameters | multiply-adds | latency | before | right after | trained on "
        "| change from dense (95 %) | from the control |",
        "|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    )
    return "\n".join([*head, *map(_cells, rows)]) + "\n"


def _cells(row: Row) -> str:
    before, after = ("" if value is None else f"{value:.2f}" for value in (row.before, row.after))
    return (
        f"| {100 * (row.asked or 0):g} % | {row.method} | {row.params_ratio:.3f} | {row.macs_ratio:.3f} "
        f"| {row.latency_ratio:.2f} | {before} | {after} | {row.accuracy:.2f} "
        f"| {_rows.change(row.accuracy - row.dense_accuracy, row.interval)} "
        f"| {_rows.change(row.accuracy - (row.control_accuracy or 0), row.control_interval)} |"
    )
