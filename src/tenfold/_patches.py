"""What each output position of a layer sees of its input, as columns that the layer's matrix multiplies."""

# g groups, K inputs of a group times kernel positions, P patches (outputs at all positions, over the batch), O outputs

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from tenfold._layers import TRANSPOSED, groups, kernel_size


def patches(layer: Any, given: Tensor, most: int | None = None, generator: torch.Generator | None = None) -> Tensor:
    """`(g, K, P)` in the order of `matrices(layer)`: outputs less the bias are `W @ patches`, group by group.

    With `most`, only so many positions, drawn at random, the same in each example. Not for Embedding, whose patches
    are unit vectors.
    """
    axes = len(kernel_size(layer))
    if not axes:
        rows = given.reshape(len(given), -1, given.shape[-1]) if given.dim() > 1 else given[None, None]
        picked = _drawn(rows.shape[1], most, generator)
        return (rows if picked is None else rows[:, picked]).flatten(0, 1).mT[None]
    x = _batched(layer, given)
    transposed = isinstance(layer, TRANSPOSED)
    if transposed:
        x = _stuffed(layer, x)
    elif layer.padding_mode == "zeros":
        x = F.pad(x, layer._reversed_padding_repeated_twice)
    else:
        x = F.pad(x, layer._reversed_padding_repeated_twice, layer.padding_mode)
    stride = (1,) * axes if transposed else layer.stride
    for axis, (size, step, apart) in enumerate(zip(layer.kernel_size, stride, layer.dilation, strict=True), 2):
        x = x.unfold(axis, (size - 1) * apart + 1, step)[..., ::apart]
    space = x.shape[2 : 2 + axes]
    picked = _drawn(space.numel(), most, generator)
    where = () if picked is None else torch.unravel_index(picked, space)
    x = x[(slice(None), slice(None), *where)] if where else x.flatten(2, 1 + axes)  # type: ignore[index]
    if transposed:
        x = x.flip([*range(3, 3 + axes)])  # outputs look back at the inputs that they came from
    return x.permute(1, *range(3, 3 + axes), 0, 2).reshape(groups(layer), -1, x.shape[0] * x.shape[2])


def responses(layer: Any, output: Tensor, most: int | None = None, generator: torch.Generator | None = None) -> Tensor:
    """What the layer gives, or the gradient that arrives there, as `(g, O, P)` in the order of `patches`.

    A generator in the same state draws the same positions.
    """
    if not kernel_size(layer):
        return patches(layer, output, most, generator)
    values = _batched(layer, output).flatten(2)
    picked = _drawn(values.shape[2], most, generator)
    chosen = values if picked is None else values[..., picked]
    return chosen.transpose(0, 1).flatten(1).unflatten(0, (groups(layer), -1))


def _drawn(count: int, most: int | None, generator: torch.Generator | None) -> Tensor | None:
    if most is None or count <= most:
        return None
    return torch.randperm(count, generator=generator)[:most]


def _batched(layer: Any, tensor: Tensor) -> Tensor:
    """With the batch dimension that convolutions let callers leave out."""
    return tensor if tensor.dim() == len(kernel_size(layer)) + 2 else tensor[None]


def _stuffed(layer: Any, x: Tensor) -> Tensor:
    """The input on the grid of the outputs: zeros between its values for the stride, and around them."""
    sides: list[int] = []
    for axis, (size, step, pad, apart, more) in enumerate(
        zip(layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.output_padding, strict=True), 2
    ):
        wide = x.new_zeros(*x.shape[:axis], (x.shape[axis] - 1) * step + 1, *x.shape[axis + 1 :])
        wide[(slice(None),) * axis + (slice(None, None, step),)] = x
        x, reach = wide, (size - 1) * apart - pad
        sides = [reach, reach + more, *sides]
    return F.pad(x, sides)
