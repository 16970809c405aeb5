"""Model Compression Toolkit: channels pruned by a label-free Hessian score of the images."""

import copy
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn

from benchmarks.peers._adapter import Batches, Smaller, counted, landed

INSTALL = ("model-compression-toolkit==2.6.1", "torchvision")


def settings(dense: nn.Module, batches: Batches) -> dict[str, Smaller]:
    """Its only importance, with more and less exact scores; the knob is the memory of weights that it is told."""
    import model_compression_toolkit as mct

    def images() -> Iterator[list[Any]]:
        yield from ([inputs.numpy()] for inputs, _ in batches[:1])

    usual = mct.get_target_platform_capabilities()
    # Its usual target takes channels out in groups of 32, which is all that many of these layers have; here one by one.
    single = type(usual).model_validate_json(re.sub(r'"simd_size":\s*\d+', '"simd_size":1', usual.model_dump_json()))

    def pruned(scores: int, knob: float) -> nn.Module:
        memory = mct.core.ResourceUtilization(weights_memory=4 * knob * counted(dense))
        config = mct.pruning.PruningConfig(num_score_approximations=scores)
        further = {"representative_data_gen": images, "pruning_config": config, "target_platform_capabilities": single}
        return mct.pruning.pytorch_pruning_experimental(copy.deepcopy(dense), memory, **further)[0]

    def smaller(share: float, scores: int) -> nn.Module:
        return landed(partial(pruned, scores), dense, share, low=0.8 * share, halvings=7)

    return {f"{scores} scores": partial(smaller, scores=scores) for scores in (1, 8)}
