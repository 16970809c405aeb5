"""SVD training: a planted rank is found, factors stay orthogonal, and what comes out is an ordinary network."""

import copy

import pytest
import torch
from nets import Stopped, StopsAt, images, randomised, small_cnn
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import TensorDataset

import tenfold
from tenfold import TenfoldError
from tenfold.train import Recipe, SVDTraining, finetune
from tenfold.train._svd_training import SingularValues, _trained

DENSE = randomised(small_cnn())
X = images(16, 3, 8, 8)
FORMS = ["channel", "spatial"]


def values(model):
    return [factored[1].values for _, factored in _trained(model)]


@pytest.mark.parametrize("form", FORMS)
def test_the_start_is_the_dense_network_with_orthogonal_factors(form):
    training = SVDTraining(form)
    model = training.factorised(DENSE.double())
    assert len(values(model)) == 4  # the grouped convolution takes no part
    assert torch.allclose(model(X.double()), DENSE(X.double()), rtol=0, atol=1e-9)
    assert float(training.penalty(model).detach()) < 1e-15
    weight = DENSE[9].weight.detach()
    found = _trained(model)[2][1][1].values.detach()
    assert torch.allclose(found, torch.linalg.svdvals(weight), atol=1e-9)
    DENSE.float()


def test_weights_of_low_rank_start_orthogonal_too():
    dense = nn.Sequential(nn.Linear(12, 10)).double()
    with torch.no_grad():
        dense[0].weight.copy_(images(10, 2).double() @ images(2, 12, seed=1).double())
    training = SVDTraining()
    model = training.factorised(dense)
    assert float(training.penalty(model).detach()) < 1e-15
    assert torch.allclose(model(images(3, 12).double()), dense(images(3, 12).double()), atol=1e-10)


@pytest.mark.parametrize(
    ("regulariser", "expected"), [("hoyer", 7 / 5 - 1), ("hoyer-square", 49 / 25 - 1), ("l1", 7.0)]
)
def test_the_regularisers_are_the_formulas(regulariser, expected):
    model = SVDTraining().factorised(nn.Sequential(nn.Linear(2, 2)))
    with torch.no_grad():
        values(model)[0].copy_(torch.tensor([3.0, -4.0]))  # their signs do not count
    training = SVDTraining(orthogonality=0, sparsity=2.0, regulariser=regulariser)
    assert float(training.penalty(model).detach()) == pytest.approx(2 * expected)
    skew = SVDTraining(orthogonality=3.0)
    with torch.no_grad():
        model[0][0].weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))  # rows of U^T: Gram [[1, 1], [1, 2]]
    assert float(skew.penalty(model).detach()) == pytest.approx(3.0 * (1 + 1 + 1) / 4, abs=1e-5)


def test_no_gradient_is_lost_or_infinite_at_zero():
    for regulariser in ("hoyer", "hoyer-square", "l1"):
        training = SVDTraining(sparsity=1.0, regulariser=regulariser)
        model = training.factorised(nn.Sequential(nn.Linear(4, 4)))
        with torch.no_grad():
            values(model)[0].zero_()
        (model(images(3, 4)).square().sum() + training.penalty(model)).backward()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def trained(model, training, x, y, steps):
    search = torch.optim.Adam(model.parameters(), lr=0.02)
    for step in range(steps):
        search.param_groups[0]["lr"] = 0.02 * (1 - step / steps)
        search.zero_grad()
        (F.mse_loss(model(x), y) + training.penalty(model)).backward()
        search.step()
    return model


@pytest.mark.parametrize("regulariser", ["hoyer", "hoyer-square", "l1"])
def test_a_planted_rank_is_found(regulariser):
    """Outputs of a map of rank 3, seen through noise: training from full rank brings all but 3 values to nothing."""
    planted = images(12, 3) @ images(3, 10, seed=1) / 2
    x = images(400, 10, seed=2)
    y = x @ planted.T + 0.1 * images(400, 12, seed=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(10, 12, bias=False))
    strength = {"hoyer": 0.3, "hoyer-square": 0.1, "l1": 0.03}[regulariser]
    training = SVDTraining(orthogonality=10.0, sparsity=strength, regulariser=regulariser)
    model = trained(training.factorised(net), training, x, y, 1500)
    cut = training.cut(model, kept=0.99)
    assert len(values(cut)[0]) == 3
    training = SVDTraining(orthogonality=10.0)
    cut = trained(cut, training, x, y, 500)
    assert float(SVDTraining(orthogonality=1.0).penalty(cut).detach()) < 1e-3
    small, plan = training.finished(cut, net)
    assert plan.steps[0].rank == (3,)
    assert isinstance(small[0], tenfold.Factored)
    assert float((small[0].weight - planted).detach().norm() / planted.norm()) < 0.15


@pytest.mark.parametrize("form", FORMS)
def test_cut_keeps_the_asked_energy_and_the_order_of_values(form):
    training = SVDTraining(form)
    model = training.factorised(DENSE)
    cut = training.cut(model, kept=0.9)
    for before, after in zip(values(model), values(cut), strict=True):
        energies = before.detach().square().sort(descending=True).values
        least = int((energies.cumsum(0) / energies.sum() < 0.9).sum()) + 1
        assert len(after) == least
    assert all(torch.equal(a, b) for a, b in zip(values(training.cut(model, kept=1.0)), values(model), strict=True))
    with pytest.raises(TenfoldError, match=r"share of energy is in \(0, 1\]"):
        training.cut(model, kept=0)


@pytest.mark.parametrize("form", FORMS)
def test_what_comes_out_is_an_ordinary_network_that_saves_and_loads(form, tmp_path):
    training = SVDTraining(form)
    cut = training.cut(training.factorised(DENSE), kept=0.7).eval()
    small, plan = training.finished(cut, DENSE)
    assert torch.allclose(small(X), cut(X), atol=1e-5)
    assert not any(isinstance(module, SingularValues) for module in small.modules())
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in DENSE.parameters())
    tenfold.save(tmp_path / "small", small, plan)
    assert torch.equal(tenfold.load(tmp_path / "small", DENSE)(X), small(X))
    whole, empty = training.finished(training.factorised(DENSE), DENSE)
    assert not empty.steps  # at full rank factors cost more: the layers are dense again
    assert torch.allclose(whole(X), DENSE(X), atol=1e-5)


def test_finetune_drives_it_and_goes_on_after_a_stop(tmp_path):
    training = SVDTraining(orthogonality=1.0, sparsity=0.05)
    model = training.factorised(DENSE)
    before = copy.deepcopy(model.state_dict())
    data = TensorDataset(X.repeat(4, 1, 1, 1), DENSE(X).argmax(1).repeat(4))
    recipe = Recipe(epochs=6, batch=16, lr=0.01, held_back=0)
    whole = finetune(model, DENSE, data, recipe, hooks=[training])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def sparse(model):
        return float(SVDTraining(orthogonality=0, sparsity=1.0).penalty(model).detach())

    plain = finetune(model, DENSE, data, recipe)
    assert sparse(whole.model) < sparse(plain.model)
    assert float(SVDTraining().penalty(whole.model).detach()) < float(SVDTraining().penalty(plain.model).detach())

    augment = StopsAt(14)
    with pytest.raises(Stopped):
        finetune(model, DENSE, data, recipe, hooks=[training], augment=augment, folder=tmp_path)
    again = finetune(model, DENSE, data, recipe, hooks=[training], augment=augment, folder=tmp_path)
    assert augment.calls < 30  # it went on
    for found, expected in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.allclose(found, expected, atol=1e-6)


def test_what_cannot_be_is_refused():
    with pytest.raises(TenfoldError, match="no form 'both'"):
        SVDTraining("both")
    with pytest.raises(TenfoldError, match="no regulariser 'l2'"):
        SVDTraining(regulariser="l2")
    with pytest.raises(TenfoldError, match="are 0 or more"):
        SVDTraining(sparsity=-1)
    with pytest.raises(TenfoldError, match="no Linear layer and no convolution"):
        SVDTraining().factorised(nn.Sequential(nn.ReLU()))
