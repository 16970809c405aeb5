"""Images of any size, of the first so many classes: to train on, held back, and to decide."""

from dataclasses import dataclass
from functools import cache

from torch.nn import functional as F  # noqa: N812

from benchmarks._images import SPLITS, Images, drawn_images, first_images

_POOL = {"cifar10-jpeg": 6_000, "tiny-imagenet-50": 25_000}  # images of the training split, before classes are chosen


@dataclass(frozen=True)
class Counts:
    """How many images at most."""

    train: int
    held_back: int  # from the training split, for curves
    judged: int


@dataclass(frozen=True, eq=False)
class Split:
    """Three sets of images that do not overlap."""

    train: Images
    held_back: Images
    judged: Images


@cache
def split_images(data: str, size: int, classes: int, counts: Counts) -> Split:
    """The same images for every seed: of the first `classes` classes, resized to `size` pixels a side."""
    drawn, judged = _of_classes(_drawn(data), classes), _of_classes(_decisive(data), classes)
    return Split(
        train=_resized(drawn, size, slice(counts.train)),
        held_back=_resized(drawn, size, slice(counts.train, counts.train + counts.held_back)),
        judged=_resized(judged, size, slice(counts.judged)),
    )


@cache
def _drawn(data: str) -> Images:
    return drawn_images(data, "train", _POOL[data], seed=0)


@cache
def _decisive(data: str) -> Images:
    return first_images(data, SPLITS[data])


def _of_classes(images: Images, classes: int) -> Images:
    kept_N = images.labels < classes
    return Images(images.pixels[kept_N], images.labels[kept_N])


def _resized(images: Images, size: int, part: slice) -> Images:
    pixels = images.pixels[part].float()
    smooth = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return Images(smooth.round().clamp(0, 255).byte(), images.labels[part])
