"""fasterai: channels pruned by its criteria, and convolutions decomposed by its four methods.

Its rank rules are a share of the full rank, or a share of the energy of each layer.
"""

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from benchmarks.peers._adapter import Batches, Smaller, landed, on_the_stream

INSTALL = ("fasterai==0.4.1",)


def settings(dense: nn.Module, batches: Batches) -> dict[str, Smaller]:
    """Decomposition by each method and rule, with the first layer or without; pruning by each criterion and scope."""
    from fasterai.core import criteria as told
    from fasterai.misc.conv_decomposer import Conv_Decomposer
    from fasterai.prune.pruner import Pruner

    example = batches[0][0][:1]

    def decomposed(method: str, rule: str, exclude: list[str] | None, knob: float) -> nn.Module:
        asked = {"energy_threshold": max(knob, 1e-6)} if rule == "energy" else {"percent_removed": 1 - max(knob, 1e-6)}
        return Conv_Decomposer().decompose(dense, method=method, exclude=exclude, **asked)

    def pruned(criterion: Callable[..., torch.Tensor], scope: str, knob: float) -> nn.Module:
        model = copy.deepcopy(dense).requires_grad_(True)
        limits = {"ignored_layers": on_the_stream(model), "max_pruning_ratio": 0.98}
        Pruner(model, 1 - knob, scope, criterion, example_inputs=example, **limits).prune_model()
        return model

    found: dict[str, Smaller] = {}
    for method in ("tucker", "svd", "cp", "spatial"):
        for rule in ("rank", "energy"):
            for which, exclude in (("all", None), ("all but the first", ["conv1"])):
                make = partial(decomposed, method, rule, exclude)
                found[f"{method}, {rule}, {which}"] = lambda share, make=make: landed(make, dense, share)
    for name in ("large_final", "squared_final"):  # the pruner calls its third, of gradients, in a way that fails
        for scope in ("local", "global"):
            cut = partial(pruned, getattr(told, name), scope)
            found[f"pruning, {name}, {scope}"] = lambda share, cut=cut: landed(cut, dense, share, low=0.02)
    return found
