"""Images and labels, decoded once and kept as bytes."""

# N images, C = 3 colours, H rows, W columns

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks._folder import data_folder

# Per channel; the networks were trained on inputs scaled to [0, 1] and normalised with these.
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)

SPLITS = {"cifar10-jpeg": "test", "tiny-imagenet-50": "validation"}  # what decides, never trained on
QUICK_IMAGES = 1_000
_TRAINING_IMAGES = 50_000  # or all, if there are fewer


@dataclass(frozen=True, eq=False)
class Images:
    """Images of one size with their labels. Bytes take a quarter of the memory of the floats made from them."""

    pixels: Tensor  # NCHW, uint8
    labels: Tensor  # N, int64

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, numbers: Any) -> tuple[Tensor, Tensor]:
        """Normalised inputs and labels of one image or of several."""
        return normalised(self.pixels[numbers]), self.labels[numbers]

    __getitems__ = __getitem__  # what torch's loader asks for a whole batch

    def loader(self) -> DataLoader[Any]:
        """The images as a data set to train on."""
        return DataLoader(self, collate_fn=_as_it_is)  # type: ignore[arg-type]

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised inputs and labels, in order; the last batch may be smaller."""
        for pixels, labels in zip(self.pixels.split(size), self.labels.split(size), strict=True):
            yield normalised(pixels), labels


def normalised(pixels_NCHW: Tensor) -> Tensor:
    """Bytes as the networks take them: `(pixels / 255 - mean) / deviation`, in float32."""
    mean, deviation = (torch.tensor(v, device=pixels_NCHW.device).view(3, 1, 1) for v in (MEAN, DEVIATION))
    return (pixels_NCHW.float() / 255 - mean) / deviation


def _as_it_is(batch: Any) -> Any:
    return batch


def first_images(data: str, split: str, count: int | None = None) -> Images:
    """The first `count` images of a split, or all of them."""
    table = _read(data, split)
    return _decoded(table.slice(0, count))


def drawn_images(data: str, split: str, count: int, seed: int) -> Images:
    """`count` different images of a split, drawn by `seed`."""
    table = _read(data, split)
    drawn = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))[:count]
    return _decoded(table.take(drawn.numpy()))


@cache
def training_images(data: str, count: int | None = None) -> Images:
    """So many images to train on, or all of them, the same ones for every seed."""
    return drawn_images(data, "train", count or _TRAINING_IMAGES, seed=0)


def _read(data: str, split: str) -> "pq.Table":
    return pq.read_table(data_folder() / "data" / data / f"{split}.parquet")


def _decoded(table: "pq.Table") -> Images:
    files = table["image"].combine_chunks().field("bytes")
    # A few images of some sets are grey: convert, so that all have three channels.
    arrays = [np.asarray(Image.open(io.BytesIO(file.as_py())).convert("RGB")) for file in files]
    pixels_NHWC = torch.from_numpy(np.stack(arrays))
    return Images(pixels_NHWC.permute(0, 3, 1, 2).contiguous(), torch.tensor(table["label"].to_numpy()))
