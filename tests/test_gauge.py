"""The row gauge: the same weight with fewer parameters, in plans, on disk, and where it measures faster."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import images, randomised
from test_latency import Machine
from torch import nn

import tenfold
from tenfold import Budget, Plan, TenfoldError
from tenfold._gauge import combined, pivots
from tenfold._plan import Step
from tenfold.methods import SVD, Tucker

X = images(5, 24)


def mlp():
    return randomised(nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 10)))


def steps(form, rank=8):
    layers = [("0",), ("2",)]
    return Plan([Step(layers=names, method={"name": "svd"}, rank=(rank,), form=form) for names in layers])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(0, 20), st.integers(0, 2**16), st.sampled_from([1.0, 1e-8]))
def test_pivots_make_all_rows_with_small_coefficients(rank, more, seed, spread):
    """Also of matrices whose columns nearly depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rank + more, rank, generator=generator, dtype=torch.float64)
    matrix = matrix @ torch.diag(torch.logspace(0, float(np.log10(spread)), rank, dtype=torch.float64))
    chosen = pivots(matrix)
    assert len(set(chosen.tolist())) == rank
    coefficients = combined(matrix, chosen)
    assert float(coefficients.abs().max()) <= 1.5 + 1e-6
    assert torch.allclose(coefficients @ matrix[chosen], matrix, atol=1e-9)


def test_matrices_of_lower_rank_than_asked():
    net = mlp()
    with torch.no_grad():
        net[2].weight.copy_(torch.outer(net[2].weight[:, 0], net[2].weight[0]))
    small = tenfold.apply(net.double(), steps("gauge"))
    assert torch.allclose(small[2].weight, net[2].weight, atol=1e-9)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(24, 40), (3, 24)),
        (nn.Linear(24, 40, bias=False), (3, 2, 24)),
        (nn.Conv2d(24, 40, 1, stride=2), (2, 24, 5, 6)),
        (nn.Conv2d(24, 40, 1, groups=2), (2, 24, 5, 6)),
        (nn.Conv2d(24, 40, 3, padding=1, groups=4), (2, 24, 5, 6)),
        (nn.ConvTranspose2d(24, 40, 3, stride=2), (2, 24, 5, 6)),
        (nn.Conv1d(24, 40, 5), (2, 24, 9)),
        (nn.Embedding(30, 40), None),
    ],
)
def test_the_same_layer_with_fewer_parameters(layer, shape):
    net = nn.Sequential(randomised(layer).double()).eval()
    x = torch.arange(30).reshape(2, 15) if shape is None else images(*shape).double()
    plain, gauged = (tenfold.apply(net, Plan([steps(form, 5).steps[0]])) for form in ("factors", "gauge"))
    with torch.no_grad():
        expected = plain(x)
        assert torch.allclose(gauged(x), expected, atol=1e-9 * float(expected.abs().max()))
    less = sum(p.numel() for p in plain.parameters()) - sum(p.numel() for p in gauged.parameters())
    assert less == 25 * getattr(layer, "groups", 1)
    assert gauged[0].bias is None if plain[0].bias is None else torch.equal(gauged[0].bias, plain[0].bias)


def test_saved_loaded_exported_and_trained(tmp_path):
    net, plan = mlp(), steps("gauge")
    small = tenfold.apply(net, plan)
    tenfold.save(tmp_path / "small", small, plan)
    loaded = tenfold.load(tmp_path / "small", mlp())
    assert torch.equal(loaded(X), small(X))
    for path in ("model.pt2", "model.onnx"):
        tenfold.export(small, X, tmp_path / path)
    small.train()(X).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in small.parameters())
    half = small.eval().to(torch.bfloat16)
    assert half(X.to(torch.bfloat16)).isfinite().all()


def test_fits_to_data_and_recovery_go_on():
    net, data = mlp(), [images(64, 24, seed=seed) for seed in range(4)]
    told = tenfold.calibrate(net, data)
    plain, gauged = (tenfold.apply(net, steps(form), told) for form in ("factors", "gauge"))
    with torch.no_grad():
        assert torch.allclose(gauged(X), plain(X), atol=1e-4 * float(plain(X).abs().max()))
    for how in ("refit", "blocks"):
        recovered = tenfold.recover(gauged, net, data, how=how)
        assert recovered(X).isfinite().all()
        assert [*recovered.state_dict()] == [*gauged.state_dict()]


def test_what_has_no_such_form_is_refused():
    full = Plan([Step(layers=("2",), method={"name": "svd"}, rank=(40,), form="gauge")])
    for act in (tenfold.apply, lambda net, plan: tenfold._apply.skeleton(net, plan)):
        with pytest.raises(TenfoldError, match="needs a rank below the number of outputs, not 40 of 40"):
            act(mlp(), full)
    spec = {"name": "svd", "side": "input"}
    net = nn.Sequential(nn.Conv2d(8, 12, 3))
    with pytest.raises(TenfoldError, match="svd runs in"):
        tenfold.apply(net, Plan([Step(layers=("0",), method=spec, rank=(4,), form="gauge")]))
    with pytest.raises(TenfoldError, match="tucker runs in"):
        tenfold.apply(mlp(), Plan([Step(layers=("2",), method=Tucker(), rank=(4, 4), form="gauge")]))


@pytest.mark.parametrize("engine", ["compile", "eager"])
def test_it_is_chosen_where_it_is_faster(monkeypatch, tmp_path, engine):
    """On a machine that takes as long as there are parameters, compiled; elsewhere it is not tried."""
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path))

    class Compiled(Machine):
        def layers(self, modules):
            leaves = [m for module in modules for m in module.modules() if isinstance(m, nn.Linear)]
            return sum(self.each + self.parameter * sum(p.numel() for p in leaf.parameters()) for leaf in leaves)

    machine, net = Compiled(monkeypatch), mlp()
    found = tenfold.options(net, example=X, methods=[SVD()], engine=engine)
    plan = found.plan(Budget(latency=0.8))
    assert {step.form for step in plan.steps} == {"gauge" if engine == "compile" else "factors"}
    small = tenfold.apply(net, plan)
    assert machine.network(small) <= 0.8 * machine.network(net)
    assert tenfold.measure(small, X).params == found.predicted(plan.steps)[0]
