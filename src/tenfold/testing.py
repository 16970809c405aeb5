"""The conformance suite of methods: for our own tests, and for those of methods that other people write.

```python
from tenfold.testing import check_method


def test_mine():
    check_method(MyMethod())
```
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from tenfold._candidate import Candidate
from tenfold._data import Inputs
from tenfold._errors import TenfoldError
from tenfold._factored import Factored, materialise
from tenfold._gauge import in_form
from tenfold._layers import matrices
from tenfold._method import Method, Site
from tenfold._plan import Rank
from tenfold._trace import Graph, trace

__all__ = ["AWKWARD", "CHECKS", "Case", "check_method"]

# Every shape of trouble that a layer can be, with the shape of one input.
AWKWARD: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(12, 20), (3, 12)),
    "linear without bias, extra dimensions": (lambda: nn.Linear(20, 7, bias=False), (2, 5, 3, 20)),
    "linear with one output": (lambda: nn.Linear(9, 1), (4, 9)),
    "conv1d": (lambda: nn.Conv1d(6, 10, 5, padding=2), (2, 6, 17)),
    "conv3d": (lambda: nn.Conv3d(4, 6, (1, 3, 2), padding=(0, 1, 1)), (1, 4, 3, 5, 4)),
    "conv2d": (lambda: nn.Conv2d(8, 12, 3, padding=1), (2, 8, 9, 7)),
    "conv2d without bias": (lambda: nn.Conv2d(8, 12, 3, bias=False), (2, 8, 9, 7)),
    "stride (2, 1)": (lambda: nn.Conv2d(8, 6, 3, stride=(2, 1), padding=(1, 0)), (2, 8, 9, 7)),
    "dilation 2, padding same": (lambda: nn.Conv2d(6, 8, 3, dilation=2, padding="same"), (1, 6, 9, 8)),
    "even kernel, padding same": (lambda: nn.Conv2d(6, 8, (4, 2), padding="same"), (1, 6, 9, 8)),
    "padding valid": (lambda: nn.Conv2d(6, 8, 3, padding="valid"), (1, 6, 9, 8)),
    "reflect padding": (lambda: nn.Conv2d(5, 7, (5, 3), padding=(2, 1), padding_mode="reflect"), (2, 5, 8, 9)),
    "circular padding, strided": (
        lambda: nn.Conv2d(5, 7, 3, stride=2, padding=1, padding_mode="circular"),
        (1, 5, 8, 9),
    ),
    "replicate padding, dilated": (
        lambda: nn.Conv2d(5, 7, 3, dilation=(1, 2), padding=2, padding_mode="replicate"),
        (1, 5, 8, 9),
    ),
    "two groups": (lambda: nn.Conv2d(8, 12, 3, padding=1, groups=2), (2, 8, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6), (2, 6, 6, 6)),
    "depthwise with multiplier": (lambda: nn.Conv2d(4, 12, 3, groups=4), (2, 4, 6, 6)),
    "pointwise": (lambda: nn.Conv2d(10, 14, 1), (2, 10, 5, 5)),
    "pointwise, strided, grouped": (lambda: nn.Conv2d(10, 14, 1, stride=2, groups=2), (2, 10, 5, 5)),
    "prime widths": (lambda: nn.Conv2d(7, 13, 3, padding=1), (1, 7, 6, 6)),
    "one output channel": (lambda: nn.Conv2d(9, 1, 3), (1, 9, 6, 6)),
    "one input channel": (lambda: nn.Conv2d(1, 9, 3), (1, 1, 6, 6)),
    "kernel wider than tall": (lambda: nn.Conv2d(4, 6, (1, 7), padding=(0, 3)), (1, 4, 5, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 5, 3, stride=2, padding=1, output_padding=1), (2, 6, 4, 5)),
    "transposed, grouped, dilated": (
        lambda: nn.ConvTranspose2d(6, 8, (2, 3), stride=(1, 2), dilation=2, groups=2, bias=False),
        (1, 6, 4, 5),
    ),
    "transposed 1d": (lambda: nn.ConvTranspose1d(6, 7, 4, stride=2, padding=1), (2, 6, 9)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(3, 4, (1, 2, 2), stride=(1, 2, 1)), (1, 3, 2, 3, 3)),
    "embedding": (lambda: nn.Embedding(30, 12, padding_idx=0), (2, 7)),
    "more outputs than a patch has values": (lambda: nn.Conv2d(2, 40, 3), (1, 2, 6, 6)),
}


class Case:
    """One layer in a model of its own, or two of its shape in a method whose sites hold several, and that site."""

    def __init__(self, name: str, method: Method) -> None:
        make, shape = AWKWARD[name]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._set(make(), shape, method, torch.float64)

    @classmethod
    def of(cls, layer: nn.Module, shape: tuple[int, ...], method: Method, dtype: torch.dtype = torch.float64) -> "Case":
        """A case of any layer, with an input of this shape."""
        case = cls.__new__(cls)
        case._set(layer, shape, method, dtype)
        return case

    def _set(self, layer: nn.Module, shape: tuple[int, ...], method: Method, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)
        if isinstance(layer, nn.Embedding):
            self.input = torch.randint(0, layer.num_embeddings, shape, generator=generator)
        else:
            self.input = torch.randn(shape, generator=generator, dtype=dtype)
        self.method = method
        for layers in ([layer], [layer, _redrawn(layer, generator)]):
            self.model = _Beside(layers).to(dtype).eval()
            self.graph: Graph = trace(self.model, Inputs((self.input,), {}))
            self.sites: list[Site] = list(method.sites(self.graph))
            if self.sites:
                break

    @property
    def layers(self) -> tuple[Any, ...]:
        """The dense layers that the method replaces together."""
        return self.sites[0].modules

    @property
    def dense(self) -> Any:
        """The first of them."""
        return self.layers[0]

    def new(self, rank: Rank) -> tuple[Factored, ...]:
        """The layers that the method puts in their place."""
        (site,) = self.sites
        with torch.device("meta"):
            new = self.method.skeleton(site, rank)
        materialise(nn.ModuleList(new), torch.device("cpu"))
        with torch.no_grad():
            self.method.fill(site, rank, new)
        return tuple(factored.eval() for factored in new)

    def pairs(self, rank: Rank) -> Iterator[tuple[Any, Factored]]:
        """Each dense layer, and what stands in its place."""
        yield from zip(self.layers, self.new(rank), strict=True)

    def ranks(self) -> list[Rank]:
        """A few ranks of the curve, the first and the last among them."""
        ranks = self.method.curve(self.sites[0]).ranks
        picks = np.unique(np.linspace(0, len(ranks) - 1, 6).round().astype(int))
        return [tuple(map(int, ranks[pick])) for pick in picks]


class _Beside(nn.Module):
    """Blocks of one layer each, which all get the same input."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(layer) for layer in layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [block(x) for block in self.blocks]


def _redrawn(layer: nn.Module, generator: torch.Generator) -> nn.Module:
    other = copy.deepcopy(layer)
    with torch.no_grad():
        for p in other.parameters():
            p.copy_(p.abs().mean() * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return other


def check_method(method: Method) -> None:
    """Hold a method to its contract on every awkward layer that it serves.

    Raises:
        AssertionError: naming the check and the layer.
    """
    served = [case for name in AWKWARD if (case := Case(name, method)).sites]
    assert served, f"{method} serves none of the layers that it could be checked on"
    for case in served:
        for check in CHECKS:
            check(case)


def full_rank_changes_nothing(case: Case) -> None:
    """Full rank gives the dense layer's outputs, to 1e-9 in float64 and 1e-5 in float32."""
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        same = Case.of(copy.deepcopy(case.dense), tuple(case.input.shape), case.method, dtype)
        for dense, new in same.pairs(same.method.full_rank(same.sites[0])):
            _close(new(same.input), dense(same.input), tolerance)


def curve_falls_to_nothing(case: Case) -> None:
    """Errors never rise with any entry of the rank, and end at nothing."""
    curve = case.method.curve(case.sites[0])
    assert curve.errors.min() >= 0
    errors = {tuple(map(int, rank)): float(error) for rank, error in zip(curve.ranks, curve.errors.sum(1), strict=True)}
    for axis in range(curve.ranks.shape[1]):
        values = sorted({rank[axis] for rank in errors})
        following = dict(pairwise(values))
        for rank, error in errors.items():
            above = errors.get((*rank[:axis], following.get(rank[axis], rank[axis]), *rank[axis + 1 :]))
            assert above is None or above <= error, f"{rank}: the error rises from {error} to {above}"
    full = case.method.full_rank(case.sites[0])
    assert errors[full] <= 1e-20 * _energy(case), f"full rank {full} leaves {errors[full]}"


def fill_is_no_worse_than_the_curve(case: Case) -> None:
    """The squared error of the filled weights, summed over layers, is at most what the curve says."""
    curve = case.method.curve(case.sites[0])
    for rank in case.ranks():
        (row,) = np.flatnonzero((curve.ranks == rank).all(axis=1))
        found = sum(float((new.weight - dense.weight).detach().square().sum()) for dense, new in case.pairs(rank))
        most = float(curve.errors[row].sum())
        assert found <= most + 1e-12 * _energy(case), f"rank {rank}: {found} > {most}"


def factors_compute_their_weight(case: Case) -> None:
    """At every rank, the factors give what a dense layer with their rebuilt weight gives."""
    for rank in case.ranks():
        for dense, new in case.pairs(rank):
            weights = {"weight": new.weight} | ({} if new.bias is None else {"bias": new.bias})
            _close(new(case.input), functional_call(dense, weights, (case.input,)), 1e-12)


def price_is_the_skeletons(case: Case) -> None:
    """The cost of each rank on the ladder is that of its skeleton, though few skeletons were run."""
    candidate = Candidate(case.sites[0], case.method)
    ranks = case.method.curve(case.sites[0]).ranks
    calls = case.graph.calls_of(case.sites[0].layers)
    costs = candidate.priced(calls, ranks)
    for row in range(0, len(ranks), max(1, len(ranks) // 8)):
        assert (costs[row] == candidate.priced(calls, ranks[row : row + 1])).all()
        new = nn.ModuleList(case.new(tuple(map(int, ranks[row]))))
        assert costs[row][0] == sum(p.numel() for p in new.parameters())


def forms_compute_the_same(case: Case) -> None:
    """Whatever form the factors run in, they stand for the same weight and give the same, at the price of the form."""
    (site,) = case.sites
    calls = case.graph.calls_of(site.layers)
    for form, rank in product(case.method.forms[1:], case.ranks()[:-1]):
        made = case.new(rank)
        before = [(new(case.input), new.weight) for new in made]
        try:
            price = Candidate(site, case.method, form).priced(calls, np.array([rank]))
            formed = [in_form(new, form) for new in made]
        except TenfoldError:
            continue  # the form is not for this rank or layer
        for new, (expected, weight) in zip(formed, before, strict=True):
            _close(new(case.input), expected, 1e-9)
            _close(new.weight, weight, 1e-9)
            assert price[0][0] == sum(p.numel() for p in new.parameters())


def looks_like_the_layer(case: Case) -> None:
    """Other code can read the layer's shape, and training reaches every factor."""
    for dense, new in case.pairs(case.ranks()[0]):
        for name in ("in_features", "out_features", "in_channels", "out_channels", "stride", "kernel_size", "groups"):
            assert getattr(new, name, None) == getattr(dense, name, None), name
        assert new.weight.shape == dense.weight.shape
        trained = copy.deepcopy(new).train()
        trained(case.input).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.parameters())


def follows_memory_formats(case: Case) -> None:
    """`model.to(memory_format=...)` works as it does on the dense layer, and changes no output."""
    new = case.new(case.ranks()[-1])[0]
    other: Any = copy.deepcopy(new)
    other.to(memory_format=torch.channels_last_3d if new.weight.dim() == 5 else torch.channels_last)
    _close(other(case.input), new(case.input), 1e-12)


def skeleton_draws_no_random_numbers(case: Case) -> None:
    """Making and filling a layer leaves the global random state alone."""
    before = torch.get_rng_state()
    case.new(case.ranks()[0])
    assert torch.equal(before, torch.get_rng_state())


def what_is_shared_stays_shared(case: Case) -> None:
    """Copies, conversions and state dicts keep one tensor one, and it is the same before and after."""
    new = nn.ModuleList(case.new(case.ranks()[-1]))
    copied = copy.deepcopy(new).to(torch.float32)
    loaded = copy.deepcopy(new)
    with torch.no_grad():
        for p in loaded.parameters():
            p.zero_()
    loaded.load_state_dict(new.state_dict())
    for other in (copied, loaded):
        assert len([*other.parameters()]) == len([*new.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(new.parameters(), loaded.parameters(), strict=True))


CHECKS: tuple[Callable[[Case], None], ...] = (
    full_rank_changes_nothing,
    curve_falls_to_nothing,
    fill_is_no_worse_than_the_curve,
    factors_compute_their_weight,
    price_is_the_skeletons,
    forms_compute_the_same,
    looks_like_the_layer,
    follows_memory_formats,
    skeleton_draws_no_random_numbers,
    what_is_shared_stays_shared,
)


def _close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    found, expected = found.detach(), expected.detach()
    scale = float(expected.abs().max())
    difference = float((found - expected).abs().max())
    assert difference <= tolerance * max(scale, 1.0), f"differs by {difference:.3g} at a scale of {scale:.3g}"


def _energy(case: Case) -> float:
    return sum(float(matrices(dense).square().sum()) for dense in case.layers)
