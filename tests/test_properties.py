"""Any convolution and any Linear layer, as hypothesis finds them."""

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from tenfold.methods import DEFAULT, JointSVD
from tenfold.testing import Case, factors_compute_their_weight, full_rank_changes_nothing


@st.composite
def convolutions(draw):
    dims = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inputs, outputs = (groups * draw(st.integers(1, 5)) for _ in range(2))

    def each(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    kernel, stride, dilation = each(1, 4), each(1, 3), each(1, 2)
    padding = draw(st.sampled_from(["same", "valid", "numbers", "numbers"]))
    sides = each(0, 2)
    if padding == "same":
        stride = (1,) * dims
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    size = tuple(draw(st.integers(d * (k - 1) + 1 + 3, 12)) for k, d in zip(kernel, dilation, strict=True))
    assume(not (mode == "reflect" and dims == 3 and padding == "same"))  # torch has no reflect padding there
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](
        inputs,
        outputs,
        kernel,
        stride=stride,
        padding=sides if padding == "numbers" else padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=mode,
    )
    return layer, (draw(st.integers(1, 2)), inputs, *size)


@st.composite
def linears(draw):
    inputs, outputs = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    return nn.Linear(inputs, outputs, bias=draw(st.booleans())), (
        *draw(st.lists(st.integers(1, 3), max_size=3)),
        inputs,
    )


@pytest.mark.parametrize("method", [*DEFAULT, JointSVD("right"), JointSVD("both")], ids=repr)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(layer_and_shape=st.one_of(convolutions(), linears()), seed=st.integers(0, 10_000))
def test_any_layer(method, layer_and_shape, seed):
    layer, shape = layer_and_shape
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():  # a layer's own values would differ when hypothesis tries it again
        nn.init.uniform_(parameter, -0.5, 0.5, generator=generator)
    case = Case.of(layer, shape, method)
    assume(case.sites)  # spatial SVD serves two kernel axes only
    full_rank_changes_nothing(case)
    factors_compute_their_weight(case)


def test_the_dense_layer_is_computed_in_the_dtype_that_is_checked():
    case = Case.of(nn.Linear(3, 4), (2, 3), DEFAULT[0], torch.float32)
    assert case.input.dtype == case.dense.weight.dtype == torch.float32
