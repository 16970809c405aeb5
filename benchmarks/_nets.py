"""The networks whose trained weights are at hand, written out so that no other package is needed to load them."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks._folder import data_folder

Shortcut = Callable[[int, int], nn.Module]  # from inputs and outputs, where a block changes the shape


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

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.side = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Pad the channels of a thinned-out input."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.side, self.side))


def projected(inputs: int, outputs: int) -> nn.Module:
    """A 1x1 convolution of stride 2 and a norm (option B)."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=2, bias=False), nn.BatchNorm2d(outputs))


def resnet(blocks: int, widths: Sequence[int], shortcut: Shortcut, head: str) -> nn.Sequential:
    """A residual network for small images: 3x3 stem, one stage a width, ten classes, the last layer named `head`."""
    stem = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
    layers = OrderedDict[str, nn.Module](conv1=stem, bn1=nn.BatchNorm2d(widths[0]), relu=nn.ReLU())
    for number, (inputs, outputs) in enumerate(zip([widths[0], *widths], widths, strict=False), 1):
        same = inputs == outputs
        first = Block(inputs, outputs, 1 if same else 2, nn.Identity() if same else shortcut(inputs, outputs))
        others = [Block(outputs, outputs, 1, nn.Identity()) for _ in range(blocks - 1)]
        layers[f"layer{number}"] = nn.Sequential(first, *others)
    layers.update(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), **{head: nn.Linear(widths[-1], 10)})
    return nn.Sequential(layers)


NETS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": lambda: resnet(3, (16, 32, 64), Padded, "linear"),
    "resnet56": lambda: resnet(9, (16, 32, 64), Padded, "linear"),
    "resnet18": lambda: resnet(2, (64, 128, 256, 512), projected, "fc"),
}


def trained(net: str, data: str) -> nn.Module:
    """The network with its weights for `data`, in float32 and eval mode."""
    with torch.random.fork_rng():  # initial weights are drawn and thrown away
        model = NETS[net]()
    model.load_state_dict(load_file(data_folder() / "models" / f"{net}-{data}.safetensors"))
    return model.eval()
