"""Whole networks: full rank changes nothing, and what the example does not show stays dense."""

import pytest
import torch
from benchmarks._nets import trained
from nets import images, randomised, small_cnn
from torch import nn

import tenfold
from tenfold import Budget, Ranks, TenfoldError
from tenfold.methods import CP, SVD, SpatialSVD, TensorTrain, Tucker


def torchvision_model(name, **kwargs):
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    return models.get_model(name, weights=None, **kwargs)


def timm_model(name, **kwargs):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    return timm.create_model(name, pretrained=False, **kwargs)


def transformer():
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


NETS = {
    "resnet18": (lambda: torchvision_model("resnet18"), (1, 3, 64, 64)),
    "mobilenet_v2": (lambda: torchvision_model("mobilenet_v2"), (1, 3, 64, 64)),
    "vit_b_16": (lambda: torchvision_model("vit_b_16"), (1, 3, 224, 224)),
    "swin_t": (lambda: torchvision_model("swin_t"), (1, 3, 64, 64)),
    "beit": (lambda: timm_model("beit_base_patch16_224", depth=2), (1, 3, 224, 224)),
    "transformer encoder": (transformer, (2, 7, 32)),
}
METHODS = {"svd": [SVD()], "svd input": [SVD("input")], "tucker": [Tucker()]}


@pytest.mark.parametrize(
    ("net", "methods"),
    # The 86 million parameters of vit_b_16 go through one method: the others have no other code for its layers.
    [(net, methods) for net in NETS for methods in METHODS if net != "vit_b_16" or methods == "svd"],
)
def test_full_rank_changes_nothing(net, methods):
    build, shape = NETS[net]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = build().eval(), images(*shape)
    if net in ("resnet18", "mobilenet_v2"):
        randomised(model)
    plan = tenfold.plan(model, Ranks(share=1.0), example=x, methods=METHODS[methods])
    assert plan.steps or net == "transformer encoder"
    with torch.no_grad():
        before, after = model(x), tenfold.apply(model, plan)(x)
    assert float((after - before).abs().max()) <= 1e-4 * float(before.abs().max())


@pytest.mark.parametrize("method", [SpatialSVD(), CP(3), CP(4), TensorTrain(), TensorTrain("naive")], ids=repr)
def test_full_rank_changes_nothing_by_methods_that_are_slow_at_it(method):
    """At full rank their factors are many times the size of the weight: on a small network only."""
    model, x = randomised(small_cnn()), images(2, 3, 16, 16)
    plan = tenfold.plan(model, Ranks(share=1.0), example=x, methods=[method])
    assert plan.steps
    after = tenfold.apply(model, plan)(x)
    assert float((after - model(x)).abs().max()) <= 1e-4 * float(model(x).abs().max())


@pytest.mark.parametrize(
    ("net", "pattern", "reason"),
    [
        ("vit_b_16", "out_proj", "read by other code"),
        ("swin_t", "qkv", "read by other code"),
        ("beit", "qkv", "read by other code"),
        ("transformer encoder", "linear1", "read by other code"),
    ],
)
def test_layers_read_by_fused_code_stay_dense_and_say_so(net, pattern, reason):
    build, shape = NETS[net]
    found = tenfold.options(build().eval(), example=images(*shape))
    named = {name: text for name, text in found.unserved.items() if pattern in name}
    assert named
    assert all(reason in text for text in named.values())


@pytest.mark.parametrize(
    ("net", "limit"),
    # The attention of swin_t reads its weights by itself: half of the multiply-adds are out of reach there.
    [
        ("resnet18", "params"),
        ("resnet18", "macs"),
        ("mobilenet_v2", "params"),
        ("mobilenet_v2", "macs"),
        ("swin_t", "params"),
    ],
)
def test_half_means_half(net, limit):
    build, shape = NETS[net]
    model, x = randomised(build()), images(*shape)
    found = tenfold.options(model, example=x, methods=[SVD(), Tucker()])
    small = tenfold.measure(tenfold.apply(model, found.plan(Budget(**{limit: 0.5}))), x)
    assert 0.49 <= getattr(small, limit) / getattr(found.dense, limit) <= 0.5


class Drawing(nn.Module):
    """Draws in eval mode too, as what generates does: a mean, and noise of a deviation that depends on the input."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 24))
        self.decoder = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 24))

    def forward(self, x):
        mean, deviation = self.encoder(x).chunk(2, -1)
        return self.decoder(mean + deviation * torch.randn_like(mean))


def test_networks_that_draw_are_compared_on_the_same_draws(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Drawing().eval(), images(512, 24)
        full = tenfold.apply(model, tenfold.plan(model, Ranks(share=1.0), example=x, methods=[SVD()]))
        assert tenfold.verify(full, model, x.split(64)).drift.relative <= 1e-5
        assert tenfold.export(full, x[:2], tmp_path / "full.pt2").relative <= 1e-5
        with pytest.raises(TenfoldError, match=r"the file may draw others: export to \.pt2"):
            tenfold.export(full, x[:2], tmp_path / "full.onnx")
        small = tenfold.apply(model, tenfold.plan(model, Budget(params=0.7), example=x, methods=[SVD()]))
        for how in ("refit", "blocks"):
            new = tenfold.recover(small, model, x.split(64), how=how)
            before, after = (tenfold.verify(net, model, x.split(64)).drift.relative for net in (small, new))
            assert after < 0.95 * before


class GraphNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(16, 48), nn.Linear(48, 48), nn.Linear(48, 5)

    def forward(self, x, adjacency):
        return self.head(torch.relu(adjacency @ self.second(torch.relu(adjacency @ self.first(x)))))


@pytest.mark.parametrize("how", ["refit", "blocks"])
@pytest.mark.parametrize("kept", ["to_dense", "to_sparse", "to_sparse_csr"])
def test_graphs(kept, how, tmp_path):
    """As many nodes as rows of the adjacency: they are no batch, and are not cut apart."""
    weights = (images(6, 40, 40) > 1).float()
    graphs = [{"x": images(40, 16, seed=k), "adjacency": getattr(a, kept)()} for k, a in enumerate(weights)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GraphNet()
    result = tenfold.compress(
        model, Budget(params=0.6), example=graphs[0], calibration=graphs, methods=[SVD()], recover=how
    )
    plain = tenfold.compress(model, Budget(params=0.6), example=graphs[0], methods=[SVD()])
    assert result.report.drift.relative < 0.5 * tenfold.verify(plain.model, model, graphs).drift.relative
    assert result.report.small.activation_bytes > 0
    if kept == "to_dense":
        assert tenfold.export(result.model, graphs[0], tmp_path / "small.pt2").relative < 1e-5
    else:
        with pytest.raises(TenfoldError, match=r"the example has one of torch\.sparse"):
            tenfold.export(result.model, graphs[0], tmp_path / "small.pt2")


def test_training_reaches_every_factor():
    model, x = randomised(NETS["resnet18"][0]()), images(2, 3, 64, 64)
    small = tenfold.compress(model, Budget(params=0.3), example=x, methods=[SpatialSVD(), CP()]).model.train()
    small(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in small.parameters())


def test_trained_networks_use_their_budget(shared_data):
    model, x = trained("resnet20", "cifar10-jpeg"), images(1, 3, 32, 32)
    for methods in ([SVD()], [SVD("input")], [SpatialSVD()], [Tucker()], [CP()], None):
        found = tenfold.options(model, example=x, methods=methods)
        for share in (0.7, 0.5, 0.35, 0.2):
            params = found.predicted(found.plan(Budget(params=share)).steps)[0]
            assert 0.98 * share <= params / found.dense.params <= share
