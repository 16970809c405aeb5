"""svd-training: fully connected layers become a rest plus the largest singular triples; it asks for an older torch."""

import copy

from torch import nn

from benchmarks.peers._adapter import Batches, Smaller, layers, swapped

INSTALL = ("svd-training==0.0.2", "--no-deps")


def settings(dense: nn.Module, batches: Batches) -> dict[str, Smaller]:  # noqa: ARG001  takes no data
    """All fully connected layers; convolutions it does not know."""
    from svd_training.svd_linear import SVDLinear

    def smaller(share: float) -> nn.Module:
        linears = layers(copy.deepcopy(dense), nn.Linear)
        return swapped(dense, {name: SVDLinear.create_from_weight(x.weight, share) for name, x in linears.items()})

    return {"fully connected layers": smaller}
