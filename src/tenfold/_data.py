"""What goes into a model: examples and batches, in the forms that people hold them in."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tenfold._errors import TenfoldError


class Inputs(NamedTuple):
    """The arguments of one call of a model, and the target that came with them."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Any = None

    def on(self, device: torch.device) -> "Inputs":
        """The same arguments with every tensor on `device`, and of the kind that layers with gradients can take."""

        def moved(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            return (leaf.clone() if leaf.is_inference() else leaf).to(device)

        return pytree.tree_map(moved, self)

    def describe(self) -> str:
        """The shapes, for messages: `1x3x32x32 float32`."""
        shapes = [
            f"{'x'.join(map(str, leaf.shape)) or 'scalar'} {str(leaf.dtype).removeprefix('torch.')}"
            for leaf in tensors(self)
        ]
        return ", ".join(shapes) or "no tensor"


def tensors(tree: Any) -> list[Tensor]:
    """All tensors of inputs, without the target, or of any structure; dataclasses are looked into."""
    tree = (tree.args, tree.kwargs) if isinstance(tree, Inputs) else tree
    found: list[Tensor] = []
    for leaf in pytree.tree_leaves(tree):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            found += tensors([getattr(leaf, field.name) for field in fields(leaf)])
    return found


def example_inputs(example: Any) -> Inputs:
    """Read an example: a tensor, a tuple of positional arguments, or a dict of keyword arguments."""
    if isinstance(example, Tensor):
        return Inputs((example,), {})
    if isinstance(example, tuple):
        return Inputs(example, {})
    if isinstance(example, Mapping):
        return Inputs((), dict(example))
    raise TenfoldError(
        f"the example is a {type(example).__name__}; give a tensor, a tuple (positional arguments) or a dict "
        "(keyword arguments)."
    )


def batch_inputs(model: nn.Module, batch: Any) -> Inputs:
    """Read a batch: an example, or a pair `(inputs, target)`.

    A pair is `(inputs, target)` unless both are arguments: if the model's forward requires two positional ones, and the
    first of the pair does not hold several itself. With a dict of targets for each of several inputs, as detectors are
    given them, these are one argument, a list. A dict of which not every key names an argument is one argument itself.
    """
    if isinstance(batch, Inputs):
        return batch
    if isinstance(batch, list):
        batch = tuple(batch)
    if isinstance(batch, tuple) and len(batch) == 2 and (_required_arguments(model) != 2 or _several(batch[0])):
        inputs, target = batch
        if _each_its_own(inputs, target):
            inputs = (list(inputs),)
        inputs = tuple(inputs) if isinstance(inputs, list) else inputs
        return _read(model, inputs)._replace(target=target)
    return _read(model, batch)


def _read(model: nn.Module, inputs: Any) -> Inputs:
    found = example_inputs(inputs)
    try:
        inspect.signature(model.forward).bind_partial(**found.kwargs)
    except TypeError:
        return Inputs((inputs,), {})
    return found


def _several(inputs: Any) -> bool:
    return isinstance(inputs, (tuple, list, Mapping))


def _each_its_own(inputs: Any, target: Any) -> bool:
    both = (inputs, target)
    if not all(isinstance(one, (tuple, list)) for one in both):
        return False
    return len(inputs) == len(target) > 0 and all(isinstance(one, Mapping) for one in target)


def batches_of(model: nn.Module, batches: Iterable[Any]) -> Iterator[Inputs]:
    """Read every batch; refuse an iterable that is empty or that can be read only once."""
    if isinstance(batches, Iterator):
        raise TenfoldError("the batches are an iterator, which can be read only once; give a list or a DataLoader.")
    check_batches(batches)
    empty = True
    for batch in batches:
        empty = False
        yield batch_inputs(model, batch)
    if empty:
        raise TenfoldError("there are no batches: the data is empty; give at least one batch.")


def check_batches(batches: Any) -> None:
    """Refuse what cannot be read batch by batch."""
    if not (isinstance(batches, Iterable) or hasattr(batches, "__getitem__")):
        raise TenfoldError(f"the batches are of type {type(batches).__name__}; give a list or a DataLoader.")


def as_real(tensor: Tensor) -> Tensor:
    """Complex numbers as pairs of real ones, on one more axis; others as they are."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _required_arguments(model: nn.Module) -> int:
    parameters = inspect.signature(model.forward).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters)
