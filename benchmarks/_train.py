"""Training in pieces: what was stopped goes on from its last checkpoint, and what is finished is kept."""

import copy
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks import _weights
from benchmarks._images import Images
from tenfold._factored import materialise
from tenfold._judge import Evaluate
from tenfold.train import Augment, Epoch, Finetuned, Hooks, Recipe, finetune

SHORTER = 5  # times fewer epochs, on a CPU


@dataclass(frozen=True)
class Trained:
    """A network with the weights that are kept, in half precision, and what its epochs came to."""

    model: nn.Module
    history: tuple[Epoch, ...]

    @property
    def seconds(self) -> float:
        """That all epochs took."""
        return round(sum(epoch.seconds for epoch in self.history), 1)

    @property
    def metrics(self) -> tuple[float, ...]:
        """Percent right on the images held back, after each epoch; nothing if there were none."""
        return tuple(round(100 * epoch.metric, 4) for epoch in self.history if epoch.metric is not None)


def fit(
    small: nn.Module,
    dense: nn.Module,
    images: Images,
    recipe: Recipe,
    folder: Path,
    evaluate: Evaluate | None = None,
    hooks: Sequence[Hooks] = (),
) -> Finetuned:
    """Train on crops and flips, wherever there is an accelerator, with a checkpoint in `folder`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_device = Images(images.pixels.to(device), images.labels.to(device))
    small, dense = _channels_last(small), _channels_last(dense)
    further = {"augment": Augment(), "evaluate": evaluate, "hooks": hooks, "folder": folder}
    return finetune(small, dense, on_device.loader(), recipe, **further)


def kept(stem: Path, shape: Callable[[], nn.Module], train: Callable[[Path], Finetuned]) -> Trained:
    """What `train` makes, once; `shape` is the network on the meta device, and `train` gets a folder to work in."""
    if not _weights.complete(stem):
        work = stem.with_name(f"{stem.name}.work")
        done = train(work)
        _weights.save(stem, done.model, json.dumps([epoch.model_dump() for epoch in done.history]))
        shutil.rmtree(work)
    model = shape()
    materialise(model, torch.device("cpu"))
    history = json.loads(_weights.load(stem, model))
    return Trained(model.eval(), tuple(Epoch(**epoch) for epoch in history))


def epochs_of(full: int, *, short: bool, quick: bool) -> int:
    """How many of all epochs: one for a look, a fifth on a CPU."""
    return 1 if quick else max(1, full // SHORTER) if short else full


def flags(*, short: bool, quick: bool) -> str:
    """The same on the command line."""
    return " --short" * short + " --quick" * quick


def announced() -> None:
    """Print every epoch as it ends."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("tenfold").setLevel(logging.INFO)


def _channels_last(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):  # other parameters of four axes are no kernels
            module.to(memory_format=torch.channels_last)
    return model
