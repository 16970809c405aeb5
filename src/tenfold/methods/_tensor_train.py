"""Tensor train: a chain of small cores over the factors of the channel counts, or over the axes of the kernel."""

# O outputs, I inputs, K kernel positions, C_1..C_d and S_1..S_d factors of I and O, r ranks, g groups, b batch,
# p positions

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log, prod
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tenfold._errors import TenfoldError
from tenfold._factored import Factored
from tenfold._layers import (
    CONVOLUTIONS,
    channels,
    factor,
    groups,
    has_bias,
    kernel_size,
    kernels,
    matrices,
    write,
    write_bias,
)
from tenfold._linalg import discarded, spectrum
from tenfold._method import Curve, Method, Site
from tenfold._plan import Rank
from tenfold._trace import Graph
from tenfold._tt import alternating, balanced_modes, clamped, rebuilt, tt_svd, unfoldings

Modes = tuple[tuple[int, ...], tuple[int, ...]]

_LEVELS = 16  # ranks on the curve, their sizes in equal ratios
_BOUNDED = 0.25  # of the tensor's size
_SWEEPS = 10


@dataclass(frozen=True)
class TensorTrain(Method):
    """A train of cores, by TT-SVD (Oseledets 2011) and alternating least squares.

    - `form="reshaped"` (Garipov et al. 2016, arXiv 1611.03214; Novikov et al. 2015, arXiv 1509.06569 for Linear):
      with I = prod C_k and O = prod S_k, `W[k, c_1..c_d, s_1..s_d] ~ G_0[k] G_1[c_1, s_1] ... G_d[c_d, s_d]`. The
      rank is (r_0, ..., r_{d-1}), without r_0 for Linear and Embedding; K r_0 + sum r_{k-1} C_k S_k r_k parameters.
    - `form="naive"`: the modes are I, the kernel axes, and O: `1x1`, one convolution an axis, `1x1`. The rank is
      (R_1, ..., R_{n+1}) for n kernel axes. For pointwise layers, only a matrix of low rank.

    `modes` are the factors ((C_1..C_d), (S_1..S_d)) of one layer's channels; without them each layer gets even ones,
    and a count that does not factor is padded with zeros. Group by group. Serves Linear, Embedding and Conv 1d, 2d,
    3d. Exact at full rank. The reshaped form runs factor by factor, or, as the step's form "kernel", rebuilds the
    dense weight in each call.

    Raises:
        TenfoldError: for another form, or modes that are not two tuples of equally many whole numbers.
    """

    name: ClassVar[str] = "tt"
    serves: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear, nn.Embedding, *CONVOLUTIONS)
    form: Literal["reshaped", "naive"] = "reshaped"
    modes: Modes | None = None

    def __post_init__(self) -> None:
        if self.form not in ("reshaped", "naive"):
            raise TenfoldError(f'TensorTrain has no form {self.form!r}; use "reshaped" or "naive".')
        if self.modes is not None:
            try:
                pair = tuple(tuple(side) for side in self.modes)
            except TypeError:
                pair = ()
            if len(pair) != 2 or len(pair[0]) != len(pair[1]) or not all(map(_whole, (*pair[0], *pair[1]))):
                raise TenfoldError(f"modes are two tuples of equally many whole numbers, not {self.modes!r}.")
            object.__setattr__(self, "modes", pair)

    @property
    def forms(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("factors", "kernel") if self.form == "reshaped" else ("factors",)

    @property
    def mixes_channels(self) -> bool:  # type: ignore[override]
        return self.form == "naive"

    @property
    def twin_of_svd(self) -> bool:  # type: ignore[override]
        return self.form == "naive"

    def sites(self, graph: Graph) -> Iterable[Site]:
        for site in super().sites(graph):
            (dense,) = site.modules
            fits = self.modes is None or tuple(map(prod, self.modes)) == _channels_of_a_group(dense)
            if self.form == "naive" or fits:
                yield site

    def unfoldings(self, site: Site) -> tuple[Tensor, ...]:
        return unfoldings(self._tensor(site))

    def clamped(self, site: Site, rank: Rank) -> Rank:
        return clamped(rank, self._tensor(site).shape[1:])

    def curve(self, site: Site) -> Curve:
        tensor = self._tensor(site)
        tails = [discarded(spectrum(cut)).sum(0) for cut in unfoldings(tensor)]
        energy, dense, modes = float(tails[0][0]), tensor[0].numel(), tensor.shape[1:]

        def at(share: float) -> Rank:  # of the energy, lost at each cut
            return clamped([max(1, int((tail[:-1] > share * energy).sum())) for tail in tails], modes)

        found = {at(_largest(at, modes, size)) for size in np.geomspace(1e-3, 1, _LEVELS) * dense}
        ranks = np.array(sorted(found | {clamped(self.full_rank(site), modes)}, key=sum))
        errors = np.array([_error(tensor, tails, rank) for rank in ranks.tolist()])
        errors[errors < 1e-24 * energy] = 0
        return Curve(ranks, np.maximum.accumulate(errors[::-1])[::-1, None])

    def skeleton(self, site: Site, rank: Rank) -> tuple[Factored, ...]:
        (dense,) = site.modules
        if self.form == "reshaped":
            return (Factored.of(dense, Train(dense, self._modes(dense), rank)),)
        (inputs, outputs), widths = channels(dense), [entry * groups(dense) for entry in rank]
        first = factor(dense, inputs, widths[0], entry=True)
        middle = [factor(dense, *pair, axes=(axis,)) for axis, pair in enumerate(pairwise(widths))]
        return (Factored.of(dense, first, *middle, factor(dense, widths[-1], outputs, bias=has_bias(dense))),)

    def fill(self, site: Site, rank: Rank, new: tuple[Factored, ...]) -> None:
        (dense,), (factored,) = site.modules, new
        tensor = self._tensor(site)
        cores = alternating(tensor, tt_svd(tensor, rank), _SWEEPS)
        if self.form == "reshaped":
            factored[0].fill(cores)  # type: ignore[operator]
        else:
            for module, core in zip(list(factored)[:-1], cores[:-1], strict=True):
                write(module, core.permute(0, 3, 1, 2))
            write(factored[-1], cores[-1][..., 0].mT)
        write_bias(dense, factored)

    def _modes(self, dense: Any) -> Modes:
        if self.modes is not None:
            return self.modes
        inputs, outputs = _channels_of_a_group(dense)
        count = max(2, round(log(max(inputs, outputs), 8)))
        return balanced_modes(inputs, count), balanced_modes(outputs, count)[::-1]  # products C_k S_k are even too

    def _tensor(self, site: Site) -> Tensor:
        """`(g, K, C_1 S_1, ..., C_d S_d)`, without K where there is no kernel; naive: `(g, I, *kernel, O)`."""
        (dense,) = site.modules
        if self.form == "naive":
            return kernels(dense).detach().double().movedim(1, -1)
        weight_goik, (ins, outs) = matrices(dense), self._modes(dense)
        padded = F.pad(weight_goik, (0, 0, 0, prod(ins) - weight_goik.shape[2], 0, prod(outs) - weight_goik.shape[1]))
        parted = padded.reshape(padded.shape[0], *outs, *ins, -1)
        count = len(ins)
        order = [place for k in range(count) for place in (1 + count + k, 1 + k)]  # C_1, S_1, C_2, S_2, ...
        modes = [c * s for c, s in zip(ins, outs, strict=True)]
        kernel = [padded.shape[3]] if kernel_size(dense) else []
        return parted.permute(0, 2 * count + 1, *order).reshape(padded.shape[0], *kernel, *modes)


class Train(nn.Module):
    """The reshaped tensor train as a layer; `form` is how it runs: "factors", or "kernel" to rebuild the weight."""

    def __init__(self, dense: Any, modes: Modes, rank: Rank) -> None:
        super().__init__()
        self.form = "factors"
        self.modes = modes
        self.channels, self.groups = _channels_of_a_group(dense), groups(dense)
        self.is_lookup = isinstance(dense, nn.Embedding)
        self.kernel: Any = None
        if axes := range(len(kernel_size(dense))):
            self.kernel = factor(dense, self.groups, self.groups * rank[0], axes=axes)
        ends = (*rank, 1) if axes else (1, *rank, 1)
        # Three dimensions each: four or five would be taken for kernels, which memory formats reorder.
        shapes = [(self.groups, r * c, s * q) for (r, q), c, s in zip(pairwise(ends), *modes, strict=True)]
        dtype = dense.weight.dtype
        self.cores = nn.ParameterList([nn.Parameter(torch.empty(shape, dtype=dtype)) for shape in shapes])
        outputs = self.channels[1] * self.groups
        self.bias = nn.Parameter(torch.empty(outputs, dtype=dtype)) if has_bias(dense) else None

    def fill(self, cores: Sequence[Tensor]) -> None:
        """Write the cores `(g, r, n, s)` of a train of the layer's tensor."""
        if self.kernel is not None:
            write(self.kernel, cores[0][:, 0].mT)
            cores = cores[1:]
        with torch.no_grad():
            for parameter, core in zip(self.cores, cores, strict=True):
                parameter.copy_(core.reshape(parameter.shape))

    def _parted(self) -> Iterable[Tensor]:
        """The cores as `(g, r, c, s, q)`."""
        for core, c, s in zip(self.cores, *self.modes, strict=True):
            yield core.unflatten(2, (s, -1)).unflatten(1, (-1, c))

    def kernels(self) -> Tensor:
        """The dense weight, `(g, o, i, *kernel)`."""
        shape = () if self.kernel is None else self.kernel.kernel_size
        start = self.cores[0].new_ones(1, 1, 1) if self.kernel is None else kernels(self.kernel).flatten(2).mT
        weight_gkior = start[:, :, None, None]
        for core in self._parted():
            grown = torch.einsum("gkior,grcsq->gkicosq", weight_gkior, core)
            weight_gkior = grown.flatten(4, 5).flatten(2, 3)
        inputs, outputs = self.channels
        return (
            weight_gkior[:, :, :inputs, :outputs, 0]
            .permute(0, 3, 2, 1)
            .unflatten(-1, shape or (1,))
            .reshape(self.groups, outputs, inputs, *shape)
        )

    def forward(self, input: Tensor) -> Tensor:
        """What the dense layer takes and gives."""
        if self.is_lookup:
            return self._rows(input)
        if self.kernel is None:
            return self._linear(input)
        return self._convolution(input)

    def _linear(self, x: Tensor) -> Tensor:
        if self.form == "kernel":
            return F.linear(x, self.kernels()[0], self.bias)
        padded = F.pad(x.reshape(-1, x.shape[-1]), (0, prod(self.modes[0]) - x.shape[-1]))
        y = self._contracted(padded[:, None, None, :, None, None]).reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias

    def _convolution(self, x: Tensor) -> Tensor:
        if self.form == "kernel":
            return self.kernel._conv_forward(x, self.kernels().flatten(0, 1), self.bias)
        space = len(self.kernel.kernel_size)
        if x.dim() == space + 1:  # without a batch
            return self._convolution(x[None])[0]
        parted = x.unflatten(1, (self.groups, -1))
        padded = F.pad(parted, (*[0] * (2 * space), 0, prod(self.modes[0]) - parted.shape[2]))
        seen = self.kernel(padded.transpose(1, 2).flatten(0, 1))  # every input channel by the same r_0 filters
        state = seen.flatten(2).unflatten(0, (-1, padded.shape[2])).unflatten(2, (self.groups, -1))
        y = self._contracted(state.transpose(1, 2)[:, :, None])
        y = y.flatten(1, 2).unflatten(-1, seen.shape[2:])
        return y if self.bias is None else y + self.bias.view(-1, *[1] * space)

    def _contracted(self, state_bgoirp: Tensor) -> Tensor:
        """Core after core takes one factor of the inputs and adds one of the outputs: `(b, g, O, p)`."""
        for core in self._parted():
            state = state_bgoirp.unflatten(3, (core.shape[2], -1))
            state_bgoirp = torch.einsum("bgocirp,grcsq->bgosiqp", state, core).flatten(2, 3)
        return state_bgoirp[:, :, : self.channels[1], 0, 0]

    def _rows(self, ids: Tensor) -> Tensor:
        if self.form == "kernel":
            return F.embedding(ids, self.kernels()[0].T)
        flat = ids.reshape(-1)
        rows_nor = self.cores[0].new_ones(flat.shape[0], 1, 1)  # len would fix the size when exported
        below = prod(self.modes[0])
        for core in self._parted():
            below //= core.shape[2]
            picked_rnsq = core[0][:, flat // below % core.shape[2]]
            rows_nor = torch.einsum("nor,rnsq->nosq", rows_nor, picked_rnsq).flatten(1, 2)
        return rows_nor[:, : self.channels[1], 0].reshape(*ids.shape, -1)


def _largest(at: Callable[[float], Rank], modes: Sequence[int], size: float) -> float:
    """The least share of energy to lose at each cut with which the train has at most `size` numbers."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if _size(at(middle), modes) <= size else (middle, high)
    return high


def _size(rank: Sequence[int], modes: Sequence[int]) -> int:
    return sum(r * n * q for (r, q), n in zip(pairwise((1, *rank, 1)), modes, strict=True))


def _error(tensor: Tensor, tails: Sequence[Tensor], rank: Sequence[int]) -> float:
    """The squared error of TT-SVD; by its bound for large trains, where it is tight, and the error dear to find."""
    if _size(rank, tensor.shape[1:]) >= _BOUNDED * tensor[0].numel():
        return sum(float(tail[entry]) for tail, entry in zip(tails, rank, strict=True))
    return float((rebuilt(tt_svd(tensor, rank)) - tensor).square().sum())


def _channels_of_a_group(dense: Any) -> tuple[int, int]:
    inputs, outputs = channels(dense)
    return inputs // groups(dense), outputs // groups(dense)


def _whole(size: Any) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and size > 0
