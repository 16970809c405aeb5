"""Ways of training towards networks that compress well."""

import copy

import pytest
import torch
from nets import Stopped, StopsAt, images, randomised, small_cnn
from torch import nn
from torch.utils.data import TensorDataset

import tenfold
from tenfold import Budget, Plan, TenfoldError
from tenfold.methods import CP, SVD, Tucker
from tenfold.train import ADMM, HoyerPull, Recipe, finetune
from tenfold.train._hoyer_pull import _polar, hoyer_square

DENSE = randomised(small_cnn())
X = images(64, 3, 8, 8)
with torch.no_grad():
    DATA = TensorDataset(X, DENSE(X).argmax(1))
PLAN = tenfold.plan(DENSE, Budget(params=0.4), example=X[:1], methods=[SVD(), Tucker(), CP(3)])
RECIPE = Recipe(epochs=8, batch=16, lr=0.02, held_back=0)
LONGER = RECIPE.model_copy(update={"epochs": 40})


def test_admm_takes_the_steps_of_the_formulas():
    layer = nn.Sequential(nn.Linear(6, 5, bias=False))
    plan = Plan([tenfold.Step(layers=("0",), method="svd", rank=(2,))])
    admm = ADMM(layer, plan, strength=0.5)

    def best(weight):
        u, s, v = torch.linalg.svd(weight)
        return u[:, :2] * s[:2] @ v[:2]

    w = layer[0].weight.detach().clone()
    assert torch.allclose(admm.target0, best(w), atol=1e-6)
    assert float(admm.penalty(layer).detach()) == pytest.approx(0.25 * float((w - best(w)).square().sum()), rel=1e-5)
    dual = torch.zeros_like(w)
    for epoch in range(3):
        with torch.no_grad():
            layer[0].weight += 0.1 * images(5, 6, seed=epoch)
        w = layer[0].weight.detach().clone()
        target = best(w + dual)
        dual = dual + w - target
        admm.after_epoch(layer, epoch, 3)
        assert torch.allclose(admm.target0, target, atol=1e-5)
        assert torch.allclose(admm.dual0, dual, atol=1e-5)


def test_admm_brings_weights_to_where_the_plan_loses_little():
    admm = ADMM(DENSE, PLAN, strength=5.0)
    start = admm.distance(DENSE)
    near = finetune(DENSE, DENSE, DATA, LONGER, hooks=[admm]).model
    assert admm.distance(near) < 0.3 * start

    def lost(model):
        with torch.no_grad():
            small = tenfold.apply(model, PLAN)
            return float((small(X) - DENSE(X)).square().sum() / DENSE(X).square().sum())

    assert lost(near) < 0.5 * lost(DENSE)


def test_admm_goes_on_after_a_stop(tmp_path):
    augment = StopsAt(22)
    whole = finetune(DENSE, DENSE, DATA, RECIPE, hooks=[ADMM(DENSE, PLAN, strength=5.0)]).model
    with pytest.raises(Stopped):
        finetune(DENSE, DENSE, DATA, RECIPE, hooks=[ADMM(DENSE, PLAN, strength=5.0)], augment=augment, folder=tmp_path)
    hooks = [ADMM(DENSE, PLAN, strength=5.0)]
    before = copy.deepcopy(hooks[0].state_dict())
    with pytest.raises(TenfoldError, match="is of another run"):
        finetune(DENSE, DENSE, DATA, RECIPE, hooks=[ADMM(DENSE, PLAN, strength=4.0)], folder=tmp_path)
    again = finetune(DENSE, DENSE, DATA, RECIPE, hooks=hooks, augment=augment, folder=tmp_path).model
    assert augment.calls < 40
    assert all(torch.equal(value, before[name]) for name, value in hooks[0].state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters(), strict=True))


@pytest.mark.parametrize("shape", [(16, 90), (90, 16), (24, 24), (1, 9)])
def test_the_pull_has_the_value_and_gradient_of_the_singular_values(shape):
    weight = images(*shape).double().requires_grad_(True)
    values = torch.linalg.svdvals(weight)
    expected = values.sum() ** 2 / values.square().sum()
    (wanted,) = torch.autograd.grad(expected, weight)
    found = hoyer_square(weight)
    (gradient,) = torch.autograd.grad(found, weight)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=0.01)
    square = shape[0] == shape[1]  # its least singular value is near 0
    most = 0.3 if square else 1e-6
    assert float((gradient - wanted).norm()) <= most * float(wanted.norm()) + 1e-9
    left, _, right = torch.linalg.svd(weight.detach(), full_matrices=False)
    assert float((_polar(weight.detach()) - left @ right).norm() / len(values) ** 0.5) < most


def test_the_pull_leaves_fewer_singular_values():
    pulled, plain = (finetune(DENSE, DENSE, DATA, LONGER, hooks=hooks).model for hooks in ([HoyerPull(0.3)], []))

    def spread(model):
        return float(HoyerPull(1.0).penalty(model).detach())

    assert spread(pulled) < 0.9 * spread(plain)


def test_a_plain_loop_drives_them_too():
    admm, model = ADMM(DENSE, PLAN, strength=5.0), copy.deepcopy(DENSE)
    search = torch.optim.SGD(model.parameters(), lr=0.02)
    for epoch in range(3):
        for x, y in zip(X.split(16), DATA.tensors[1].split(16), strict=True):
            search.zero_grad()
            (nn.functional.cross_entropy(model(x), y) + admm.penalty(model)).backward()
            search.step()
            admm.after_step(model)
        admm.after_epoch(model, epoch + 1, 3)
    assert admm.distance(model) < admm.distance(DENSE)


def test_what_cannot_be_is_refused():
    with pytest.raises(TenfoldError, match="the plan has no steps"):
        ADMM(DENSE, Plan(), strength=1.0)
    with pytest.raises(TenfoldError, match="it is above 0"):
        ADMM(DENSE, PLAN, strength=0)
    with pytest.raises(TenfoldError, match="it is above 0"):
        HoyerPull(0)
