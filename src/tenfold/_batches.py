"""Image data by name, for the command line: `parquet:FILES`, `imagefolder:DIR`, or `module:callable`."""

import glob
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from tenfold._data import check_batches
from tenfold._errors import TenfoldError, first_line
from tenfold._sources import imported, named

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation of each channel


def read_batches(
    spec: str,
    count: int,
    shape: Sequence[int] | None,
    mean: Sequence[float] = IMAGENET[0],
    std: Sequence[float] = IMAGENET[1],
    *,
    batch: int = 64,
    seed: int = 0,
) -> list[Any]:
    """Read `count` examples, drawn at random with `seed`, in batches.

    Images are resized to `shape` (channels, height, width), scaled to [0, 1] and normalised by channel; a
    `module:callable` returns its batches itself, and the first that hold `count` examples are taken.

    Raises:
        TenfoldError: if there is no such data, or images are to be read without their shape.
    """
    kind, _, where = spec.partition(":")
    if kind not in ("parquet", "imagefolder"):
        return _first(named(spec)(), count)
    shape = _of_images(shape, kind)
    rows = _open(kind, where)
    chosen = rows.shuffle(seed=seed).select(range(min(count, len(rows))))
    image, label = _columns(rows.features)
    tensors = [_tensor(picture, shape, mean, std) for picture in chosen[image]]
    labels = torch.tensor(chosen[label]) if label else None
    pieces = [slice(start, start + batch) for start in range(0, len(tensors), batch)]
    stacked = torch.stack(tensors)
    return [stacked[piece] if labels is None else (stacked[piece], labels[piece]) for piece in pieces]


class Images:
    """Labelled images of a data set, decoded when they are asked for."""

    def __init__(self, rows: Any, shape: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> None:
        self._rows, self._form = rows, (shape, mean, std)
        self._image, label = _columns(rows.features)
        if label is None:
            raise TenfoldError(f"the data has no column of labels, only {', '.join(rows.features)}.")
        self._label = label

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self._rows[index]
        return _tensor(row[self._image], *self._form), row[self._label]


def read_examples(
    spec: str,
    shape: Sequence[int] | None,
    mean: Sequence[float] = IMAGENET[0],
    std: Sequence[float] = IMAGENET[1],
) -> Any:
    """All labelled examples, as a map-style data set; a `module:callable` returns one itself.

    Raises:
        TenfoldError: as `read_batches`, or if images have no labels.
    """
    kind, _, where = spec.partition(":")
    if kind not in ("parquet", "imagefolder"):
        examples = named(spec)()
        if not (hasattr(examples, "__len__") and hasattr(examples, "__getitem__")):
            raise TenfoldError(f"{spec} gives a {type(examples).__name__}; give a data set with a length.")
        return examples
    return Images(_open(kind, where), _of_images(shape, kind), mean, std)


def collated(examples: Any, count: int, *, batch: int = 64, seed: int = 0) -> list[Any]:
    """`count` examples of a map-style data set, drawn at random, in batches."""
    drawn = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    pieces = [drawn[start : start + batch] for start in range(0, len(drawn), batch)]
    return [default_collate([examples[index] for index in piece]) for piece in pieces]


def _of_images(shape: Sequence[int] | None, kind: str) -> Sequence[int]:
    if shape is None or len(shape) != 3:
        raise TenfoldError(f"{kind} data holds images; give their shape: --input 1,3,HEIGHT,WIDTH.")
    return shape


def _open(kind: str, where: str) -> Any:
    datasets = imported("datasets", f"{kind}:{where} (pip install tenfold[data])")
    files = sorted(file for part in where.split(",") for file in glob.glob(part))  # noqa: PTH207  patterns may be absolute
    if not files:
        raise TenfoldError(f"no file or folder matches {where}.")
    datasets.disable_progress_bars()
    source = {"data_files": files} if kind == "parquet" else {"data_dir": files[0]}
    try:
        return datasets.load_dataset(kind, split="train", **source)
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise TenfoldError(f"{kind}:{where} cannot be read: {first_line(error)}") from None


def _columns(features: Any) -> tuple[str, str | None]:
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    if not images:
        raise TenfoldError(f"the data has no column of images, only {', '.join(kinds)}.")
    return images[0], labels[0] if labels else None


def _tensor(picture: Any, shape: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    channels, height, width = shape
    picture = picture.convert("L" if channels == 1 else "RGB")
    if picture.size != (width, height):
        picture = picture.resize((width, height))
    pixels = torch.from_numpy(np.array(picture, np.float32)).reshape(height, width, channels).permute(2, 0, 1) / 255
    return (pixels - torch.tensor(mean[:channels])[:, None, None]) / torch.tensor(std[:channels])[:, None, None]


def _first(batches: Any, count: int) -> list[Any]:
    check_batches(batches)
    taken, seen = [], 0
    for batch in batches:
        if seen >= count:
            break
        taken.append(batch)
        first = next((leaf for leaf in torch.utils._pytree.tree_leaves(batch) if isinstance(leaf, Tensor)), None)
        seen += len(first) if first is not None and first.dim() else 1
    return taken
