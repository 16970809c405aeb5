"""Tensor-train decomposition of plain tensors, in float64; the first dimension is a batch.

A train is a list of cores `(g, r, n, s)`: `w[g, n_0, ..., n_d] = core_0[n_0] ... core_d[n_d]`, with 1 for the first r
and the last s. Ranks are the d numbers between the cores (Oseledets 2011).
"""

# g batch, n one mode, r and s ranks to the left and right, l everything left, m everything right of a cut

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from tenfold._linalg import truncated

Cores = list[Tensor]


def clamped(ranks: Sequence[int], sizes: Sequence[int]) -> tuple[int, ...]:
    """Ranks lowered to where more of them gains nothing.

    Each is at most the product of the modes on either side, at most its left neighbour times the mode between, and
    likewise from the right.
    """
    left = accumulate(zip(ranks, sizes, strict=False), lambda before, at: min(at[0], before * at[1]), initial=1)
    pairs = zip([*left][:0:-1], sizes[::-1], strict=False)
    right = accumulate(pairs, lambda after, at: min(at[0], after * at[1]), initial=1)
    return tuple([*right][:0:-1])


def unfoldings(tensor: Tensor) -> tuple[Tensor, ...]:
    """The d matrices `(g, l, m)` that cut the modes between one and the next."""
    return tuple(tensor.flatten(1, cut).flatten(2) for cut in range(1, tensor.dim() - 1))


def tt_svd(tensor: Tensor, ranks: Sequence[int]) -> Cores:
    """Cut after cut by singular value decomposition (Oseledets 2011).

    The squared error is the sum of what the sweep's decompositions discard, at most d times that of the best train
    of these ranks.
    """
    cores, rest, before = [], tensor.flatten(1)[:, None], 1
    for size, rank in zip(tensor.shape[1:-1], ranks, strict=True):
        left, right = _orthogonal_left(rest.reshape(rest.shape[0], before * size, -1), rank)
        cores.append(left.unflatten(1, (before, size)))
        rest, before = right, left.shape[-1]
    return [*cores, rest.reshape(rest.shape[0], before, tensor.shape[-1], 1)]


def alternating(tensor: Tensor, cores: Cores, sweeps: int) -> Cores:
    """Alternating least squares: each core in turn is the best for the others, so the error never rises.

    Stops early when a sweep gains less than 1e-6 of the tensor's energy.
    """
    energy, kept = tensor.square().sum(), None
    for _ in range(sweeps):
        rights = _right_bases(cores)
        left, swept = torch.ones_like(tensor[:, :1].flatten(1)[:, :1, None]), []
        for k, (core, right) in enumerate(zip(cores, rights, strict=True)):
            before, size = core.shape[1:3]
            part = tensor.reshape(tensor.shape[0], left.shape[1], size, -1)
            best = torch.einsum("glr,glnm,gsm->grns", left, part, right)
            if k < len(cores) - 1:
                swept.append(torch.linalg.qr(best.flatten(1, 2)).Q.unflatten(1, (before, size)))
                left = torch.einsum("glr,grns->glns", left, swept[-1]).flatten(1, 2)
            else:
                swept.append(best)
        now = swept[-1].square().sum()
        if kept is not None and now - kept <= 1e-6 * energy:
            break
        cores, kept = swept, now
    return cores


def rebuilt(cores: Cores) -> Tensor:
    """The tensor that the cores stand for."""
    whole = cores[0]
    for core in cores[1:]:
        whole = torch.einsum("g...r,grns->g...ns", whole, core)
    return whole[:, 0, ..., 0]


def balanced_modes(number: int, count: int) -> tuple[int, ...]:
    """`count` factors, falling, as even as they come, of `number` or the least number above it that factors evenly.

    Evenly means that the largest is at most twice the root; a channel count such as 509 is padded to 512 = 8 x 8 x 8.
    """
    root = number ** (1 / count)
    while (best := _evenest(number, count))[0] > max(2 * root, 2):
        number += 1
    return best


def _evenest(number: int, count: int) -> tuple[int, ...]:
    if count == 1:
        return (number,)
    options = []
    for divisor in range(1, number + 1):
        if number % divisor == 0 and divisor**count >= number:
            rest = _evenest(number // divisor, count - 1)
            if rest[0] <= divisor:
                options.append((divisor, *rest))
                break
    return options[0] if options else (number, *[1] * (count - 1))


def _orthogonal_left(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    left, right = truncated(matrix, rank)
    if matrix.shape[1] <= matrix.shape[2]:
        return left, right
    q, r = torch.linalg.qr(left)  # truncated() made the right factor orthonormal
    return q, r @ right


def _right_bases(cores: Cores) -> list[Tensor]:
    """For each core, orthonormal rows `(g, s, m)` that span what the cores to its right can make."""
    made = torch.ones_like(cores[-1][:, :1, 0])
    bases = [made]
    for core in cores[:0:-1]:
        made = torch.einsum("grns,gsm->grnm", core, made).flatten(2)
        bases.append(torch.linalg.qr(made.mT).Q.mT)
    return bases[::-1]
