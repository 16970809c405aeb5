"""Factors that fit what the layers really see: statistics, the metric they give, fits in it, and recovery."""

import copy

import numpy as np
import pytest
import torch
from nets import TokenNet, images, randomised, small_cnn
from torch import nn
from torch.utils.checkpoint import checkpoint

import tenfold
from tenfold import Budget, Ranks, Statistics, TenfoldError, TenfoldWarning, _blocks, _calibrate, _fit, _statistics
from tenfold._candidate import Candidate
from tenfold._layers import matrices
from tenfold._method import Site
from tenfold._metric import Metric
from tenfold._pair import Pair, parted
from tenfold._patches import patches, responses
from tenfold.methods import CP, DEFAULT, SVD, JointSVD, SpatialSVD, TensorTrain
from tenfold.testing import AWKWARD, Case

METHODS = (*DEFAULT, TensorTrain("naive"), JointSVD("right"), JointSVD("left"), JointSVD("both"))
SPATIAL = [name for name, (make, _) in AWKWARD.items() if not isinstance(make(), nn.Embedding)]


def told(model, *batches):
    return tenfold.calibrate(model, list(batches))


def awkward(method):
    """Each awkward layer that a method serves, as it is seen by data that vary."""
    for name in AWKWARD:
        case = Case(name, method)
        if case.sites:
            x = torch.cat([case.input.roll(turn, -1) for turn in range(12)])
            statistics = told(case.model, x.cumsum(-1) if x.is_floating_point() else x)
            yield name, case, _fit.Seen.of(case.sites[0], statistics)


@torch.no_grad()
def errors(seen, new):
    """What factors miss in the metric of each layer."""
    each = zip(new, seen.site.modules, seen.metrics, strict=True)
    return [float(m.square(_fit.stood_for(f).double() - matrices(dense).flatten(2))) for f, dense, m in each]


@pytest.mark.parametrize("name", SPATIAL)
def test_patches_times_the_matrix_are_the_outputs(name):
    case = Case(name, SVD())
    outputs = responses(case.dense, case.dense(case.input)).detach()
    if case.dense.bias is not None:
        outputs = outputs - case.dense.bias.detach().reshape(outputs.shape[0], -1, 1)
    assert torch.allclose(matrices(case.dense).flatten(2) @ patches(case.dense, case.input), outputs, atol=1e-12)


def test_a_few_positions_are_the_same_for_inputs_and_outputs():
    layer = nn.Conv2d(3, 5, 3, padding=1, bias=False).double()
    x = images(4, 3, 9, 8).double()
    same = [torch.Generator().manual_seed(3) for _ in range(2)]
    found = matrices(layer).flatten(2) @ patches(layer, x, 10, same[0])
    assert found.shape == (1, 5, 40)
    assert torch.allclose(found, responses(layer, layer(x), 10, same[1]))


def test_statistics_are_sums_over_patches(monkeypatch):
    monkeypatch.setattr(_calibrate, "_CHUNK", 1000)  # several parts of a batch
    model, x = randomised(small_cnn()), images(6, 3, 8, 8)
    statistics = told(model, x[:4], x[4:])
    assert list(statistics.layers) == ["0", "3", "5", "9", "11"]
    seen = patches(model[3], model[:3](x)).detach().double()
    layer = statistics.layers["3"]
    assert int(layer.count) == 6 * 16
    assert torch.allclose(layer.total, seen.sum(-1))
    assert torch.allclose(layer.gram[:, 0], seen @ seen.mT)
    assert torch.allclose(layer.quartic, seen.square().sum(1).square().sum(-1))
    assert layer.norm is None
    assert statistics.layers["0"].norm == "1"


def test_a_layer_called_twice_and_keyword_inputs():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, *, x):
            return self.layer(self.layer(x))

    model, x = Twice(), images(5, 8)
    layer = told(model, {"x": x}).layers["layer"]
    both = torch.cat([x, model.layer(x)]).detach().double()
    assert int(layer.count) == 10
    assert torch.allclose(layer.gram[0, 0], both.T @ both)


def test_embeddings_count_lookups():
    ids = torch.tensor([[1, 2, 2], [7, 1, 2]])
    layer = told(nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 3)), ids).layers["0"]
    assert layer.gram.flatten().tolist() == [0, 2, 3, 0, 0, 0, 0, 1, 0]
    assert float(layer.response.diagonal(dim1=-2, dim2=-1).min()) > 0


def test_parts_add_up_and_files_hold_all(tmp_path):
    model, x = randomised(small_cnn()), images(8, 3, 8, 8)
    whole, parts = told(model, x[:4], x[4:]), told(model, x[:4]) + told(model, x[4:])
    for name, layer in whole.layers.items():
        assert torch.allclose(layer.gram, parts.layers[name].gram)
        assert torch.equal(layer.count, parts.layers[name].count)
    whole.save(tmp_path / "told.safetensors")
    again = Statistics.load(tmp_path / "told.safetensors")
    for name, layer in whole.layers.items():
        assert torch.equal(layer.gram, again.layers[name].gram)
        assert torch.equal(layer.response, again.layers[name].response)
        assert layer.norm == again.layers[name].norm
    assert [path.name for path in tmp_path.iterdir()] == ["told.safetensors"]


def test_wrong_statistics_are_refused(tmp_path):
    x = images(4, 3, 8, 8)
    with pytest.raises(TenfoldError, match="different layers"):
        told(small_cnn(), x) + told(nn.Sequential(nn.Conv2d(3, 4, 3)), x)
    (tmp_path / "other").write_bytes(b"nothing")
    with pytest.raises(TenfoldError, match="does not hold statistics"):
        Statistics.load(tmp_path / "other")
    with pytest.raises(TenfoldError, match="no batches"):
        tenfold.calibrate(small_cnn(), [])
    with pytest.raises(TenfoldError, match="no way"):
        tenfold.recover(small_cnn(), small_cnn(), [x], how="hope")


def test_gradients_tell_what_moves_in_the_outputs():
    """With a linear network, |D|^2 is the relative change of the outputs' variance, by hand."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)).double()
    x = torch.randn(4000, 6, generator=generator, dtype=torch.float64)
    statistics = told(model, *x.split(40))
    metric = Metric.of(statistics.layers["0"], has_bias=True)
    error = torch.randn(1, 5, 6, generator=generator, dtype=torch.float64)
    moved = (x - x.mean(0)) @ error[0].T @ model[1].weight.T
    outputs = model(x)
    expected = float((moved.square().sum() / (outputs - outputs.mean(0)).square().sum()).detach())
    assert float(metric.square(error)) == pytest.approx(expected, rel=0.1)


def test_a_loss_of_ones_own():
    model, x = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)), images(20, 6)
    labels = torch.arange(20) % 4
    statistics = tenfold.calibrate(model, [(x, labels)], loss=nn.functional.cross_entropy)
    outputs = model(x)
    logits = outputs.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, labels), logits)
    expected = 20 * (gradient.T @ gradient).double()
    assert torch.allclose(statistics.layers["1"].response[0], expected, rtol=1e-4)
    # Gradients whose squares are nothing in single precision.
    tiny = tenfold.calibrate(model, [(x, labels)], loss=lambda *of: 1e-24 * nn.functional.cross_entropy(*of))
    assert torch.allclose(tiny.layers["1"].response[0] * 1e48, expected, rtol=1e-4)


@pytest.mark.parametrize(("returned", "says"), [(0.5, "0.5"), (torch.ones(20), r"numbers of shape \(20,\)")])
def test_what_is_no_loss_is_refused(returned, says):
    with pytest.raises(TenfoldError, match=f"loss returned {says}; it must return a tensor of one number"):
        tenfold.calibrate(nn.Linear(6, 5), [images(20, 6)], loss=lambda *_: returned)


@pytest.mark.parametrize("layer", [nn.Linear(20, 12), nn.Conv2d(5, 12, 3, padding=1), nn.Conv2d(8, 12, 3, groups=2)])
def test_the_whitened_curve_is_the_error_of_the_outputs(layer):
    """Predicted and measured change of the outputs agree to 2 %, at every rank."""
    shape = (8000, 20) if isinstance(layer, nn.Linear) else (400, layer.in_channels, 7, 7)
    mix = torch.randn(shape[1], shape[1], generator=torch.Generator().manual_seed(1))
    model, x = nn.Sequential(layer).double(), torch.einsum("nc...,cd->nd...", images(*shape) + 0.5, mix).double()
    statistics = told(model, *x.split(len(x) // 4))
    statistics.layers["0"].response.zero_()  # count outputs alike
    found = tenfold.options(model, example=x[:1], statistics=statistics, methods=[SVD()])
    (ladder,) = found.ladders
    outputs = model(x)
    centred = outputs - outputs.transpose(0, 1).flatten(1).mean(1).reshape(-1, *[1] * (x.dim() - 2))
    for index, rank in enumerate(ladder.ranks.tolist()[:-1]):
        small = tenfold.apply(model, found.plan(Ranks(rank=rank[0])), statistics)
        error = float(((small(x) - outputs).square().sum() / centred.square().sum()).detach())
        assert ladder.errors[index, 0] == pytest.approx(error, rel=0.02, abs=1e-9)


def test_the_whitened_fit_is_the_best_one():
    """Against the textbook way, for inputs and responses of full rank: whiten by Cholesky factors, truncate, undo."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 6)).double()
    x = (
        torch.randn(500, 10, generator=generator, dtype=torch.float64)
        @ torch.randn(10, 10, generator=generator).double()
    )
    statistics = told(model, *x.split(50))
    metric = Metric.of(statistics.layers["0"], has_bias=True)
    left, right = torch.linalg.cholesky(metric.outputs[0]), torch.linalg.cholesky(metric.inputs[0, 0])
    u, s, v = torch.linalg.svd(left.T @ model[0].weight.detach() @ right)
    for rank in (1, 3, 6):
        best = torch.linalg.solve(left.T, u[:, :rank] * s[:rank]) @ torch.linalg.solve(right.T, v[:rank].T).T
        plan = tenfold.plan(model, Ranks(per_layer={"0": rank}), example=x[:1], methods=[SVD()])
        small = tenfold.apply(model, plan, statistics)
        assert torch.allclose(small[0].weight, best, atol=1e-8)


@pytest.mark.filterwarnings("ignore:.*patches tell little")
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_every_method_fits_the_data_better_than_the_weights_do(method):
    """On every awkward layer: never worse in the metric, exact at full rank, and no worse than its curve says."""
    gains = []
    for name, case, seen in awkward(method):
        site = seen.site
        curve = _fit.kept_curve(Candidate(site, method), case.graph.calls_of(site.layers), seen)

        def error(new, seen=seen):
            return sum(errors(seen, new)) / seen.whole.sum()

        for rank in case.ranks()[:-1:2]:
            plain, fitted = error(_fit.made(method, site, rank)), error(_fit.made(method, site, rank, seen))
            assert fitted <= plain * (1 + 1e-6) + 1e-7, (name, rank)
            gains.append(fitted / max(plain, 1e-12))
        full = method.full_rank(site)
        assert error(_fit.made(method, site, full, seen)) <= 1e-12, name
        assert curve.errors.min() >= 0
    assert np.median(gains) < 0.7


@pytest.mark.parametrize("method", [method for method in METHODS if method.mixes_channels], ids=repr)
def test_errors_count_alike_in_whitened_coordinates(method):
    """And factors of these, brought back, make the same error; channels that vary much or little are alike there."""
    found = 0
    for _, case, seen in awkward(method):
        where = seen.whitened
        for rank in case.ranks()[:2]:
            new = _fit._empty(method, where.site, rank)
            method.fill(where.site, rank, new)
            before = errors(where, new)
            where.bring_back(new)
            assert errors(seen, new) == pytest.approx(before, rel=1e-6, abs=1e-12 * seen.whole.sum())
        if where.outputs_back is not None:
            spread = torch.linalg.eigvalsh(sum(metric.outputs for metric in where.metrics))
            assert spread.max() < 1.1 * spread.mean()
            found += 1
    assert found > 0


@pytest.mark.parametrize("kind", ["all zero", "constant", "one channel dead", "channels alike", "few patches"])
def test_inputs_that_tell_little(kind):
    model, x = nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5)), images(30, 6, 6, 6)
    if kind == "all zero":
        x = torch.zeros_like(x)
    elif kind == "constant":
        x = torch.ones_like(x)
    elif kind == "one channel dead":
        x[:, 2] = 0
    elif kind == "channels alike":
        x[:, 1:] = x[:, :1]
    if kind == "few patches":
        with pytest.warns(TenfoldWarning, match="30 patches tell little about the 128 inputs of 3:"):
            statistics = told(model, x)
    else:
        with pytest.warns(TenfoldWarning):
            statistics = told(model, x)
    found = tenfold.options(model, example=x[:1], statistics=statistics)
    small = tenfold.apply(model, found.plan(Budget(params=0.5)), statistics)
    assert all(p.isfinite().all() for p in small.parameters())
    if kind in ("all zero", "constant"):
        assert torch.allclose(small(x), model(x), atol=1e-4)
    same = tenfold.apply(model, found.plan(Ranks(share=1.0)), statistics)
    fresh = images(5, 6, 6, 6, seed=1)
    assert torch.allclose(same(fresh), model(fresh), atol=1e-3)  # directions without data are kept


def test_wide_layers_keep_blocks_and_say_how_far_off_they_are(monkeypatch):
    monkeypatch.setattr(_statistics, "_WIDEST", 20)
    model, x = nn.Sequential(nn.Linear(50, 8)), images(300, 50)
    layer = told(model, x).layers["0"]
    assert layer.gram.shape == (1, 3, 17, 17)
    assert layer.neglected < 0.3  # independent inputs
    with pytest.warns(TenfoldWarning, match="only products within blocks"):
        alike = told(model, x[:, :1].expand(-1, 50) + 0.1 * x)
    plan = tenfold.plan(model, Ranks(rank=4), example=x, methods=[SVD()])
    small = tenfold.apply(model, plan, alike)
    assert small[0].weight.isfinite().all()


@pytest.mark.parametrize("bias", [True, False])
def test_means_are_kept(bias):
    """What the factors miss in the mean goes into the bias, or into the batch norm behind."""
    model = randomised(nn.Sequential(nn.Conv2d(4, 12, 3, bias=bias), nn.BatchNorm2d(12), nn.ReLU())).double()
    x = images(200, 4, 6, 6).double() + 1
    statistics = told(model, x)
    assert statistics.layers["0"].norm == "1"
    plan = tenfold.plan(model, Ranks(rank=2), example=x, methods=[SVD()])
    small = tenfold.apply(model, plan, statistics)
    before, after = (net[:2](x).mean((0, 2, 3)) for net in (model, small))
    assert torch.allclose(before, after, atol=1e-9)
    plain = tenfold.apply(model, plan)
    assert not torch.allclose(before, plain[:2](x).mean((0, 2, 3)), atol=1e-3)


def test_without_a_place_for_the_mean_it_counts_as_an_error():
    model, x = nn.Sequential(nn.Linear(10, 8, bias=False)).double(), images(400, 10).double() + 3
    metric = Metric.of(told(model, x).layers["0"], has_bias=False)
    assert metric.mean is None
    assert torch.allclose(metric.inputs[0, 0], x.T @ x / 400, rtol=0.05, atol=0.05)


def test_networks_that_fit_their_data_still_have_gradients():
    """Gradients of sampled labels vanish where the network is sure; those of random mixtures do not."""
    model, x = randomised(small_cnn()), images(40, 3, 8, 8)
    sure = copy.deepcopy(model)
    with torch.no_grad():
        sure[-1].weight *= 1000
        sure[-1].bias *= 1000
    for name, layer in told(model, x).layers.items():
        if name != "11":
            assert torch.allclose(layer.response, told(sure, x).layers[name].response, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("how", ["refit", "blocks"])
def test_recovery_brings_outputs_nearer(how, monkeypatch):
    monkeypatch.setattr(_blocks, "_STEPS", 60)
    model = randomised(small_cnn())
    seen, fresh = images(256, 3, 8, 8), images(64, 3, 8, 8, seed=5)
    small = tenfold.apply(model, tenfold.plan(model, Budget(params=0.4), example=seen[:1]))
    before = {name: value.clone() for name, value in small.state_dict().items()}
    new = tenfold.recover(small, model, seen.split(64), how=how)
    assert all(torch.equal(value, small.state_dict()[name]) for name, value in before.items())
    assert new.state_dict().keys() == before.keys()
    drift = [float((net(fresh) - model(fresh)).detach().square().mean()) for net in (small, new)]
    assert drift[1] < 0.8 * drift[0]
    assert [p.requires_grad for p in new.parameters()] == [p.requires_grad for p in small.parameters()]


@pytest.mark.parametrize("how", ["refit", "blocks"])
def test_recovery_never_makes_what_is_held_back_worse(how, monkeypatch):
    """Here training data says nothing of the held-back part: the network comes back as it was, or better."""
    monkeypatch.setattr(_blocks, "_STEPS", 30)
    monkeypatch.setattr(_blocks, "_RATE", 0.5)
    model = randomised(small_cnn())
    seen = torch.cat([1e-3 * images(56, 3, 8, 8), 3 + images(8, 3, 8, 8, seed=1)])
    batches = [seen[k : k + 8] for k in range(0, 64, 8)]
    small = tenfold.apply(model, tenfold.plan(model, Budget(params=0.6), example=seen[:1]))
    _, held_back = parted(model, [tenfold._data.Inputs((batch,), {}) for batch in batches])
    before = Pair(small, model).errors_on(held_back)
    after = Pair(tenfold.recover(small, model, batches, how=how), model).errors_on(held_back)
    assert after[0] <= before[0]
    assert sum(after) <= sum(before)


def test_the_pipeline_with_tokens_and_dicts(monkeypatch):
    monkeypatch.setattr(_blocks, "_STEPS", 30)
    model = TokenNet().eval()
    batches = [{"input_ids": torch.randint(0, 50, (8, 6)), "attention_mask": torch.ones(8, 6)} for _ in range(4)]
    for how in ("refit", "blocks"):
        result = tenfold.compress(model, Budget(params=0.8), example=batches[0], calibration=batches, recover=how)
        assert result.report.small.params <= 0.8 * result.report.dense.params


class Pictures(nn.Module):
    """Takes a list of images of any sizes and gives a dict for each, as detectors do."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
        self.scores = nn.Linear(16, 5)

    def forward(self, pictures, targets=None):
        assert targets is None
        return [{"scores": self.scores(self.features(one[None]).mean((2, 3)))[0]} for one in pictures]


def test_lists_of_images_as_loaders_of_detectors_give_them():
    pictures = [images(3, 12, 10 + 2 * seed, seed=seed) for seed in range(16)]
    pairs = [(pictures[k : k + 2], [{"boxes": torch.ones(1, 4)}] * 2) for k in range(0, 16, 2)]
    model, arguments = Pictures().eval(), [(seen,) for seen, _ in pairs]
    loaders = {"tuples": [tuple(map(tuple, pair)) for pair in pairs], "lists": [[*pair] for pair in pairs]}
    wanted = told(model, *arguments)
    for batches in loaders.values():
        found = told(model, *batches)
        assert all(torch.equal(found.layers[name].gram, wanted.layers[name].gram) for name in wanted.layers)


class Features(nn.Module):
    """Takes one dict."""

    def __init__(self):
        super().__init__()
        self.both = nn.Linear(8, 4)

    def forward(self, features):
        return self.both(torch.cat([features["user"], features["item"]], 1))


def test_a_dict_whose_keys_are_no_arguments_is_an_argument():
    model, features = Features(), {"user": images(6, 3), "item": images(6, 5, seed=1)}
    wanted = told(model, (features,)).layers["both"].gram
    for batch in (features, (features, torch.zeros(6)), [features, torch.zeros(6)]):
        assert torch.equal(told(model, batch).layers["both"].gram, wanted)


@pytest.mark.parametrize("how", ["refit", "blocks"])
@pytest.mark.parametrize("square", [True, False])
def test_recovery_cuts_no_image(how, square, monkeypatch):
    """Tensors of equal length are a batch only if so many examples have as many outputs, or several each."""
    monkeypatch.setattr(_blocks, "_STEPS", 30)
    pictures = [images(3, 12, 12 if square else 10 + 2 * seed, seed=seed) for seed in range(16)]
    model, batches = Pictures().eval(), [(pictures[k : k + 2],) for k in range(0, 16, 2)]
    small = tenfold.apply(model, tenfold.plan(model, Budget(params=0.6), example=batches[0], methods=[SVD()]))
    new = tenfold.recover(small, model, batches, how=how)
    before, after = (tenfold.verify(net, model, batches).drift.relative for net in (small, new))
    assert after < before


class Experts(nn.Module):
    """Each example goes through the half that the gate says."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(8, 2)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(2)])

    def forward(self, x):
        chosen = self.gate(x).argmax(-1)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            if (mine := chosen == number).any():
                y[mine] = expert(x[mine])
        return y


@pytest.mark.parametrize("how", ["refit", "blocks"])
@pytest.mark.parametrize("idle", ["small", "dense"])
def test_experts_that_only_one_network_asks(how, idle, monkeypatch):
    monkeypatch.setattr(_blocks, "_STEPS", 30)
    model, x = Experts().eval(), images(32, 8)
    small = tenfold.apply(model, tenfold.plan(model, Ranks(share=0.5), example=x, freeze=["gate"], methods=[SVD()]))
    with torch.no_grad():
        ({"small": small, "dense": model}[idle]).gate.bias[0] = 1e3
    new = tenfold.recover(small, model, x.split(8), how=how)
    assert torch.isfinite(new(x)).all()


def test_frozen_models_and_dtypes_go_through(monkeypatch):
    monkeypatch.setattr(_blocks, "_STEPS", 30)
    model, x = randomised(small_cnn()).to(torch.bfloat16).requires_grad_(False), images(32, 3, 8, 8).to(torch.bfloat16)
    result = tenfold.compress(model, Budget(params=0.5), example=x[:1], calibration=[x])
    assert not any(p.requires_grad for p in result.model.parameters())
    assert {p.dtype for p in result.model.parameters()} == {torch.bfloat16}


def test_recovery_leaves_random_numbers_alone():
    model, x = randomised(small_cnn()), images(64, 3, 8, 8)
    small = tenfold.apply(model, tenfold.plan(model, Budget(params=0.5), example=x[:1]))
    loader = torch.utils.data.DataLoader(x, batch_size=8, shuffle=True)
    before = torch.get_rng_state()
    tenfold.recover(small, model, loader, how="refit")
    assert torch.equal(before, torch.get_rng_state())


def test_the_same_seed_gives_the_same_network(monkeypatch):
    monkeypatch.setattr(_blocks, "_STEPS", 30)
    model, x = randomised(small_cnn()), images(32, 3, 8, 8)
    nets = [
        tenfold.compress(model, Budget(params=0.5), example=x[:1], calibration=[x], seed=seed).model for seed in (1, 1)
    ]
    assert all(map(torch.equal, nets[0].state_dict().values(), nets[1].state_dict().values()))


def test_curves_are_near_what_fits_reach(shared_data):
    """Between the ranks that were tried, too: on layers of a trained network and real images."""
    from benchmarks._images import drawn_images
    from benchmarks._nets import trained

    model = trained("resnet20", "cifar10-jpeg")
    batches = [x for x, _ in drawn_images("cifar10-jpeg", "train", 256, 0).batches(64)]
    statistics = told(model, *batches)
    some = ["layer1.1.conv1", "layer2.0.conv1"]
    frozen = [name for name in statistics.layers if name not in some]
    found = tenfold.options(
        model, example=batches[0][:1], statistics=statistics, methods=[SpatialSVD(), CP(3)], freeze=frozen
    )
    ratios = []
    for ladder in found.ladders:
        site = ladder.candidate.site
        seen = _fit.Seen.of(site, statistics)
        between = np.flatnonzero((ladder.errors[:, 0] > 0.005) & (ladder.errors[:, 0] < 0.9))[::5]
        for rank, predicted in zip(ladder.ranks[between], ladder.errors[between, 0], strict=True):
            new = _fit.made(ladder.candidate.method, site, tuple(rank.tolist()), seen)
            left = _fit.stood_for(new[0]).double() - matrices(site.modules[0]).flatten(2)
            reached = float(seen.metrics[0].square(left).detach()) / seen.whole
            ratios.append(predicted / reached)
    assert len(ratios) > 10
    assert min(ratios) > 0.9
    assert np.median(ratios) < 1.35
    assert max(ratios) < 2.5


class Poles(nn.Module):
    """A layer that sees infinite inputs whatever the data, beside others."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.odd = nn.Linear(16, 64), nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        y = self.second(self.first(x))
        return y + torch.nan_to_num(self.odd((0 * y).log()), 0, 0, 0)


def test_layers_that_see_no_numbers_stay_dense():
    model, x = randomised(Poles()), images(200, 16)
    with pytest.warns(TenfoldWarning, match="1 of 3 layers saw NaN or infinite inputs, odd first: they stay dense"):
        result = tenfold.compress(model, Budget(params=0.6), example=x, calibration=[x])
    assert result.report.left_dense["odd"] == "its inputs were NaN or infinite in calibration"
    assert result.report.small.params <= 0.6 * result.report.dense.params
    assert result.model(x).isfinite().all()
    with pytest.warns(TenfoldWarning, match="saw NaN"):
        statistics = tenfold.calibrate(model, [x])
    by_weights = tenfold.plan(model, Ranks(share=0.2), example=x)
    with pytest.raises(TenfoldError, match="odd saw NaN or infinite inputs in calibration, and cannot be fitted"):
        tenfold.apply(model, by_weights, statistics)
    with pytest.warns(TenfoldWarning), pytest.raises(TenfoldError, match="its inputs were NaN or infinite in cal"):
        tenfold.compress(model, Budget(params=0.6), example=x, calibration=[x.nan_to_num() * torch.nan])


@pytest.mark.parametrize("value", [0.0, 1.0, 1e4])
def test_data_that_do_not_vary_leave_the_weights_to_judge(value):
    """Of them S holds nothing but what rounding leaves."""
    model, x = randomised(small_cnn()), images(4, 3, 16, 16)
    statistics = tenfold.calibrate(model, [torch.full((4, 3, 16, 16), value)] * 4)
    found = tenfold.options(model, example=x, statistics=statistics)
    assert all(np.isfinite(ladder.errors).all() for ladder in found.ladders)
    small = tenfold.apply(model, found.plan(Budget(params=0.6)), statistics)
    assert small(x).isfinite().all()


class Scaled:
    """A convolution of its own scale, as it is seen."""

    def __init__(self, method, scale):
        self.case = Case("conv2d", method)
        with torch.no_grad():
            for site in self.case.sites:
                for layer in site.modules:
                    layer.weight.mul_(scale)
        self.site = self.case.sites[0]
        x = torch.cat([self.case.input.roll(turn, -1) for turn in range(12)]).cumsum(-1)
        self.seen = _fit.Seen.of(self.site, told(self.case.model, x))

    def curve(self):
        calls = self.case.graph.calls_of(self.site.layers)
        return _fit.kept_curve(Candidate(self.site, self.case.method), calls, self.seen)

    def fit(self):
        return _fit.made(self.case.method, self.site, self.case.ranks()[0], self.seen)


@pytest.mark.parametrize("method", [method for method in METHODS if not method.joins], ids=repr)
@pytest.mark.parametrize("power", [-60, 50])
def test_fits_and_curves_do_not_depend_on_the_scale_of_weights(method, power):
    usual, scaled = Scaled(method, 1.0), Scaled(method, 2.0**power)
    np.testing.assert_allclose(
        scaled.curve().errors / scaled.seen.whole, usual.curve().errors / usual.seen.whole, rtol=1e-4, atol=1e-9
    )
    for one, other in zip(usual.fit(), scaled.fit(), strict=True):
        assert torch.allclose(other.weight * 2.0**-power, one.weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_weights_that_are_all_zero_stay_so(method):
    zero = Scaled(method, 0.0)
    assert np.isfinite(zero.curve().errors).all()
    assert all(not new.weight.any() for new in zero.fit())


def test_a_network_with_a_layer_of_zeros_is_compressed():
    model, x = randomised(small_cnn()), images(64, 3, 8, 8)
    nn.init.zeros_(model[3].weight)
    result = tenfold.compress(model, Budget(params=0.5), example=x[:1], calibration=[x])
    assert np.isfinite(result.report.drift.relative)
    assert result.model(x).isfinite().all()


def test_options_without_a_price_are_not_chosen():
    model, x = randomised(small_cnn()), images(1, 3, 8, 8)
    found = tenfold.options(model, example=x, methods=[SVD(), SpatialSVD()])
    for ladder in found.ladders[::2]:
        ladder.errors[:] = np.nan
    steps = found.plan(Budget(params=0.8)).steps
    kept = [ladder.candidate.step((1,)) for ladder in found.ladders[1::2]]
    assert steps
    assert {(step.layers, step.method) for step in steps} <= {(step.layers, step.method) for step in kept}


def test_a_mean_goes_into_a_norm_only_where_nothing_else_reads_it():
    class Reads(nn.Module):
        def __init__(self, reader):
            super().__init__()
            self.layer, self.norm, self.reader = nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), reader

        def forward(self, x):
            y = self.layer(x)
            return self.reader(y, self.norm(y))

    readers = [lambda y, z: y + z, lambda y, z: (y, z), lambda y, z: y[:, 1:] * z[:, 1:]]
    for reader in readers:
        assert told(Reads(reader).eval(), images(20, 6)).layers["layer"].norm is None
    assert told(Reads(lambda y, z: z).eval(), images(20, 6)).layers["layer"].norm == "norm"
    # Of tokens, the norm would take the second axis for channels.
    assert told(Reads(lambda y, z: z).eval(), images(20, 8, 6)).layers["layer"].norm is None


def test_shrinkage_does_not_depend_on_the_mean():
    """Ledoit and Wolf's formula holds for centred inputs."""
    model, x = nn.Sequential(nn.Linear(40, 8)).double(), images(100, 40).double()
    metrics = [Metric.of(told(model, inputs).layers["0"], has_bias=True) for inputs in (x, x + 10)]
    assert torch.allclose(metrics[1].inputs, metrics[0].inputs, rtol=1e-6, atol=1e-9)
    assert not torch.allclose(metrics[0].inputs[0, 0], torch.cov(x.T, correction=0), rtol=1e-2)


def test_a_layer_that_is_called_often_counts_each_time():
    class Calls(nn.Module):
        def __init__(self, layers, times):
            super().__init__()
            self.layers, self.times = nn.ModuleList(layers), times

        def forward(self, x):
            return torch.cat([self.layers[turn % len(self.layers)](x[:, turn]) for turn in range(self.times)], 1)

    shared = nn.Linear(6, 5)
    x = images(200, 4, 6)
    counted = []
    for layers in ([shared], [copy.deepcopy(shared) for _ in range(4)]):
        model = nn.Sequential(Calls(layers, 4)).eval()
        statistics = told(model, x)
        seen = [_fit.Seen.of(Site((f"0.layers.{n}",), (layer,)), statistics) for n, layer in enumerate(model[0].layers)]
        counted.append(float(sum(one.whole.sum() for one in seen)))
    assert counted[0] == pytest.approx(counted[1], rel=0.05)


@pytest.mark.parametrize(
    "told_by",
    [
        lambda y: y.half() * 5000,
        lambda y: torch.cat([y, torch.full_like(y, -torch.inf)], 1),
        lambda y: torch.complex(y, -y),
        lambda y: (y, torch.ones_like(y) + 0 * y),
    ],
    ids=["large", "masked", "complex", "constant"],
)
def test_outputs_of_every_kind_have_gradients(told_by):
    class Tells(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 5)

        def forward(self, x):
            return told_by(self.layer(x))

    alike = images(1, 6).expand(8, -1)  # a batch that tells nothing
    response = told(Tells().eval(), images(200, 6), alike, images(200, 6, seed=1)).layers["layer"].response
    assert response.isfinite().all()
    assert float(response.diagonal(dim1=-2, dim2=-1).min()) > 0


def test_outputs_that_are_lost_are_refused():
    """And masks that both networks give are no difference."""
    model, x = nn.Sequential(nn.Linear(6, 5), Masked()).eval(), images(4, 6)
    assert tenfold.verify(copy.deepcopy(model), model, [x]).drift.relative == 0
    lost = copy.deepcopy(model)
    nn.init.constant_(lost[0].weight, torch.nan)
    with pytest.raises(TenfoldError, match="20 of 20 outputs of the small network are NaN"):
        tenfold.verify(lost, model, [x])


class Masked(nn.Module):
    def forward(self, x):
        return torch.cat([x, torch.full_like(x, -torch.inf)], 1)


def test_a_network_without_free_layers_tells_nothing():
    assert tenfold.calibrate(nn.Sequential(nn.BatchNorm1d(4)), [images(5, 4)]).layers == {}


class Checkpointed(nn.Module):
    """Keeps nothing of its inner layers, which run again for gradients; its parameters need none."""

    def __init__(self, reentrant=False):
        super().__init__()
        self.stem = nn.Linear(16, 32)
        self.inner = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
        self.reentrant = reentrant
        self.requires_grad_(False)

    def forward(self, x):
        return checkpoint(self.inner, self.stem(x), use_reentrant=self.reentrant)


def test_checkpointed_layers_tell_what_others_do():
    model, x = randomised(Checkpointed()), images(64, 16)
    told, plain = tenfold.calibrate(model, [x]), tenfold.calibrate(nn.Sequential(model.stem, *model.inner), [x])
    for found, expected in zip(told.layers.values(), plain.layers.values(), strict=True):
        assert torch.equal(found.count, expected.count)
        assert torch.allclose(found.response, expected.response)
    assert tenfold.compress(model, Budget(params=0.7), example=x, calibration=[x]).report.drift.relative < 0.5
    with pytest.raises(TenfoldError, match=r"no gradients can be computed .* use_reentrant=False"):
        tenfold.calibrate(Checkpointed(reentrant=True), [x])


class Stubborn(nn.Sequential):
    """A state dict that leaves out and renames, holds what is no tensor, and buffers that take no values."""

    def __init__(self, *layers):
        super().__init__(*layers)
        self.register_buffer("scale", torch.ones(1).expand(8))
        self.register_state_dict_post_hook(Stubborn.renamed)

    @staticmethod
    def renamed(module, state, prefix, metadata):
        for name in list(state):
            if name.endswith("weight"):
                state[f"{prefix}net.{name}"] = state.pop(name)
            elif name.endswith("bias"):
                del state[name]

    def forward(self, x):
        return super().forward(x) * self.scale

    def get_extra_state(self):
        return {"version": 2}


@pytest.mark.parametrize("how", ["refit", "blocks"])
def test_recovery_does_without_state_dicts(how, tmp_path, monkeypatch):
    monkeypatch.setattr(_blocks, "_STEPS", 60)
    layers, x = (nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)), images(64, 16)
    models = randomised(Stubborn(*layers)), nn.Sequential(*layers)
    smalls = [tenfold.apply(model, tenfold.plan(model, Ranks(share=0.5), example=x)) for model in models]
    wanted = tenfold.recover(smalls[1], models[1], [x], how=how)
    with tenfold.resumable(tmp_path):
        made, again = (tenfold.recover(smalls[0], models[0], [x], how=how) for _ in range(2))
        layers[0].bias.data.add_(1.0)
        other = tenfold.recover(smalls[0], models[0], [x], how=how)
    assert torch.equal(made(x), wanted(x))
    assert torch.equal(again(x), wanted(x))
    assert not torch.equal(other(x), wanted(x))
