"""The seed benchmarks' networks: the published counts, and their layers, written from the papers, as oracles."""

import pytest
import torch
from benchmarks._fresh import fresh
from benchmarks.seeds import _joint_cases as joint
from benchmarks.seeds._cases import CASES, dense_shape, ranks_plan, shape

import tenfold
from tenfold._apply import skeleton


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


@pytest.mark.parametrize(
    ("net", "rate", "factors"),
    [
        ("resnet18", 0.04, (17.757, 17.757, 17.757, 17.757, 17.757, 17.954, 17.757)),
        ("resnet18", 0.08, (11.990, 11.897, 11.946, 11.946, 11.946, 11.990, 11.946)),
        ("resnet34", 0.04, (22.069, 21.994, 22.033, 22.033, 22.183, 22.408, 22.183)),
        ("resnet34", 0.08, (13.925, 13.747, 13.779, 13.779, 13.901, 13.897, 13.901)),
        ("resnet50", 0.04, (6.276, 6.276, 6.281, 6.275, 6.300, 6.297, 6.304)),
    ],
)
def test_published_factors_of_joint_decomposition(net, rate, factors):
    """Of plain spatial SVD, RJSVD-1, RJSVD-2, LJSVD and Bi-JSVD, counted from the built networks."""
    dense = joint.dense_shape(net, "cifar10-jpeg")
    for method, expected in zip(joint.SCHEMES, factors, strict=True):
        small = skeleton(dense, joint.rate_plan(net, "cifar10-jpeg", method, rate))
        assert round(joint.counted(dense) / joint.counted(small), 3) == expected
