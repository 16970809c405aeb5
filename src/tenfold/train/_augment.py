"""Augmentation of whole batches, on the device that trains."""

# N images of a batch, C colours, H rows, W columns

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.utils import _pytree as pytree

from tenfold._errors import TenfoldError


@dataclass(frozen=True)
class Augment:
    """Pad with zeros and crop, flip, cut out a square. What is drawn for an example follows from its numbers alone."""

    shift: int = 4  # pixels of padding, and the furthest that a crop may move
    flip: bool = True
    cutout: int = 0  # pixels of a side of the square that becomes 0

    def __call__(self, images_NCHW: Tensor, noise_NK: Tensor) -> Tensor:
        """The augmented images; `noise_NK` are at least five numbers in [0, 1) for each."""
        n, _, height, width = images_NCHW.shape
        rows_H, columns_W = (torch.arange(size, device=images_NCHW.device) for size in (height, width))
        down_N, right_N = (noise_NK[:, :2] * (2 * self.shift + 1)).long().T
        flipped_N = torch.logical_and(noise_NK[:, 2] < 0.5, torch.tensor(self.flip, device=noise_NK.device))
        columns_NW = right_N[:, None] + torch.where(flipped_N[:, None], columns_W.flip(0), columns_W)
        rows_NH = down_N[:, None] + rows_H
        padded = F.pad(images_NCHW, (self.shift,) * 4)
        which_N = torch.arange(n, device=images_NCHW.device)
        moved = padded[which_N[:, None, None], :, rows_NH[:, :, None], columns_NW[:, None, :]].permute(0, 3, 1, 2)
        if not self.cutout:
            return moved
        top_N, left_N = (noise_NK[:, 3] * height).long(), (noise_NK[:, 4] * width).long()
        in_rows_NH = (rows_H - top_N[:, None]).abs() * 2 < self.cutout
        in_columns_NW = (columns_W - left_N[:, None]).abs() * 2 < self.cutout
        return moved.masked_fill((in_rows_NH[:, :, None] & in_columns_NW[:, None, :])[:, None], 0.0)


def mixed(inputs: Any, share: float) -> Any:
    """Each example times `share` plus its neighbour times the rest (Zhang et al. 2018, arXiv 1710.09412).

    Raises:
        TenfoldError: if the inputs are no numbers that can be mixed.
    """
    if not any(_mixable(leaf) for leaf in pytree.tree_leaves(inputs)):
        raise TenfoldError("mixup needs floating-point inputs, and these have none; set mixup=0.")
    return pytree.tree_map(
        lambda leaf, other: torch.lerp(other, leaf, share) if _mixable(leaf) else leaf, inputs, neighbours(inputs)
    )


def neighbours(batch: Any) -> Any:
    """The first two examples of a batch in each other's place, the next two, and so on."""

    def swapped(leaf: Any) -> Any:
        return leaf.unflatten(0, (-1, 2)).flip(1).flatten(0, 1) if isinstance(leaf, Tensor) and leaf.dim() else leaf

    return pytree.tree_map(swapped, batch)


def _mixable(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.is_floating_point()
