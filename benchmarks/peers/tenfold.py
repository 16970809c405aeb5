"""This library: all usual methods compete, fitted to the images, recovered block by block. Labels are not looked at."""

from torch import nn

import tenfold
from benchmarks.peers._adapter import Batches, Smaller

INSTALL = ()


def settings(dense: nn.Module, batches: Batches) -> dict[str, Smaller]:
    """One way."""
    inputs = [images for images, _ in batches]

    def usual(share: float) -> nn.Module:
        target = tenfold.Budget(params=share)
        return tenfold.compress(dense, target, example=inputs[0][:1], calibration=inputs).model

    return {"usual methods, recovered": usual}
