"""Filters that can be removed for real: with a channel go its norm and what every consumer reads of it.

Which channels hang together is found by the dependency graph of Torch-Pruning (Fang et al. 2023, arXiv 2301.12900), and
each group is tried: removing channels must give the outputs of the network in which they are masked.
"""

import warnings
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from tenfold._data import Inputs, as_real, tensors
from tenfold._errors import TenfoldError, first_line
from tenfold._layers import CONVOLUTIONS, TRANSPOSED, channels, groups
from tenfold._plan import Link, Side
from tenfold._run import copied, device_of, forward, same_draws, undisturbed, unwrapped
from tenfold._sources import imported

SERVED = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)  # exactly these
_SAME = 1e-9  # outputs of removal and of masking may differ by this, relative, in float64


class FilterGroup(NamedTuple):
    """Filters that can only go together: the same number of the same channels in all these places."""

    links: tuple[Link, ...]

    @property
    def filters(self) -> int:
        """How many there are."""
        return self.links[0].filters

    @property
    def producers(self) -> tuple[str, ...]:
        """The layers whose filters these are."""
        return tuple(link.module for link in self.links if link.side == "out")


Drop = tuple[FilterGroup, Sequence[int]]  # a group, and which of its filters go


def filter_groups(model: nn.Module, example: Inputs) -> tuple[list[FilterGroup], dict[str, str]]:
    """The groups of a network, and of every layer whose filters cannot be removed, why.

    Raises:
        TenfoldError: if Torch-Pruning is not installed, or fails on the network.
    """
    pruning = imported("torch_pruning", "finding filters (pip install tenfold[prune])")
    wide = copied(unwrapped(model)).double().eval().requires_grad_(True)
    inputs = _doubled(example.on(device_of(wide)))
    given: Any = inputs.args if inputs.args else inputs.kwargs
    with same_draws(), torch.enable_grad(), warnings.catch_warnings(action="ignore"):
        graph = _traced(pruning.DependencyGraph(), wide, given)
    removable, reasons = list[FilterGroup](), dict[str, str]()
    for found in graph.get_all_groups(root_module_types=[*SERVED]):
        names = {module: name for name, module in wide.named_modules()}
        links, makers, reason = _links(found, names)
        if reason is None:
            group = FilterGroup(links)
            reason = _difference(wide, inputs, group)
        if reason is None:
            removable.append(group)
        else:
            reasons.update(dict.fromkeys(makers, reason))
    return removable, reasons


def _traced(graph: Any, wide: nn.Module, given: Any) -> Any:
    """The graph, from the outputs that have gradients."""
    try:
        return graph.build_dependency(
            wide,
            example_inputs=given,
            output_transform=lambda outputs: [t for t in tensors(outputs) if t.requires_grad],
        )
    except Exception as error:
        raise TenfoldError(
            f"Torch-Pruning cannot follow the network ({type(error).__name__}: {first_line(error)}), so no filters can "
            "be removed; leave FilterPruning out of the methods."
        ) from error


def masked(model: nn.Module, drops: Iterable[Drop]) -> nn.Module:
    """A copy in which these filters give exactly 0."""
    new = copied(model)
    mask(new, drops)
    return new


def mask(model: nn.Module, drops: Iterable[Drop]) -> None:
    """Let these filters of the model itself give exactly 0, norms and biases included."""
    with torch.no_grad():
        for (name, side), gone in _places(drops).items():
            module: Any = model.get_submodule(name)
            for tensor, axis in _tensors(module, side) if side != "in" else ():
                if tensor not in ("running_mean", "running_var"):
                    old = getattr(module, tensor)
                    old.index_fill_(axis, torch.tensor(sorted(gone), dtype=torch.long, device=old.device), 0)


def rows(link: Link, module: Any) -> list[Tensor]:
    """Views of what makes or scales the filters of a link in its module, one row a filter."""
    return [link_rows(link, getattr(module, name).transpose(0, axis)) for name, axis in _tensors(module, link.side)]


def link_rows(link: Link, tensor: Tensor) -> Tensor:
    """Of what has a row for each channel of a module, a view of the rows of each filter: (filters, repeat, ...)."""
    end = link.offset + link.filters * link.repeat
    return tensor[link.offset : end].unflatten(0, (link.filters, link.repeat))


def removed(model: nn.Module, drops: Iterable[Drop]) -> nn.Module:
    """A copy without these filters."""
    new = copied(model)
    remove(new, drops)
    return new


def remove(model: nn.Module, drops: Iterable[Drop]) -> None:
    """Remove these filters from the model itself. Groups go together: each moves the channels of others."""
    for (name, side), gone in _places(drops).items():
        _slice(model.get_submodule(name), side, gone)


def width(module: Any, side: Side) -> int | None:
    """The channels of a module on a side; None if filters cannot be removed there."""
    if side == "norm":
        return module.num_features if isinstance(module, _BatchNorm) else None
    if type(module) not in SERVED or (side == "both") != (groups(module) > 1):
        return None
    inputs, outputs = channels(module)
    return inputs if side == "in" else outputs


def link_channels(link: Link, filters: Iterable[int]) -> set[int]:
    """The channels of some of a link's filters."""
    starts = (link.offset + number * link.repeat for number in filters)
    return {start + place for start in starts for place in range(link.repeat)}


def _places(drops: Iterable[Drop]) -> dict[tuple[str, Side], set[int]]:
    """Of each module, the channels that go."""
    places: dict[tuple[str, Side], set[int]] = {}
    for group, filters in drops:
        for link in group.links:
            places.setdefault((link.module, link.side), set()).update(link_channels(link, filters))
    return places


def _links(found: Any, names: dict[nn.Module, str]) -> tuple[tuple[Link, ...], list[str], str | None]:
    """The links of a group, the layers whose filters it has, and why it cannot be removed, if it cannot."""
    links: dict[tuple[str, str], Link] = {}
    makers: list[str] = []
    reason = None
    for item in found:
        module, name = item.dep.target.module, names.get(item.dep.target.module)
        if name is None:
            continue  # an operation
        side = _side(module, item.dep.handler.__name__)
        if side is None:
            reason = f"its channels go through {name}, a {type(module).__name__}, which mixes or groups them"
            continue
        makers += [name] if side == "out" else []
        link = _link(name, side, width(module, side), item.idxs, item.root_idxs)
        known = links.setdefault((name, side), link) if link else None
        if link is None or known != link:
            reason = f"its channels are reordered before {name}"
    return tuple(links.values()), makers, reason


def _side(module: Any, handler: str) -> Side | None:
    if isinstance(module, _BatchNorm):
        return "norm"
    if type(module) not in SERVED:
        return None
    if groups(module) > 1:
        return "both" if module.groups == module.in_channels == module.out_channels else None
    return "out" if handler == "prune_out_channels" else "in"


def _link(name: str, side: Side, wide: Any, places: Sequence[int], filters: Sequence[int]) -> Link | None:
    """As offset and repeat; None if the channels lie in any other order."""
    count = max(filters) + 1
    repeat, offset = len(places) // count, min(places)
    expected = [offset + number for number in range(repeat * count)]
    in_order = list(places) == expected and list(filters) == [number // repeat for number in range(repeat * count)]
    where = {"offset": offset, "repeat": repeat, "filters": count, "width": wide}
    return Link(module=name, side=side, **where) if in_order else None


def _difference(wide: nn.Module, inputs: Inputs, group: FilterGroup) -> str | None:
    """Why removing is not the same as masking, if it is not."""
    dropped = range(0, group.filters, 2)
    if group.filters < 2:
        return "it has one filter"
    try:
        with undisturbed(wide):
            expected, found = (_outputs(make(wide, [(group, dropped)]), inputs) for make in (masked, removed))
    except (RuntimeError, ValueError) as error:  # shapes that no longer fit
        return f"without some of its filters the network does not run: {first_line(error)}"
    if [t.shape for t in expected] != [t.shape for t in found]:
        return "its channels are outputs of the network"
    scale = max((float(t.abs().max()) for t in expected), default=0.0)
    far = max((float((a - b).abs().max()) for a, b in zip(expected, found, strict=True)), default=0.0)
    return None if far <= _SAME * max(scale, 1e-300) else f"removing its filters moves the outputs by {far / scale:.2g}"


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    with torch.no_grad(), same_draws():
        return [as_real(tensor).double() for tensor in tensors(forward(model.eval(), inputs))]


def _tensors(module: Any, side: Side) -> list[tuple[str, int]]:
    """The names of the tensors that have these channels, and along which axis."""
    inside = isinstance(module, TRANSPOSED) != (side == "in")  # transposed layers store inputs first
    own = [("weight", int(inside and side != "both"))] if side != "norm" else [("weight", 0)]
    own += [] if side == "in" else [("bias", 0)]
    own += [("running_mean", 0), ("running_var", 0)] if side == "norm" else []
    return [(name, axis) for name, axis in own if getattr(module, name, None) is not None]


def _slice(module: Any, side: Side, gone: Collection[int]) -> None:
    for name, axis in _tensors(module, side):
        old = getattr(module, name)
        kept = torch.tensor([place for place in range(old.shape[axis]) if place not in gone], device=old.device)
        new = old.detach().index_select(axis, kept)
        setattr(module, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
    for name in _COUNTS[side]:
        if hasattr(module, name):
            setattr(module, name, getattr(module, name) - len(gone))


_COUNTS: dict[Side, tuple[str, ...]] = {
    "out": ("out_channels", "out_features"),
    "in": ("in_channels", "in_features"),
    "both": ("in_channels", "out_channels", "groups"),
    "norm": ("num_features",),
}


def _doubled(inputs: Inputs) -> Inputs:
    def wide(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return pytree.tree_map(wide, inputs)
