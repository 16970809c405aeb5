"""Refitting: layer after layer, from what each is given now to what the dense layer gave."""

# g groups, O outputs, K inputs times kernel positions, P patches

import copy
import operator
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import reduce
from itertools import starmap
from typing import Any

import torch
from torch import Tensor, nn

from tenfold._calibrate import POSITIONS
from tenfold._data import Inputs
from tenfold._fit import Seen, descend, stood_for
from tenfold._layers import has_bias, matrices, owners, write
from tenfold._method import Site
from tenfold._metric import Metric
from tenfold._pair import Pair, rebuilding, replaced
from tenfold._patches import patches, responses
from tenfold._progress import track
from tenfold._run import copied, device_of, forward, same_draws, undisturbed, watched
from tenfold._statistics import LayerStatistics, moments
from tenfold._trace import trace

_STEPS = 50  # of descent, from factors that are nearly right


class _Reached(Exception):  # noqa: N818  no error: the rest of the network need not run
    pass


def refitted(
    small: nn.Module, dense: nn.Module, used: Sequence[Inputs], held_back: Sequence[Inputs], seed: int
) -> nn.Module:
    """A copy of `small` in which every replaced layer, in the order of calls, is fitted anew to the data.

    With x what the layer is given in the small network and y what it gave in the dense one, the factors (but those
    that other layers share) are fitted in the metric of x to `M = C_yx C_xx^-1` (means removed), and the bias, or the
    mean that the norm behind expects, takes up `E y - W E x`. Unless that lowers both errors of `Pair` on what is held
    back, the copy is as `small` was.
    """
    new = copied(small)
    graph = trace(dense, used[0])
    with undisturbed(new), undisturbed(dense):
        before = Pair(small, dense).errors_on(held_back)
        times = owners(new)
        shared = [parameter for parameter in new.parameters() if times[id(parameter)] > 1]
        with rebuilding(new, dense):
            for name in track(_in_order(new, used[0]), "refit"):
                layer: Any = dense.get_submodule(name)
                norm = graph.layers[name].norm
                factored: Any = new.get_submodule(name)
                # An embedding is given the same in both; what lost filters has no dense weight to go towards.
                if isinstance(layer, nn.Embedding) or factored.weight.shape != layer.weight.shape:
                    continue
                norms = None if norm is None else (new.get_submodule(norm), dense.get_submodule(norm))
                if (moments := _moments(new, dense, name, used, seed)) is not None:
                    _refit(factored, layer, norms, moments, shared)
        after = Pair(new, dense).errors_on(held_back)
    better = after[0] <= before[0] and after[1] <= before[1]
    return new if better else copied(small)


def _refit(
    factored: Any,
    layer: Any,
    norms: Any,
    moments: tuple[LayerStatistics, Tensor, Tensor],
    shared: Sequence[nn.Parameter],
) -> None:
    told, cross_gok, given_go = moments
    metric = Metric.of(told, has_bias=has_bias(layer) or norms is not None)
    if told.gram.shape[1] > 1:
        return  # too many inputs to solve for
    count, weight = told.count, matrices(layer).flatten(2)
    mean_gk, mean_go = told.total / count, given_go / count
    plain = layer.bias.detach().double().reshape(mean_go.shape) if has_bias(layer) else torch.zeros_like(mean_go)
    moment, cross = told.gram[:, 0] / count, cross_gok / count - plain[..., None] * mean_gk[:, None]
    if metric.mean is not None:
        moment = moment - mean_gk[..., None] * mean_gk[:, None]
        cross = cross - (mean_go - plain)[..., None] * mean_gk[:, None]
    # What the dense weight gets wrong on the new inputs, so that directions without data keep that weight.
    wanted = weight + torch.linalg.solve(metric.inputs[:, 0], cross - weight @ moment, left=False)
    target = copy.deepcopy(layer)
    write(target, wanted)
    seen = Seen(Site(("",), (target,)), (metric,))
    descend(seen.site, (factored,), seen.metrics, seen.whole, _STEPS, fixed=shared)
    if metric.mean is None:
        return
    found = stood_for(factored).detach().double()
    lacking = (mean_go - torch.einsum("gok,gk->go", found, mean_gk)).flatten()
    with torch.no_grad():
        if factored.bias is not None:
            factored.bias.copy_(lacking)
        elif norms[0].running_mean is not None:
            norms[0].running_mean.copy_(norms[1].running_mean - lacking.to(norms[1].running_mean))


def _moments(
    new: nn.Module, dense: nn.Module, name: str, used: Sequence[Inputs], seed: int
) -> tuple[LayerStatistics, Tensor, Tensor] | None:
    """Of x as the small network has it, of y x^T, and of y as the dense one has it; all sums.

    None where the layer is never asked about as many examples in both, as experts may not be.
    """
    layer = dense.get_submodule(name)

    def sums(number: int, inputs: Inputs) -> tuple[LayerStatistics, Tensor, Tensor] | None:
        found, wanted = _seen(new, name, inputs), _seen(dense, name, inputs)
        if found is None or wanted is None or found[0].shape != wanted[0].shape:
            return None
        x, y = found[0], wanted[1]
        same = [torch.Generator().manual_seed(seed + number) for _ in range(2)]  # the same positions of both
        x_gkp = patches(layer, x, POSITIONS, same[0]).double()
        y_gop = responses(layer, y, POSITIONS, same[1]).double()
        return moments(x_gkp, y_gop.shape[1], None), y_gop @ x_gkp.mT, y_gop.sum(-1)

    each = [one for one in starmap(sums, enumerate(used)) if one is not None]
    if not each:
        return None
    told, cross, given = zip(*each, strict=True)
    return reduce(operator.add, told), torch.stack(cross).sum(0), torch.stack(given).sum(0)


def _seen(model: nn.Module, name: str, inputs: Inputs) -> tuple[Tensor, Tensor] | None:
    """What a layer is given and gives, if it is asked; the rest of the network is not run."""
    seen: list[tuple[Tensor, Tensor]] = []

    def around(_: nn.Module, run: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            (given,) = [*args, *kwargs.values()]
            seen.append((given, run(given)))
            raise _Reached

        return called

    with watched([model.get_submodule(name)], around), same_draws(), suppress(_Reached):
        inputs = inputs.on(device_of(model))
        model(*inputs.args, **inputs.kwargs)
    return seen[0] if seen else None


def _in_order(model: nn.Module, inputs: Inputs) -> list[str]:
    """The replaced layers in the order of their first calls."""
    names = {model.get_submodule(name): name for name in replaced(model)}
    order: dict[str, None] = {}

    def around(module: nn.Module, run: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            order.setdefault(names[module])
            return run(*args, **kwargs)

        return called

    with watched(names, around):
        forward(model, inputs)
    return list(order)
