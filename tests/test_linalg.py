"""Decompositions against independent oracles: LAPACK's singular values, brute force, planted answers."""

import numpy as np
import pytest
import torch

from tenfold._linalg import discarded, evbmf_rank, gram, hooi, hosvd, spectrum, truncated


def matrix(rows, columns, seed=0, dtype=torch.float64):
    return torch.randn(1, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (7, 7), (1, 4), (4, 1)])
def test_spectrum_is_that_of_lapack(shape):
    w = matrix(*shape)
    assert torch.allclose(spectrum(w), torch.linalg.svdvals(w).square(), rtol=1e-10)


def test_discarded_energy_is_the_error_of_the_best_fit():
    w = matrix(8, 13)
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    for rank, found in enumerate(discarded(spectrum(w))[0]):
        best = (u[..., :rank] * s[..., None, :rank]) @ vh[..., :rank, :]
        assert float(found) == pytest.approx(float((w - best).square().sum()), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("rows", [1, 511, 512, 515, 1030])
def test_gram_in_blocks_is_the_whole_product(rows):
    w = torch.stack([matrix(rows, 7)[0], matrix(rows, 7, seed=1)[0]])
    assert torch.allclose(gram(w), w @ w.mT, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(6, 11), (11, 6)])
def test_truncated_is_the_best_fit(shape):
    w = matrix(*shape)
    for rank in (1, 3, 6):
        left, right = truncated(w, rank)
        error = float((w - left @ right).square().sum())
        assert error == pytest.approx(float(torch.linalg.svdvals(w)[0, rank:].square().sum()), rel=1e-9, abs=1e-20)


def test_truncated_keeps_all_of_a_singular_matrix():
    w = matrix(6, 2) @ matrix(2, 9)
    w[:, 3] = 0
    left, right = truncated(w, 6)
    assert torch.allclose(left @ right, w, atol=1e-12)


def test_hosvd_is_exact_and_hooi_is_never_worse():
    w = torch.randn(2, 6, 5, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u_o, u_i, core = hosvd(w)
    assert torch.allclose(torch.einsum("grsk,gor,gis->goik", core, u_o, u_i), w, atol=1e-12)
    energy = float(w.square().sum())
    for rank_o, rank_i in ((1, 1), (2, 4), (5, 3)):
        started = energy - float(core[:, :rank_o, :rank_i].square().sum())
        for single, rounding in ((False, 1e-9), (True, 3e-6 * energy)):
            u_o, u_i, improved = hooi(w, rank_o, rank_i, single=single)
            rebuilt = torch.einsum("grsk,gor,gis->goik", improved, u_o, u_i).double()
            lost = float((w - rebuilt).square().sum())
            assert lost <= started + rounding
            assert lost == pytest.approx(energy - float(improved.double().square().sum()), abs=rounding)


def test_hooi_works_in_the_precision_that_its_error_needs():
    g = torch.Generator().manual_seed(2)
    w = torch.randn(1, 8, 7, 4, generator=g, dtype=torch.float64)
    assert hooi(w, 4, 4, single=True)[2].dtype == torch.float32
    steep = w * torch.logspace(0, -6, 8, dtype=torch.float64)[:, None, None]  # squares below single precision
    u_o, u_i, core = hooi(steep, 6, 7, single=True)
    lost = float((steep - torch.einsum("grsk,gor,gis->goik", core, u_o, u_i)).square().sum())
    assert lost <= float(torch.linalg.svdvals(steep.flatten(2))[0, 6:].square().sum()) * (1 + 1e-9)


def test_hooi_ends_where_neither_basis_can_be_bettered():
    w = torch.randn(1, 9, 8, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    u_o, u_i, core = hooi(w, 3, 4)
    kept = float(core.square().sum())
    for half, rank in ((torch.einsum("goik,gis->gosk", w, u_i), 3), (torch.einsum("goik,gor->girk", w, u_o), 4)):
        best = float(torch.linalg.svdvals(half.flatten(2))[0, :rank].square().sum())
        assert kept <= best + 1e-9
        assert best - kept <= 0.01 * (float(w.square().sum()) - kept)


def test_hooi_finds_a_planted_tucker_rank():
    g = torch.Generator().manual_seed(1)
    core, a, b = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((2, 3, 4), (8, 2), (7, 3)))
    w = torch.einsum("rsk,or,is->oik", core, a, b)[None]
    u_o, u_i, found = hooi(w, 2, 3)
    assert torch.allclose(torch.einsum("grsk,gor,gis->goik", found, u_o, u_i), w, atol=1e-10)


@pytest.mark.parametrize("planted", [1, 3, 8])
@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (50, 50)])
def test_evbmf_finds_a_planted_rank_at_every_scale(planted, shape):
    signal = matrix(shape[0], planted, 1) @ matrix(planted, shape[1], 2)
    noisy = signal + 0.3 * matrix(*shape, 3)
    for scale in (1e-6, 1.0, 1e6):
        assert evbmf_rank(spectrum(scale * noisy)[0], *shape) == planted


def test_evbmf_never_says_zero():
    assert evbmf_rank(spectrum(matrix(60, 60))[0], 60, 60) == 1
    assert evbmf_rank(torch.zeros(5), 5, 9) == 1


def test_evbmf_minimum_is_global():
    """Against the free energy written out term by term, on a fine grid."""
    w = matrix(20, 50, 4) + 3 * matrix(20, 2, 5) @ matrix(2, 50, 6)
    energies = spectrum(w)[0].numpy()
    small, large = 20, 50
    alpha = small / large
    tau = 2.5129 * np.sqrt(alpha)
    bound = (1 + tau) * (1 + alpha / tau)

    def free_energy(v):
        total = 0.0
        for x in energies / (large * v):
            if x <= bound:
                total += x - np.log(x)
            else:
                t = (x - (1 + alpha) + np.sqrt((x - (1 + alpha)) ** 2 - 4 * alpha)) / 2
                total += x - t + np.log((t + 1) / x) + alpha * np.log(t / alpha + 1)
        return total

    head = min(int(np.ceil(small / (1 + alpha))) - 1, small)
    low = max(energies[head] / (large * bound), energies[head:].mean() / large)
    grid = np.geomspace(low, energies.sum() / (small * large), 20001)
    best = grid[np.argmin([free_energy(v) for v in grid])]
    assert evbmf_rank(torch.tensor(energies), small, large) == int((energies / (large * best) > bound).sum())
