"""Applying a plan: a new model, in which factored layers stand where dense ones stood."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tenfold import _removal
from tenfold._errors import TenfoldError
from tenfold._factored import Factored
from tenfold._fit import Seen, made, make_up, missed_mean
from tenfold._gauge import in_form
from tenfold._layers import kind, store_channels_last, stores_channels_last
from tenfold._method import Method, Site
from tenfold._plan import Plan, Rank, Step
from tenfold._run import copied, on_meta, trainable, unwrapped
from tenfold._statistics import Statistics
from tenfold._workers import each
from tenfold.methods import find

Places = dict[nn.Module, list[tuple[nn.Module, str]]]


@trainable()
def apply(model: nn.Module, plan: Plan, statistics: Statistics | None = None) -> nn.Module:
    """A copy of `model` with every step of `plan` taken, in order, from the model's own weights.

    With `statistics`, factors are fitted to what each layer sees, and the mean of what they miss goes into its bias
    or into the batch norm behind it. `apply(model, Plan())` equals `model`; device, dtype, mode and `requires_grad`
    are kept.

    Raises:
        TenfoldError: if the plan was made for another network, or a step does not fit its layers.
    """
    model = unwrapped(model)
    if not isinstance(plan, Plan):
        raise TenfoldError(f"the plan is a {type(plan).__name__}; give a Plan, such as Plan(steps).")
    plan.check_made_for(model)
    modules = dict(model.named_modules())
    replaced = [modules[name] for step in plan.steps for name in step.layers if name in modules and not step.links]
    new = sharing(model, replaced, plan)
    taken(new, plan.steps, statistics)
    if plan.channels_last:
        store_channels_last(new)
    return new


def sharing(model: nn.Module, modules: Iterable[nn.Module], plan: Plan) -> nn.Module:
    """A copy of the model in which these modules hold the same matrices and kernels, where the plan changes none."""
    pruned = {link.module for step in plan.steps for link in step.links}
    changed = {id(p) for name, module in model.named_modules() if name in pruned for p in module.parameters()}
    shared = (p for module in modules for p in module.parameters(recurse=False) if p.dim() > 1 and id(p) not in changed)
    return copied(model, {id(parameter): parameter for parameter in shared})


def taken(
    model: nn.Module,
    steps: Sequence[Step],
    statistics: Statistics | None,
    put: Callable[[Step], None] | None = None,
) -> Statistics | None:
    """Take steps on the model itself; what the statistics tell about the layers that are left.

    `put` is called with every step that replaces layers, when what stands there is not used by any other.
    """
    for group in _independent(steps):
        if group[0].links:
            (step,) = group
            statistics = _removal.take(model, step, statistics)
            continue
        sites, places = [_checked(model, step) for step in group], places_of(model)
        pieces = [
            (method, site, step.rank, statistics and statistics.of(site.layers))
            for step, (site, method) in zip(group, sites, strict=True)
        ]
        for step, (site, _), (new, missed) in zip(group, sites, each("factors", fitted, pieces), strict=True):
            _make_up(model, site, new, missed, statistics)
            _put(places, site, new, step.form)
            if put is not None:
                put(step)
    return statistics


def _independent(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """The steps in order, in groups that do not build on each other; one that removes filters stands alone."""
    group: list[Step] = []
    names: set[str] = set()
    for step in steps:
        around = {name[:end] for name in step.layers for end in _ends(name)}
        if group and (step.links or group[0].links or around & names):
            yield group
            group, names = [], set()
        group.append(step)
        names.update(step.layers)
    if group:
        yield group


def _ends(name: str) -> list[int]:
    """Where a layer's name and the names of all that it is in end."""
    return [place for place, letter in enumerate(name) if letter == "."] + [len(name)]


def skeleton(model: nn.Module, plan: Plan) -> nn.Module:
    """`apply(model, plan)` on the meta device: every shape, no values."""
    model = unwrapped(model)
    plan.check_made_for(model)
    new = on_meta(model)
    for group in _independent(plan.steps):
        if group[0].links:
            _removal.shape(new, group[0])
            continue
        places = places_of(new)
        for step in group:
            site, method = _checked(new, step)
            with torch.device("meta"):
                _put(places, site, method.skeleton(site, step.rank), step.form)
    if plan.channels_last:
        store_channels_last(new)
    return new


def replace_module(places: Places, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `old` stands."""
    for parent, name in places[old]:
        setattr(parent, name, new)


def places_of(model: nn.Module) -> Places:
    """Where each module stands, under every name."""
    found: Places = defaultdict(list)
    for parent in model.modules():
        for name, child in parent._modules.items():  # named_children would name a child only once
            if child is not None:
                found[child].append((parent, name))
    return found


def fitted(
    method: Method, site: Site, rank: Rank, statistics: Statistics | None
) -> tuple[tuple[Factored, ...], list[Tensor | None]]:
    """What stands in the place of a site's layers, and by how much each one's outputs fall short in the mean."""
    seen = Seen.of(site, statistics)
    new = made(method, site, rank, seen)
    if seen is None:
        return new, [None] * len(new)
    return new, [missed_mean(*one) for one in zip(site.modules, new, seen.metrics, strict=True)]


def _make_up(
    model: nn.Module,
    site: Site,
    new: tuple[Factored, ...],
    missed: Sequence[Tensor | None],
    statistics: Statistics | None,
) -> None:
    for name, factored, less in zip(site.layers, new, missed, strict=True):
        if less is not None:
            norm = statistics.layers[name].norm  # type: ignore[union-attr]
            make_up(less, factored.bias, None if norm is None else model.get_submodule(norm))


def _checked(model: nn.Module, step: Step) -> tuple[Site, Method]:
    site = Site(step.layers, tuple(_layer(model, name) for name in step.layers))
    method = find(step.method)
    if len(site.layers) > 1 and not method.joins:
        raise TenfoldError(f"the plan's step for {', '.join(site.layers)}: {method.name} takes one layer a step.")
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


def _put(places: Places, site: Site, new: tuple[Factored, ...], form: str) -> None:
    for dense, chain in zip(site.modules, new, strict=True):
        factored = in_form(chain, form)
        _like(dense, factored)
        replace_module(places, dense, factored)


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
