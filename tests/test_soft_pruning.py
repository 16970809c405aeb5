"""Soft filter pruning: what it zeroes, that it comes back, and that removal leaves the network as it is."""

import copy

import pytest
import torch
from nets import Stopped, StopsAt, images, randomised
from test_filters import Awkward
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import TensorDataset

import tenfold
from tenfold import Budget, Plan, Ranks, TenfoldError
from tenfold.methods import SVD, FilterPruning
from tenfold.train import Recipe, SoftFilterPruning, finetune

NET, X = randomised(Awkward()), images(4, 3, 8, 8)
PLAN = tenfold.plan(NET, Budget(params=0.5), example=X, methods=[FilterPruning()])


class Blocks(nn.Module):
    """A residual sum whose filters go together, and filters inside."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.inside, self.inside_norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.back, self.back_norm = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        y = self.back_norm(self.back(F.relu(self.inside_norm(self.inside(x)))))
        return self.head(F.relu(x + y).mean((2, 3)))


def half_of(model, x, share=0.5, importance="l2"):
    return tenfold.plan(model, Ranks(share=share), example=x, methods=[FilterPruning(importance)])


@pytest.mark.parametrize("epochs", [8, 16, 40])
def test_the_asymptotic_rate(epochs):
    pruning = SoftFilterPruning(NET, PLAN)
    assert pruning.share(epochs // 8, epochs) == pytest.approx(0.75, abs=1e-4)
    assert pruning.share(epochs, epochs) == 1
    rates = [pruning.share(done, epochs) for done in range(1, epochs + 1)]
    assert rates == sorted(rates)
    assert SoftFilterPruning(NET, PLAN, schedule="constant").share(1, epochs) == 1


@pytest.mark.parametrize("importance", ["l2", "median"])
@pytest.mark.parametrize("schedule", ["constant", "asymptotic"])
def test_as_many_are_zero_as_the_schedule_says(schedule, importance):
    model = randomised(Blocks(32))
    plan, now = half_of(model, X, importance=importance), copy.deepcopy(model)
    pruning = SoftFilterPruning(model, plan, schedule=schedule)
    for done in range(1, 5):
        pruning.after_epoch(now, done, 4)
        for step in plan.steps:
            for name in step.layers:
                zero = (now.get_submodule(name).weight.flatten(1) == 0).all(1)
                assert int(zero.sum()) == int(16 * pruning.share(done, 4))
        stem, back = (now.get_submodule(name).weight.flatten(1).any(1) for name in ("stem", "back"))
        assert torch.equal(stem, back)  # those that a sum binds together
    norms = [model.get_submodule(name).weight.detach().flatten(1).square().sum(1) for name in ("stem", "back")]
    if importance == "l2":
        weakest = sum(norm / norm.sum() for norm in norms).argsort()[:16]
        assert set((~stem).nonzero().flatten().tolist()) == set(weakest.tolist())


def test_a_zeroed_filter_comes_back_without_a_gradient():
    """The shift of its norm is below 0: behind the ReLU there is no gradient, and without memory it would stay 0."""
    model = randomised(Blocks()).train()
    with torch.no_grad():
        model.inside_norm.bias.fill_(-0.5)
        model.inside.weight[2] *= 0.1
        model.inside.weight[5] *= 0.2
    plan = Plan([step for step in half_of(model, X, 7 / 8).steps if step.layers == ("inside",)])
    pruning, before = SoftFilterPruning(model, plan), model.inside.weight.detach().clone()
    pruning.after_epoch(model, 4, 4)
    assert not model.inside.weight[2].any()
    model(X).square().sum().backward()
    assert not model.inside.weight.grad[2].any()
    with torch.no_grad():
        model.inside.weight[5] *= 0.1  # now the weaker one
    pruning.after_epoch(model, 4, 4)
    assert torch.equal(model.inside.weight[2], before[2])
    assert not model.inside.weight[5].any()


def test_what_grew_stays_as_it_grew():
    model = randomised(Blocks())
    plan = Plan([step for step in half_of(model, X).steps if step.layers == ("inside",)])
    pruning = SoftFilterPruning(model, plan)
    pruning.after_epoch(model, 4, 4)
    (zeroed, *_), grown = (~model.inside.weight.flatten(1).any(1)).nonzero().flatten().tolist(), images(8, 3, 3)
    with torch.no_grad():
        model.inside.weight[zeroed] = 5 * grown
    pruning.after_epoch(model, 4, 4)
    assert torch.equal(model.inside.weight[zeroed], 5 * grown)


def data_of(model, count=64):
    x = images(count, 3, 8, 8)
    with torch.no_grad():
        return TensorDataset(x, model(x).argmax(1))


RECIPE = Recipe(epochs=4, batch=16, lr=0.02, held_back=0)


@pytest.mark.parametrize("recipe", [RECIPE, RECIPE.model_copy(update={"ema": 0.9, "momentum": 0.95})], ids=["", "ema"])
@pytest.mark.parametrize("fresh", [True, False])
def test_removal_leaves_the_trained_network_as_it_is(recipe, fresh):
    """Momentum moves what was zeroed, norms keep shifts, averages remember: none of it is left at the end."""
    dense = randomised(Blocks())
    with torch.no_grad():
        dense.inside_norm.bias.uniform_(0.2, 1)  # constants that removal would drop
    start = Blocks() if fresh else dense
    plan = half_of(start, X)
    done = finetune(start, dense, data_of(dense), recipe, hooks=[SoftFilterPruning(start, plan)])
    trained = done.model.double()
    small = tenfold.apply(trained, Plan(plan.steps))  # of no dtype
    assert sum(p.numel() for p in small.parameters()) < 0.4 * sum(p.numel() for p in trained.parameters())
    x = X.double()
    assert torch.allclose(small(x), trained(x), rtol=0, atol=1e-12 * float(trained(x).detach().abs().max()))


def test_planted_dead_filters_are_found_and_removed():
    """A network that needs four of its twelve inner filters, its loss all that says so."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = randomised(Blocks(12)).eval()
        dead = [0, 2, 3, 5, 6, 8, 9, 11]
        with torch.no_grad():
            teacher.inside.weight[dead] *= 1e-3
            teacher.inside_norm.running_var.fill_(1.0)
            teacher.inside_norm.bias[dead] = 0
            teacher.back.weight[:, dead] *= 0.01
    plan = Plan([step for step in half_of(teacher, X, 4 / 12).steps if step.layers == ("inside",)])
    done = finetune(teacher, teacher, data_of(teacher, 128), RECIPE, hooks=[SoftFilterPruning(teacher, plan)])
    assert not done.model.inside.weight[dead].any()
    small = tenfold.apply(done.model, plan)
    assert small.inside.out_channels == 4
    x = images(128, 3, 8, 8)
    same = (small.eval()(x).argmax(1) == teacher(x).argmax(1)).double().mean()
    assert same > 0.9


def test_a_run_that_was_stopped_ends_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("tenfold.train._finetune._KEEP_S", 0.0)
    dense = randomised(Blocks())
    data, plan = data_of(dense), half_of(dense, X)

    def train(**further):
        return finetune(dense, dense, data, RECIPE, hooks=[SoftFilterPruning(dense, plan)], **further).model

    whole, augment = train(), StopsAt(10)
    with pytest.raises(Stopped):
        train(augment=augment, folder=tmp_path)
    again = train(augment=augment, folder=tmp_path)
    assert augment.calls < 20
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), whole.state_dict().values(), strict=True))
    with pytest.raises(TenfoldError, match="is of another run"):
        finetune(
            dense, dense, data, RECIPE, hooks=[SoftFilterPruning(dense, plan, schedule="constant")], folder=tmp_path
        )


def test_behind_concatenations_too():
    """Steps of a plan count channels as those before leave them; zeroed are the dense network's."""
    pruning, now = SoftFilterPruning(NET, PLAN, schedule="constant"), copy.deepcopy(NET)
    pruning.after_epoch(now, 1, 1)
    pruning.at_end(now)
    small = tenfold.apply(now.double(), Plan(PLAN.steps))  # of no dtype
    x = X.double()
    assert torch.allclose(small(x), now(x), rtol=0, atol=1e-12 * float(now(x).detach().abs().max()))
    assert not torch.allclose(now(x).float(), NET(X), rtol=0, atol=1e-3)


def test_prune_then_factorise_is_one_plan():
    pruning, now = SoftFilterPruning(NET, PLAN, schedule="constant"), copy.deepcopy(NET)
    pruning.after_epoch(now, 1, 1)
    pruning.at_end(now)
    small = tenfold.apply(now, PLAN)
    whole = PLAN + tenfold.plan(small, Budget(params=0.8), example=X, methods=[SVD()])
    at_once = tenfold.apply(now, whole)
    assert any(step.links for step in whole.steps)
    assert any(not step.links for step in whole.steps)
    assert tenfold.measure(at_once, X).params <= 0.4 * tenfold.measure(NET, X).params


def test_what_cannot_be_is_refused():
    with pytest.raises(TenfoldError, match="no schedule 'linear'"):
        SoftFilterPruning(NET, PLAN, schedule="linear")
    factors = tenfold.plan(NET, Budget(params=0.5), example=X, methods=[SVD()])
    for plan in (Plan(), factors):
        with pytest.raises(TenfoldError, match="must remove filters and nothing else"):
            SoftFilterPruning(NET, plan)
    with pytest.raises(TenfoldError, match="was made for another network"):
        SoftFilterPruning(Blocks(), PLAN)
