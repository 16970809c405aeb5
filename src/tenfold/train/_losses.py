"""What training lowers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tenfold._errors import TenfoldError
from tenfold._factored import Factored
from tenfold.train._recipe import Recipe


def distillation(outputs: Any, wanted: Any, target: Any, recipe: Recipe) -> Tensor:
    """Of logits: distance to the dense network's, at a temperature, and to the labels.

    The square of the temperature keeps gradients of the same size (Hinton et al. 2015, arXiv 1503.02531).
    """
    axis = class_axis(outputs, target)
    outputs, wanted = (logits if logits is None else logits.movedim(axis, 1) for logits in (outputs, wanted))
    if recipe.distil == 0:
        if target is None:
            raise TenfoldError(
                "the examples have no labels, and distil is 0; set distil=1 to learn from outputs alone."
            )
        return F.cross_entropy(outputs.float(), target)
    small, large = (F.log_softmax(logits.float() / recipe.temperature, 1) for logits in (outputs, wanted))
    apart = F.kl_div(small, large, reduction="sum", log_target=True) * outputs.shape[1] / outputs.numel()
    apart = recipe.temperature**2 * apart
    if recipe.distil == 1 or target is None:
        return apart
    return recipe.distil * apart + (1 - recipe.distil) * F.cross_entropy(outputs.float(), target)


def class_axis(outputs: Any, target: Any) -> int:
    """The axis of the classes in logits: 1, as in torch's losses, or the last, if that is what the labels go with.

    Raises:
        TenfoldError: if these are no logits, or the labels go with neither, or there are none to tell.
    """
    if not (isinstance(outputs, Tensor) and outputs.dim() >= 2 and outputs.is_floating_point()):
        raise _no_logits(type(outputs).__name__, "no logits (N, classes, ...)")
    given, axis = tuple(outputs.shape), 1
    shown = "x".join(map(str, given))
    if isinstance(target, Tensor):
        labels, known = tuple(target.shape), (given[:1] + given[2:], given[:-1])
        if target.is_floating_point() and not _are_shares(target, given):
            raise _no_logits(shown, "and floating-point labels that are no probabilities of classes")
        if not target.is_floating_point() and labels not in known:
            raise _no_logits(shown, f"and labels of shape {'x'.join(map(str, labels)) or '()'} do not go with that")
        axis = -1 if labels != known[0] and labels == known[1] else 1
    elif len(given) == 3:
        raise _no_logits(shown, "of which no labels tell whether classes are second or last")
    if given[axis] == 1:
        raise _no_logits(shown, "one class")
    return axis


def _are_shares(target: Tensor, given: tuple[int, ...]) -> bool:
    return target.shape == given and bool(((target.sum(1) - 1).abs() < 1e-2).all() and (target >= 0).all())


def _no_logits(given: str, what: str) -> TenfoldError:
    return TenfoldError(
        f"the network gives {given}, {what}; give finetune a loss(outputs, wanted, target), wanted being the dense "
        "network's outputs."
    )


def decayed(model: nn.Module) -> Tensor:
    """Half of the squared norm of all weights, factors by the weights that they stand for.

    Decay of the factors themselves would be a nuclear norm, which pulls rank by rank to zero.
    """
    factored = [module for module in model.modules() if isinstance(module, Factored)]
    inside = {id(parameter) for module in factored for parameter in module.parameters()}
    weights = [module.weight for module in factored]
    weights += [p for p in model.parameters() if p.dim() > 1 and id(p) not in inside]
    return sum((weight.float().square().sum() for weight in weights), torch.zeros(())) / 2
