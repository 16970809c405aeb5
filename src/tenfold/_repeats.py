"""Layers at the same place of repeated blocks, found from the model's tree of modules."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from tenfold._trace import Layer

Path = tuple[str, ...]


def repeated(layers: Sequence[Layer], alike: Callable[[Any], Hashable]) -> list[tuple[str, ...]]:
    """The names of layers that `alike` tells nothing apart of, and whose places differ in one step of the path only.

    That step leads from a container to its repeated blocks (`layer3.*.conv1`, `encoder.*.attention.query`). A layer in
    no repeated block goes with its neighbours in the same container (`features.*`).
    """
    groups: defaultdict[tuple[Path, Path, Hashable], list[str]] = defaultdict(list)
    for layer in layers:
        path = tuple(layer.name.split("."))
        for step in range(len(path)):
            groups[path[:step], path[step + 1 :], alike(layer.module)].append(layer.name)
    several = {key: tuple(names) for key, names in groups.items() if len(names) > 1}
    blocks = [names for (_, inside, _), names in several.items() if inside]
    placed = {name for names in blocks for name in names}
    flat = [names for (_, inside, _), names in several.items() if not inside and not placed.intersection(names)]
    return [*dict.fromkeys([*blocks, *flat])]
