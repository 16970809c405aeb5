"""Augmentation of whole batches, on the device that trains."""

# N images of a batch, C colours, H rows, W columns

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


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
