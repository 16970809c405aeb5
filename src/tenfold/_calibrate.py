"""Calibration: what batches of data tell about every layer, gathered in one pass."""

# g groups, o outputs of a group, p places of the output

import hashlib
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from itertools import islice
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from tenfold._data import Inputs, as_real, batches_of, tensors
from tenfold._errors import TenfoldError, TenfoldWarning, first_line
from tenfold._layers import LAYERS, channels, groups, kernel_size, kind
from tenfold._linalg import gram
from tenfold._patches import patches, responses
from tenfold._resume import Each, kept
from tenfold._run import forward, is_sharded, trainable, undisturbed, unwrapped, watched
from tenfold._statistics import SUMS, LayerStatistics, Statistics, blocks_of, moments
from tenfold._trace import trace
from tenfold._workers import each

Loss = Callable[[Any, Any], Tensor]

_MEMORY = 2 * 10**9  # bytes of sums that are gathered at a time; more than one lot goes to disk
_TOGETHER = 8  # batches that are one piece of work
_CHUNK = 2**23  # numbers in the patches that are looked at together
POSITIONS = 128  # of an example that are looked at: neighbours tell much the same


def calibrate(model: nn.Module, batches: Iterable[Any], *, loss: Loss | None = None, seed: int = 0) -> Statistics:
    """Run batches through the model, and sum up what each layer takes and how the outputs answer to it.

    In eval mode, labels ignored. Gradients are those of random mixtures of the outputs, in which every output counts
    by its own variance, so that networks that fit their data perfectly have them too; or of `loss`.

    Where `torch.distributed.fsdp.fully_shard` has spread the weights over processes, each of them gives its own
    batches, as many as the others, and all return what they told together.

    Args:
        model: any network; it is not modified.
        batches: training data, a list or a DataLoader; a few hundred examples do.
        loss: `loss(outputs, target) -> Tensor`, to be used instead of random mixtures.
        seed: draws the mixtures.

    Raises:
        TenfoldError: if there are no batches, the model fails on one, or the loss gives no tensor of one number.
    """
    if is_sharded(model):
        statistics = _of_all_processes(_calibrated(model, batches, loss, seed))
    else:
        model = unwrapped(model)

        def told() -> dict[str, Tensor]:
            with trainable():
                return _calibrated(model, batches, loss, seed).packed()

        statistics = Statistics.unpacked(kept("statistics", lambda: (model, Each(batches), loss, seed), told))
    _warn(statistics.layers)
    return statistics


def _of_all_processes(statistics: Statistics) -> Statistics:
    for told in statistics.layers.values():
        for part in SUMS:
            torch.distributed.all_reduce(getattr(told, part))
    return statistics


def _calibrated(model: nn.Module, batches: Iterable[Any], loss: Loss | None, seed: int) -> Statistics:
    """In rounds over the batches, if the sums of all layers would take too much memory: then they go to disk."""
    with torch.random.fork_rng(devices=[]):
        first = next(batches_of(model, batches))
    free = [layer for layer in trace(model, first).free if issubclass(kind(layer.module), LAYERS)]
    rounds = _rounds({layer.name: _gram_bytes(layer.module) for layer in free})
    norms = {layer.name: layer.norm for layer in free}
    sums: dict[str, LayerStatistics] = {}
    for names in rounds:
        with undisturbed(model):  # also what loaders draw
            told = _summed(model, batches, loss, seed, {name: norms[name] for name in names})
        sums |= told.layers if len(rounds) == 1 else _on_disk(told).layers
    return Statistics(sums)


def _summed(
    model: nn.Module, batches: Iterable[Any], loss: Loss | None, seed: int, norms: Mapping[str, str | None]
) -> Statistics:
    """The sums over all batches for these layers; a few batches are one piece of work."""
    sums: dict[str, LayerStatistics] = {}
    parts = enumerate(_chunks(batches_of(model, batches)))
    for told in each("calibration", _told_of, parts, (model, loss, seed, norms)):
        _add(sums, told)
    return Statistics(sums)


def _add(sums: dict[str, LayerStatistics], told: Mapping[str, LayerStatistics]) -> None:
    for name, found in told.items():
        sums[name] = sums[name] + found if name in sums else found


def _chunks(batches: Iterator[Inputs]) -> Iterator[list[Inputs]]:
    while chunk := [*islice(batches, _TOGETHER)]:
        yield chunk


def _told_of(
    model: nn.Module,
    loss: Loss | None,
    seed: int,
    norms: Mapping[str, str | None],
    number: int,
    batches: Sequence[Inputs],
) -> dict[str, LayerStatistics]:
    sums: dict[str, LayerStatistics] = {}
    with undisturbed(model):
        for place, inputs in enumerate(batches):
            draws = _Draws(f"{seed} {number} {place}")
            _add(sums, _told(model, norms, inputs, loss, draws))
    return sums


class _Draws(dict[str, torch.Generator]):
    """Generators by name, so that what is drawn for one layer does not depend on which others are looked at."""

    def __init__(self, seed: str) -> None:
        super().__init__()
        self.seed = seed

    def __missing__(self, name: str) -> torch.Generator:
        number = int.from_bytes(hashlib.sha256(f"{self.seed} {name}".encode()).digest()[:7])
        self[name] = torch.Generator().manual_seed(number)
        return self[name]


def _rounds(sizes: Mapping[str, int]) -> list[list[str]]:
    """Layers whose sums fit into memory together."""
    rounds: list[list[str]] = [[]]
    room = _MEMORY
    for name, size in sizes.items():
        if rounds[-1] and size > room:
            rounds.append([])
            room = _MEMORY
        rounds[-1].append(name)
        room -= size
    return rounds


def _gram_bytes(layer: Any) -> int:
    if isinstance(layer, nn.Embedding):
        return 0
    width = channels(layer)[0] // groups(layer) * prod(kernel_size(layer))
    return groups(layer) * width * blocks_of(width)[1] * 8


def _on_disk(told: Statistics) -> Statistics:
    """The same, read from a file where it is needed, which is deleted when nothing needs it any more."""
    with TemporaryDirectory(prefix="tenfold-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "statistics.safetensors"
        told.save(path)
        return Statistics.load(path)


def _warn(sums: Mapping[str, LayerStatistics]) -> None:
    bad = [name for name, layer in sums.items() if not layer.is_finite]
    if bad:
        text = f"{len(bad)} of {len(sums)} layers saw NaN or infinite inputs, {bad[0]} first: they stay dense."
        warnings.warn(f"{text} Look at the data.", TenfoldWarning, stacklevel=3)
    few = [name for name, layer in sums.items() if layer.gram.shape[1] == 1 and layer.count < layer.total.shape[1]]
    if few:
        first = sums[few[0]]
        what = f"{int(first.count):,} patches tell little about the {first.total.shape[1]:,} inputs of {few[0]}"
        others = f" (and {len(few) - 1} more layers)" if len(few) > 1 else ""
        text = f"{what}{others}: they are evened out. Give more calibration data."
        warnings.warn(text, TenfoldWarning, stacklevel=3)
    for name, layer in sums.items():
        if layer.neglected > 0.1:
            off = f"what is kept of the {layer.total.shape[1]:,} inputs of {name} is off by {layer.neglected:.0%}"
            warnings.warn(f"{off}: only products within blocks are kept.", TenfoldWarning, stacklevel=3)


def _told(
    model: nn.Module, norms: Mapping[str, str | None], inputs: Inputs, loss: Loss | None, draws: _Draws
) -> dict[str, LayerStatistics]:
    """The sums of one batch."""
    sums: dict[str, LayerStatistics] = {}
    calls: list[tuple[str, Tensor]] = []  # the layer, and what its outputs are moved by
    names = {model.get_submodule(name): name for name in norms}
    answered = False

    def around(module: nn.Module, run: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            if answered:  # again, by torch.utils.checkpoint, for the gradients: it has to find the same operations
                return _moved(run(*args, **kwargs))[0]
            (given,) = [*args, *kwargs.values()]
            name = names[module]
            _add(sums, {name: _moments(module, given.detach(), norms[name], draws[name])})
            output, by = _moved(run(*args, **kwargs))
            calls.append((name, by))
            return output

        return called

    with torch.enable_grad(), watched(names, around):
        outputs = forward(model, inputs)
        scalar = _mixture(outputs, draws["the outputs"]) if loss is None else _lost(loss, outputs, inputs)
        answered = True
        gradients: tuple[Tensor | None, ...] = (None,) * len(calls)
        if calls and scalar is not None and scalar.requires_grad:
            gradients = _gradients(scalar, [by for _, by in calls])
    for (name, _), gradient in zip(calls, gradients, strict=True):
        if gradient is not None:
            told = sums[name]  # of all calls: what each moves adds up
            products = told.count * _products(responses(model.get_submodule(name), gradient))
            sums[name] = replace(told, response=told.response + products)
    return sums


def _moved(output: Tensor) -> tuple[Tensor, Tensor]:
    """The output with zeros added, which have a gradient whether or not parameters have, and these."""
    by = torch.zeros_like(output, requires_grad=True)
    return output + by, by


def _gradients(scalar: Tensor, by: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    try:
        return torch.autograd.grad(scalar, by, allow_unused=True)
    except RuntimeError as error:  # torch.utils.checkpoint with use_reentrant=True is one that gives none
        raise TenfoldError(f"no gradients can be computed through the model: {first_line(error)}") from error


def _products(q_gop: Tensor) -> Tensor:
    """Q q^T. Nothing is taken off it, so single precision does; gradients may be so small that squares vanish."""
    scale = q_gop.abs().amax().double().clamp_min(1e-300)
    wide = (q_gop.double() / scale).to(torch.promote_types(q_gop.dtype, torch.float32))
    return gram(wide).double() * scale.square()


def _lost(loss: Loss, outputs: Any, inputs: Inputs) -> Tensor:
    found = loss(outputs, inputs.target)
    if not isinstance(found, Tensor) or found.numel() != 1:
        what = f"numbers of shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"{found!r}"
        raise TenfoldError(f"loss returned {what}; it must return a tensor of one number.")
    return found


def _mixture(outputs: Any, generator: torch.Generator) -> Tensor | None:
    """A random sum of all outputs; the gradient's expected square is that of the outputs' relative change.

    Outputs that are not finite, such as masks, and those that do not vary, tell nothing.
    """
    varying = [as_real(leaf) for leaf in tensors(outputs) if leaf.requires_grad]
    leaves, total = [leaf.masked_fill(~leaf.isfinite(), 0) for leaf in varying], None
    for leaf in leaves:
        values = leaf.detach().double()
        spread = (values - values.mean(0, keepdim=True)) if values.dim() and len(values) > 1 else values
        scale = spread.square().sum().sqrt() * len(leaves) ** 0.5
        drawn = torch.randn(leaf.shape, generator=generator).to(leaf.device)
        if scale > 0:  # in single precision at least: half of it ends at 65,504
            total = (leaf * (drawn / scale)).sum() + (0 if total is None else total)
    return total


def _moments(layer: Any, given: Tensor, norm: str | None, generator: torch.Generator) -> LayerStatistics:
    """The sums over the patches of one call."""
    inputs, outputs = (count // groups(layer) for count in channels(layer))
    if isinstance(layer, nn.Embedding):
        often = torch.bincount(given.flatten(), minlength=inputs).double()[None]
        zeros = often.new_zeros(1, outputs, outputs)
        return LayerStatistics(
            often.sum(), often, often[..., None, None], often, often.sum(1), zeros, often.new_zeros(1, 0), norm
        )
    axes = len(kernel_size(layer))
    batch = given[None] if given.dim() == max(1, axes) + (axes > 0) else given
    # How many examples make patches of at most about so many numbers.
    examples = max(1, _CHUNK // max(1, torch.Size(kernel_size(layer)).numel() * batch[0].numel()))
    parts = (patches(layer, part, POSITIONS, generator).double() for part in batch.split(examples))
    return reduce(operator.add, (moments(part, outputs, norm) for part in parts))
