"""Factors that layers share: found, fitted, chosen, kept as one tensor."""

import copy
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from nets import images, randomised
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import TensorDataset

import tenfold
from tenfold import EVBMF, Budget, Energy, JointRate, MinMax, Ranks, TenfoldError
from tenfold._pair import replaced
from tenfold.methods import SVD, JointSVD, SpatialSVD, Tucker
from tenfold.methods._joint_svd import alternated, left_shared, right_shared
from tenfold.train import Recipe, finetune


class Block(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.down = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.up = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        y = self.up(F.relu(self.norm(self.down(x))))
        return F.relu(x + y) if x.shape == y.shape else F.relu(y)


class Net(nn.Module):
    """Three blocks, the first of which has other inputs and a stride."""

    def __init__(self):
        super().__init__()
        self.stage = nn.Sequential(Block(4, 12, 2), Block(12, 12, 1), Block(12, 12, 1))
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        return self.head(self.stage(x).mean((2, 3)))


NET = randomised(Net())
X = images(40, 4, 8, 8)
DOWN, UP = (tuple(f"stage.{block}.{layer}" for block in range(3)) for layer in ("down", "up"))
SCHEMES = [JointSVD("right"), JointSVD("left"), JointSVD("both")]


def found(*methods, **others):
    return tenfold.options(NET, example=X[:1], methods=methods, **others)


def sites(*methods):
    return {candidate.site.layers for candidate in found(*methods).candidates}


def compressed(method, share=0.5, statistics=None):
    return tenfold.apply(NET, found(method).plan(Ranks(share=share)), statistics)


def shared(model):
    """The tensors that stand in several layers."""
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    return len(names) - len([*model.parameters()])


def test_layers_at_the_same_place_of_repeated_blocks_go_together():
    assert sites(JointSVD("right")) == {DOWN, UP}
    assert sites(JointSVD("right", odd="alone")) == {DOWN[1:], UP}
    assert sites(JointSVD("left")) == {DOWN[1:], UP}
    assert sites(JointSVD("both")) == {DOWN[1:], UP}
    assert sites(JointSVD(together=[DOWN[1:] + UP])) == {DOWN[1:] + UP}
    plan = found(JointSVD(together=[[*DOWN[1:], *UP]])).plan(Ranks(share=0.3))
    assert [step.layers for step in plan.steps] == [DOWN[1:] + UP]
    assert "together" not in plan.steps[0].method.fields


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        weights = (self.query(x) @ self.key(x).mT).softmax(-1)
        return self.out(weights @ self.value(x))


class Encoder(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"a": Attention(width), "m": nn.Sequential(nn.Linear(width, 16), nn.Linear(16, width))})
            for _ in range(3)
        )

    def forward(self, x):
        for layer in self.layers:
            x = x + layer["a"](x)
            x = x + layer["m"](x)
        return x


def test_transformer_blocks_too_and_neighbours_where_nothing_repeats():
    x = images(2, 5, 8)
    options = tenfold.options(Encoder().eval(), example=x, methods=[JointSVD("right", odd="alone")])
    expected = {
        tuple(f"layers.{block}.{place}" for block in range(3))
        for place in ("a.query", "a.key", "a.value", "a.out", "m.0", "m.1")
    }
    assert {candidate.site.layers for candidate in options.candidates} == expected
    flat = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))
    options = tenfold.options(flat.eval(), example=x, methods=[JointSVD("both")])
    assert [candidate.site.layers for candidate in options.candidates] == [("0", "2")]


@pytest.mark.parametrize("method", SCHEMES, ids=repr)
def test_full_rank_gives_the_dense_network(method):
    dense = copy.deepcopy(NET).double()
    x = X.double()
    options = tenfold.options(dense, example=x[:1], methods=[method])
    small = tenfold.apply(dense, options.plan(Ranks(share=1.0)))
    assert len(replaced(small)) == (6 if method.shared == "right" else 5)
    assert torch.allclose(small(x), dense(x), rtol=0, atol=1e-9)


def weights(count=3, rows=14, columns=10):
    return list(images(count, rows, columns).double())


def left_over(weights, pairs):
    return sum(float((w - sum(u @ v for u, v in each)).square().sum()) for w, each in zip(weights, pairs, strict=True))


def test_alternation_never_gets_worse_and_beats_one_side_alone():
    given = weights()
    errors = [left_over(given, alternated(given, 3, 3, sweeps)) for sweeps in range(1, 31)]
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(errors))
    assert errors[-1] < errors[0]
    right, left = ([(pair,) for pair in fit(given, 3)] for fit in (right_shared, left_shared))
    assert errors[-1] < min(left_over(given, right), left_over(given, left))
    # Oracle: the singular values of the stack.
    stack = np.linalg.svd(torch.cat(given).numpy(), compute_uv=False)
    assert left_over(given, right) == pytest.approx(float((stack[3:] ** 2).sum()))


def test_a_share_of_0_is_the_right_scheme_and_of_1_the_left():
    for share, one in ((0.0, JointSVD("right", odd="alone")), (1.0, JointSVD("left", odd="alone"))):
        both = found(JointSVD("both", share=share, odd="alone")).plan(Ranks(share=0.4))
        alone = found(one).plan(Ranks(share=0.4))
        assert [step.rank for step in both.steps] == [step.rank for step in alone.steps]
        small, other = tenfold.apply(NET, both), tenfold.apply(NET, alone)
        assert torch.equal(small(X), other(X))


def test_the_choice_covers_every_layer_once_and_groups_compete_with_single_layers():
    alike = copy.deepcopy(NET)
    with torch.no_grad():  # blocks that share a subspace, which the choice should see
        common = images(8, 12 * 3) / 30
        for block in range(3):
            for name in ("down", "up"):
                weight = alike.stage[block].get_submodule(name).weight
                own = images(weight.shape[1] * 3, 8, seed=block + 1)
                weight.copy_((own @ common).reshape(-1, 3, 12, 3).permute(2, 0, 1, 3))
    options = tenfold.options(alike, example=X[:1], methods=[*SCHEMES, SpatialSVD(), SVD()])
    plan = options.plan(Budget(params=0.4))
    layers = [name for step in plan.steps for name in step.layers]
    assert len(layers) == len(set(layers))
    assert any(len(step.layers) > 1 for step in plan.steps)
    small = tenfold.apply(alike, plan)
    dense_size, size = (sum(p.numel() for p in model.parameters()) for model in (alike, small))
    assert size <= 0.4 * dense_size
    assert moved(small, alike) < 1e-6 * float(alike(X).detach().square().sum())  # all is in the shared subspace
    apart = tenfold.options(alike, example=X[:1], methods=[SpatialSVD(), SVD()]).plan(Budget(params=0.4))
    assert moved(small, alike) < moved(tenfold.apply(alike, apart), alike)
    # Of random blocks, which share nothing, few or no groups are used.
    random = tenfold.options(NET, example=X[:1], methods=[JointSVD("right"), SpatialSVD(), SVD()])
    both = tenfold.apply(NET, random.plan(Budget(params=0.5)))
    alone = tenfold.apply(NET, found(SpatialSVD(), SVD()).plan(Budget(params=0.5)))
    assert error_of_weights(both) <= error_of_weights(alone) * 1.05


def moved(small, dense):
    with torch.no_grad():
        return float((small(X) - dense(X)).square().sum())


def error_of_weights(small):
    pairs = [(NET.get_submodule(name).weight, small.get_submodule(name).weight) for name in replaced(small)]
    return sum(float((a - b).detach().square().sum() / a.detach().square().sum()) for a, b in pairs)


@pytest.mark.parametrize("target", [Ranks(share=0.4), Energy(0.6), EVBMF()], ids=repr)
def test_rank_rules_choose_among_groups_that_overlap(target):
    methods = [*SCHEMES, JointSVD("right", odd="alone"), SpatialSVD()]
    plan = found(*methods).plan(target)
    layers = [name for step in plan.steps for name in step.layers]
    assert len(layers) == len(set(layers))
    if isinstance(target, Ranks):
        assert {*DOWN, *UP} <= set(layers)
    tenfold.apply(NET, plan)


def test_what_cannot_be_is_refused():
    with pytest.raises(TenfoldError, match=r'layer "stage\.0\.down" stands in 2 groups, among which this rule cannot'):
        found(JointSVD("right"), SpatialSVD()).plan(MinMax(Budget(params=0.5)))
    with pytest.raises(TenfoldError, match=r"cannot share a right factor: their unfoldings have 5 and 36 columns"):
        found(JointSVD(together=[("stage.1.up", "head")]))
    with pytest.raises(TenfoldError, match=r'no free Linear or Conv2d layer "stage\.9\.up"'):
        found(JointSVD(together=[("stage.9.up", "head")]))
    with pytest.raises(TenfoldError, match='shares no \'top\'; use "right", "left" or "both"'):
        JointSVD("top")
    for share in (1.5, "half"):
        with pytest.raises(TenfoldError, match=r"share of the left rank is in \[0, 1\]"):
            JointSVD("both", share=share)
    with pytest.raises(TenfoldError, match='knows no odd=\'out\'; use "joint" or "alone"'):
        JointSVD(odd="out")
    for rate in (0, "half"):
        with pytest.raises(TenfoldError, match=r"the rate is in \(0, 1\]"):
            JointRate(rate)
    with pytest.raises(TenfoldError, match=r"JointRate gives ranks of one number, and tucker takes 2"):
        found(Tucker()).plan(JointRate(0.3))
    step = tenfold.Step(layers=("stage.0.down", "stage.1.down"), method="joint", rank=(3,))
    tenfold.apply(NET, tenfold.Plan([step]))
    grouped = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(TenfoldError, match="0, 1 cannot share a factor: a convolution has groups"):
        tenfold.apply(grouped, tenfold.Plan([tenfold.Step(layers=("0", "1"), method="joint", rank=(2,))]))
    left = tenfold.Step(layers=step.layers, method=JointSVD("left"), rank=(3,))
    with pytest.raises(TenfoldError, match=r"cannot share a left factor: their unfoldings have 12 and 36 rows"):
        tenfold.apply(NET, tenfold.Plan([left]))


@pytest.mark.parametrize("method", SCHEMES, ids=repr)
def test_fits_to_data_gain_and_share_one_factor(method):
    batches = [*X.split(10)]
    statistics = tenfold.calibrate(NET, batches)
    plain, fitted = compressed(method, 0.3), compressed(method, 0.3, statistics)
    assert moved(fitted, NET) < 0.9 * moved(plain, NET)
    assert shared(fitted) == shared(plain) > 0
    options = found(method, statistics=statistics)
    for ladder in options.ladders:
        assert (ladder.errors >= 0).all()
        assert ladder.errors.shape == (len(ladder.ranks), len(ladder.candidate.site.layers))
        assert (ladder.errors[-1] < 1e-6).all()


@pytest.mark.parametrize("how", ["refit", "blocks"])
def test_recovery_keeps_what_is_shared(how):
    small = compressed(JointSVD("right"), 0.3)
    batches = [*X.split(10)]
    recovered = tenfold.recover(small, NET, batches, how=how)
    assert shared(recovered) == shared(small)
    assert moved(recovered, NET) <= moved(small, NET)
    if how == "refit":
        for name in UP:
            then, now = (model.get_submodule(name)[1].weight for model in (small, recovered))
            assert torch.equal(then, now)


def test_training_adds_gradients_and_keeps_one_tensor():
    small = compressed(JointSVD("both"), 0.3)
    data = TensorDataset(X, NET(X).argmax(1))
    done = finetune(small, NET, data, Recipe(epochs=8, batch=8, held_back=0))
    assert shared(done.model) == shared(small)
    assert moved(done.model, NET) < moved(small, NET)
    trained = copy.deepcopy(small).train().requires_grad_(True)
    trained(X).square().sum().backward()
    apart = copy.deepcopy(trained)
    for module in apart.modules():  # every layer its own tensor
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.detach().clone())
    apart(X).square().sum().backward()
    gradients = {}
    for (name, tensor), (_, own) in zip(
        trained.named_parameters(remove_duplicate=False), apart.named_parameters(remove_duplicate=False), strict=True
    ):
        gradients.setdefault(id(tensor), [name, tensor.grad, 0.0])[2] += own.grad
    assert all(torch.allclose(one, total, rtol=1e-4, atol=1e-4) for _, one, total in gradients.values())


LOADED = """
import sys
import torch
sys.path.insert(0, {tests!r})
from test_joint import NET, X, shared
import tenfold
small = tenfold.load({folder!r}, NET)
torch.save([small(X).detach(), shared(small)], {out!r})
"""


def test_saved_once_and_the_same_in_a_fresh_process(tmp_path):
    options = found(*SCHEMES)
    plan = options.plan(Ranks(share=0.3))
    small = tenfold.apply(NET, plan)
    tenfold.save(tmp_path / "small", small, plan)
    stored = sum(p.numel() for p in small.parameters()) + sum(b.numel() for b in small.buffers())
    assert (tmp_path / "small" / "model.safetensors").stat().st_size < 4 * stored + 8_000
    script = LOADED.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "small"), out=str(tmp_path / "out"))
    subprocess.run([sys.executable, "-c", script], check=True)
    outputs, times = torch.load(tmp_path / "out", weights_only=True)
    assert torch.equal(outputs, small(X))
    assert times == shared(small) > 0
    assert tenfold.Plan.loads(plan.dumps()) == plan


@pytest.mark.parametrize("method", SCHEMES, ids=repr)
def test_exported_with_one_tensor(method, tmp_path):
    small = compressed(method, 0.5)
    tenfold.export(small, X[:1], tmp_path / "small.onnx")
    graph = onnx.load(tmp_path / "small.onnx").graph
    stored = sum(int(np.prod(tensor.dims)) for tensor in graph.initializer)
    held = sum(p.numel() for p in small.parameters()) + sum(b.numel() for b in small.buffers())
    assert stored <= held + 64
    assert {tuple(p.shape) for p in small.parameters() if p.dim() == 4} <= {tuple(t.dims) for t in graph.initializer}
    tenfold.export(small, X[:1], tmp_path / "small.pt2")


TRAINED = """
import sys
import torch
sys.path.insert(0, {tests!r})
from test_joint import NET, X, JointSVD, Recipe, TensorDataset, compressed, finetune, shared
torch.set_num_threads(1)
small = compressed(JointSVD("right"), 0.3)
data = TensorDataset(X, NET(X).argmax(1))
done = finetune(small, NET, data, Recipe(epochs=3, batch=8, held_back=0))
if int(__import__("os").environ.get("RANK", 0)) == 0:
    torch.save([done.model.state_dict(), shared(done.model)], {out!r})
"""


def test_two_processes_train_one_tensor(tmp_path):
    results = []
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    for name, launch in (("one", []), ("two", torchrun)):
        file = tmp_path / f"{name}.py"
        file.write_text(TRAINED.format(tests=str(Path(__file__).parent), out=str(tmp_path / name)))
        done = subprocess.run([sys.executable, *launch, str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        results.append(torch.load(tmp_path / name, weights_only=True))
    (one, times), (two, again) = results
    assert times == again > 0
    for name, value in one.items():
        assert torch.allclose(two[name].double(), value.double(), rtol=1e-4, atol=1e-5), name
