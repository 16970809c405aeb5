"""Recovering accuracy after replacement, without labels."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tenfold._blocks import reconstructed
from tenfold._data import batches_of
from tenfold._errors import TenfoldError
from tenfold._pair import changed, parted
from tenfold._progress import track
from tenfold._refit import refitted
from tenfold._resume import kept, tensors_by_name
from tenfold._run import copied, forward, trainable, undisturbed, unwrapped

HOW = ("refit", "blocks")


@trainable()
def recover(
    small: nn.Module,
    dense: nn.Module,
    batches: Iterable[Any],
    *,
    how: str = "blocks",
    seed: int = 0,
) -> nn.Module:
    """A copy of a compressed network whose outputs are nearer to those of the dense one, without labels.

    - `how="refit"`: layer after layer in closed form, each from what it is given now to what the dense layer gave, so
      that errors do not pile up with depth (Zhang et al. 2015, arXiv 1505.06798).
    - `how="blocks"`: factors, layers that lost filters, and the biases and norms of all layers, frozen ones too, are
      trained for a few hundred steps until blocks and outputs are what they were.

    The last eighth of the batches is held back: where the error on it does not fall, factors stay as they were.

    Args:
        small: what `apply` made of `dense`, with the same names; neither is modified.
        dense: the network as it was.
        batches: training data, labels ignored; a list or a DataLoader.
        how: the way.
        seed: draws the order of the examples.

    Raises:
        TenfoldError: if there are no batches, a model fails on one, or there is no such way.
    """
    if how not in HOW:
        raise TenfoldError(f"recover has no way {how!r}; use {' or '.join(map(repr, HOW))}.")
    small, dense = unwrapped(small), unwrapped(dense)
    with torch.random.fork_rng(devices=[]):  # loaders draw
        inputs = list(batches_of(dense, batches))
    if not changed(small, dense):
        return copied(small)
    ways = {"blocks": reconstructed, "refit": refitted}
    new = copied(small)

    def recovered() -> dict[str, Tensor]:
        return tensors_by_name(ways[how](small, dense, *parted(dense, inputs), seed))

    found = kept("recovered", lambda: (how, small, dense, inputs, seed), recovered)
    with torch.no_grad():
        for name, tensor in tensors_by_name(new).items():
            if not torch.equal(tensor, found[name]):  # expanded buffers, which nothing changes, take no values
                tensor.copy_(found[name])
    return new


def reestimate_norms(model: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """A copy of `model` whose batch norms hold the mean and variance of their inputs over `batches`.

    Replaced layers shift the inputs of the norms behind them. Statistics are reset and averaged with equal weight
    a batch, all other layers in eval mode. A model without batch norms that track statistics is just copied.

    Raises:
        TenfoldError: if there are no batches, or the model fails on one.
    """
    new = copied(unwrapped(model))
    norms = [m for m in new.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return new
    momenta = [norm.momentum for norm in norms]
    statistics = {}
    with undisturbed(new):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
            norm.training = True
        for inputs in track(batches_of(new, batches), "norms"):
            forward(new, inputs)
        for norm in norms:
            statistics[norm] = (norm.running_mean.clone(), norm.running_var.clone())  # type: ignore[union-attr]
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.running_mean.copy_(statistics[norm][0])  # type: ignore[union-attr]
        norm.running_var.copy_(statistics[norm][1])  # type: ignore[union-attr]
    return new
