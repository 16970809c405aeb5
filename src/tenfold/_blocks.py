"""Reconstruction: train the factors, without labels, until blocks and outputs are again what they were."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from tenfold._data import Inputs
from tenfold._factored import Factored
from tenfold._progress import track
from tenfold._run import forward, undisturbed, watched

_STEPS = 240
_EXAMPLES = 64  # of a step
_RATE = 0.01  # of Adam, relative to the root mean square of each parameter
_LOOK = 30  # steps between looks at the held-back examples
_HELD_BACK = 8  # one part in so many


def reconstructed(small: nn.Module, dense: nn.Module, batches: Sequence[Inputs], seed: int) -> nn.Module:
    """A copy of `small` whose blocks give more nearly what those of `dense` give on the same inputs.

    A block is a module that holds a replaced layer. The loss is the squared error of outputs relative to their
    variance, of the network's own outputs and of the blocks' in the mean. Of what training sees at every look, the
    state with the least loss on held-back examples is kept, the first among them.
    """
    new = copy.deepcopy(small)
    pieces = [piece for batch in batches for piece in _pieces(batch)]
    held = max(1, len(pieces) // _HELD_BACK)
    pair = _Pair(new, dense)
    generator = torch.Generator().manual_seed(seed)
    with undisturbed(new), undisturbed(dense), _trainable(new) as parameters, torch.enable_grad():
        groups = [{"params": [p], "lr": _RATE * max(float(p.detach().square().mean().sqrt()), 1e-3)} for p in parameters]
        search = torch.optim.Adam(groups)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            search, [group["lr"] for group in groups], total_steps=_STEPS, pct_start=0.1
        )
        best = pair.loss_on(pieces[-held:]), [p.detach().clone() for p in parameters]
        drawn = _drawn(pieces[:-held] or pieces, generator)
        for step in track(range(1, _STEPS + 1), "reconstruction"):
            search.zero_grad()
            pair.loss(next(drawn)).backward()
            search.step()
            schedule.step()
            if step % _LOOK == 0 and (loss := pair.loss_on(pieces[-held:])) < best[0]:
                best = loss, [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for parameter, value in zip(parameters, best[1], strict=True):
                parameter.copy_(value)
    return new


@dataclass
class _Pair:
    """The small network and the dense one, run on the same inputs."""

    small: nn.Module
    dense: nn.Module
    blocks: list[str] = field(init=False)
    replaced: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.replaced = [name for name, module in self.small.named_modules() if isinstance(module, Factored)]
        parents = dict.fromkeys(name.rpartition(".")[0] for name in self.replaced)
        self.blocks = [name for name in parents if name]

    def loss_on(self, pieces: Sequence[Inputs]) -> float:
        """The mean loss."""
        with torch.no_grad():
            return sum(float(self.loss(piece)) for piece in pieces) / len(pieces)

    def loss(self, inputs: Inputs) -> Tensor:
        """Of the outputs, plus the mean of the blocks'."""
        with torch.no_grad():
            outputs, blocks = self._run(self.dense, inputs)
        with self._rebuilding():
            found, found_blocks = self._run(self.small, inputs)
        each = [_moved(found_blocks[name], blocks[name]) for name in blocks]
        return _moved(found, outputs) + (torch.stack(each).mean() if each else 0)

    def _run(self, model: nn.Module, inputs: Inputs) -> tuple[Any, dict[str, Any]]:
        names = {model.get_submodule(name): name for name in self.blocks}
        seen: dict[str, Any] = {}

        def around(module: nn.Module, run: Callable[..., Any]) -> Callable[..., Any]:
            def called(*args: Any, **kwargs: Any) -> Any:
                output = run(*args, **kwargs)
                seen[names[module]] = pytree.tree_map(_kept, output)
                return output

            return called

        with watched(names, around):
            return forward(model, inputs), seen

    @contextmanager
    def _rebuilding(self) -> Iterator[None]:
        """Run every replaced layer as the dense one with the rebuilt weight: in training, many times faster."""
        layers = {self.small.get_submodule(name): self.dense.get_submodule(name) for name in self.replaced}

        def around(factored: Any, _: Callable[..., Any]) -> Callable[..., Any]:
            def called(*args: Any, **kwargs: Any) -> Any:
                weights = {"weight": factored.weight}
                if factored.bias is not None:
                    weights["bias"] = factored.bias
                return functional_call(layers[factored], weights, args, kwargs)

            return called

        with watched(layers, around):
            yield


def _kept(leaf: Any) -> Any:
    # In-place activations behind a block change its outputs.
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _moved(found: Any, wanted: Any) -> Tensor:
    """Squared error over variance, in the mean over the tensors of a structure."""
    leaves = [
        (a, b)
        for a, b in zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=True)
        if isinstance(b, Tensor) and b.is_floating_point()
    ]
    each = []
    for a, b in leaves:
        spread = b - b.mean(0, keepdim=True) if b.dim() and len(b) > 1 else b
        each.append((a - b).float().square().sum() / spread.float().square().sum().clamp_min(1e-12))
    return torch.stack(each).mean() if each else torch.zeros(())


def _pieces(batch: Inputs) -> list[Inputs]:
    """A batch in parts of few examples, where all its tensors hold the same number of them."""
    call = (batch.args, batch.kwargs)
    leaves, structure = pytree.tree_flatten(call)
    sizes = {len(leaf) if leaf.dim() else 0 for leaf in leaves if isinstance(leaf, Tensor)}
    if len(sizes) != 1 or (count := sizes.pop()) <= 1:
        return [batch]
    size = min(_EXAMPLES, -(-count // 2))
    cuts = range(0, count, size)
    parts = [[leaf[cut : cut + size] if isinstance(leaf, Tensor) else leaf for leaf in leaves] for cut in cuts]
    return [Inputs(*pytree.tree_unflatten(part, structure)) for part in parts]


def _drawn(pieces: Sequence[Inputs], generator: torch.Generator) -> Iterator[Inputs]:
    while True:
        for index in torch.randperm(len(pieces), generator=generator).tolist():
            yield pieces[index]


@contextmanager
def _trainable(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """The factors, and all that is as small as a bias or a norm; what needs gradients is put back after."""
    inside = {p for module in model.modules() if isinstance(module, Factored) for p in module.parameters()}
    chosen = [p for p in model.parameters() if p in inside or p.dim() == 1]
    before = {p: p.requires_grad for p in model.parameters()}
    try:
        for parameter in before:
            parameter.requires_grad_(parameter in set(chosen))
        yield chosen
    finally:
        for parameter, needed in before.items():
            parameter.requires_grad_(needed)
