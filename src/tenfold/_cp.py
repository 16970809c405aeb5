"""Canonical polyadic decomposition of plain tensors, in float64; the first dimension is a batch.

A fit is a list of factors `(g, n_m, r)`, one for each mode: `w[g, n_1, ..., n_M] ~ sum_r prod_m factor_m[g, n_m, r]`.
The first and the last mode are the large ones (channels); those between are the kernel's.
"""

# g batch, i first mode, o last mode, k all modes between, flattened, r rank

from collections.abc import Callable, Sequence
from functools import reduce
from math import prod

import torch
from torch import Tensor

from tenfold._linalg import discarded, leading_columns, spectrum, truncated

Factors = list[Tensor]

_BOUND = 16.0  # summed squared norms of the terms over that of the weight, at most


def sliced_errors(weight: Tensor) -> Tensor:
    """Squared errors `(g, r + 1)` of `sliced` at ranks 0, 1, 2, ..., from spectra alone."""
    slices_gkio, _ = _slices(weight)
    energies = torch.stack([spectrum(piece) for piece in slices_gkio]).flatten(1)
    return discarded(energies.sort(descending=True).values)


def sliced(weight: Tensor, rank: int) -> Factors:
    """A sum of r orthogonal rank-one terms, in closed form.

    In an orthonormal basis of each kernel mode the tensor falls into slices, one matrix a kernel function. The
    singular triples of all slices are orthogonal terms of which the largest r are taken. Exact when r is the number
    of slices times the smaller channel mode; a start for `alternating` without cancelling terms.
    """
    slices_gkio, bases = _slices(weight)
    fits = []
    for piece_kio in slices_gkio:
        energies = spectrum(piece_kio)
        picked = energies.flatten().argsort(descending=True, stable=True)[:rank]
        slice_r, triple_r = picked // energies.shape[1], picked % energies.shape[1]
        left, right = truncated(piece_kio, int(triple_r.max()) + 1)
        first, last = left[slice_r, :, triple_r].T, right[slice_r, triple_r].T
        fits.append((slice_r, first, last))
    sizes = [basis.shape[-1] for basis in bases]
    rows = torch.stack([slice_r for slice_r, _, _ in fits])
    middle = [
        torch.stack([basis[g][:, row] for g, row in enumerate(rows // prod(sizes[m + 1 :]) % sizes[m])])
        for m, basis in enumerate(bases)
    ]
    return [torch.stack([f[1] for f in fits]), *middle, torch.stack([f[2] for f in fits])]


def alternating(weight: Tensor, factors: Factors, sweeps: int, *, enough: float = 0.0) -> Factors:
    """Alternating least squares with momentum, in which terms cannot grow against each other; the error never rises.

    - Momentum: a sweep starts from where the last two point to, and from where the last one ended after a sweep that
      gained nothing (Mitchell, Ye & De Sterck 2020, arXiv 1810.05846): 30 such sweeps are worth 100 plain ones.
    - Bound: a tensor may have no best fit of a given rank; the error then falls on and on while terms grow without
      limit and cancel (de Silva & Lim 2008, arXiv math/0607647). So the summed squared norms of the terms are held to
      `_BOUND` times the weight's, each factor in turn being the best under this bound.

    Stops early when a sweep gains less than 1e-5 of the error, or where the squared error is `enough`. Channel modes
    are contracted first and once a sweep each: what is stored besides the weight is r / n_o of it, never the product of
    the other modes.
    """
    factors, error = _balanced(factors), squared_error(weight, factors)
    before, run = factors, 0  # where the last sweep started, and how many have gained since momentum was dropped
    energies = _energies(weight)
    rounding = 1e-14 * float(energies.sum())  # errors below come from cancelling energies
    for _ in range(sweeps):
        momentum = (run + 1) / (run + 3) if run else 0.0
        start = [now + momentum * (now - then) for now, then in zip(factors, before, strict=True)]
        swept, found = _sweep(weight, start, lambda gram, target: _bounded(gram, target, _BOUND * energies))
        if found < rounding:  # as good as exact; by how much, only the residual tells
            return swept if squared_error(weight, swept) < error else factors
        if not found < error and not run:
            break
        if not found < error:  # nor where a Gram matrix of terms that agree could not be solved
            run = 0
            continue
        gained, error, run = error - found, found, run + 1
        before, factors = factors, _balanced(swept)
        if gained <= 1e-5 * error or error <= enough:
            break
    return factors


def corrected(weight: Tensor, factors: Factors, slack: float, *, sweeps: int = 5) -> Factors:
    """Error-preserving correction (Phan et al. 2020, arXiv 2008.05441): less cancellation at about the same error.

    Minimises the summed squared norms of the rank-one terms under a squared error of at most `slack` times that of
    `factors`, one factor at a time.
    """
    energies = _energies(weight)
    limits = slack * _residuals(weight, factors) + 1e-14 * energies  # an exact fit may be as exact as rounding
    aims = limits * (1 - 1e-9)  # rounding must not cross the limits
    for _ in range(sweeps):
        swept, _ = _sweep(weight, factors, lambda gram, target: _least(gram, target, energies, aims))
        if (_residuals(weight, swept) > limits).any() or not cancellation(swept) < cancellation(factors):
            break
        factors = _balanced(swept)
    return factors


def squared_error(weight: Tensor, factors: Factors) -> float:
    """`||w - fit||^2`, from the residual itself: as a difference of energies a small one would drown in rounding."""
    return float(_residuals(weight, factors).sum())


def rebuilt(factors: Factors) -> Tensor:
    """The tensor that the factors stand for."""
    first, *middle, last = factors
    rows = reduce(lambda a, b: (a[:, :, None] * b[:, None]).flatten(1, 2), middle, first)
    return (rows @ last.mT).unflatten(1, [f.shape[1] for f in (first, *middle)])


def cancellation(factors: Factors) -> float:
    """The summed squared norms of the rank-one terms."""
    return float(reduce(torch.mul, [factor.square().sum(1) for factor in factors]).sum())


def split(factors: Factors) -> Factors:
    """The same fit with kernels of unit norm; the first and the last factor share what is left of each term's norm.

    So what runs between the factors is of like size in every channel, which int8 needs.
    """
    norms = [factor.norm(dim=1, keepdim=True).clamp_min(1e-150) for factor in factors]
    half = reduce(torch.mul, norms).sqrt()
    first, *middle, last = (factor / norm for factor, norm in zip(factors, norms, strict=True))
    return [first * half, *middle, last * half]


def _sweep(weight: Tensor, factors: Factors, solve: Callable[[Tensor, Tensor], Tensor]) -> tuple[Factors, float]:
    """Solve for each factor in turn, given the Gram matrix of the others and their product with the weight."""
    first, *middle, last = factors
    count = len(middle)
    kernel_axes = "abcd"[:count]
    kernel_terms = [f"g{axis}r" for axis in kernel_axes]
    by_last = _contracted(weight, last, "last")  # (g, i, *kernel, r)
    first = solve(
        _gram([*middle, last]),
        torch.einsum(",".join([f"gi{kernel_axes}r", *kernel_terms]) + "->gir", by_last, *middle),
    )
    for m, axis in enumerate(kernel_axes):
        others = [f for n, f in enumerate(middle) if n != m]
        terms = [t for n, t in enumerate(kernel_terms) if n != m]
        target = torch.einsum(",".join([f"gi{kernel_axes}r", "gir", *terms]) + f"->g{axis}r", by_last, first, *others)
        middle[m] = solve(_gram([first, *others, last]), target)
    del by_last
    by_first = _contracted(weight, first, "first")  # (g, r, *kernel, o)
    target = torch.einsum(",".join([f"gr{kernel_axes}o", *kernel_terms]) + "->gor", by_first, *middle)
    gram = _gram([first, *middle])
    last = solve(gram, target)
    error = weight.square().sum() - 2 * (target * last).sum() + (gram * (last.mT @ last)).sum()
    return [first, *middle, last], float(error)


def _contracted(weight: Tensor, factor: Tensor, mode: str) -> Tensor:
    if mode == "last":
        flat = weight.flatten(1, -2) @ factor
        return flat.unflatten(1, weight.shape[1:-1])
    return (factor.mT @ weight.flatten(2)).unflatten(2, weight.shape[2:])


def _gram(factors: Sequence[Tensor]) -> Tensor:
    return reduce(torch.mul, [factor.mT @ factor for factor in factors])


def _bounded(gram: Tensor, target: Tensor, bounds: Tensor) -> Tensor:
    """The best factor of those whose terms have summed squared norms of at most the bound."""
    # A ridge at rounding level: the Gram matrix of terms that nearly agree, or are zero, is singular.
    level = (1e-12 * gram.diagonal(dim1=-2, dim2=-1).mean(-1)).clamp_min(1e-150)[:, None, None]
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    free = torch.linalg.solve(gram + level * eye, target.mT).mT
    if ((free.square().sum(1) * gram.diagonal(dim1=-2, dim2=-1)).sum(-1) <= bounds).all():
        return free
    damped = _Damped(gram, target)
    most = (damped.columns.sum(-1) / bounds.clamp_min(1e-300)).sqrt()  # there the terms are certainly small enough
    return damped.at(_bisected(lambda t: damped.norms(t) > bounds, most)[1])


def _least(gram: Tensor, target: Tensor, energies: Tensor, limits: Tensor) -> Tensor:
    """The factor whose terms have the least summed squared norms, of those with an error of at most the limit."""
    damped = _Damped(gram, target)
    return damped.at(_bisected(lambda t: energies - damped.explained(t) <= limits, damped.values.amax(-1))[0])


class _Damped:
    """`X(t) = M (G + t D)^-1`, where D holds the squared norms of the terms without X: norms against error."""

    def __init__(self, gram: Tensor, target: Tensor) -> None:
        scale = gram.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300).sqrt()[:, None]
        values, self.vectors = torch.linalg.eigh(gram / (scale.mT * scale))
        self.values = values.clamp_min(1e-12 * values.amax(-1, keepdim=True))
        self.scale, self.rotated = scale, (target / scale) @ self.vectors
        self.columns = self.rotated.square().sum(1)

    def at(self, t: Tensor) -> Tensor:
        return (self.rotated / (self.values + t[:, None])[:, None]) @ self.vectors.mT / self.scale

    def norms(self, t: Tensor) -> Tensor:
        """The summed squared norms of the terms."""
        return (self.columns / (self.values + t[:, None]).square()).sum(-1)

    def explained(self, t: Tensor) -> Tensor:
        """By how much the squared error is below the weight's energy."""
        damped = self.values + t[:, None]
        return (self.columns * (damped + t[:, None]) / damped.square()).sum(-1)


def _bisected(low_side: Callable[[Tensor], Tensor], most: Tensor) -> tuple[Tensor, Tensor]:
    """The two sides of the place below `most`, in each batch element, up to which `low_side` holds."""
    high = most.clamp_min(1e-100)  # of a weight of zeros
    low = 1e-12 * high
    for _ in range(20):  # to 3e-5 of t
        middle = (low * high).sqrt()
        below = low_side(middle)
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low, high


def _balanced(factors: Factors) -> Factors:
    # Every term spreads its norm evenly over its factors, so that no Gram matrix is badly scaled.
    norms = [factor.norm(dim=1, keepdim=True).clamp_min(1e-150) for factor in factors]
    mean = reduce(torch.mul, norms) ** (1 / len(factors))
    return [factor / norm * mean for factor, norm in zip(factors, norms, strict=True)]


def _slices(weight: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The slices `(g, k, i, o)` in orthonormal bases of the kernel modes, and these bases `(g, n_m, n_m)`."""
    bases = []
    for m in range(2, weight.dim() - 1):
        unfolded = weight.movedim(m, 1).flatten(2)
        basis = leading_columns(unfolded, min(unfolded.shape[1:]))
        bases.append(basis)
        weight = torch.einsum("gn...,gnl->gl...", weight.movedim(m, 1), basis).movedim(1, m)
    slices = weight.flatten(2, -2) if weight.dim() > 3 else weight[:, :, None]
    return slices.transpose(1, 2), bases


def _residuals(weight: Tensor, factors: Factors) -> Tensor:
    return _energies(weight - rebuilt(factors))


def _energies(weight: Tensor) -> Tensor:
    return weight.flatten(1).square().sum(1)
