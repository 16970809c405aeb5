"""AIMET: spatial SVD and SVD; ratios of layers chosen greedily by what labelled images say.

Its third scheme, channel pruning, is left out: it refuses networks with functional activations, and on what its own
`prepare_model` makes of them one ratio from three candidates a layer was not found in four minutes.
"""

import copy
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.peers._adapter import Batches, Smaller, landed, loss_of

INSTALL = ("aimet-torch==2.42.0", "torchvision")


def settings(dense: nn.Module, batches: Batches) -> dict[str, Smaller]:
    """Both schemes. The number that it takes is a share of the memory of the weights that it knows."""
    from aimet_common.defs import CompressionScheme, CostMetric, GreedySelectionParameters, RankSelectScheme
    from aimet_torch.compress import ModelCompressor
    from aimet_torch.defs import SpatialSvdParameters, WeightSvdParameters

    judged = batches[:2]  # each of some hundred networks, on 256 images

    def by_loss(model: nn.Module, *_: Any, **__: Any) -> float:
        return -loss_of(model, judged)

    @torch.no_grad()
    def by_accuracy(model: nn.Module, *_: Any, **__: Any) -> float:
        return sum(float((model.eval()(x).argmax(1) == y).float().mean()) for x, y in judged) / len(judged)

    def spatial(greedy: Any, first: nn.Module) -> Any:
        kind = SpatialSvdParameters
        return kind(kind.Mode.auto, kind.AutoModeParams(greedy, [first]))

    def weight(greedy: Any, first: nn.Module) -> Any:
        kind = WeightSvdParameters
        return kind(kind.Mode.auto, kind.AutoModeParams(RankSelectScheme.greedy, greedy, [first]))

    def compressed(scheme: Any, parameters: Callable[..., Any], score: Callable[..., float], knob: float) -> nn.Module:
        model = copy.deepcopy(dense)
        scores = Path("data/greedy_selection_eval_scores_dict.pkl")  # which it writes the first time
        kept = {"saved_eval_scores_dict": str(scores)} if scores.exists() else {}
        greedy = GreedySelectionParameters(Decimal(str(round(knob, 4))), num_comp_ratio_candidates=20, **kept)
        return ModelCompressor.compress_model(
            **{
                "model": model,
                "eval_callback": score,
                "eval_iterations": 1,
                "input_shape": (1, *batches[0][0][0].shape),
            },
            **{"compress_scheme": scheme, "cost_metric": CostMetric.memory},
            parameters=parameters(greedy, next(model.children())),
        )[0]

    # Which score chooses better changes with the share: accuracy goes in leaps, the loss is ruled by the worst images.
    ways = {
        "spatial SVD, by loss": (CompressionScheme.spatial_svd, spatial, by_loss),
        "spatial SVD, by accuracy": (CompressionScheme.spatial_svd, spatial, by_accuracy),
        "SVD, by loss": (CompressionScheme.weight_svd, weight, by_loss),
        "SVD, by accuracy": (CompressionScheme.weight_svd, weight, by_accuracy),
    }

    def smaller(share: float, way: tuple[Any, Any, Any]) -> nn.Module:
        with _elsewhere():
            return landed(partial(compressed, *way), dense, share, low=0.1, halvings=9)

    return {name: partial(smaller, way=way) for name, way in ways.items()}


@contextmanager
def _elsewhere() -> Iterator[None]:
    """It writes its scores below the current folder."""
    before = os.getcwd()  # noqa: PTH109
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)
