"""Recovering accuracy after replacement, without labels."""

import copy
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tenfold._data import batches_of
from tenfold._progress import track
from tenfold._run import forward, undisturbed, unwrapped


def reestimate_norms(model: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """A copy of `model` whose batch norms hold the mean and variance of their inputs over `batches`.

    Replaced layers shift the inputs of the norms behind them. Statistics are reset and averaged with equal weight
    a batch, all other layers in eval mode. A model without batch norms that track statistics is just copied.

    Raises:
        TenfoldError: if there are no batches, or the model fails on one.
    """
    new = copy.deepcopy(unwrapped(model))
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
