"""The page of the first seed system: our rows with the published figures beside them."""

from collections.abc import Sequence
from itertools import groupby

from benchmarks import _rows
from benchmarks._folder import VARIABLE
from benchmarks._train import SHORTER
from benchmarks.seeds._cases import CASES, CONTROL, DATA, DENSE, FRESH, FRESH_BOTH_KINDS, FURTHER
from tenfold.train import Recipe


def page(rows: Sequence[_rows.Row]) -> str:
    """The page of documentation, from rows alone."""
    order = {(f"garipov-{net}", method): place for place, (net, method) in enumerate(CASES)}
    ordered = sorted(rows, key=lambda row: (*_of_table(row), order[row.net, row.method], row.seed))
    tables = "\n".join(_table(list(group)) for _, group in groupby(ordered, _of_table))
    versions = ", ".join(sorted({row.version for row in rows}))
    return f"""# Tensor trains, rebuilt

The networks of Garipov et al. 2016 ([arXiv 1611.03214](https://arxiv.org/abs/1611.03214)), trained on {DATA}, a
strongly compressed copy of CIFAR-10: compare changes from dense, not accuracies, with the published ones.

- `tt`: tensor trains over factors of the channels; `tt-fc`: in the Linear layers only; `naive`: trains over input,
  rows, columns and output. From random weights, without decay of weights as published (the dense network with
  {FRESH.weight_decay:g}), at {FRESH_BOTH_KINDS.lr:g} where both kinds of layers are trains, else:
  {_text(FRESH)}.
- `clamped`: the published ranks lowered to what can matter, from the weights of the trained dense network; `mix`: every
  method competes for every layer but the first and the last under one budget of parameters, factors fitted to training
  images. Both then fine-tuned, {FURTHER.distil:.0%} of the loss from the dense network's outputs:
  {_text(FURTHER)}.
- `{CONTROL}`: the dense network trained further in the same way. It is the control of the networks above; for those
  from random weights the control is the dense network.

`short` tables are from {SHORTER} times fewer epochs. All ran in bfloat16 and learnt from 95 % of the training split.

Ranks are stated by `python -m benchmarks.seeds.tensor_train --structure`. Changes are in points, with
the 95 % interval of the difference on the same images, one by one. Multiply-adds and latency are small / dense, on one
image. Trains of convolutions, and all that are not clamped, rebuild the dense weight
in every pass, so they save no time. Made with tenfold {versions} and `{VARIABLE}` set, by

```sh
python -m benchmarks.seeds.tensor_train
```

{tables}"""


def _of_table(row: _rows.Row) -> tuple[str, bool, str]:
    return row.net, row.is_short, row.device


def _text(recipe: Recipe) -> str:
    return (
        f"{recipe.epochs} epochs, batches of {recipe.batch}, Nesterov momentum {recipe.momentum:g}, "
        f"learning rate {recipe.lr:g} falling by a half cosine to 0"
    )


def _table(rows: Sequence[_rows.Row]) -> str:
    net, short, device = _of_table(rows[0])
    head = (
        f"## {net}, {rows[0].split} split" + ", short" * short,
        "",
        f"Measured on {device}.",
        "",
        "| method | seed | x fewer | accuracy, % | change from dense (95 %) | from the control "
        "| multiply-adds | latency | published x | published, % | published change |",
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
    return (
        f"| {row.method} | {row.seed} | {1 / row.params_ratio:.2f} | {row.accuracy:.2f} "
        f"| {_rows.change(row.accuracy - row.dense_accuracy, row.interval)} "
        f"| {_rows.change(row.accuracy - (row.control_accuracy or 0), row.control_interval)} "
        f"| {row.macs_ratio:.3f} | {row.latency_ratio:.2f} | {claimed} |"
    )
