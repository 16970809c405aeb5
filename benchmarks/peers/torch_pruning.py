"""Torch-Pruning: channels go together along the dependency graph, by magnitude or by what the loss says.

Only channels inside blocks go: the graph takes the padded shortcuts of the small residual networks for plain additions.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.peers._adapter import Batches, Smaller, landed, on_the_stream

INSTALL = ("torch-pruning==1.6.1",)


def settings(dense: nn.Module, batches: Batches) -> dict[str, Smaller]:
    """Its importances, one layer at a time, over all layers, and over layers of one kind."""
    import torch_pruning as tp
    from torch_pruning.pruner import importance as told

    importances = {
        "L1": partial(told.GroupMagnitudeImportance, p=1),
        "L2": partial(told.GroupMagnitudeImportance, p=2),
        "LAMP": told.LAMPImportance,
        "FPGM": told.FPGMImportance,
        "norm scale": told.BNScaleImportance,
        "Taylor": told.GroupTaylorImportance,
        "Taylor, multivariable": partial(told.GroupTaylorImportance, multivariable=True),
        "Hessian": told.GroupHessianImportance,
    }
    scopes: dict[str, dict[str, bool]] = {
        "each layer": {},
        "all layers": {"global_pruning": True},
        "layers of a kind": {"global_pruning": True, "isomorphic": True},
    }
    # Sums of scores as they are, not over their mean in the layer, are what layers can be compared by.
    raw = {name: partial(importances[name], normalizer=None) for name in ("L2", "Taylor", "Hessian")}

    looked = {"Taylor": gradients(dense, batches, len(batches[0][0]), square=False)}
    looked["Hessian"] = gradients(dense, batches, 8, square=True)  # of 8 images at a time

    def pruned(make: Callable[[], Any], scope: dict[str, bool], knob: float) -> nn.Module:
        model, importance = copy.deepcopy(dense), make()
        kind = type(importance).__name__.removeprefix("Group").removesuffix("Importance")
        for parameter, gradient in zip(model.parameters(), looked.get(kind, ()), strict=False):
            parameter.grad = gradient.clone()
        # At the most 98 % of a layer, so that none is left without a channel.
        limits = {"pruning_ratio": 1 - knob, "max_pruning_ratio": 0.98, "ignored_layers": on_the_stream(model)}
        tp.pruner.BasePruner(model, batches[0][0][:1], importance, **limits, **scope).step()
        model.zero_grad()
        return model

    ways = {f"{name}, {where}": (make, scope) for name, make in importances.items() for where, scope in scopes.items()}
    ways |= {f"{name} not normalised, all layers": (make, scopes["all layers"]) for name, make in raw.items()}
    return {
        name: lambda share, way=way: landed(partial(pruned, *way), dense, share, low=0.02) for name, way in ways.items()
    }


def gradients(dense: nn.Module, batches: Batches, size: int, *, square: bool) -> list[Tensor]:
    """Of the loss by every parameter: the sum over parts of so many images, or the mean square."""
    model = copy.deepcopy(dense).requires_grad_(True)
    sums = [torch.zeros_like(parameter) for parameter in model.parameters()]
    parts = [pair for images, labels in batches for pair in zip(images.split(size), labels.split(size), strict=True)]
    for images, labels in parts:
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        for total, parameter in zip(sums, model.parameters(), strict=True):
            if parameter.grad is not None:
                total += parameter.grad.square() / len(parts) if square else parameter.grad
    return sums
