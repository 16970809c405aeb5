"""Every method is held to the contract on every awkward layer; a method added to DEFAULT inherits all of it."""

import pytest

from tenfold.methods import DEFAULT, SVD
from tenfold.testing import AWKWARD, CHECKS, Case, check_method


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("method", DEFAULT, ids=repr)
def test_method(method, name, check):
    case = Case(name, method)
    assert case.sites, "every method of ours serves every awkward layer so far"
    check(case)


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
        found = float((case.new(rank).weight - case.dense.weight).detach().square().sum())
        assert found == pytest.approx(float(curve.errors[rank[0] - 1]), rel=1e-6, abs=1e-12 * energy)
