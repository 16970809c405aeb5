"""Accuracy, and how sure one can be that it changed."""

import base64
import copy

import numpy as np
import torch
from torch import Tensor, nn

import tenfold
from benchmarks._images import Images
from tenfold._judge import interval


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
