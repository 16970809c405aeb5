"""TedNet: layers in Tucker form that start from random weights; it decomposes nothing that is trained."""

from functools import cache
from typing import Any

from torch import nn

from benchmarks.peers._adapter import Batches, Smaller, counted, landed, layers, swapped

INSTALL = ("tednet==0.1.3",)


def settings(dense: nn.Module, batches: Batches) -> dict[str, Smaller]:  # noqa: ARG001  takes no data
    """Tucker-2 layers in place of all convolutions but the first."""
    from tednet.tnn.tucker2 import TK2Conv2D

    @cache
    def layer(name: str, knob: float) -> nn.Module:
        conv: Any = layers(dense)[name]
        ranks = [max(1, round(knob * conv.in_channels)), max(1, round(knob * conv.out_channels))]
        further = {"stride": conv.stride, "padding": conv.padding, "bias": conv.bias is not None}
        new = TK2Conv2D(conv.in_channels, conv.out_channels, ranks, conv.kernel_size, **further)
        return new if counted(new) < counted(conv) else conv

    def made(knob: float) -> nn.Module:
        return swapped(dense, {name: layer(name, knob) for name in layers(dense) if name != "conv1"})

    return {"Tucker-2 from random weights": lambda share: landed(made, dense, share)}
