"""Fresh weights for a network of dense and factored layers."""

import math
from typing import Any

import torch
from torch import nn

from tenfold._factored import materialise


def fresh(model: nn.Module, device: torch.device, seed: int) -> nn.Module:
    """Allocate a network on `device`, wherever it was, and draw its weights by `seed`, the same on every device.

    The weight of each layer gets the variance of He et al. 2015 (arXiv 1502.01852), 2 / fan-in. Where it is a
    product of factors, all of them are drawn with one variance, such that the product has that of the dense layer.
    """
    materialise(model, device)
    _draw(model, torch.Generator().manual_seed(seed))
    return model


@torch.no_grad()
def _draw(module: Any, generator: torch.Generator) -> None:
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        module.reset_parameters()
    elif hasattr(module, "weight"):
        _draw_layer(module, generator)
    else:
        for child in module.children():
            _draw(child, generator)


def _draw_layer(layer: Any, generator: torch.Generator) -> None:
    factors = [parameter for name, parameter in layer.named_parameters() if not name.endswith("bias")]
    for factor in factors:
        factor.copy_(torch.randn(factor.shape, generator=generator))
    weight = layer.weight.double()
    drawn = weight.square().mean().sqrt().item()
    wanted = math.sqrt(2 / weight[0].numel())
    for factor in factors:  # the weight is linear in each of them
        factor.mul_((wanted / drawn) ** (1 / len(factors)))
    if layer.bias is not None:
        layer.bias.zero_()
