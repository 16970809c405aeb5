"""What adapters share: the form of an adapter, a knob that lands on a share of parameters, and a choice among settings.

An adapter is one file: `INSTALL`, what pip is told, and `settings(dense, batches)`, the peer's ways of making the
network smaller by name, each a function from a share to a network. Packages of peers are imported inside functions.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrize

import tenfold
from benchmarks._compress import bisected

Batches = Sequence[tuple[Tensor, Tensor]]  # training images and labels
Smaller = Callable[[float], nn.Module]  # of a share of the dense network's parameters

HALVINGS = 12
_LOOKS = 24


class Unreached(Exception):  # noqa: N818  a fact about a peer, no error of ours
    """No network as small as asked came out."""


@dataclass(frozen=True)
class Made:
    """The best of a peer's networks."""

    model: nn.Module
    setting: str
    norms: bool  # whether its batch norms were re-estimated
    seconds: float  # that making it took, in this setting alone


def counted(model: nn.Module) -> int:
    """Parameters of a network, each once, with every reparametrisation folded into its weight."""
    if any(map(parametrize.is_parametrized, model.modules())):
        model = copy.deepcopy(model)
        for module in list(model.modules()):
            for name in [*getattr(module, "parametrizations", ())]:
                parametrize.remove_parametrizations(module, name)
    return sum(parameter.numel() for parameter in model.parameters())


def landed(
    make: Callable[[float], nn.Module], dense: nn.Module, share: float, low: float = 0.0, halvings: int = HALVINGS
) -> nn.Module:
    """The largest network within the share that a knob from `low` to 1 gives, by bisection; more keeps more.

    Raises:
        Unreached: if not even the lowest setting fits.
    """
    return make(knob_for(lambda knob: counted(make(knob)), dense, share, low, halvings))


def knob_for(
    params: Callable[[float], int], dense: nn.Module, share: float, low: float = 0.0, halvings: int = HALVINGS
) -> float:
    """The same for the knob itself, where parameters can be counted without making the network in earnest."""
    limit = share * counted(dense)
    if params(low) > limit:  # some knobs turn back at their ends: start where they give least
        low = min((low + (1 - low) * part / _LOOKS for part in range(_LOOKS)), key=params)
    if params(low) > limit:
        raise Unreached(f"the smallest network has {params(low) / counted(dense):.1%} of the parameters")
    return bisected(lambda knob: params(knob) <= limit, low, halvings)


def best(settings: Mapping[str, Smaller], dense: nn.Module, share: float, batches: Batches) -> Made:
    """The setting with the least loss on the training images, with batch norms re-estimated where that helps.

    Raises:
        Unreached: if no setting keeps within the share; the first one's own exception, if all of them fail.
    """
    found: list[tuple[float, Made]] = []
    failed: list[Exception] = []
    for name, smaller in settings.items():
        torch.manual_seed(0)
        start = time.perf_counter()
        try:
            model = smaller(share).eval()
            seconds = time.perf_counter() - start
            if counted(model) > share * counted(dense):
                raise Unreached(f"{counted(model) / counted(dense):.1%} of the parameters are left, asked {share:.0%}")  # noqa: TRY301
            found += [(loss_of(model, batches), Made(model, name, norms=False, seconds=seconds))]
            again = renormed(model, batches)
            found += [(loss_of(again, batches), Made(again, name, norms=True, seconds=seconds))]
        except Exception as error:  # noqa: BLE001  of other people's code: any
            failed.append(error)
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
        else:
            print(f"{name}: losses {found[-2][0]:.4f}, {found[-1][0]:.4f} with norms, {seconds:.1f} s", flush=True)
    if not found:
        raise failed[0]
    return min(found, key=lambda pair: pair[0])[1]


def renormed(model: nn.Module, batches: Batches) -> nn.Module:
    """A copy with batch norms re-estimated."""
    return tenfold.reestimate_norms(model, [inputs for inputs, _ in batches])


@torch.no_grad()
def loss_of(model: nn.Module, batches: Batches) -> float:
    """Mean cross-entropy in eval mode; infinite where it is no number."""
    losses = torch.cat([F.cross_entropy(model.eval()(inputs), labels, reduction="none") for inputs, labels in batches])
    mean = float(losses.double().mean())
    return mean if math.isfinite(mean) else math.inf


def swapped(model: nn.Module, new: Mapping[str, nn.Module]) -> nn.Module:
    """A copy in which the named layers are replaced."""
    model = copy.deepcopy(model)
    for name, module in new.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, module)
    return model


def layers(model: nn.Module, kind: type[nn.Module] = nn.Conv2d) -> dict[str, nn.Module]:
    """All layers of a kind by name, in order."""
    return {name: module for name, module in model.named_modules() if type(module) is kind}


def on_the_stream(model: nn.Module) -> list[nn.Module]:
    """Layers whose outputs are added to a shortcut, of the residual networks here: no pruner knows the padded ones."""
    ends = [name for name in layers(model) if name == "conv1" or "downsample" in name or name.endswith(_last(model))]
    heads = [*layers(model, nn.Linear).values()]
    return [*(model.get_submodule(name) for name in ends), *heads]


def _last(model: nn.Module) -> str:
    return "conv3" if any(name.endswith("conv3") for name in layers(model)) else "conv2"
