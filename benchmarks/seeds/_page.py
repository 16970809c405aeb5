"""The page of the first seed system: our rows with the published figures beside them."""

from collections.abc import Sequence
from itertools import groupby

from benchmarks import _rows
from benchmarks._folder import VARIABLE
from benchmarks._train import Recipe
from benchmarks.seeds._cases import AUTHORS, CASES, CONTROL, DATA, DENSE, FURTHER


def page(rows: Sequence[_rows.Row]) -> str:
    """The page of documentation, from rows alone."""
    order = {(f"garipov-{net}", method): place for place, (net, method) in enumerate(CASES)}
    ordered = sorted(rows, key=lambda row: (row.net, row.device, order[row.net, row.method], row.seed))
    tables = "\n".join(_table(list(group)) for _, group in groupby(ordered, lambda row: (row.net, row.device)))
    versions = ", ".join(sorted({row.version for row in rows}))
    return f"""# Tensor trains, rebuilt

The networks of Garipov et al. 2016 ([arXiv 1611.03214](https://arxiv.org/abs/1611.03214)), trained on {DATA}, a
strongly compressed copy of CIFAR-10: compare changes from dense, not accuracies, with the published ones.

- `tt`: tensor trains over factors of the channels; `tt-fc`: in the Linear layers only; `naive`: trains over input,
  rows, columns and output. From random weights, trained as published:
  {_text(AUTHORS)} (0.03 where both kinds of layers are trains).
- `clamped`: the same ranks lowered to what can matter, from the weights of the trained dense network; `mix`: every
  method competes for every layer but the first and the last under one budget of parameters. Both then trained
  further, {FURTHER.distil:.0%} of the loss from the dense network's outputs:
  {_text(FURTHER)}.
- `{CONTROL}`: the dense network trained further in the same way. It is the control of the networks above; for those
  from random weights the control is the dense network.

Ranks are stated by `python -m benchmarks.seeds.tensor_train --structure`. Changes are from the dense network of the
same table, in points, with the 95 % interval of the difference on the same images, one by one. Multiply-adds and
latency are small / dense, on one image. Trains of convolutions, and all that are not clamped, rebuild the dense weight
in every pass, so they save no time. Made with tenfold {versions} and `{VARIABLE}` set, by

```
python -m benchmarks.seeds.tensor_train
```

{tables}"""


def _text(recipe: Recipe) -> str:
    rates = (
        "a half cosine to 0" if recipe.schedule == "cosine" else f"a tenth after each {0.3 * recipe.epochs:g} epochs"
    )
    return (
        f"{recipe.epochs} epochs, batches of {recipe.batch}, momentum {recipe.momentum:g}, "
        f"learning rate {recipe.lr:g}, {rates}"
    )


def _table(rows: Sequence[_rows.Row]) -> str:
    first = rows[0]
    head = (
        f"## {first.net}, {first.split} split",
        "",
        f"Measured on {first.device}.",
        "",
        "| method | seed | x fewer | accuracy, % | change (95 % interval) | control, % | multiply-adds | latency "
        "| published x | published, % | published change |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    )
    return "\n".join([*head, *map(_cells, rows)]) + "\n"


def _cells(row: _rows.Row) -> str:
    net = row.net.removeprefix("garipov-")
    published, dense = CASES[net, row.method].published, CASES[net, DENSE].published
    claimed = (
        f"{published.fewer:.2f} | {published.accuracy:.1f} | {published.accuracy - dense.accuracy:+.1f}"
        if published and dense
        else "| |"
    )
    low, high = row.interval
    return (
        f"| {row.method} | {row.seed} | {1 / row.params_ratio:.2f} | {row.accuracy:.2f} "
        f"| {row.accuracy - row.dense_accuracy:+.2f} ({low:+.2f} to {high:+.2f}) | {row.control_accuracy:.2f} "
        f"| {row.macs_ratio:.3f} | {row.latency_ratio:.2f} | {claimed} |"
    )
