"""What training lowers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from tenfold._errors import TenfoldError
from tenfold._factored import Factored
from tenfold.train._recipe import Recipe


def distillation(outputs: Any, wanted: Any, target: Any, recipe: Recipe) -> Tensor:
    """Of logits `(N, classes, ...)`: distance to the dense network's, at a temperature, and to the labels.

    The square of the temperature keeps gradients of the same size (Hinton et al. 2015, arXiv 1503.02531).
    """
    if not (isinstance(outputs, Tensor) and outputs.dim() >= 2 and outputs.is_floating_point()):
        raise TenfoldError(
            f"the network gives {type(outputs).__name__}, no logits (N, classes, ...); "
            "give finetune a loss(outputs, wanted, target), wanted being the dense network's outputs."
        )
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


def decayed(model: nn.Module) -> Tensor:
    """Half of the squared norm of all weights, factors by the weights that they stand for.

    Decay of the factors themselves would be a nuclear norm, which pulls rank by rank to zero.
    """
    factored = [module for module in model.modules() if isinstance(module, Factored)]
    inside = {id(parameter) for module in factored for parameter in module.parameters()}
    weights = [module.weight for module in factored]
    weights += [p for p in model.parameters() if p.dim() > 1 and id(p) not in inside]
    return sum((weight.float().square().sum() for weight in weights), torch.zeros(())) / 2
