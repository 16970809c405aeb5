"""NNI: filters masked by their norms, by their distances, or by a Taylor sum, then taken out by its speedup.

Only filters inside blocks go, as with the other pruners.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.peers._adapter import Batches, Smaller, landed, layers, on_the_stream

INSTALL = ("nni==3.0", "setuptools<81")  # it imports pkg_resources


def settings(dense: nn.Module, batches: Batches) -> dict[str, Smaller]:
    """Its pruners, one layer at a time and over all layers."""
    import nni
    from nni.compression import TorchEvaluator
    from nni.compression.pruning import FPGMPruner, L1NormPruner, L2NormPruner, TaylorPruner
    from nni.compression.speedup import ModelSpeedup

    def taylor(model: nn.Module, asked: list[dict[str, Any]]) -> Any:
        def train(model: nn.Module, optimizers: Any, step: Callable[..., Any], *_: Any, **__: Any) -> None:
            for batch in batches:
                optimizers.zero_grad()
                step(batch, model).backward()
                optimizers.step()

        def step(batch: Any, model: nn.Module) -> torch.Tensor:
            return F.cross_entropy(model(batch[0]), batch[1])

        sgd = nni.trace(torch.optim.SGD)(model.parameters(), lr=0.0)  # it looks at gradients, and changes nothing
        return TaylorPruner(model, asked, TorchEvaluator(train, sgd, step), training_steps=len(batches))

    def pruned(make: Callable[..., Any], together: bool, knob: float) -> nn.Module:
        model = copy.deepcopy(dense).requires_grad_(True)
        stream = {id(layer) for layer in on_the_stream(model)}
        inner = [name for name, layer in layers(model).items() if id(layer) not in stream]
        asked: dict[str, Any] = {"op_names": inner, "sparse_ratio": min(1 - knob, 0.98)}
        pruner = make(model, [{**asked, "global_group_id": "all", "max_sparse_ratio": 0.98} if together else asked])
        _, masks = pruner.compress()
        pruner.unwrap_model()
        # Its own tracer fails on this torch; it takes a traced network as well.
        graph = torch.fx.symbolic_trace(model)
        return ModelSpeedup(model, batches[0][0][:8], masks, graph_module=graph).speedup_model()

    makers = {"L1": L1NormPruner, "L2": L2NormPruner, "FPGM": FPGMPruner, "Taylor": taylor}
    ways = {f"{name}, {where}": (make, where == "all layers") for name, make in makers.items() for where in _SCOPES}
    return {
        name: lambda share, way=way: landed(partial(pruned, *way), dense, share, low=0.02, halvings=7)
        for name, way in ways.items()
    }


_SCOPES = ("each layer", "all layers")
