"""Every method is held to the contract on every awkward layer; a method added to DEFAULT inherits all of it."""

import pytest
import torch
from torch import nn

from tenfold.methods import DEFAULT, SVD, JointSVD, SpatialSVD, TensorTrain
from tenfold.testing import AWKWARD, CHECKS, Case, check_method

METHODS = (*DEFAULT, TensorTrain("naive"), JointSVD("right"), JointSVD("left"), JointSVD("both", share=0.4))
SERVED = [(method, name) for method in METHODS for name in AWKWARD if Case(name, method).sites]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("method", "name"), SERVED, ids=lambda value: value if isinstance(value, str) else repr(value))
def test_method(method, name, check):
    check(Case(name, method))


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize(
    ("module", "name", "sizes"),
    [("timm.layers.linear", "Linear", (12, 20)), ("transformers.pytorch_utils", "Conv1D", (20, 12))],
)
def test_linear_layers_of_other_libraries(method, module, name, sizes):
    """What computes the same as `nn.Linear` is served as that, and its weight keeps the shape that it had."""
    kind = getattr(pytest.importorskip(module), name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        case = Case.of(kind(*sizes), (3, 12), method)
    assert bool(case.sites) == (nn.Linear in method.serves)
    for check in CHECKS if case.sites else ():
        check(case)


def test_who_serves_what():
    """Spatial SVD needs two kernel axes, trains do not run transposed, joint SVD does neither that nor groups."""
    every = {(method, name) for method in METHODS for name in AWKWARD}
    for method, name in every - set(SERVED):
        layer = AWKWARD[name][0]()
        if isinstance(method, JointSVD):
            assert getattr(layer, "groups", 1) > 1 or type(layer) not in method.serves
        elif isinstance(method, SpatialSVD):
            assert len(getattr(layer, "kernel_size", ())) != 2
        else:
            assert isinstance(method, TensorTrain)
            assert getattr(layer, "transposed", False)


def test_check_method_sees_a_method_that_lies():
    svd = DEFAULT[0]

    class Liar(type(svd)):
        name = "liar"

        def curve(self, site):
            curve = super().curve(site)
            return type(curve)(curve.ranks, curve.errors / 2)

    with pytest.raises(AssertionError, match="rank"):
        check_method(Liar())


@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("side", ["output", "input"])
def test_the_svd_curve_is_the_squared_weight_error(name, side):
    case = Case(name, SVD(side))
    curve = case.method.curve(case.sites[0])
    energy = float(case.dense.weight.detach().square().sum())
    for rank in case.ranks():
        found = float((case.new(rank)[0].weight - case.dense.weight).detach().square().sum())
        assert found == pytest.approx(float(curve.errors[rank[0] - 1, 0]), rel=1e-6, abs=1e-12 * energy)
