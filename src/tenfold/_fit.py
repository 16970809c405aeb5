"""Factors fitted to what the layer really sees: one way for every method.

A method gives factors from the weights alone. The weight that they stand for is a differentiable function of them, so
their error in the metric of the data falls by descent on all factors at once. That is what alternating least squares
would do factor by factor, in fewer steps and without a formula for each method.
"""

# g groups, O outputs, K inputs times kernel positions

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tenfold._candidate import Candidate
from tenfold._errors import TenfoldError
from tenfold._factored import Factored, materialise
from tenfold._layers import channels, from_stored, groups, has_bias, matrices
from tenfold._method import Curve, Method, Site
from tenfold._metric import Metric
from tenfold._plan import Rank
from tenfold._resume import kept
from tenfold._statistics import Statistics
from tenfold._trace import Call
from tenfold._whiten import Whitened

Floats = NDArray[np.float64]

_STEPS, _CURVE_STEPS = 300, 20  # of descent: for the weights, and for a rank of the curve
_WORK = 6e10  # multiply-adds that a descent may take: large layers get fewer steps, and at least five
_TRIED = (0.6, 0.3, 0.1, 0.03)  # relative errors of the weights at which a curve is fitted, besides the least rank


@dataclass(frozen=True, eq=False)
class Seen:
    """A site as the data see it."""

    site: Site
    metrics: tuple[Metric, ...]

    @classmethod
    def of(cls, site: Site, statistics: Statistics | None) -> "Seen | None":
        """With the metric of each layer; None where calibration told nothing about one."""
        found = [metric_of(name, dense, statistics) for name, dense in zip(site.layers, site.modules, strict=True)]
        metrics = tuple(metric for metric in found if metric is not None)
        return cls(site, metrics) if len(metrics) == len(found) else None

    @cached_property
    def whole(self) -> Floats:
        """What losing the weight of each layer altogether would count."""
        pairs = zip(self.site.modules, self.metrics, strict=True)
        return np.array([float(metric.square(matrices(dense).flatten(2))) for dense, metric in pairs])

    @cached_property
    def whitened(self) -> Whitened:
        """In coordinates in which fits are found sooner."""
        return Whitened.of(self.site, self.metrics)

    @cached_property
    def plain(self) -> Whitened:
        """In its own coordinates, but for the scale."""
        return Whitened.plain(self.site, self.metrics)

    def views(self, method: Method) -> list[Whitened]:
        """In the coordinates in which a method's fits are sought: whitened, and where there is time the plain ones too.

        Descent from whitened starts gets further in few steps. In many, on layers of few channels, CP ends lower from
        the fit of the plain weights.
        """
        if not method.mixes_channels:
            return [self.plain]
        return [self.whitened, self.plain] if _steps(self.site, self.metrics, _STEPS) == _STEPS else [self.whitened]


def metric_of(name: str, dense: Any, statistics: Statistics | None) -> Metric | None:
    """The metric of a layer; None where calibration told nothing about it.

    Raises:
        TenfoldError: if its inputs were not all finite.
    """
    told = statistics.layers.get(name) if statistics else None
    if told is not None and not told.is_finite:
        raise TenfoldError(
            f"{name} saw NaN or infinite inputs in calibration, and cannot be fitted; mend the data, or leave it dense."
        )
    return None if told is None else Metric.of(told.on(dense.weight.device), has_bias=has_bias(dense))


def made(method: Method, site: Site, rank: Rank, seen: Seen | None = None) -> tuple[Factored, ...]:
    """What a method puts in the place of a site's layers, filled from their weights, or fitted to what the data see."""
    new = _empty(method, site, rank)
    whole = nn.ModuleList(new)

    def filled() -> dict[str, Tensor]:
        if seen is None:
            with torch.no_grad():
                method.fill(site, rank, new)
            return whole.state_dict()
        fits = [
            (where, *_descended(method, rank, where, where.metrics, seen.whole, _STEPS)) for where in seen.views(method)
        ]
        where, fitted, _ = min(fits, key=lambda fit: fit[2].sum())
        where.bring_back(fitted)
        whole.load_state_dict(nn.ModuleList(fitted).state_dict())
        return whole.state_dict()

    told = seen and seen.metrics
    whole.load_state_dict(kept("factors", lambda: (method, site.modules, rank, told), filled))
    return new


def kept_curve(candidate: Candidate, calls: Sequence[Sequence[Call]], seen: Seen | None) -> Curve:
    """Squared errors of each of the site's layers at each rank: of the weights, or of fits to what the data see."""
    method, site = candidate.method, candidate.site

    def found() -> dict[str, Tensor]:
        made = method.curve(site) if seen is None else _curve(candidate, calls, seen)
        return {name: torch.from_numpy(array.copy()) for name, array in vars(made).items()}

    tensors = kept("curve", lambda: (method, site.modules, seen and seen.metrics, calls), found)
    return Curve(**{name: tensor.numpy() for name, tensor in tensors.items()})


def _curve(candidate: Candidate, calls: Sequence[Sequence[Call]], seen: Seen) -> Curve:
    """Squared errors of fits in the metrics, layer by layer, at each rank of the method's own curve.

    Exact where the method knows them in closed form. Else a few ranks are tried that cost less than dense; between
    them, the ratio of the error in the metrics to that of the weights, both relative, goes from one to the next with
    the logarithm of the latter, and to 1 where all is lost.
    """
    method = candidate.method
    closed = method.curve_in(seen.site, seen.metrics)
    if closed is not None:
        return closed
    views, whole = seen.views(method), seen.whole
    plain = method.outline(views[0].site)
    energies = np.array([float(matrices(dense).square().sum()) for dense in views[0].site.modules])
    errors, overall = plain.errors / np.maximum(energies, 1e-300), plain.errors.sum(1) / max(energies.sum(), 1e-300)
    tried = _tried(plain.ranks, overall, candidate.cheaper(calls, plain.ranks))
    # In single precision, which is the same to five digits, in half of the time. There metrics must be of about 1.
    unit = max(float(whole.sum()), 1e-300)
    single = [[metric.over(unit).to(torch.float32) for metric in where.metrics] for where in views]

    def missed(rank: Rank) -> Floats:
        each = [
            _descended(method, rank, where, metrics, whole / unit, _CURVE_STEPS, draft=True)
            for where, metrics in zip(views, single, strict=True)
        ]
        return min((errors for _, errors in each), key=np.sum)

    found = [missed(tuple(map(int, plain.ranks[index]))) * (unit / np.maximum(whole, 1e-300)) for index in tried]
    logs = np.log(np.maximum(errors, 1e-300))
    ratios = np.log(np.maximum(np.reshape(found, (-1, len(whole))), 1e-300)) - logs[tried]
    return Curve(plain.ranks, whole * errors * np.exp(_between(logs, logs[tried], ratios)))


def _descended(
    method: Method,
    rank: Rank,
    where: Whitened,
    metrics: Sequence[Metric],
    whole: Floats,
    steps: int,
    *,
    draft: bool = False,
) -> tuple[tuple[Factored, ...], Floats]:
    """A fit found in some coordinates, still in these, and the squared error in the metric of each layer.

    `metrics` are those of these coordinates, in the precision in which to descend.
    """
    new, dtype = _empty(method, where.site, rank), metrics[0].inputs.dtype
    with torch.no_grad():
        (method.draft if draft else method.fill_in)(where.site, rank, new, where.metrics)
    descend(where.site, new, metrics, whole, steps, dtype)
    with torch.no_grad():
        each = zip(where.site.modules, new, metrics, strict=True)
        errors = [float(metric.square(_error(dense, factored).to(dtype))) for dense, factored, metric in each]
    return new, np.array(errors)


def _tried(ranks: NDArray[np.int64], errors: Floats, useful: NDArray[np.bool_]) -> list[int]:
    """Of the useful ranks the least, those at which each of a few errors is reached, and the best if not all are."""
    size, useful_at = ranks.prod(axis=1), np.flatnonzero(useful)
    found = set()
    for share in (np.inf, *_TRIED) if len(useful_at) else ():
        reached = useful_at[errors[useful_at] <= share]
        found.add(int(reached[size[reached].argmin()] if len(reached) else useful_at[errors[useful_at].argmin()]))
    return sorted(index for index in found if errors[index] > 1e-12)


def _between(at: Floats, known: Floats, values: Floats) -> Floats:
    """For each column, values interpolated between those at the known places, and 0 at 0."""
    columns = []
    for place, where, value in zip(at.T, known.T, values.T, strict=True):
        order = np.argsort([0.0, *where], kind="stable")
        columns.append(np.interp(place, np.r_[0.0, where][order], np.r_[0.0, value][order]))
    return np.stack(columns, 1)


def missed_mean(dense: Any, factored: Factored, metric: Metric) -> Tensor | None:
    """By how much the factors' mean output falls short of the dense layer's, `(W - W') mu`; None if nowhere to go."""
    if metric.mean is None:
        return None
    return torch.einsum("gok,gk->go", _error(dense, factored).detach(), metric.mean).flatten()


def make_up(missed: Tensor, bias: Tensor | None, norm: Any) -> None:
    """Add what the outputs lack in the mean to the bias, or take it off the mean that the norm behind expects."""
    with torch.no_grad():
        if bias is not None:
            bias += missed.to(bias)
        elif norm.running_mean is not None:
            norm.running_mean -= missed.to(norm.running_mean)


def _empty(method: Method, site: Site, rank: Rank) -> tuple[Factored, ...]:
    with torch.device("meta"):
        new = method.skeleton(site, rank)
    materialise(nn.ModuleList(new), next(site.modules[0].parameters()).device)
    return new


def descend(
    site: Site,
    new: Sequence[Factored],
    metrics: Sequence[Metric],
    whole: Floats,
    steps: int,
    dtype: torch.dtype = torch.float64,
    fixed: Collection[nn.Parameter] = (),
) -> None:
    """Lower the error in the metrics, summed over layers, by L-BFGS, on all factors at once that are not fixed.

    `whole` is what it counts to lose each layer altogether.
    """
    scale = float(whole.sum())
    if not scale > 0:
        return  # nothing is lost by any factors: the weights are all 0
    steps = _steps(site, metrics, steps)
    old = nn.ModuleList(new)
    wide: Any = copy.deepcopy(old).to(dtype)  # all at once: what is shared stays shared
    wanted = [matrices(dense).flatten(2).to(dtype) for dense in site.modules]
    metrics = [metric.to(dtype) for metric in metrics]
    held = {id(parameter) for parameter in fixed}
    pairs = zip(old.named_parameters(), wide.parameters(), strict=True)
    factors = [copied for (name, given), copied in pairs if "bias" not in name and id(given) not in held]
    search = torch.optim.LBFGS(
        factors, max_iter=steps, history_size=20, line_search_fn="strong_wolfe", tolerance_grad=0, tolerance_change=1e-9
    )

    def closure() -> Tensor:
        search.zero_grad()
        total = torch.zeros(())
        for weight, factored, metric in zip(wanted, wide, metrics, strict=True):
            error = weight - stood_for(factored)
            half = metric.times(error.detach()) / scale  # the product that gives the square gives its gradient too
            error.backward(2 * half)
            total = total + (half * error.detach()).sum()
        return total

    with torch.enable_grad():
        search.step(closure)
    if not all(fitted.isfinite().all() for fitted in wide.parameters()):
        return  # beyond what the precision can hold: the start stays
    with torch.no_grad():
        for given, fitted in zip(old.parameters(), wide.parameters(), strict=True):
            given.copy_(fitted)


def _steps(site: Site, metrics: Sequence[Metric], wanted: int) -> int:
    sizes = [metric.inputs.numel() * channels(dense)[1] for dense, metric in zip(site.modules, metrics, strict=True)]
    return max(5, min(wanted, int(_WORK / sum(sizes))))


def stood_for(factored: Factored) -> Tensor:
    """W', the weight that the factors stand for, `(g, O, K)`."""
    return from_stored(factored.replaces, factored.rebuilt(), groups(factored)).flatten(2)


def _error(dense: Any, factored: Factored) -> Tensor:
    return matrices(dense).flatten(2) - stood_for(factored).double()
