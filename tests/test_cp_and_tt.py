"""Canonical and tensor-train decompositions: planted answers, bounds, and the functions that they stand for."""

import numpy as np
import pytest
import torch
from nets import images, randomised
from torch import nn

import tenfold
from tenfold import Plan, Step
from tenfold._cp import alternating, cancellation, corrected, rebuilt, sliced, sliced_errors, squared_error
from tenfold._tt import alternating as tt_alternating
from tenfold._tt import balanced_modes, clamped, tt_svd, unfoldings
from tenfold._tt import rebuilt as tt_rebuilt
from tenfold.methods import CP, TensorTrain, Tucker


def tensor(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_closed_form_is_as_good_as_it_says_and_exact_at_full_rank():
    w = tensor(2, 7, 3, 2, 6)
    errors = sliced_errors(w)
    for rank in (1, 5, 20, 36):
        factors = sliced(w, rank)
        assert squared_error(w, factors) == pytest.approx(float(errors[:, rank].sum()), rel=1e-9, abs=1e-20)
        assert cancellation(factors) == pytest.approx(float(rebuilt(factors).square().sum()), rel=1e-9)


@pytest.mark.parametrize("factors", [3, 4])
def test_a_planted_cp_rank_is_found(factors):
    terms = [tensor(n, 4, seed=s) for s, n in enumerate((10, 3, 3, 12))]
    kernel = torch.einsum("ir,hr,wr,or->oihw", *terms)
    net = nn.Sequential(nn.Conv2d(10, 12, 3, bias=False)).double()
    net[0].weight.data = kernel
    small = tenfold.apply(net, Plan((Step(layers=("0",), method=CP(factors), rank=(4,)),)))
    assert float((small[0].weight - kernel).detach().square().sum()) <= 1e-8 * float(kernel.square().sum())


def test_alternating_never_raises_the_error():
    w = tensor(1, 9, 4, 8)
    factors = sliced(w, 12)
    errors = [squared_error(w, alternating(w, factors, sweeps)) for sweeps in (0, 1, 2, 5, 20, 60)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.8 * errors[0]


def test_terms_that_would_cancel_without_end_are_held_and_corrected():
    """The tensor x x y + x y x + y x x has rank 3 and border rank 2: at rank 2, terms grow and cancel without end."""
    x, y = torch.eye(2, dtype=torch.float64)
    w = sum(torch.einsum("a,b,c->abc", *t) for t in ((x, x, y), (x, y, x), (y, x, x)))[None]
    fit = alternating(w, [tensor(1, 2, 2, seed=s) for s in range(3)], 3000)
    before, error = cancellation(fit) / float(w.square().sum()), squared_error(w, fit)
    assert 15.9 < before < 16.001
    assert error < 0.01 * float(w.square().sum())
    mended = corrected(w, fit, 2.0, sweeps=200)
    assert squared_error(w, mended) <= 2.001 * error
    assert cancellation(mended) / float(w.square().sum()) < 0.8 * before


def test_groups_of_small_tensors_do_not_degenerate():
    """Many 2x2x2 tensors have no best fit of rank 2; each group is held for itself."""
    for seed in range(40):
        w = tensor(3, 1, 2, 2, 2, 1, seed=seed)
        w[1] *= seed % 2  # a group of zeros harms no other
        for rank in (1, 2, 3):
            fit = corrected(w, alternating(w, sliced(w, rank), 100), 1.01)
            assert cancellation(fit) <= 16.001 * float(w.square().sum())


def test_the_report_shows_how_much_terms_cancel():
    model = randomised(nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1)))
    plan = Plan((Step(layers=("0",), method=CP(), rank=(20,)), Step(layers=("1",), method="svd", rank=(4,))))
    rows = tenfold.verify(tenfold.apply(model, plan), model, [images(1, 8, 9, 9)]).replaced
    assert 0.5 < rows[0].cancellation < 20
    assert rows[1].cancellation is None


def test_chains_of_one_term_of_a_linear_layer_have_a_cancellation_of_one():
    model = randomised(nn.Sequential(nn.Linear(8, 6)))
    small = tenfold.apply(model, Plan((Step(layers=("0",), method=Tucker(), rank=(1, 1)),)))
    assert small[0].cancellation() == pytest.approx(1)


@pytest.mark.parametrize("ranks", [(3, 5, 2), (9, 20, 4), (1, 1, 1), (2, 30, 4)])
def test_tt_svd_is_within_its_bound_and_alternating_only_lowers_it(ranks):
    w = tensor(1, 9, 6, 5, 4)
    ranks = clamped(ranks, w.shape[1:])
    cores = tt_svd(w, ranks)
    error = float((tt_rebuilt(cores) - w).square().sum())
    cuts = [torch.linalg.svdvals(cut)[0, rank:].square().sum() for cut, rank in zip(unfoldings(w), ranks, strict=True)]
    # No train is better than the worst cut, and TT-SVD is at most the sum: sqrt(d - 1) of the best in norm.
    assert float(max(cuts)) - 1e-9 <= error <= float(sum(cuts)) + 1e-9
    better = float((tt_rebuilt(tt_alternating(w, cores, 10)) - w).square().sum())
    assert float(max(cuts)) - 1e-9 <= better <= error + 1e-12


@pytest.mark.parametrize(
    ("ranks", "sizes", "useful"),
    [
        ((22, 20, 20), (9, 16, 64, 16), (9, 20, 16)),
        ((100, 1000, 100), (9, 16, 64, 16), (9, 144, 16)),
        ((1, 50, 9), (9, 16, 8), (1, 8)),
        ((5, 5), (3, 100, 4), (3, 4)),
    ],
)
def test_ranks_are_clamped_to_what_can_matter(ranks, sizes, useful):
    assert clamped(ranks[: len(sizes) - 1], sizes) == useful


@pytest.mark.parametrize("number", [1, 2, 3, 7, 10, 64, 128, 251, 509, 512, 1000, 4096])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_modes_are_even_and_hold_every_channel(number, count):
    modes = balanced_modes(number, count)
    assert len(modes) == count
    assert list(modes) == sorted(modes, reverse=True)
    assert number <= np.prod(modes) <= 1.15 * number + 2**count
    assert max(modes) <= max(2 * number ** (1 / count) + 1, 2)


def test_channel_counts_that_do_not_factor():
    net = nn.Sequential(nn.Conv2d(251, 509, 1), nn.Flatten(), nn.Linear(509, 13)).double()
    x = images(2, 251, 1, 1).double()
    plan = tenfold.plan(net, tenfold.Ranks(share=1.0), example=x, methods=[TensorTrain()])
    assert torch.allclose(tenfold.apply(net, plan)(x), net(x), atol=1e-9)


def test_a_train_is_the_published_function():
    """Garipov et al.: w[k, c, s] = G_0[k] G_1[c_1, s_1] ... G_d[c_d, s_d], channel indices row-major."""
    net = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1, bias=False)).double()
    method = TensorTrain(modes=((2, 3), (4, 2)))
    small = tenfold.apply(net, Plan((Step(layers=("0",), method=method, rank=(4, 5)),)))
    train = small[0][0]
    kernel = train.kernel.weight.reshape(4, 3, 3)
    first, second = train.cores[0].reshape(4, 2, 4, 5), train.cores[1].reshape(5, 3, 2, 1)  # r, c, s, q
    expected = torch.zeros(8, 6, 3, 3, dtype=torch.float64)
    for s in range(8):
        for c in range(6):
            row = torch.einsum("rhw,rt,tq->hwq", kernel, first[:, c // 3, s // 2], second[:, c % 3, s % 2])
            expected[s, c] = row[..., 0]
    assert torch.allclose(small[0].weight, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(12, 20), images(2, 12)),
        (nn.Conv2d(8, 12, 3, padding=1, groups=2), images(2, 8, 6, 6)),
        (nn.Embedding(30, 12), torch.arange(10).reshape(2, 5)),
    ],
)
def test_both_ways_to_run_a_train_agree(layer, x):
    net = nn.Sequential(layer).eval()
    plan = tenfold.plan(net, tenfold.Ranks(share=0.5), example=x, methods=[TensorTrain()])
    by_kernel = Plan(tuple(step.model_copy(update={"form": "kernel"}) for step in plan.steps))
    assert torch.allclose(tenfold.apply(net, plan)(x), tenfold.apply(net, by_kernel)(x), atol=1e-5)
    with pytest.raises(tenfold.TenfoldError, match="form"):
        tenfold.apply(net, Plan(tuple(step.model_copy(update={"form": "magic"}) for step in plan.steps)))


def test_forms_that_do_not_exist_are_refused():
    for make in (lambda: CP(5), lambda: TensorTrain("round")):
        with pytest.raises(tenfold.TenfoldError):
            make()
    for modes in (((2, 3), (4,)), (2, 3), 3):
        with pytest.raises(tenfold.TenfoldError, match="modes are two tuples"):
            TensorTrain(modes=modes)
