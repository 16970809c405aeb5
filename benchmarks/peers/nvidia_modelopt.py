"""NVIDIA ModelOpt: FastNAS pruning, which scores every layer at several widths on labelled images and searches."""

import copy
import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import nn

from benchmarks.peers._adapter import Batches, Smaller

INSTALL = (
    "nvidia-modelopt==0.47.0",
    "torchvision",
    "requests",
    "torchprofile==0.0.4",
)  # it does not ask for what it imports


def settings(dense: nn.Module, batches: Batches) -> dict[str, Smaller]:
    """Widths in eighths of a layer; its default, multiples of 32 channels, leaves these layers as they are."""
    import modelopt.torch.prune as mtp

    inputs, _ = batches[0]
    judged = batches[:4]  # some hundred networks are judged on these 512 images

    @torch.no_grad()
    def right(model: nn.Module) -> float:
        return sum(float((model.eval()(x).argmax(1) == y).float().mean()) for x, y in judged) / len(judged)

    def searched(divisor: int, share: float) -> nn.Module:
        config = mtp.fastnas.FastNASConfig()
        for rule, channels in (("nn.Conv2d", "channel"), ("nn.BatchNorm2d", "feature")):
            ratios = tuple(part / 8 for part in range(1, 9))
            config[rule] = {"*": {**config[rule]["*"], f"{channels}s_ratio": ratios, f"{channels}_divisor": divisor}}
        with tempfile.TemporaryDirectory() as folder:
            return mtp.prune(
                copy.deepcopy(dense),
                mode=[("fastnas", config)],
                constraints={"params": f"{100 * share}%"},
                dummy_input=inputs[:1],
                config={
                    **{"data_loader": [*judged], "score_func": right, "collect_func": lambda batch: batch[0]},
                    **{"checkpoint": str(Path(folder) / "search.pt"), "max_iter_data_loader": len(judged)},
                },
            )[0]

    return {f"widths of {divisor}": partial(searched, divisor) for divisor in (1, 2, 4)}
