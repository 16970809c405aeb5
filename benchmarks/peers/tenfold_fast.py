"""This library with a limit of time, too: (1 + share) / 2 of that of the dense network, as measured on this machine.

The dense network is stored channels last, where convolutions are faster on CPUs, so that the limit is of its best time.
"""

from collections.abc import Callable

import torch
from torch import nn

import tenfold
from benchmarks.peers._adapter import Batches, Smaller
from tenfold.methods import DEFAULT, FilterPruning

INSTALL = ()


def settings(dense: nn.Module, batches: Batches) -> dict[str, Smaller]:
    """Factors alone, and filters beside them."""
    return in_time(dense, batches, lambda share: (1 + share) / 2)


def in_time(dense: nn.Module, batches: Batches, latency: Callable[[float], float]) -> dict[str, Smaller]:
    """The same, with the share of time that goes with a share of parameters."""
    inputs = [images for images, _ in batches]
    dense = dense.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    example = inputs[0][:1].contiguous(memory_format=torch.channels_last)

    def limited(share: float, *further: FilterPruning) -> nn.Module:
        target = tenfold.Budget(params=share, latency=latency(share))
        return tenfold.compress(dense, target, example=example, calibration=inputs, methods=[*DEFAULT, *further]).model

    return {
        "factors, recovered": limited,
        "factors and filters, recovered": lambda share: limited(share, FilterPruning()),
    }
