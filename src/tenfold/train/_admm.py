"""Training towards a plan: weights are drawn to where its factors can follow."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tenfold._errors import TenfoldError
from tenfold._fit import made
from tenfold._method import Site
from tenfold._plan import Plan
from tenfold.methods import find
from tenfold.train._hooks import Hooks


class ADMM(Hooks):
    """Alternating directions towards the ranks of a plan (Yin et al. 2021, arXiv 2107.12422).

    The loss gets `strength / 2 sum |W - Z + U|^2`; after every epoch, Z becomes what the plan's method makes of W + U
    at its rank, and U grows by W - Z. Train the dense network so, then `apply` the plan to it and fine-tune.

    Raises:
        TenfoldError: if the plan has no steps, or the strength is not above 0.
    """

    def __init__(self, dense: nn.Module, plan: Plan, *, strength: float) -> None:
        super().__init__()
        if not plan.steps:
            raise TenfoldError("ADMM: the plan has no steps; give one that a budget made.")
        if not strength > 0:
            raise TenfoldError(f"ADMM(strength={strength!r}): it is above 0.")
        plan.check_made_for(dense)
        self.plan, self.strength = plan, strength
        self._names = [name for step in plan.steps for name in step.layers]
        weights = [_weight(dense, name).detach() for name in self._names]
        for number, (weight, target) in enumerate(zip(weights, self._projected(dense, weights), strict=True)):
            self.register_buffer(f"target{number}", target)
            self.register_buffer(f"dual{number}", torch.zeros_like(weight))

    def penalty(self, model: nn.Module) -> Tensor:
        pairs = zip(self._names, self._each("target"), self._each("dual"), strict=True)
        far = [(_weight(model, name) - target + dual).square().sum() for name, target, dual in pairs]
        return self.strength / 2 * torch.stack(far).sum()

    def after_epoch(self, model: nn.Module, done: int, epochs: int) -> None:  # noqa: ARG002
        weights = [_weight(model, name).detach() for name in self._names]
        moved = [weight + dual for weight, dual in zip(weights, self._each("dual"), strict=True)]
        found = self._projected(model, moved)
        for weight, target, dual, new in zip(weights, self._each("target"), self._each("dual"), found, strict=True):
            target.copy_(new)
            dual.add_(weight - new)

    def distance(self, model: nn.Module) -> float:
        """|W - Z|^2 over |W|^2, all layers together, Z being what the plan's methods make of W."""
        weights = [_weight(model, name).detach() for name in self._names]
        pairs = zip(weights, self._projected(model, weights), strict=True)
        lost = sum(float((weight - target).square().sum()) for weight, target in pairs)
        return lost / sum(float(weight.square().sum()) for weight in weights)

    def _each(self, kind: str) -> list[Tensor]:
        return [getattr(self, f"{kind}{number}") for number in range(len(self._names))]

    def _projected(self, model: nn.Module, weights: Sequence[Tensor]) -> list[Tensor]:
        """What the plan's methods make of layers with these weights."""
        given, found = dict(zip(self._names, weights, strict=True)), {}
        for step in self.plan.steps:
            layers = [_with_weight(model.get_submodule(name), given[name]) for name in step.layers]
            new = made(find(step.method), Site(step.layers, tuple(layers)), step.rank)
            found.update({name: factored.rebuilt().detach() for name, factored in zip(step.layers, new, strict=True)})
        return [found[name] for name in self._names]


def _weight(model: nn.Module, name: str) -> Any:
    return model.get_submodule(name).weight


def _with_weight(layer: Any, weight: Tensor) -> Any:
    copied = copy.deepcopy(layer)
    copied.weight = nn.Parameter(weight.clone())
    return copied
