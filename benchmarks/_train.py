"""Training, plainly: SGD on images that stay on the device as bytes. A run cut off goes on after its last epoch."""

# N images of a batch, C = 3 colours, H rows, W columns

import math
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import tenfold
from benchmarks._images import Images, normalised

_SHIFT = 4  # pixels of padding, and the furthest that a crop may move


@dataclass(frozen=True)
class Recipe:
    """How to train. Crops and flips are always drawn; everything drawn follows from `seed`, on every device."""

    epochs: int
    lr: float
    schedule: Literal["constant", "steps", "cosine"]  # steps: a tenth after each 30 % of epochs; half a cosine, to 0
    batch: int = 100
    momentum: float = 0.9
    weight_decay: float = 0.0
    distil: float = 0.0  # the share of the loss that compares with a teacher, the rest with labels
    temperature: float = 4.0
    seed: int = 0

    def lr_at(self, progress: float) -> float:
        """The learning rate when this share of training is done."""
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * progress)) / 2
        return self.lr * 0.1 ** int(progress / 0.3 + 1e-9)


class OutOfTimeError(Exception):
    """The time for this piece of work is over; what is done is kept."""


class Clock:
    """The time for a piece of work."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    def require(self, seconds: float) -> None:
        """Stop where less time is left than this.

        Raises:
            OutOfTimeError: if so.
        """
        if time.monotonic() + seconds > self._end:
            raise OutOfTimeError


def train(
    model: nn.Module,
    images: Images,
    recipe: Recipe,
    *,
    checkpoint: Path,
    clock: Clock,
    teacher: nn.Module | None = None,
    graph: bool = False,
) -> float:
    """Train `model` where it is, and return the seconds that all its epochs took.

    Args:
        model: on its device; on CUDA it runs in bfloat16 with channels last.
        images: on the same device.
        recipe: how.
        checkpoint: a file written after every epoch, in one step. If it is there, training goes on from it.
        clock: no epoch is started that would not end in time.
        teacher: what `recipe.distil` compares with, on the same augmented images.
        graph: replay passes as CUDA graphs, which saves the time of launching their kernels.

    Raises:
        OutOfTimeError: if the clock allows no further epoch.
    """
    if _on_cuda(model):
        for module in model.modules():
            if isinstance(module, nn.Conv2d):  # other parameters of four axes are no kernels
                module.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    done, seconds = _restore(checkpoint, model, optimizer) if checkpoint.exists() else (0, 0.0)
    model.train()
    if graph:
        _replay_passes(model, images, recipe.batch)
    longest = 0.0
    for epoch in range(done, recipe.epochs):
        clock.require(1.2 * longest)
        start = time.monotonic()
        loss, accuracy = _epoch(model, images, recipe, epoch, optimizer, teacher)
        longest = max(longest, time.monotonic() - start)
        seconds += time.monotonic() - start
        _keep(checkpoint, model, optimizer, epoch + 1, seconds)
        print(f"{checkpoint.name}: epoch {epoch + 1}/{recipe.epochs}, loss {loss:.4f}, {accuracy:.2f} %", flush=True)
    model.eval()
    return seconds


def run_in_kernels(model: nn.Module) -> None:
    """Let trains of convolutions rebuild their kernels, which is many times faster in training and on many images."""
    for module in model.modules():
        if isinstance(module, tenfold.Factored):
            module.run_in("kernel")


def augmented(pixels_NCHW: Tensor, shifts_2N: Tensor, flips_N: Tensor) -> Tensor:
    """Pad with black, crop at the given shifts, flip where asked. The result has channels last in memory."""
    n, _, height, width = pixels_NCHW.shape
    device = pixels_NCHW.device
    padded = F.pad(pixels_NCHW, (_SHIFT,) * 4)
    across_W = torch.arange(width, device=device)
    columns_NW = shifts_2N[1, :, None] + torch.where(flips_N[:, None], across_W.flip(0), across_W)
    rows_NH = shifts_2N[0, :, None] + torch.arange(height, device=device)
    which_N = torch.arange(n, device=device)
    return padded[which_N[:, None, None], :, rows_NH[:, :, None], columns_NW[:, None, :]].permute(0, 3, 1, 2)


def _epoch(
    model: nn.Module,
    images: Images,
    recipe: Recipe,
    epoch: int,
    optimizer: torch.optim.Optimizer,
    teacher: nn.Module | None,
) -> tuple[float, float]:
    total, right, count = torch.zeros((), device=images.labels.device), torch.zeros_like(images.labels[0]), 0
    batches = list(_drawn(len(images), recipe, epoch, images.labels.device))
    for step, (order_N, shifts_2N, flips_N) in enumerate(batches):
        optimizer.param_groups[0]["lr"] = recipe.lr_at((epoch + step / len(batches)) / recipe.epochs)
        inputs = normalised(augmented(images.pixels[order_N], shifts_2N, flips_N))
        labels_N = images.labels[order_N]
        with _precision(model):
            outputs = model(inputs)
        loss = _loss(outputs.float(), labels_N, recipe, inputs, teacher)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach()
        right += (outputs.argmax(1) == labels_N).sum()
        count += len(labels_N)
    return (total / len(batches)).item(), 100 * right.item() / count


def _loss(outputs: Tensor, labels_N: Tensor, recipe: Recipe, inputs: Tensor, teacher: nn.Module | None) -> Tensor:
    loss = F.cross_entropy(outputs, labels_N)
    if teacher is None or not recipe.distil:
        return loss
    with torch.no_grad(), _precision(teacher):
        wanted = teacher(inputs).float()
    # Hinton et al. 2015 (arXiv 1503.02531); the square keeps gradients of the same size at any temperature.
    log_small, log_wanted = (F.log_softmax(logits / recipe.temperature, 1) for logits in (outputs, wanted))
    apart = recipe.temperature**2 * F.kl_div(log_small, log_wanted, reduction="batchmean", log_target=True)
    return (1 - recipe.distil) * loss + recipe.distil * apart


def _drawn(count: int, recipe: Recipe, epoch: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    # Drawn anew for each epoch from its number, so that a run that was cut off draws the same as one that was not.
    generator = torch.Generator().manual_seed(1_000_003 * recipe.seed + epoch)
    order = torch.randperm(count, generator=generator).to(device)
    shifts = torch.randint(2 * _SHIFT + 1, (2, count), generator=generator).to(device)
    flips = (torch.rand(count, generator=generator) < 0.5).to(device)
    for start in range(0, count - recipe.batch + 1, recipe.batch):  # whole batches only
        these = slice(start, start + recipe.batch)
        yield order[these], shifts[:, these], flips[these]


def _on_cuda(model: nn.Module) -> bool:
    return next(model.parameters()).is_cuda


def _precision(model: nn.Module) -> AbstractContextManager[Any]:
    # Graphs demand that no cast of a weight outlives the pass.
    return torch.autocast("cuda", torch.bfloat16, cache_enabled=False) if _on_cuda(model) else nullcontext()


def _replay_passes(model: nn.Module, images: Images, batch: int) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = normalised(images.pixels[:batch]).contiguous(memory_format=torch.channels_last)
    with _precision(model):
        torch.cuda.make_graphed_callables(model, (inputs,))
    model.load_state_dict(before)  # warming up moved the norms
    model.zero_grad()


def _keep(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epochs": epochs, "seconds": seconds}
    torch.save(state, beside)
    beside.replace(path)


def _restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    device = next(model.parameters()).device
    state = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["epochs"], state["seconds"]
