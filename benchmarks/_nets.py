"""The networks whose trained weights are at hand, written out so that no other package is needed to load them."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks._folder import data_folder


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut around them (He et al. 2016, arXiv 1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut before the last ReLU."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Padded(nn.Module):
    """Every second row and column; the new channels are zeros, half of them on each side (option A, no parameters)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        assert stride == 2
        self.side = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Pad the channels of a thinned-out input."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.side, self.side))


def projected(inputs: int, outputs: int, stride: int) -> nn.Module:
    """A 1x1 convolution and a norm (option B)."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 to four times the channels, and a shortcut around them; the stride is that of the 3x3."""

    def __init__(self, inputs: int, width: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut before the last ReLU."""
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def resnet(
    blocks: Sequence[int],
    widths: Sequence[int],
    shortcut: Callable[..., nn.Module],
    head: str,
    *,
    block: type[Block | Bottleneck] = Block,
    classes: int = 10,
) -> nn.Sequential:
    """A residual network for small images: 3x3 stem, one stage a width, the last layer named `head`."""
    stem = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
    layers = OrderedDict[str, nn.Module](conv1=stem, bn1=nn.BatchNorm2d(widths[0]), relu=nn.ReLU())
    inputs = widths[0]
    for number, (count, width) in enumerate(zip(blocks, widths, strict=True), 1):
        outputs, stage = (4 * width if block is Bottleneck else width), []
        for place in range(count):
            stride = 2 if place == 0 and number > 1 else 1
            around = nn.Identity() if inputs == outputs and stride == 1 else shortcut(inputs, outputs, stride)
            stage.append(block(inputs, width, stride, around))
            inputs = outputs
        layers[f"layer{number}"] = nn.Sequential(*stage)
    layers.update(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), **{head: nn.Linear(inputs, classes)})
    return nn.Sequential(layers)


_WIDE = (64, 128, 256, 512)
NETS: dict[str, Callable[..., nn.Module]] = {
    "resnet20": partial(resnet, (3, 3, 3), (16, 32, 64), Padded, "linear"),
    "resnet56": partial(resnet, (9, 9, 9), (16, 32, 64), Padded, "linear"),
    "resnet18": partial(resnet, (2, 2, 2, 2), _WIDE, projected, "fc"),
    "resnet34": partial(resnet, (3, 4, 6, 3), _WIDE, projected, "fc"),
    "resnet50": partial(resnet, (3, 4, 6, 3), _WIDE, projected, "fc", block=Bottleneck),
}


def trained(net: str, data: str) -> nn.Module:
    """The network with its weights for `data`, in float32 and eval mode."""
    with torch.random.fork_rng():  # initial weights are drawn and thrown away
        model = NETS[net]()
    model.load_state_dict(load_file(data_folder() / "models" / f"{net}-{data}.safetensors"))
    return model.eval()
