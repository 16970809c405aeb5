"""The seed benchmarks' networks: the published counts, and their layers, written from the papers, as oracles."""

import pytest
import torch
from benchmarks._fresh import fresh
from benchmarks.seeds._cases import CASES, dense_shape, ranks_plan, shape

import tenfold


@pytest.mark.parametrize(
    ("net", "method", "parameters", "fewer"),
    [
        ("conv", "dense", 557_248, 1),
        ("conv", "tt-3.23x", 172_518, 3.23),
        ("conv", "tt-3.23x-clamped", 108_997, 5.11),
        ("conv-fc", "dense", 13_934_538, 1),
        ("conv-fc", "tt-41.65x", 334_554, 41.65),
        ("conv-fc", "tt-82.87x-clamped", 156_895, 88.81),
    ],
)
def test_parameters_of_the_published_networks(net, method, parameters, fewer):
    found, dense = (sum(p.numel() for p in shape(CASES[net, name]).parameters()) for name in (method, "dense"))
    assert found == parameters
    assert round(dense / found, 2) == fewer


@pytest.mark.parametrize(("net", "method", "layers"), [("conv", "tt-3.23x", None), ("conv-fc", "tt-41.65x", ("fc2",))])
def test_trains_reproduce_networks_that_are_trains(net, method, layers):
    """The authors' layers hold exact trains of their ranks, so ours at these ranks, clamped, give them back."""
    case = CASES[net, method]
    layers = layers or tuple(case.ranks)
    theirs = fresh(shape(case), torch.device("cpu"), seed=0)
    dense = dense_shape(net).to_empty(device="cpu")
    for name in layers:
        dense.get_submodule(name).weight.data = theirs.get_submodule(name).weight.detach()
    plan = ranks_plan(case)
    plan = tenfold.Plan([step for step in plan.steps if step.layers[0] in layers])
    ours = tenfold.apply(dense, plan)
    for name in layers:
        expected = theirs.get_submodule(name).weight
        found = ours.get_submodule(name)
        assert isinstance(found, tenfold.Factored)
        assert torch.allclose(found.weight, expected, rtol=0, atol=1e-5 * float(expected.detach().abs().max()))
