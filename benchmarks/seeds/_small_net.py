"""A small network of the VGG kind, in which convolutions and fully connected layers each hold a fair share."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from torch import nn

_STAGES = ((24,), (48, 48), (96, 96))  # widths of the 3x3 convolutions; every stage ends by halving the image
_HIDDEN = (128, 128)

# What stays dense, by scope. The first and the last layer always do: together they hold under 2 % of the parameters,
# and all that the network sees or says goes through them.
FROZEN: Mapping[str, Sequence[str]] = {
    "conv": ("conv1", "fc*"),
    "fc": ("conv*", "fc3"),
    "both": ("conv1", "fc3"),
}


def small_net(size: int, classes: int) -> nn.Sequential:
    """For square images of `size` pixels, a multiple of 8: 371,586 parameters at 32 pixels and ten classes.

    The features are as large as the image makes them, so the first fully connected layer grows: 196,608 weights at 32
    pixels, 786,432 at 64. The convolutions that are not frozen hold 155,520 at every size.
    """
    layers = OrderedDict[str, nn.Module]()
    inputs, count = 3, 0
    for stage, widths in enumerate(_STAGES, 1):
        for outputs in widths:
            count += 1
            layers[f"conv{count}"] = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            layers[f"bn{count}"], layers[f"relu{count}"] = nn.BatchNorm2d(outputs), nn.ReLU()
            inputs = outputs
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
    layers["flat"] = nn.Flatten()
    inputs *= (size // 2 ** len(_STAGES)) ** 2
    for number, outputs in enumerate(_HIDDEN, 1):
        layers[f"fc{number}"] = nn.Linear(inputs, outputs, bias=False)
        layers[f"bn_fc{number}"], layers[f"relu_fc{number}"] = nn.BatchNorm1d(outputs), nn.ReLU()
        inputs = outputs
    layers[f"fc{len(_HIDDEN) + 1}"] = nn.Linear(inputs, classes)
    return nn.Sequential(layers)
