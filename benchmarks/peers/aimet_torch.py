"""AIMET: spatial SVD and SVD; ratios of layers chosen greedily by accuracy on labelled images.

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

from benchmarks.peers._adapter import Batches, Smaller, landed

INSTALL = ("aimet-torch==2.42.0", "torchvision")


def settings(dense: nn.Module, batches: Batches) -> dict[str, Smaller]:
    """Both schemes. The number that it takes is a share of the memory of the weights that it knows."""
    from aimet_common.defs import CompressionScheme, CostMetric, GreedySelectionParameters, RankSelectScheme
    from aimet_torch.compress import ModelCompressor
    from aimet_torch.defs import SpatialSvdParameters, WeightSvdParameters

    @torch.no_grad()
    def right(model: nn.Module, *_: Any, **__: Any) -> float:
        inputs, labels = batches[0]  # 128 images: each of some hundred networks is judged on them
        return 100 * float((model.eval()(inputs).argmax(1) == labels).float().mean())

    def spatial(greedy: Any, first: nn.Module) -> Any:
        kind = SpatialSvdParameters
        return kind(kind.Mode.auto, kind.AutoModeParams(greedy, [first]))

    def weight(greedy: Any, first: nn.Module) -> Any:
        kind = WeightSvdParameters
        return kind(kind.Mode.auto, kind.AutoModeParams(RankSelectScheme.greedy, greedy, [first]))

    def compressed(scheme: Any, parameters: Callable[..., Any], knob: float) -> nn.Module:
        model = copy.deepcopy(dense)
        scores = Path("data/greedy_selection_eval_scores_dict.pkl")  # which it writes the first time
        kept = {"saved_eval_scores_dict": str(scores)} if scores.exists() else {}
        greedy = GreedySelectionParameters(Decimal(str(round(knob, 4))), num_comp_ratio_candidates=20, **kept)
        return ModelCompressor.compress_model(
            **{
                "model": model,
                "eval_callback": right,
                "eval_iterations": 1,
                "input_shape": (1, *batches[0][0][0].shape),
            },
            **{"compress_scheme": scheme, "cost_metric": CostMetric.memory},
            parameters=parameters(greedy, next(model.children())),
        )[0]

    schemes = {
        "spatial SVD": (CompressionScheme.spatial_svd, spatial),
        "SVD": (CompressionScheme.weight_svd, weight),
    }

    def smaller(share: float, way: tuple[Any, Any]) -> nn.Module:
        with _elsewhere():
            return landed(partial(compressed, *way), dense, share, low=0.1, halvings=9)

    return {name: partial(smaller, way=way) for name, way in schemes.items()}


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
