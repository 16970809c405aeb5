"""Factors of equal norm: the same product, on which training takes even steps."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from tenfold._factored import Factored
from tenfold._layers import groups, kernels, owners, write

_SWEEPS = 12


def balance(model: nn.Module) -> None:
    """Scale the channels between factors, in place, such that both sides have the same norm, channel by channel.

    Factors that several layers share stay as they are.
    """
    times = owners(model)
    with torch.no_grad():
        for module in model.modules():
            if not isinstance(module, Factored) or any(times[id(p)] > 1 for p in module.parameters()):
                continue
            if all(hasattr(factor, "weight") for factor in module):
                for _ in range(1 if len(module) == 2 else _SWEEPS):  # a scale passes on from factor to factor
                    for first, then in pairwise(module):
                        _even(first, then)


def _even(first: Any, then: Any) -> None:
    out, into = kernels(first).double(), kernels(then).double()
    out_C = out.flatten(3).square().sum((2, 3)) if out.dim() > 3 else out.square().sum(2)
    into_C = into.flatten(3).square().sum((1, 3)) if into.dim() > 3 else into.square().sum(1)
    ratio = (into_C.flatten() / out_C.flatten()).pow(0.25)
    ratio = torch.where(ratio.isfinite() & (ratio > 0), ratio, torch.ones_like(ratio))
    write(first, out * _along(ratio.reshape(groups(first), -1), out, 1))
    write(then, into / _along(ratio.reshape(groups(then), -1), into, 2))


def _along(ratio_gc: Tensor, like: Tensor, axis: int) -> Tensor:
    shape = [1] * like.dim()
    shape[0], shape[axis] = ratio_gc.shape
    return ratio_gc.reshape(shape)
