"""TensorLy-Torch: convolutions become Tucker, CP or tensor-train layers, decomposed from the trained weights.

A share of each layer's parameters is its own rule for ranks; the same share for all layers is the knob.
"""

from functools import cache, partial
from typing import Any

from torch import nn

from benchmarks.peers._adapter import Batches, Smaller, counted, knob_for, layers, swapped

INSTALL = ("tensorly-torch==0.5.0", "tensorly==0.10.0")  # which it imports and does not ask for


def settings(dense: nn.Module, batches: Batches) -> dict[str, Smaller]:  # noqa: ARG001  takes no data
    """Three factorisations, of all convolutions or of all but the first, with the kernel's axes kept or not."""
    import tltorch

    kinds: dict[str, dict[str, Any]] = {
        "Tucker": {"factorization": "tucker"},
        "Tucker, kernel axes whole": {"factorization": "tucker", "fixed_rank_modes": "spatial"},
        "CP": {"factorization": "cp"},
        "tensor train": {"factorization": "tt"},
    }

    def made(kind: dict[str, Any], skip: tuple[str, ...], knob: float, *, decompose: bool = True) -> nn.Module:
        new = {}
        for name, conv in layers(dense).items():
            if name not in skip:
                further = {"implementation": "factorized", "decompose_weights": decompose, **kind}
                layer = tltorch.FactorizedConv.from_conv(conv, rank=knob, **further)
                new[name] = layer if counted(layer) < counted(conv) else conv
        return swapped(dense, new)

    def smaller(share: float, kind: dict[str, Any], skip: tuple[str, ...]) -> nn.Module:
        shape = cache(partial(made, kind, skip, decompose=False))
        return made(kind, skip, knob_for(lambda knob: counted(shape(knob)), dense, share, low=0.1))

    skips: dict[str, tuple[str, ...]] = {"all convolutions": (), "all but the first": ("conv1",)}
    return {
        f"{name}, {which}": partial(smaller, kind=kind, skip=skip)
        for name, kind in kinds.items()
        for which, skip in skips.items()
    }
