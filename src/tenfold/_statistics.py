"""What calibration told: sums over the patches of every layer, which add up, and lie in one file."""

# g groups, K inputs of a group times kernel positions, O outputs of a group, p patches, B blocks of b inputs

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from math import ceil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from tenfold._errors import TenfoldError
from tenfold._linalg import gram
from tenfold._resume import write_tensors

_WIDEST = 6144  # inputs whose products are all kept: 0.3 GB in float64; wider layers keep diagonal blocks
_PROBES = 8  # random directions in which the neglect of blocks is measured


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """Sums over the patches x of a layer, and over the gradients q at its outputs; all in float64.

    Of an embedding, patches are unit vectors, and `gram` holds how often each row was looked up.
    """

    count: Tensor  # (), patches
    total: Tensor  # (g, K), sum of x
    gram: Tensor  # (g, B, b, b), sum of x x^T: all of it (B = 1), or diagonal blocks, with zeros behind the last input
    cubic: Tensor  # (g, K), sum of |x|^2 x
    quartic: Tensor  # (g,), sum of |x|^4
    response: Tensor  # (g, O, O), sum of q q^T over batches, each times its patches; zero if there is no gradient
    probes: Tensor  # (g, probes), sum of (z.x)^2 for fixed random z
    norm: str | None = None  # the batch norm that takes this layer's outputs and nothing else

    def __add__(self, other: "LayerStatistics") -> "LayerStatistics":
        sums = {name: getattr(self, name) + getattr(other, name) for name in SUMS}
        return LayerStatistics(**sums, norm=self.norm)

    def on(self, device: torch.device) -> "LayerStatistics":
        """The same sums on a device."""
        # Copied: on disk they are not aligned as in memory, and sums would round differently.
        return replace(self, **{name: getattr(self, name).to(device, copy=True) for name in SUMS})

    def without_inputs(self, gone_K: Tensor) -> "LayerStatistics | None":
        """The same of a layer without groups that has lost these of its K; None where only blocks were kept."""
        if self.gram.shape[1] > 1:
            return None
        rest = ~gone_K
        gram = self.gram[:, :, rest][..., rest]
        kept = gram.diagonal(dim1=-2, dim2=-1).sum((1, 2)) / self.gram.diagonal(dim1=-2, dim2=-1).sum((1, 2))
        kept = kept.nan_to_num()
        cubic, quartic = self.cubic[:, rest] * kept[:, None], self.quartic * kept.square()
        return replace(self, total=self.total[:, rest], gram=gram, cubic=cubic, quartic=quartic)

    def without_outputs(self, gone_O: Tensor) -> "LayerStatistics":
        """The same of a layer without groups that has lost these of its outputs."""
        return replace(self, response=self.response[:, ~gone_O][..., ~gone_O])

    def without_groups(self, gone_g: Tensor) -> "LayerStatistics":
        """The same of a layer that has lost these of its groups."""
        parts = ("total", "gram", "cubic", "quartic", "response", "probes")
        return replace(self, **{name: getattr(self, name)[~gone_g] for name in parts})

    @property
    def is_finite(self) -> bool:
        """Whether no patch held NaN or infinite values."""
        return bool(self.total.isfinite().all())

    @property
    def neglected(self) -> float:
        """How much the blocks get wrong, relative: 0 where all products are kept, else found by random directions."""
        if self.gram.shape[1] in (1, self.total.shape[1]):
            return 0.0
        z_gpk = _directions(self.total)
        wide = F.pad(z_gpk, (0, self.gram.shape[1] * self.gram.shape[2] - z_gpk.shape[-1]))
        parts = wide.unflatten(-1, self.gram.shape[1:3])
        found = torch.einsum("gpbi,gbij,gpbj->gp", parts, self.gram, parts)
        return float((found - self.probes).norm() / self.probes.norm().clamp_min(1e-300))


_NORMS = "norms"  # in a file: JSON, as bytes
SUMS = tuple(field.name for field in fields(LayerStatistics) if field.name != "norm")


@dataclass(frozen=True, eq=False)
class Statistics:
    """What calibration told about each layer, by name.

    `a + b` is what both sets of batches told together; a `TenfoldError` if they are of different layers.
    """

    layers: Mapping[str, LayerStatistics]

    def __add__(self, other: "Statistics") -> "Statistics":
        if self.layers.keys() != other.layers.keys():
            raise TenfoldError("these statistics are of different layers; add what came from one network.")
        return Statistics({name: layer + other.layers[name] for name, layer in self.layers.items()})

    def of(self, names: Iterable[str]) -> "Statistics":
        """What was told about these layers."""
        return Statistics({name: self.layers[name] for name in names if name in self.layers})

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, in one step."""
        write_tensors(Path(path), self.packed())

    @classmethod
    def load(cls, path: str | Path) -> "Statistics":
        """Read what `save` wrote.

        Raises:
            TenfoldError: if the file is not one of `save`.
        """
        try:
            return cls.unpacked(load_file(path))
        except (OSError, KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
            raise TenfoldError(f"{path} does not hold statistics: {error}.") from None

    def packed(self) -> dict[str, Tensor]:
        """As tensors by name, which `unpacked` takes."""
        tensors = {f"{name}/{part}": getattr(s, part) for name, s in self.layers.items() for part in SUMS}
        norms = json.dumps({name: s.norm for name, s in self.layers.items()})
        return {**tensors, _NORMS: torch.tensor([*norms.encode()], dtype=torch.uint8)}

    @classmethod
    def unpacked(cls, tensors: Mapping[str, Tensor]) -> "Statistics":
        """What `packed` gave."""
        norms = json.loads(bytes(tensors[_NORMS].tolist()))
        sums = {name: {part: tensors[f"{name}/{part}"] for part in SUMS} for name in norms}
        return cls({name: LayerStatistics(**sums[name], norm=norm) for name, norm in norms.items()})


def moments(x_gkp: Tensor, outputs: int, norm: str | None) -> LayerStatistics:
    """The sums over patches of a layer with so many outputs a group."""
    blocks, size = blocks_of(x_gkp.shape[1])
    short = blocks * size - x_gkp.shape[1]
    parts = (F.pad(x_gkp, (0, 0, 0, short)) if short else x_gkp).unflatten(1, (blocks, size))
    total, length = x_gkp.sum(-1), torch.linalg.vector_norm(x_gkp, dim=1)
    return LayerStatistics(
        count=total.new_tensor(x_gkp.shape[2]),
        total=total,
        gram=gram(parts),
        cubic=(x_gkp @ length.square()[..., None])[..., 0],
        quartic=length.pow(4).sum(-1),
        response=total.new_zeros(len(total), outputs, outputs),
        probes=(_directions(total) @ x_gkp).square().sum(-1) if blocks > 1 else total.new_zeros(len(total), 0),
        norm=norm,
    )


def blocks_of(inputs: int) -> tuple[int, int]:
    """In how many blocks products of so many inputs are kept, and of how many inputs each is."""
    blocks = ceil(inputs / _WIDEST)
    return blocks, ceil(inputs / blocks)


def _directions(like_gk: Tensor) -> Tensor:
    """The fixed random directions `(g, probes, K)`."""
    generator = torch.Generator().manual_seed(0)
    shape = (like_gk.shape[0], _PROBES, like_gk.shape[1])
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(like_gk.device)
