"""Filters that go together: removing them gives what masking them gives, to rounding."""

import copy

import pytest
import torch
from benchmarks._nets import NETS
from nets import images, randomised
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tenfold import TenfoldError
from tenfold._data import example_inputs
from tenfold._filters import filter_groups, masked, removed


class Awkward(nn.Module):
    """Concatenation, a residual sum, squeeze and excitation, a depthwise layer, flattening, two norms after one sum."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.grow = nn.Conv2d(6, 4, 3, padding=1)
        self.both = nn.BatchNorm2d(10)
        self.wide = nn.Conv2d(10, 8, 1)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.depth_norm = nn.BatchNorm2d(8)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.back = nn.Conv2d(8, 8, 3, padding=1)
        self.back_norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.hidden, self.head = nn.Linear(6 * 16, 12), nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = torch.cat([x, self.grow(x)], 1)
        x = self.wide(F.relu(self.both(x)))
        y = F.silu(self.depth_norm(self.depth(x)))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        x = F.gelu(x + self.back_norm(self.back(y)))
        x = F.max_pool2d(F.relu(self.up(x)), 4)
        return self.head(F.relu(self.hidden(x.flatten(1))))


def holds(model, x, least):
    """Of all groups at once: a copy without half of their filters gives what the masked one gives."""
    before = copy.deepcopy(model.state_dict())
    groups, reasons = filter_groups(model, example_inputs(x))
    drops = [(group, range(0, group.filters, 2)) for group in groups]
    wide = model.double()
    mask, small = masked(wide, drops), removed(wide, drops)
    expected, found = mask(x.double()), small(x.double())
    assert torch.allclose(found, expected, rtol=0, atol=1e-9 * float(expected.detach().abs().max()))
    assert not torch.allclose(expected, wide(x.double()), rtol=0, atol=1e-3 * float(expected.detach().abs().max()))
    model.float()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    producers = {name for group in groups for name in group.producers}
    assert len(producers) >= least
    assert not producers & reasons.keys()
    small(x.double()).sum().backward()  # it trains
    return groups, reasons, small


def test_awkward_layers():
    model = randomised(Awkward())
    groups, reasons, small = holds(model, images(2, 3, 8, 8), 8)
    assert {group.producers for group in groups} >= {("stem",), ("grow",), ("squeeze",), ("up",), ("hidden",)}
    assert reasons == {"head": "its channels are outputs of the network"}
    assert small.depth.groups == small.depth.in_channels == small.depth.out_channels == 4
    assert small.hidden.in_features == 3 * 16
    assert small.both.num_features == 5
    flattened = next(
        link for group in groups if group.producers == ("up",) for link in group.links if link.side == "in"
    )
    assert flattened.repeat == 16


@pytest.mark.parametrize(
    ("net", "least"),
    [("resnet20", 9), ("resnet18", 20), pytest.param("resnet50", 53, marks=pytest.mark.heavy)],
)
def test_resnets(net, least):
    """With identity, zero-padded and projected shortcuts. Across stages, padding moves channels: those stay."""
    model = randomised(NETS[net]())
    _, reasons, _ = holds(model, images(2, 3, 16, 16), least)
    if net == "resnet20":
        assert any("reordered" in reason or "moves the outputs" in reason for reason in reasons.values())


LEAST = {
    "mobilenet_v2": 35,
    "regnet_y_400mf": 37,
    "densenet121": 120,
    "efficientnet_b0": 65,
    "convnext_tiny": 18,
    "googlenet": 57,
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("mobilenet_v2", "regnet_y_400mf") else pytest.mark.heavy)
        for name in LEAST
    ],
)
def test_architectures(name):
    models = pytest.importorskip("torchvision.models")
    settings = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    model = randomised(models.get_model(name, weights=None, **settings))
    _, reasons, _ = holds(model, images(1, 3, 64, 64), LEAST[name])
    if name == "convnext_tiny":
        assert any("LayerNorm2d, which mixes" in reason for reason in reasons.values())


def test_a_sigmoid_of_a_masked_channel_is_not_zero():
    """What a channel gives when it is gone is 0 before the sigmoid and nothing after it: such filters stay."""
    model = randomised(nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sigmoid(), nn.Conv2d(6, 5, 3)))
    groups, reasons = filter_groups(model, example_inputs(images(1, 3, 8, 8)))
    assert not groups
    assert "removing its filters moves the outputs by" in reasons["0"]


def test_complex_outputs_are_looked_at_too():
    class Spectrum(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = randomised(nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sigmoid(), nn.Conv2d(6, 5, 3)))

        def forward(self, x):
            return torch.fft.rfft(self.net(x))

    groups, reasons = filter_groups(Spectrum(), example_inputs(images(1, 3, 8, 8)))
    assert not groups
    assert "removing its filters moves the outputs by" in reasons["net.0"]


class Several(nn.Module):
    """Gives lists, nothing and numbers beside what has gradients."""

    def __init__(self):
        super().__init__()
        self.net = randomised(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3)))

    def forward(self, x):
        y = self.net(x)
        return {"y": [y], "cache": None, "best": y.argmax(1), "size": len(y)}


def test_outputs_without_gradients_are_no_hindrance():
    model, x = Several().eval(), images(2, 3, 8, 8)
    groups, _ = filter_groups(model, example_inputs(x))
    assert [group.producers for group in groups] == [("net.0",)]
    drops = [(groups[0], [1, 3])]
    assert torch.allclose(removed(model, drops)(x)["y"][0], masked(model, drops)(x)["y"][0], atol=1e-5)


def test_networks_that_cannot_be_followed_are_refused(monkeypatch):
    class Graph:
        def build_dependency(self, *_, **__):
            raise KeyError("AddmmBackward0")

    monkeypatch.setattr("torch_pruning.DependencyGraph", Graph)
    with pytest.raises(
        TenfoldError, match=r"cannot follow the network \(KeyError: 'AddmmBackward0'\).*leave FilterPruning out"
    ):
        filter_groups(Several(), example_inputs(images(1, 3, 8, 8)))
