"""Accuracy, and how sure one can be that it changed."""

import base64
import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import tenfold
from benchmarks import _rows
from benchmarks._images import Images
from tenfold._judge import interval


def judged(
    small: nn.Module, dense: nn.Module, images: Images, *, control: nn.Module | None = None, **facts: Any
) -> _rows.Row:
    """The row of a compressed network on images that took no part in its making; of a trained one, with a control."""
    right, right_dense = (correct(in_bulk(model), images) for model in (small, dense))
    right_control = None if control is None else correct(in_bulk(control), images)
    # Costs, and the times of interleaved runs, are those of one image: what a single request waits for.
    report = tenfold.verify(small, dense, [images[:1][0]])
    return _rows.Row(
        trained=control is not None,
        dense_accuracy=round(percent(right_dense), 4),
        control_accuracy=None if right_control is None else round(percent(right_control), 4),
        accuracy=round(percent(right), 4),
        interval=paired_interval(right, right_dense),
        control_interval=None if right_control is None else paired_interval(right, right_control),
        right=packed(right),
        params_ratio=round(report.small.params / report.dense.params, 7),
        macs_ratio=round(report.small.macs / report.dense.macs, 5),
        latency_ratio=round(report.small.milliseconds / report.dense.milliseconds, 4),
        device=report.device,
        version=tenfold.__version__,
        **facts,
    )


def correct(model: nn.Module, images: Images, *, batch: int = 250) -> Tensor:
    """For each image, whether the model in eval mode puts its class first."""
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        answers = [model(inputs.to(device)).argmax(1).cpu() == labels for inputs, labels in images.batches(batch)]
    return torch.cat(answers)


def in_bulk(model: nn.Module) -> nn.Module:
    """The same function, quicker on many images: channels last, and trains of convolutions rebuild their kernels."""
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, tenfold.Factored):
            module.run_in("kernel")
    return model


def percent(correct_N: Tensor) -> float:
    """The share that is correct, in percent."""
    return 100 * correct_N.double().mean().item()


def packed(correct_N: Tensor) -> str:
    """Which are correct, as text: a bit an image, in base64."""
    return base64.b64encode(np.packbits(correct_N.numpy())).decode()


def unpacked(text: str, count: int) -> Tensor:
    """The inverse of `packed`."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=count)
    return torch.from_numpy(bits).bool()


def paired_interval(small_N: Tensor, dense_N: Tensor) -> tuple[float, float]:
    """The 95 % interval of small minus dense, in points.

    Both networks saw the same images, so the spread is that of the differences image by image: images that both
    get right or both get wrong add none. Normal approximation of the mean of N differences.
    """
    found = interval(100 * small_N.double(), 100 * dense_N.double())
    assert found is not None, "there is a score for each image"
    return found
