"""The two networks of Garipov et al. 2016 (arXiv 1611.03214), dense and with tensor-train layers, in plain PyTorch.

The tensor-train layers here are written from the paper alone, so they also check the library's. They take any rank,
while the library refuses ranks beyond what can matter, as some of the published ones are.
"""

# K kernel positions, C inputs, S outputs, R rank between two cores; a few of each: A of C, B of S, Q of R

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

Modes = tuple[tuple[int, ...], tuple[int, ...]]  # factors of the inputs, factors of the outputs
Ranks = Mapping[str, tuple[int, ...]]  # by layer; layers not named stay dense

_CHANNELS = {64: (4, 4, 4), 128: (4, 8, 4)}
_WIDTHS = {"conv1_1": (3, 64), "conv1_2": (64, 64), "conv2_1": (64, 128)} | dict.fromkeys(
    ("conv2_2", "conv3_1", "conv3_2"), (128, 128)
)
MODES: dict[str, Modes] = {
    **{name: (_CHANNELS[c], _CHANNELS[s]) for name, (c, s) in _WIDTHS.items() if c in _CHANNELS},
    "fc1": ((8, 8, 8, 16), (4, 6, 8, 8)),
    "fc2": ((4, 6, 8, 8), (4, 4, 4, 8)),
}


class Flat(nn.Module):
    """One row an image, rows and columns before channels as in the authors' code: the modes of `fc1` count on it."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Flatten with the channels last."""
        return x_NCHW.permute(0, 2, 3, 1).flatten(1)


def conv() -> nn.Sequential:
    """Six 3x3 convolutions, the last two without padding, and one Linear: 557,248 parameters."""
    layers = _convolutions(padding_of_last=0)
    layers.update(pool3=nn.AvgPool2d(4), flat=Flat(), fc=nn.Linear(128, 10, bias=False))
    return nn.Sequential(layers)


def conv_fc() -> nn.Sequential:
    """The same convolutions, all padded, and three Linear layers: 13,934,538 parameters."""
    layers = _convolutions(padding_of_last=1)
    layers["flat"] = Flat()
    for number, (inputs, outputs) in enumerate([(8192, 1536), (1536, 512)], 1):
        layers[f"fc{number}"] = nn.Linear(inputs, outputs, bias=False)
        layers[f"bn_fc{number}"], layers[f"relu_fc{number}"] = nn.BatchNorm1d(outputs), nn.ReLU()
    layers["fc3"] = nn.Linear(512, 10)
    return nn.Sequential(layers)


NETS: dict[str, Callable[[], nn.Sequential]] = {"conv": conv, "conv-fc": conv_fc}


def tt_net(dense: nn.Sequential, ranks: Ranks) -> nn.Sequential:
    """Put tensor-train layers where `ranks` says so. Changes `dense`; the new weights are not initialised."""
    for name, rank in ranks.items():
        layer = dense.get_submodule(name)
        of_type = TTConv if isinstance(layer, nn.Conv2d) else TTLinear
        setattr(dense, name, of_type(layer, MODES[name], rank))
    return dense


class TTConv(nn.Module):
    """`W[k, (a, ...), (b, ...)] = G0[k] G1[a, b] ... Gd[., .]`; the kernel is rebuilt in every pass."""

    def __init__(self, dense: Any, modes: Modes, rank: Sequence[int]) -> None:
        super().__init__()
        assert dense.bias is None
        self.bias = None
        self.kernel_size, self.padding = dense.kernel_size, dense.padding
        height, width = self.kernel_size
        self.kernel = nn.Parameter(torch.empty(height * width, rank[0]))
        self.cores = _cores(modes, rank)

    @property
    def weight(self) -> Tensor:
        """The kernel, in the layout of a Conv2d."""
        weight_KCS = _chain(self.kernel[:, None, None, :], self.cores)
        return weight_KCS.permute(2, 1, 0).unflatten(2, self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve. The cores are multiplied in float32 whatever the precision of the pass."""
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight
        return F.conv2d(x, weight, padding=self.padding)


class TTLinear(nn.Module):
    """The TT-matrix of Novikov et al. 2015 (arXiv 1509.06569); the matrix is rebuilt in every pass."""

    def __init__(self, dense: Any, modes: Modes, rank: Sequence[int]) -> None:
        super().__init__()
        assert dense.bias is None
        self.bias = None
        self.cores = _cores(modes, (1, *rank))

    @property
    def weight(self) -> Tensor:
        """The matrix, in the layout of a Linear."""
        one = torch.ones(1, 1, 1, 1, device=self.cores[0].device)
        return _chain(one, self.cores)[0].T

    def forward(self, x: Tensor) -> Tensor:
        """Multiply. The cores are multiplied in float32 whatever the precision of the pass."""
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight
        return F.linear(x, weight)


def _cores(modes: Modes, rank: Sequence[int]) -> nn.ParameterList:
    sizes = zip(rank, *modes, (*rank[1:], 1), strict=True)
    return nn.ParameterList(nn.Parameter(torch.empty(size)) for size in sizes)  # R, A, B, Q


def _chain(start_KCSR: Tensor, cores: Sequence[Tensor]) -> Tensor:
    # The first factor of a channel is the slowest.
    def longer(chain_KCSR: Tensor, core_RABQ: Tensor) -> Tensor:
        return torch.einsum("kcsr,rabq->kcasbq", chain_KCSR, core_RABQ).flatten(3, 4).flatten(1, 2)

    return reduce(longer, cores, start_KCSR).squeeze(-1)


def _convolutions(padding_of_last: int) -> OrderedDict[str, nn.Module]:
    layers = OrderedDict[str, nn.Module]()
    for name, (inputs, outputs) in _WIDTHS.items():
        block = name.removeprefix("conv")
        padding = padding_of_last if block.startswith("3") else 1
        layers[name] = nn.Conv2d(inputs, outputs, 3, padding=padding, bias=False)
        layers[f"bn{block}"], layers[f"relu{block}"] = nn.BatchNorm2d(outputs), nn.ReLU()
        if block in ("1_2", "2_2"):
            layers[f"pool{block[0]}"] = nn.MaxPool2d(3, stride=2, padding=1)
    return layers
