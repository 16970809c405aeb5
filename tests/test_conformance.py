"""Every method is held to the contract on every awkward layer; a method added to DEFAULT inherits all of it."""

import copy
import operator

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tenfold import TenfoldError
from tenfold._gauge import in_form
from tenfold.methods import DEFAULT, SVD, JointSVD, SpatialSVD, TensorTrain
from tenfold.testing import AWKWARD, CHECKS, Case, check_method

METHODS = (*DEFAULT, TensorTrain("naive"), JointSVD("right"), JointSVD("left"), JointSVD("both", share=0.4))
SERVED = [(method, name) for method in METHODS for name in AWKWARD if Case(name, method).sites]


def named(value):
    return value if isinstance(value, str) else repr(value)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("method", "name"), SERVED, ids=named)
def test_method(method, name, check):
    check(Case(name, method))


class Operations(TorchDispatchMode):
    """The names of all that is computed."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("method", "name"), SERVED, ids=named)
def test_a_weight_says_what_it_is_like_at_no_cost_and_is_computed_by_who_uses_it(method, name):
    case = Case(name, method)
    for dense, new in case.pairs(case.ranks()[0]):
        with Operations() as operations:
            weight = new.weight
            assert isinstance(weight, torch.Tensor)
            for read in ("dtype", "device", "shape", "ndim", "is_meta", "is_cuda", "layout"):
                assert getattr(weight, read) == getattr(dense.weight, read), read
            for call in ("dim", "size", "numel", "element_size", "is_floating_point", "__len__"):
                assert getattr(weight, call)() == getattr(dense.weight, call)(), call
        assert not operations.seen
        expected, factors = new.rebuilt(), [p for p in new.parameters() if p.dim() > 1]
        assert torch.equal(weight, expected)
        assert expected.shape == dense.weight.shape
        for found, wanted in ((weight.sin(), expected.sin()), (2 * weight[1:], 2 * expected[1:])):
            assert type(found) is torch.Tensor
            assert torch.equal(found, wanted)
        assert (weight.detach().numpy() == expected.detach().numpy()).all()
        gradients = [torch.autograd.grad(one.square().sum(), factors) for one in (weight, expected)]
        assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    "write",
    [
        nn.init.zeros_,
        lambda weight: weight.mul_(2),
        lambda weight: weight.data.clamp_(-1, 1),
        lambda weight: weight.requires_grad_(False),
        lambda weight: operator.imul(weight, 2),
        lambda weight: operator.setitem(weight, 0, 0.0),
        lambda weight: setattr(weight, "requires_grad", False),
        lambda weight: setattr(weight, "data", torch.zeros(3)),
    ],
)
def test_what_would_write_to_a_weight_is_refused(write):
    """It would be lost: there is no such tensor."""
    (new,) = Case("conv2d", SVD("output")).new((2,))
    with (
        torch.no_grad(),
        pytest.raises(TenfoldError, match="computed from its factors, so it can be read but not"),
    ):
        write(new.weight)
    assert torch.equal(new.weight.data, new.rebuilt())
    new.weight.data.clone().zero_()  # of a copy, whatever is wanted


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("value", [nn.Parameter(torch.zeros(3)), torch.zeros(3), None])
def test_a_weight_or_bias_is_not_assigned(name, value):
    (new,) = Case("conv2d", SVD("output")).new((2,))
    with pytest.raises(TenfoldError, match=f"the {name} of a compressed layer .* before that is compressed"):
        setattr(new, name, value)


@pytest.mark.parametrize(("method", "form"), [(each, form) for each in METHODS for form in each.forms], ids=repr)
def test_every_form_serves_a_convolution(method, form):
    case = Case("conv2d", method)
    for new in case.new(case.ranks()[0]):
        other = in_form(copy.deepcopy(new), form)
        torch.testing.assert_close(other(case.input), new(case.input))
        torch.testing.assert_close(other(case.input[0]), new(case.input)[0])  # without a batch


# torch.jit.script knows nothing of loops over the cores of a reshaped train.
SCRIPTED = [(method, name) for method, name in SERVED if method != TensorTrain()]


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # scripted models are in use all the same
@pytest.mark.parametrize(
    ("method", "name"), SCRIPTED, ids=lambda value: value if isinstance(value, str) else repr(value)
)
def test_factors_are_scripted(method, name):
    case = Case(name, method)
    for form in {"factors", "gauge"} & set(method.forms):
        for new in case.new(case.ranks()[0]):
            try:
                formed = in_form(new, form)
            except TenfoldError:
                continue  # the form is not for this layer
            torch.testing.assert_close(torch.jit.script(formed)(case.input), formed(case.input))


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
