"""This library with a limit of time, too: (1 + share) / 2 of that of the dense network, as measured on this machine."""

from torch import nn

import tenfold
from benchmarks.peers._adapter import Batches, Smaller
from tenfold.methods import DEFAULT, FilterPruning

INSTALL = ()


def settings(dense: nn.Module, batches: Batches) -> dict[str, Smaller]:
    """Factors alone, and filters beside them."""
    inputs = [images for images, _ in batches]

    def limited(share: float, *further: FilterPruning) -> nn.Module:
        target = tenfold.Budget(params=share, latency=(1 + share) / 2)
        return tenfold.compress(
            dense, target, example=inputs[0][:1], calibration=inputs, methods=[*DEFAULT, *further]
        ).model

    return {
        "factors, recovered": limited,
        "factors and filters, recovered": lambda share: limited(share, FilterPruning()),
    }
