"""A decoder of the usual kind, of any size, with random weights that are written shard by shard."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tenfold._shards import Shards


@dataclass(frozen=True)
class Size:
    """Widths and depth."""

    width: int
    inner: int
    heads: int
    blocks: int
    words: int


SIZES = {
    "1b": Size(2048, 5632, 16, 18, 32_000),
    "tiny": Size(64, 160, 4, 3, 500),
}


class Attention(nn.Module):
    """Causal attention."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.q, self.k, self.v, self.o = (nn.Linear(size.width, size.width, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Of `(batch, places, width)`."""
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a gated layer, each behind a norm and beside what it was given."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.before, self.between = nn.RMSNorm(size.width), nn.RMSNorm(size.width)
        self.attention = Attention(size)
        self.gate, self.up = (nn.Linear(size.width, size.inner, bias=False) for _ in range(2))
        self.down = nn.Linear(size.inner, size.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Of `(batch, places, width)`."""
        x = x + self.attention(self.before(x))
        y = self.between(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """Words in, what follows each of them out."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embed = nn.Embedding(size.words, size.width)
        self.blocks = nn.Sequential(*(Block(size) for _ in range(size.blocks)))
        self.norm, self.head = nn.RMSNorm(size.width), nn.Linear(size.width, size.words, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Of `(batch, places)`."""
        return self.head(self.norm(self.blocks(self.embed(ids))))


def empty(name: str) -> Decoder:
    """The network on the meta device."""
    with torch.device("meta"):
        return Decoder(SIZES[name]).to(torch.bfloat16).eval()


def write(name: str, folder: Path, seed: int, shard_bytes: int = 500_000_000) -> None:
    """Random weights in bfloat16, whose spectra fall, so that ranks differ; never all in memory."""
    folder.mkdir(parents=True)
    shards, generator = Shards(folder, shard_bytes), torch.Generator().manual_seed(seed)
    for key, parameter in empty(name).named_parameters():
        if parameter.dim() < 2:
            shards.add({key: torch.ones(parameter.shape, dtype=torch.bfloat16)})
            continue
        rows, columns = parameter.shape
        weight = torch.randn(rows, columns, generator=generator) / columns**0.5
        rank = 1 + int(torch.randint(columns // 4, (), generator=generator))
        left, right = (torch.randn(*shape, generator=generator) for shape in ((rows, rank), (rank, columns)))
        shards.add({key: (weight + left @ right / (rank * columns) ** 0.5).to(torch.bfloat16)})
    shards.finish()
