"""Reconstruction: train the factors, without labels, until blocks and outputs are again what they were."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from tenfold._data import Inputs
from tenfold._errors import TenfoldWarning
from tenfold._pair import Pair, changed, rebuilding
from tenfold._progress import track
from tenfold._run import copied, undisturbed

_STEPS = 240  # of training
_RATE = 0.0025  # of Adam, times the root of the loss at the start and the root mean square of each parameter
_LOOK = 30  # steps between looks at the held-back examples


def reconstructed(
    small: nn.Module, dense: nn.Module, used: Sequence[Inputs], held_back: Sequence[Inputs], seed: int
) -> nn.Module:
    """A copy of `small`, its changed layers trained for the sum of both errors of `Pair`.

    Of the states at every look, the first among them, the one with the least sum on what is held back is kept, if the
    outputs are no further off than at the first.
    """
    new = copied(small)
    pair = Pair(new, dense)
    generator = torch.Generator().manual_seed(seed)
    with undisturbed(new), undisturbed(dense), _trainable(new, dense) as parameters, torch.enable_grad():
        start = pair.errors_on(held_back)
        best = sum(start), [p.detach().clone() for p in parameters]
        rate = _RATE * best[0] ** 0.5  # smaller steps, where there is less to gain than to lose
        rates = [rate * max(float(p.detach().square().mean().sqrt()), 1e-3) for p in parameters]
        search = torch.optim.Adam([{"params": [p], "lr": rate} for p, rate in zip(parameters, rates, strict=True)])
        schedule = torch.optim.lr_scheduler.OneCycleLR(search, rates, total_steps=_STEPS, pct_start=0.1)
        drawn = _drawn(used, generator)
        for step in track(range(1, _STEPS + 1), "reconstruction"):
            search.zero_grad()
            outputs, blocks = pair.errors(next(drawn))
            lost = outputs + blocks
            if not lost.requires_grad:
                text = (
                    "no gradient reaches the factors (the model runs under no_grad, or gives no floating-point numbers)"
                )
                warnings.warn(f"{text}: they are not reconstructed.", TenfoldWarning, stacklevel=3)
                break
            with rebuilding(new, dense):  # torch.utils.checkpoint runs layers again for their gradients
                lost.backward()
            search.step()
            schedule.step()
            if step % _LOOK == 0:
                errors = pair.errors_on(held_back)
                if sum(errors) < best[0] and errors[0] <= start[0]:
                    best = sum(errors), [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for parameter, value in zip(parameters, best[1], strict=True):
                parameter.copy_(value)
    return new


def _drawn(pieces: Sequence[Inputs], generator: torch.Generator) -> Iterator[Inputs]:
    while True:
        for index in torch.randperm(len(pieces), generator=generator).tolist():
            yield pieces[index]


@contextmanager
def _trainable(model: nn.Module, dense: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Changed layers, and all that is as small as a bias or a norm; what needs gradients is put back after."""
    inside = {p for name in changed(model, dense) for p in model.get_submodule(name).parameters()}
    before = {p: p.requires_grad for p in model.parameters()}
    try:
        for parameter in before:
            parameter.requires_grad_(parameter in inside or parameter.dim() == 1)
        yield [parameter for parameter in before if parameter.requires_grad]
    finally:
        for parameter, needed in before.items():
            parameter.requires_grad_(needed)
