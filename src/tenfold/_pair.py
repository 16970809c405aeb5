"""How far a compressed network is from the dense one, block for block."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from tenfold._data import Inputs, tensors
from tenfold._errors import TenfoldError
from tenfold._factored import Factored
from tenfold._layers import LAYERS, channels, groups, kind
from tenfold._run import device_of, forward, same_draws, undisturbed, watched

_EXAMPLES = 64  # of a part of a batch
_MOVED = 70  # multiply-adds in the time in which a layer reads or writes a number


@dataclass
class Pair:
    """A compressed network and the dense one, run on the same inputs.

    A block is a module that holds a changed layer; blocks that lost filters at their outputs are not compared.
    """

    small: nn.Module
    dense: nn.Module
    blocks: list[str] = field(init=False)

    def __post_init__(self) -> None:
        parents = dict.fromkeys(name.rpartition(".")[0] for name in changed(self.small, self.dense))
        self.blocks = [name for name in parents if name]

    def errors_on(self, pieces: Sequence[Inputs]) -> tuple[float, float]:
        """The mean of both errors."""
        with torch.no_grad():
            each = [[float(error) for error in self.errors(piece)] for piece in pieces]
        outputs, blocks = (sum(column) / len(pieces) for column in zip(*each, strict=True))
        return outputs, blocks

    def errors(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Squared errors over variance: of the networks' outputs, and of the blocks' outputs in the mean."""
        with torch.no_grad(), same_draws(), self.seen(self.dense) as wanted_blocks:
            wanted = forward(self.dense, inputs)
        with rebuilding(self.small, self.dense), self.seen(self.small) as found_blocks:
            found = forward(self.small, inputs)
        return _moved(tensors(found), tensors(wanted)), mean_error(found_blocks, wanted_blocks)

    @contextmanager
    def seen(self, model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
        """The tensors that the blocks of either network give when it runs inside."""
        names = {model.get_submodule(name): name for name in self.blocks}
        seen: dict[str, list[Tensor]] = {}

        def around(module: nn.Module, run: Callable[..., Any]) -> Callable[..., Any]:
            def called(*args: Any, **kwargs: Any) -> Any:
                output = run(*args, **kwargs)
                # In-place activations behind a block change its outputs.
                seen[names[module]] = [tensor.clone() for tensor in tensors(output)]
                return output

            return called

        with watched(names, around):
            yield seen


def replaced(small: nn.Module) -> list[str]:
    """The names of the layers that were replaced."""
    return [name for name, module in small.named_modules() if isinstance(module, Factored)]


def changed(small: nn.Module, dense: nn.Module) -> list[str]:
    """The names of the layers that were replaced, or lost filters or what they read of them."""
    new = replaced(small)
    whole = {name: parameter.shape for name, parameter in dense.named_parameters()}
    cut = [name for name, parameter in small.named_parameters() if whole.get(name, parameter.shape) != parameter.shape]
    return [*dict.fromkeys([*new, *(name.rpartition(".")[0] for name in cut)])]


@contextmanager
def rebuilding(small: nn.Module, dense: nn.Module) -> Iterator[None]:
    """Inside, replaced layers whose factors are more work on batches than the dense one run as it, the weight rebuilt.

    Not so a layer with groups of which some were removed: the dense one would not run.
    """
    pairs = [(small.get_submodule(name), dense.get_submodule(name)) for name in replaced(small)]
    same = [(factored, layer) for factored, layer in pairs if groups(factored) == groups(layer)]
    layers = {factored: layer for factored, layer in same if _work(factored) > _work(layer)}
    device = device_of(small)

    def around(factored: Any, _: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            with torch.autocast(device.type, enabled=False):  # products of factors in full precision
                weights = {"weight": factored.rebuilt()}
            if factored.bias is not None:
                weights["bias"] = factored.bias
            return functional_call(layers[factored], weights, args, kwargs)

        return called

    with watched(layers, around):
        yield


def _work(module: nn.Module) -> float:
    """Multiply-adds for a place of the output, and as many as moving all numbers takes; endless for trains of cores."""
    parts = [part for part in module.modules() if any(p.dim() > 1 for p in part._parameters.values() if p is not None)]
    if any(kind(part) not in LAYERS for part in parts):
        return inf
    return sum(sum(p.numel() for p in part.parameters(recurse=False)) + _MOVED * sum(channels(part)) for part in parts)


def mean_error(found: Mapping[str, Sequence[Tensor]], wanted: Mapping[str, Sequence[Tensor]]) -> Tensor:
    """Squared error over variance, in the mean over blocks of the same outputs; 0 where there are none.

    Experts may be asked by one of the networks alone, or with other examples.
    """
    both = [name for name in wanted if name in found]
    same = [name for name in both if _shapes(found[name]) == _shapes(wanted[name])]
    each = [_moved(found[name], wanted[name]) for name in same]
    return torch.stack(each).mean() if each else torch.zeros(())


def _shapes(outputs: Sequence[Tensor]) -> list[torch.Size]:
    return [tensor.shape for tensor in outputs]


def _moved(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Squared error over variance, in the mean over tensors."""
    each = []
    for a, b in zip(found, wanted, strict=True):
        if b.is_floating_point():
            spread = b - b.mean(0, keepdim=True) if b.dim() and len(b) > 1 else b
            each.append((a - b).float().square().sum() / spread.float().square().sum().clamp_min(1e-12))
    return torch.stack(each).mean() if each else torch.zeros(())


def parted(model: nn.Module, batches: Sequence[Inputs]) -> tuple[list[Inputs], list[Inputs]]:
    """The batches in parts of few examples, and the last eighth of these apart, to be held back."""
    with undisturbed(model):
        pieces = [piece for batch in batches for piece in _pieces(model, batch)]
    held_back = max(1, len(pieces) // 8)
    return pieces[:-held_back] or pieces, pieces[-held_back:]


def _pieces(model: nn.Module, batch: Inputs) -> list[Inputs]:
    """A batch in parts of few examples, where all its tensors hold the same number of them and outputs go with it.

    A list of images looks like such a batch, and so does one example alone.
    """
    call = (batch.args, batch.kwargs)
    leaves, structure = pytree.tree_flatten(call)
    if any(leaf.layout is not torch.strided for leaf in leaves if isinstance(leaf, Tensor)):  # a graph, say
        return [batch]
    sizes = {len(leaf) if leaf.dim() else 0 for leaf in leaves if isinstance(leaf, Tensor)}
    if len(sizes) != 1 or (count := sizes.pop()) <= 1:
        return [batch]
    size = min(_EXAMPLES, -(-count // 2))
    cuts = range(0, count, size)
    parts = [[leaf[cut : cut + size] if isinstance(leaf, Tensor) else leaf for leaf in leaves] for cut in cuts]
    pieces = [Inputs(*pytree.tree_unflatten(part, structure)) for part in parts]
    return pieces if _gives(model, pieces[0], size) else [batch]


def _gives(model: nn.Module, inputs: Inputs, count: int) -> bool:
    """Whether an output has a row, or several, for each of so many examples."""
    try:
        outputs = forward(model, inputs)
    except TenfoldError:
        return False
    return any(output.dim() and len(output) and len(output) % count == 0 for output in tensors(outputs))
