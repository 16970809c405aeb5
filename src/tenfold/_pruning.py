"""What removing filters saves and loses, for all groups of a network at once."""

# G groups, M modules that they touch; costs in the order of LIMITED, nanoseconds behind them

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tenfold._cost import LIMITED, layers_cost, stored_size
from tenfold._data import Inputs
from tenfold._filters import FilterGroup, filter_groups
from tenfold._layers import channels, factor, groups, kernel_size
from tenfold._plan import Link, MethodSpec, Step
from tenfold._progress import track
from tenfold._removal import producers
from tenfold._statistics import Statistics
from tenfold._trace import Graph
from tenfold.methods import FilterPruning, Ranking

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

_COUNTED = (*LIMITED, "ns")
# Of a layer by its name, and of others in its place.
Milliseconds = Callable[[str, Sequence[nn.Module]], tuple[float, list[float]]]

_LIKED = 1.05  # of the least time a filter
_PARTS = 256  # filters of a large group go in so many parts


@dataclass(frozen=True, eq=False)
class Pruning:
    """The groups of a network, and what goes with their filters."""

    method: FilterPruning
    model: nn.Module
    graph: Graph
    groups: tuple[FilterGroup, ...]
    reasons: Mapping[str, str]  # layers whose filters stay, and why
    statistics: Statistics | None
    ns: Mapping[str, int] = field(default_factory=dict)  # nanoseconds of each layer, where they are known
    multiple: int = 1  # of which numbers of filters are to be that stay

    @classmethod
    def of(
        cls, method: FilterPruning, model: nn.Module, graph: Graph, example: Inputs, statistics: Statistics | None
    ) -> "Pruning":
        """Find the groups whose producers are free.

        Raises:
            TenfoldError: if Torch-Pruning is not installed.
        """
        groups, reasons = filter_groups(model, example)
        free = []
        for group in groups:
            touched = [graph.layers[link.module] for link in group.links if link.module in graph.layers]
            bound = [f"its filters lie in {layer.name} too: {layer.reason}" for layer in touched if layer.reason]
            if bound:
                reasons.update({name: graph.layers[name].reason or bound[0] for name in group.producers})
            else:
                free.append(group)
        return cls(method, model, graph, tuple(free), reasons, statistics)

    def timed(self, milliseconds: Milliseconds) -> "Pruning":
        """The same with the times of layers, and with the multiple of filters that the slowest of them likes."""
        names = dict.fromkeys(link.module for group in self.groups for link in group.links)
        ns = {name: int(milliseconds(name, [])[0] * 1e6) for name in names if name in self.graph.layers}
        plain = [name for name in self.served if groups(self.graph.layers[name].module) == 1]
        slowest = max(plain, key=lambda name: ns[name], default=None)
        return replace(self, ns=ns, multiple=1 if slowest is None else self._liked(slowest, milliseconds))

    def _liked(self, name: str, milliseconds: Milliseconds) -> int:
        """The least power of two of which the kernels of this layer like the number of filters to be a multiple.

        Times a filter are measured at about half of the filters: so far above a very even number.
        """
        layer: Any = self.graph.layers[name].module
        inputs, filters = channels(layer)
        most = int(np.log2(max(filters, 4) / 4))
        counts = {2**power: 2 * 2**most + 2**power for power in range(most + 1)}
        with torch.device("meta"):
            tried = [factor(layer, inputs, n, axes=range(len(kernel_size(layer))), entry=True) for n in counts.values()]
        taken = zip(counts.items(), milliseconds(name, tried)[1], strict=True)
        rates = {multiple: ms / count for (multiple, count), ms in taken}
        return next(multiple for multiple, rate in rates.items() if rate <= _LIKED * min(rates.values()))

    @cached_property
    def served(self) -> set[str]:
        """The layers whose filters can be removed."""
        return {name for group in self.groups for name in group.producers}

    @cached_property
    def sizes(self) -> Counts:
        """How many filters each group has."""
        return np.array([group.filters for group in self.groups], np.int64)

    @cached_property
    def rankings(self) -> list[Ranking]:
        """The ranking of each group."""
        found = (producers(self.model, group, self.statistics) for group in track(self.groups, "filters"))
        return [self.method.ranking(each) for each in found]

    def change(self, gone: Counts) -> Counts:
        """The cost without so many filters of each group `(..., G)`, less the cost of all: `(..., 4)`."""
        by_both, by_outputs, _, _ = self._scales
        made, read = self._stay(gone)
        change: Counts = ((made * read - 1) @ by_both + (made - 1) @ by_outputs).round().astype(np.int64)
        return change

    def costs(self, steps: Sequence[Step]) -> list[tuple[Counts, Counts]]:
        """What the modules that each step touches cost before it and after."""
        found, gone = [], np.zeros(len(self.groups), np.int64)
        for step in steps:
            after, touched = gone + self.gone([step]), {link.module for link in step.links}
            rows = [row for row, name in enumerate(self._modules) if name in touched]
            each = (self._each(counts)[rows, : len(LIMITED)] for counts in (gone, after))
            before, less = (costs.sum(0).round().astype(np.int64) for costs in each)
            found.append((before, less))
            gone = after
        return found

    def _each(self, gone: Counts) -> Floats:
        """The cost of each module, `(M, 4)`."""
        by_both, by_outputs, _, _ = self._scales
        made, read = self._stay(gone)
        return (made * read)[:, None] * by_both + made[:, None] * by_outputs

    def _stay(self, gone: Counts) -> tuple[Floats, Floats]:
        """The shares of what each module makes and reads that stay, `(..., M)`."""
        _, _, makes, reads = self._scales
        return 1 - gone @ makes.T, 1 - gone @ reads.T

    @cached_property
    def _modules(self) -> list[str]:
        return [*dict.fromkeys(link.module for group in self.groups for link in group.links)]

    @cached_property
    def _scales(self) -> tuple[Floats, Floats, Floats, Floats]:
        """What scales with inputs and outputs and what with outputs `(M, 4)`; and what a filter takes of each `(M, G)`.

        A layer without groups holds and multiplies, and takes time, in proportion to inputs times outputs; biases,
        norms and depthwise layers in proportion to what they give.
        """
        names = self._modules
        by_both, by_outputs = np.zeros((2, len(names), len(_COUNTED)))
        makes, reads = np.zeros((2, len(names), len(self.groups)))
        for number, group in enumerate(self.groups):
            for link in group.links:
                row = names.index(link.module)
                (reads if link.side == "in" else makes)[row, number] += link.repeat / link.width
                by_both[row], by_outputs[row] = self._scaling(link)
        return by_both, by_outputs, makes, reads

    def _scaling(self, link: Link) -> tuple[Counts, Counts]:
        module: Any = self.model.get_submodule(link.module)
        if link.side == "norm":
            tensors = [t for t in (module.running_mean, module.running_var) if t is not None]
            params, size = stored_size([*module.parameters(recurse=False)], tensors)
            return np.zeros(4, np.int64), np.array([params, 0, size, 0])
        whole = np.append(layers_cost([module], [self.graph.layers[link.module].calls]), self.ns.get(link.module, 0))
        bias = module.bias
        count, size = (0, 0) if bias is None else (bias.numel(), bias.numel() * bias.element_size())
        rest = np.array([count, 0, size, 0])
        return whole - rest, rest

    def without(self, prices: Sequence[Floats], room: Mapping[str, int], dearest: float = np.inf) -> Counts | None:
        """How many filters of each group go, such that costs change by at most `room`; None if that cannot be.

        The next to go is always the one that costs least of `prices` (of each group, for each number that is gone) for
        what it saves, as a share of what has to be saved. None goes that costs more than `dearest` for all of that; so
        the room may not be reached.
        """
        columns = [_COUNTED.index(name) for name in room]
        most = np.array(list(room.values()))
        gone = np.zeros(len(self.groups), np.int64)
        while ((now := self.change(gone)[columns]) > most).any():
            parts = self._next_parts(gone)
            if not parts.any():
                return None
            after = gone + np.diag(parts)
            shares = (now - self.change(after)[:, columns]) / np.maximum(-most, 1)
            paid = [price[had + part] - price[had] for price, had, part in zip(prices, gone, parts, strict=True)]
            rates = np.full(len(parts), np.inf)
            np.divide(paid, shares[:, now > most].sum(1), out=rates, where=parts > 0)
            if rates.min() > dearest:
                break
            gone = after[int(rates.argmin())]
        return gone

    def _next_parts(self, gone: Counts) -> Counts:
        """How many filters of each group go next: down to the next multiple, and one stays."""
        stay = self.sizes - gone
        even = np.minimum(self.multiple, 2 ** np.log2(np.maximum(self.sizes // 4, 1)).astype(np.int64))
        unit = np.maximum(even, self.sizes // _PARTS)
        return stay - np.maximum((stay - 1) // unit * unit, 1)

    def least(self, names: Iterable[str]) -> list[int]:
        """The change of these costs where each group keeps one filter."""
        change = self.change(self.sizes - 1)
        return [int(change[_COUNTED.index(name)]) for name in names]

    def steps(self, gone: Sequence[int] | Counts) -> list[Step]:
        """The steps that remove so many filters of each group; later ones count channels as the earlier leave them."""
        order = {name: place for place, name in enumerate(self.graph.layers)}
        ordered = sorted(zip(self.groups, gone, strict=True), key=lambda pair: order[pair[0].producers[0]])
        return removals(self.method, [(group, int(count)) for group, count in ordered if count])

    def gone(self, steps: Iterable[Step]) -> Counts:
        """How many filters of each group these steps remove."""
        counts = {frozenset(step.layers): step.links[0].filters - step.rank[0] for step in steps}
        return np.array([counts.get(frozenset(group.producers), 0) for group in self.groups], np.int64)


def dense_groups(steps: Iterable[Step]) -> list[tuple[FilterGroup, int]]:
    """Of steps in order, each group with its channels as the dense network counts them, and how many filters go."""
    drops: list[tuple[FilterGroup, int]] = []
    before: dict[tuple[str, str], list[tuple[int, int]]] = {}  # as in `removals`
    for step in steps:
        count, links = step.links[0].filters - step.rank[0], []
        for link in step.links:
            known, more = before.setdefault((link.module, link.side), []), 0
            for start, number in sorted(known):
                more += number if start - more < link.offset else 0
            width = link.width + sum(number for _, number in known)
            links.append(link.model_copy(update={"offset": link.offset + more, "width": width}))
        for link in links:
            before[link.module, link.side].append((link.offset, count * link.repeat))
        drops.append((FilterGroup(tuple(links)), count))
    return drops


def removals(method: FilterPruning, drops: Iterable[tuple[FilterGroup, int]]) -> list[Step]:
    """A step for each group that loses so many filters; each counts channels as those before it leave them."""
    steps: list[Step] = []
    before: dict[tuple[str, str], list[tuple[int, int]]] = {}  # of a side of a module: from where on how many are gone
    for group, count in drops:
        links = []
        for link in group.links:
            known = before.setdefault((link.module, link.side), [])
            less = sum(number for start, number in known if start < link.offset)
            width = link.width - sum(number for _, number in known)
            links.append(link.model_copy(update={"offset": link.offset - less, "width": width}))
        for link in group.links:
            before[link.module, link.side].append((link.offset, count * link.repeat))
        spec, rank = MethodSpec.model_validate(method), (group.filters - count,)
        steps.append(Step(layers=group.producers, method=spec, rank=rank, links=tuple(links)))
    return steps
