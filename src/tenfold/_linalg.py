"""Decompositions of plain tensors. Leading dimensions are batches (the groups of a grouped convolution).

Everything runs in float64: a Gram matrix squares the condition number, and squaring a float32 matrix in float32
would bury singular values below 3e-4 of the first. Eigenvalues of the smaller Gram matrix are several times
cheaper than a singular value decomposition of the matrix itself.
"""

# m rows, n columns, r rank, g groups, o outputs, i inputs, k kernel positions

import math

import torch
from torch import Tensor

_LARGE, _BLOCKS = 512, 4  # rows from which on a Gram matrix is taken in blocks, and how many
_SWEEPS, _WORTH = 10, 3e-4  # of orthogonal iteration: at most so many, each gaining that share of the error


def spectrum(matrix_gmn: Tensor) -> Tensor:
    """Squared singular values, largest first, shape `(g, min(m, n))`."""
    return torch.linalg.eigvalsh(_small_gram(matrix_gmn.double())).flip(-1).clamp_min(0)


def discarded(energies: Tensor) -> Tensor:
    """What is lost when the first 0, 1, 2, ... of `energies` are kept: length n becomes n + 1, last entry 0."""
    tails = energies.flip(-1).cumsum(-1).flip(-1)
    return torch.cat([tails, torch.zeros_like(tails[..., :1])], -1)


def truncated(matrix_gmn: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best fit of rank r in Frobenius norm, as a product `left_gmr @ right_grn` (Eckart & Young 1936).

    One of the two has orthonormal columns (or rows) and the other is the projection onto it, so the product is
    the matrix itself, to rounding, when r = min(m, n), whatever the matrix.
    """
    matrix = matrix_gmn.double()
    basis = _leading_eigenvectors(_small_gram(matrix), rank)
    if matrix.shape[-2] <= matrix.shape[-1]:
        return basis, basis.mT @ matrix
    return matrix @ basis, basis.mT


def leading_columns(matrix_gmn: Tensor, rank: int) -> Tensor:
    """An orthonormal basis `(g, m, r)` of the span of the r leading left singular vectors, in its precision."""
    basis = _leading_eigenvectors(_small_gram(matrix_gmn), rank)
    if matrix_gmn.shape[-2] <= matrix_gmn.shape[-1]:
        return basis
    return torch.linalg.qr(matrix_gmn @ basis).Q


def hosvd(weight_goik: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bases of the output and the input mode, and the core: `w = u_o core u_i^T` in every kernel position.

    Truncating core and bases to `(r_o, r_i)` loses exactly the energy of the core's dropped part (De Lathauwer,
    De Moor & Vandewalle 2000).
    """
    weight = weight_goik.double()
    u_goo = leading_columns(weight.flatten(2), min(weight.shape[1], weight.shape[2] * weight.shape[3]))
    by_input = weight.transpose(1, 2).flatten(2)
    u_gii = leading_columns(by_input, min(by_input.shape[1:]))
    return u_goo, u_gii, project(weight, u_goo, u_gii)


def gram(matrix_gmn: Tensor) -> Tensor:
    """`M M^T`. Of a large one, only the blocks on and below the diagonal are multiplied."""
    rows = matrix_gmn.shape[-2]
    if rows < _LARGE:
        return matrix_gmn @ matrix_gmn.mT
    found = matrix_gmn.new_empty(*matrix_gmn.shape[:-1], rows)
    for start in range(0, rows, -(-rows // _BLOCKS)):
        end = start + -(-rows // _BLOCKS)
        below = matrix_gmn[..., start:end, :] @ matrix_gmn[..., :end, :].mT
        found[..., start:end, :end] = below
        found[..., :start, start:end] = below[..., :start].mT
    return found


def project(weight_goik: Tensor, u_gor: Tensor, u_gis: Tensor) -> Tensor:
    """The core `(g, r, s, k)` of a weight in the given orthonormal bases."""
    return torch.einsum("goik,gor,gis->grsk", weight_goik.double(), u_gor, u_gis)


def hooi(weight_goik: Tensor, rank_o: int, rank_i: int, *, single: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Higher-order orthogonal iteration for two modes: bases and core `(g, r_o, r_i, k)`.

    Starts at the sequentially truncated higher-order SVD, which is no worse than the truncated one (Vannieuwenhoven,
    Vandebril & Meerbergen 2012), and alternates (De Lathauwer, De Moor & Vandewalle 2000b) with momentum: a sweep
    starts from as far ahead as the last one moved, which is worth two plain ones. The error never rises. Stops when a
    sweep gains less than 3e-4 of the error. With `single`, in single precision, unless less than a hundredth of the
    energy is lost, where rounding could show.
    """
    if single:
        u_gor, u_gis, core, lost = _hooi(weight_goik.float(), rank_o, rank_i)
        if lost > 1e-2:
            return u_gor, u_gis, core
    return _hooi(weight_goik.double(), rank_o, rank_i)[:3]


def _hooi(weight_goik: Tensor, rank_o: int, rank_i: int) -> tuple[Tensor, Tensor, Tensor, float]:
    outputs, positions = weight_goik.shape[1], weight_goik.shape[3]
    by_output_goki = weight_goik.movedim(3, 2).flatten(2)
    by_input_goki = by_output_goki.unflatten(2, (positions, -1)).flatten(1, 2)

    def fitted(u_gis: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        half_goks = (by_input_goki @ u_gis).unflatten(1, (outputs, positions)).flatten(2)
        u_gor = leading_columns(half_goks, rank_o)
        core = u_gor.mT @ half_goks
        return u_gor, u_gis, core, core.square().sum()

    energy = weight_goik.square().sum()
    fit = fitted(leading_columns(by_input_goki.mT, rank_i))
    ahead_gor = fit[0]
    for _ in range(_SWEEPS):
        by_rank_grki = (ahead_gor.mT @ by_output_goki).unflatten(2, (positions, -1)).flatten(1, 2)
        before, found = fit, fitted(leading_columns(by_rank_grki.mT, rank_i))
        if found[3] > before[3]:
            fit = found
        if not found[3] - before[3] > _WORTH * (energy - found[3]):
            break
        ahead_gor = torch.linalg.qr(2 * fit[0] - before[0] @ (before[0].mT @ fit[0])).Q
    u_gor, u_gis, core, kept = fit
    core_grsk = core.unflatten(2, (positions, -1)).movedim(2, 3)
    return u_gor, u_gis, core_grsk, float((energy - kept) / energy.clamp_min(1e-300))


def evbmf_rank(energies: Tensor, rows: int, columns: int) -> int:
    """The rank that empirical variational Bayes matrix factorisation finds in an L x M matrix, at least 1.

    `energies` are the squared singular values. The noise variance v is the global minimum of Nakajima's free
    energy (Nakajima et al. 2013, JMLR 14, corollary 1), searched on a grid in log v and refined; the spectrum is
    divided by its mean square first, so that scaling the matrix leaves the rank alone.
    """
    small, large = sorted((rows, columns))
    mean_square = (energies.double().sum() / (small * large)).clamp_min(1e-300)
    x = (energies.double() / mean_square / large).clamp_min(1e-30)  # its logarithm is taken
    alpha = small / large
    tau = 2.5129 * math.sqrt(alpha)
    bound = (1 + tau) * (1 + alpha / tau)
    head = min(math.ceil(small / (1 + alpha)) - 1, small - 1)
    lowest = max(float(x[head]) / bound, float(x[head:].mean()), 1e-12)
    grid = torch.linspace(math.log(lowest), math.log(max(float(x.sum()) / small, lowest * (1 + 1e-9))), 400).double()
    for _ in range(3):
        best = int(_free_energy(x, grid.exp(), alpha, bound).argmin())
        grid = torch.linspace(float(grid[max(best - 1, 0)]), float(grid[min(best + 1, 399)]), 400).double()
    variance = float(grid[int(_free_energy(x, grid.exp(), alpha, bound).argmin())].exp())
    return max(1, int((x / variance > bound).sum()))


def _free_energy(x: Tensor, variances: Tensor, alpha: float, bound: float) -> Tensor:
    # Of every candidate variance at once: shape (variances, singular values).
    scaled = x / variances[:, None]
    shifted = scaled - (1 + alpha)
    t = (shifted + (shifted.square() - 4 * alpha).clamp_min(0).sqrt()) / 2
    t = t.clamp_min(1e-300)
    kept = scaled - t + ((t + 1) / scaled).log() + alpha * (t / alpha + 1).log()
    return torch.where(scaled > bound, kept, scaled - scaled.log()).sum(-1)


def _small_gram(matrix: Tensor) -> Tensor:
    return gram(matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT)


def _leading_eigenvectors(symmetric: Tensor, rank: int) -> Tensor:
    return torch.linalg.eigh(symmetric).eigenvectors.flip(-1)[..., :rank]
