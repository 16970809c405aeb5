"""Applying a plan: a new model, in which factored layers stand where dense ones stood."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from tenfold import _removal
from tenfold._calibrate import Statistics
from tenfold._errors import TenfoldError
from tenfold._factored import Factored
from tenfold._fit import made, make_up, metrics_of, missed_mean
from tenfold._gauge import in_form
from tenfold._layers import kind, store_channels_last, stores_channels_last
from tenfold._method import Method, Site
from tenfold._plan import Plan, Step
from tenfold._progress import track
from tenfold._run import on_meta, unwrapped
from tenfold.methods import find


def apply(model: nn.Module, plan: Plan, statistics: Statistics | None = None) -> nn.Module:
    """A copy of `model` with every step of `plan` taken, in order, from the model's own weights.

    With `statistics`, factors are fitted to what each layer sees, and the mean of what they miss goes into its bias
    or into the batch norm behind it. `apply(model, Plan())` equals `model`; device, dtype, mode and `requires_grad`
    are kept.

    Raises:
        TenfoldError: if the plan was made for another network, or a step does not fit its layers.
    """
    model = unwrapped(model)
    plan.check_made_for(model)
    new = copy.deepcopy(model)
    taken(new, plan.steps, statistics)
    if plan.channels_last:
        store_channels_last(new)
    return new


def taken(model: nn.Module, steps: Iterable[Step], statistics: Statistics | None) -> Statistics | None:
    """Take steps on the model itself; what the statistics tell about the layers that are left."""
    for step in track([*steps], "factors"):
        if step.links:
            statistics = _removal.take(model, step, statistics)
        else:
            _replace(model, step, statistics)
    return statistics


def skeleton(model: nn.Module, plan: Plan) -> nn.Module:
    """`apply(model, plan)` on the meta device: every shape, no values."""
    model = unwrapped(model)
    plan.check_made_for(model)
    new = on_meta(model)
    for step in plan.steps:
        if step.links:
            _removal.shape(new, step)
            continue
        site, method = _checked(new, step)
        with torch.device("meta"):
            _put(new, site, method.skeleton(site, step.rank), step.form)
    if plan.channels_last:
        store_channels_last(new)
    return new


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `old` stands in `model`."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children would name a child only once
            if child is old:
                setattr(parent, name, new)


def _replace(model: nn.Module, step: Step, statistics: Statistics | None) -> None:
    site, method = _checked(model, step)
    metrics = metrics_of(site, statistics)
    new = made(method, site, step.rank, metrics)
    for name, dense, factored, metric in zip(site.layers, site.modules, new, metrics or (), strict=bool(metrics)):
        missed = missed_mean(dense, factored, metric)
        if missed is not None:
            norm = statistics.layers[name].norm  # type: ignore[union-attr]
            make_up(missed, factored.bias, None if norm is None else model.get_submodule(norm))
    _put(model, site, new, step.form)


def _checked(model: nn.Module, step: Step) -> tuple[Site, Method]:
    site = Site(step.layers, tuple(_layer(model, name) for name in step.layers))
    method = find(step.method)
    for name, module in zip(site.layers, site.modules, strict=True):
        if kind(module) not in method.serves:
            raise TenfoldError(f'the plan\'s step for "{name}": {method.name} does not serve {type(module).__name__}.')
    if step.form not in method.forms:
        raise TenfoldError(
            f'the plan\'s step for "{step.layers[0]}" has form "{step.form}"; {method.name} runs in {method.forms}.'
        )
    full = method.full_rank(site)
    if len(step.rank) != len(full) or step.rank != (useful := method.clamped(site, step.rank)):
        entries = f"{len(full)} {'entry' if len(full) == 1 else 'entries'}"
        most = entries if len(step.rank) != len(full) else f"{_text(useful)} at most there"
        raise TenfoldError(
            f'the plan\'s step for "{step.layers[0]}" has rank {_text(step.rank)}; {method.name} takes {most}.'
        )
    return site, method


def _put(model: nn.Module, site: Site, new: tuple[Factored, ...], form: str) -> None:
    for dense, each in zip(site.modules, new, strict=True):
        factored = in_form(each, form)
        _like(dense, factored)
        replace_module(model, dense, factored)


def _layer(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise TenfoldError(f'the plan names layer "{name}", which this network does not have.') from None


def _like(dense: Any, factored: Factored) -> None:
    factored.train(dense.training)
    for name, parameter in factored.named_parameters():
        source = dense.bias if name.endswith("bias") else dense.weight
        parameter.requires_grad_(source.requires_grad)
    if stores_channels_last(dense.weight):
        store_channels_last(factored)


def _text(rank: tuple[int, ...]) -> str:
    return "(" + ", ".join(f"{entry:,}" for entry in rank) + ")"
