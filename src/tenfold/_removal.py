"""Carrying out a step of a plan that removes filters."""

# O outputs, K inputs times kernel positions of a consumer; S those that stay, G those that go

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tenfold._errors import TenfoldError
from tenfold._filters import FilterGroup, link_channels, remove, width
from tenfold._fit import make_up, metric_of
from tenfold._layers import channels, kernels, matrices, write
from tenfold._plan import Link, Step
from tenfold._statistics import LayerStatistics, Statistics
from tenfold.methods import FilterPruning
from tenfold.methods._filter_pruning import Producer


def take(model: nn.Module, step: Step, statistics: Statistics | None) -> Statistics | None:
    """Remove the filters that matter least from the model itself; what the statistics tell about the layers left.

    Raises:
        TenfoldError: if the step does not fit the model.
    """
    group = _checked(model, step)
    ranking = FilterPruning.of(step.method).ranking(producers(model, group, statistics))
    gone = sorted(map(int, ranking.order[: group.filters - step.rank[0]]))
    if statistics is not None:
        for link in group.links:
            if link.side == "in":
                _take_over(model, link, link_channels(link, gone), statistics)
        statistics = _told_of_rest(model, group, gone, statistics)
    remove(model, [(group, gone)])
    return statistics


def shape(model: nn.Module, step: Step) -> None:
    """`take` where values do not matter."""
    group = _checked(model, step)
    remove(model, [(group, range(step.rank[0], group.filters))])


def producers(model: nn.Module, group: FilterGroup, statistics: Statistics | None) -> list[Producer]:
    """The layers that make the filters of a group, with their metrics, if there are statistics of all."""
    layers = [(link, model.get_submodule(link.module)) for link in group.links if link.side == "out"]
    metrics = [metric_of(link.module, layer, statistics) for link, layer in layers]
    told = all(metric is not None for metric in metrics)
    return [(*layer, metric if told else None) for layer, metric in zip(layers, metrics, strict=True)]


def _checked(model: nn.Module, step: Step) -> FilterGroup:
    FilterPruning.of(step.method)
    modules = dict(model.named_modules())
    for link in step.links:
        found = width(modules[link.module], link.side) if link.module in modules else None
        if found != link.width:
            has = "is no such layer" if found is None else f"are {found} channels"
            raise TenfoldError(
                f'the plan\'s step for "{step.layers[0]}" removes filters in {link.module} ({link.side}, {link.width} '
                f"channels); there {has}. If a step before it was changed, plan again."
            )
    return FilterGroup(step.links)


def _take_over(model: nn.Module, link: Link, gone: Collection[int], statistics: Statistics) -> None:
    """What a consumer reads of the channels that go is read of those that stay: W_S + W_G C_GS C_SS^-1.

    C is the covariance of its inputs, or the second moment where it has neither bias nor norm; the mean that is then
    still missing goes there.
    """
    layer: Any = model.get_submodule(link.module)
    metric = metric_of(link.module, layer, statistics)
    if metric is None or metric.inputs.shape[1] > 1:
        return
    weight_OK, moment_KK = matrices(layer).flatten(2)[0], metric.inputs[0, 0]
    leaves = _positions(layer, gone).to(layer.weight.device)
    to_rest = torch.linalg.solve(moment_KK[~leaves][:, ~leaves], moment_KK[~leaves][:, leaves])  # (S, G)
    new_OK = torch.zeros_like(weight_OK)
    new_OK[:, ~leaves] = weight_OK[:, ~leaves] + weight_OK[:, leaves] @ to_rest.mT
    if metric.mean is not None:
        norm = statistics.layers[link.module].norm
        missed = (weight_OK - new_OK) @ metric.mean[0]
        make_up(missed, layer.bias, None if norm is None else model.get_submodule(norm))
    write(layer, new_OK)


def _positions(layer: Any, gone: Collection[int]) -> Tensor:
    """Which of the inputs times kernel positions belong to these inputs."""
    return _marked(channels(layer)[0], gone).repeat_interleave(kernels(layer)[0, 0, 0].numel())


def _marked(count: int, gone: Collection[int]) -> Tensor:
    marks = torch.zeros(count, dtype=torch.bool)
    marks[sorted(gone)] = True
    return marks


def _told_of_rest(model: nn.Module, group: FilterGroup, gone: Sequence[int], statistics: Statistics) -> Statistics:
    layers = dict(statistics.layers)
    for link in group.links:
        told = layers.pop(link.module, None)
        if told is not None and link.side != "norm":
            layer: Any = model.get_submodule(link.module)
            rest = _told_without(told, layer, link, link_channels(link, gone))
            layers.update({} if rest is None else {link.module: rest})
    return Statistics(layers)


def _told_without(told: LayerStatistics, layer: Any, link: Link, gone: Collection[int]) -> LayerStatistics | None:
    if link.side == "in":
        return told.without_inputs(_positions(layer, gone))
    marks = _marked(link.width, gone)
    return told.without_outputs(marks) if link.side == "out" else told.without_groups(marks)
