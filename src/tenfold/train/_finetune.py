"""Fine-tuning a compressed network by the dense one: a loop that reads from top to bottom."""

import copy
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils import _pytree as pytree

from tenfold._data import Inputs, batch_inputs
from tenfold._errors import TenfoldError
from tenfold._judge import Evaluate, check_callable, scores
from tenfold._pair import Pair, mean_error, rebuilding
from tenfold._progress import track
from tenfold._resume import digest
from tenfold._run import copied, device_of, same_draws, undisturbed, unwrapped
from tenfold._sources import imported
from tenfold._verify import Epoch
from tenfold.train._augment import mixed, neighbours
from tenfold.train._balance import balance
from tenfold.train._checkpoint import read, write
from tenfold.train._draw import Draw
from tenfold.train._hooks import Hooks
from tenfold.train._losses import class_axis, decayed, distillation
from tenfold.train._norms import synchronised
from tenfold.train._recipe import Recipe

log = logging.getLogger("tenfold")

Loss = Callable[[Any, Any, Any], Tensor]  # of outputs, of the dense network's outputs, of the target
_KEEP_S = 60.0  # seconds between checkpoints, besides one at the end of every epoch


@dataclass(frozen=True)
class Finetuned:
    """The trained network, and what every epoch came to."""

    model: nn.Module
    history: tuple[Epoch, ...]


def finetune(
    small: nn.Module,
    dense: nn.Module,
    examples: Any,
    recipe: Recipe | None = None,
    *,
    loss: Loss | None = None,
    augment: Callable[[Any, Tensor], Any] | None = None,
    evaluate: Evaluate | None = None,
    hooks: Sequence[Hooks] = (),
    folder: str | Path | None = None,
    trackers: Sequence[Any] = (),
) -> Finetuned:
    """Train a copy of a compressed network to give what the dense one gives, and the labels.

    Both see the same augmented inputs. Where factors are more work on batches than the dense layer, it runs in their
    place, with the weight rebuilt from them. Under `accelerate launch` or `torchrun`, every process takes its part of
    each batch, and batch norms see all of it, so that the result is that of one process within rounding.

    Args:
        small: what `apply` made of `dense`, with the same names; neither is modified.
        dense: the network that teaches.
        examples: a map-style data set of (inputs, target), or a DataLoader, of which the data set, `collate_fn` and
            workers are used: which examples make a batch follows from the recipe's seed.
        recipe: how to train.
        loss: `loss(outputs, wanted, target)`, `wanted` being the dense outputs; for logits there is one already,
            where labels go with `(N, classes, ...)` or `(N, ..., classes)`.
        augment: `augment(inputs, noise)` with a row of 8 numbers in [0, 1) for each example, such as `Augment()`.
        evaluate: of the held-back metric, higher is better; by default, the share of held-back examples whose first
            class is right, where outputs are logits.
        hooks: what is done beside the loss, such as `SVDTraining`; what they hold is kept in the checkpoint.
        folder: where a checkpoint is kept; a run that was killed goes on from it, to the same weights.
        trackers: of accelerate: names such as `["tensorboard"]`, or objects.

    Raises:
        TenfoldError: if accelerate is not installed, or the data, the recipe or the checkpoint do not fit.
    """
    recipe = recipe or Recipe()
    accelerate = imported("accelerate", "fine-tuning (pip install tenfold[train])")
    accelerator = accelerate.Accelerator(log_with=list(trackers) or None, project_dir=folder)
    if accelerator.distributed_type == accelerate.DistributedType.FSDP:
        raise TenfoldError("finetune keeps the whole network in each process; for FSDP, see docs/large-networks.md.")
    small, dense = unwrapped(small), unwrapped(dense)
    draw = Draw(examples, recipe, accelerator.process_index, accelerator.num_processes)
    if evaluate is not None:
        check_callable(evaluate)
    run = _Run(accelerator, copied(small), dense, draw, recipe, loss, augment, evaluate, hooks)
    if trackers:
        accelerator.init_trackers("tenfold", config=recipe.model_dump(exclude_none=True))
    with same_draws():
        history = run.to_the_end(None if folder is None else Path(folder) / "checkpoint.safetensors")
    if trackers:
        accelerator.end_training()
    return Finetuned(run.kept(like=small), tuple(history))


class _Run:
    def __init__(
        self,
        accelerator: Any,
        new: nn.Module,
        dense: nn.Module,
        draw: Draw,
        recipe: Recipe,
        loss: Loss | None,
        augment: Callable[[Any, Tensor], Any] | None,
        evaluate: Evaluate | None,
        hooks: Sequence[Hooks],
    ) -> None:
        self.accelerator, self.draw, self.recipe = accelerator, draw, recipe
        self.augment, self.evaluate = augment, evaluate
        self.loss = loss or (lambda outputs, wanted, target: distillation(outputs, wanted, target, recipe))
        self.taught = loss is not None or recipe.distil > 0 or recipe.features > 0
        self.name = digest(recipe.model_dump_json(), new, dense, draw.steps_of_an_epoch, *hooks)
        self.hooks = [copy.deepcopy(each).to(accelerator.device) for each in hooks]
        if recipe.balance:
            balance(new)
        self.new = new.to(accelerator.device).train().requires_grad_(True)
        self.dense = copied(dense).to(accelerator.device).eval().requires_grad_(False)
        self.mean = AveragedModel(self.new, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True)
        self.optimizer = _optimizer(self.new, recipe)
        self.pair = Pair(self.new, self.dense)

    def to_the_end(self, checkpoint: Path | None) -> list[Epoch]:
        """Train from the last checkpoint on."""
        parts: dict[str, nn.Module] = {"model": self.new, "mean": self.mean}
        parts |= {f"hooks-{number}": each for number, each in enumerate(self.hooks)}
        facts = read(checkpoint, parts, self.optimizer, self.name) if checkpoint else None
        done, losses, before = (facts["step"], facts["losses"], facts["seconds"]) if facts else (0, [], 0.0)
        history = [Epoch(**epoch) for epoch in facts["history"]] if facts else []
        of_epoch = self.draw.steps_of_an_epoch
        steps, written = of_epoch * self.recipe.epochs, time.monotonic()
        begun = written - before  # of the epoch

        def keep() -> None:
            if checkpoint and self.accelerator.is_main_process:
                facts = {
                    "run": self.name,
                    "step": done,
                    "losses": [*map(float, losses)],
                    "seconds": time.monotonic() - begun,
                    "history": [epoch.model_dump() for epoch in history],
                }
                write(checkpoint, parts, self.optimizer, facts)

        with ExitStack() as stack:
            stack.enter_context(rebuilding(self.new, self.dense))
            stack.enter_context(synchronised(self.new, self.accelerator.num_processes))
            model = self.accelerator.prepare_model(self.new)
            optimizer = self.accelerator.prepare_optimizer(self.optimizer)
            drawn = self.draw.steps_from(done)
            for step in track(range(done, steps), "fine-tuning"):
                losses.append(self._step(model, optimizer, step, steps, *next(drawn)))
                done = step + 1
                if done % of_epoch == 0:
                    self._after_epoch(done // of_epoch)
                    history.append(self._epoch(done // of_epoch, losses, time.monotonic() - begun))
                    losses, begun = [], time.monotonic()
                if done % of_epoch == 0 or time.monotonic() - written > _KEEP_S:
                    keep()
                    written = time.monotonic()
        return history

    def _step(self, model: nn.Module, optimizer: Any, step: int, steps: int, batch: Any, noise: Tensor) -> Tensor:
        torch.manual_seed(self.recipe.seed + step)  # of dropout and mixup
        inputs = self._drawn(batch, noise.to(self.accelerator.device))
        half = self.recipe.precision == "bfloat16"
        with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=half):
            lost = self._lost(model, inputs)
        self.accelerator.backward(lost + self._penalty())
        if self.recipe.clip is not None:
            self.accelerator.clip_grad_norm_(self.new.parameters(), self.recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr_at(step, steps)
        optimizer.step()
        optimizer.zero_grad()
        for each in self.hooks:
            each.after_step(self.new)
        self.mean.update_parameters(self.new)
        return lost.detach()

    def _after_epoch(self, number: int) -> None:
        for each in self.hooks:
            each.after_epoch(self.new, number, self.recipe.epochs)
        if self.hooks:
            self.mean.update_parameters(self.new)

    def _penalty(self) -> Tensor:
        total = sum((each.penalty(self.new) for each in self.hooks), torch.zeros(()))
        decay = self.recipe.weight_decay
        return total + decay * decayed(self.new) if decay else total

    def _drawn(self, batch: Any, noise: Tensor) -> Inputs:
        inputs = batch_inputs(self.dense, batch).on(self.accelerator.device)
        args, kwargs = pytree.tree_map(lambda leaf: self._augmented(leaf, noise), (inputs.args, inputs.kwargs))
        return Inputs(args, kwargs, inputs.target)

    def _augmented(self, leaf: Any, noise: Tensor) -> Any:
        image = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return self.augment(leaf, noise) if image and self.augment is not None else leaf

    def _lost(self, model: nn.Module, inputs: Inputs) -> Tensor:
        args, kwargs, target = inputs
        share, alpha = 1.0, self.recipe.mixup
        if alpha:
            share = float(torch.distributions.Beta(alpha, alpha).sample())
            args, kwargs = mixed((args, kwargs), share)
        with torch.no_grad(), same_draws(), self._blocks_of(self.dense) as wanted_blocks:
            wanted = self.dense(*args, **kwargs) if self.taught else None
        with self._blocks_of(self.new) as found_blocks:
            outputs = model(*args, **kwargs)
        lost = self.loss(outputs, wanted, target)
        if alpha:
            lost = share * lost + (1 - share) * self.loss(outputs, wanted, neighbours(target))
        if self.recipe.features:
            lost = lost + self.recipe.features * mean_error(found_blocks, wanted_blocks)
        return lost

    def _blocks_of(self, model: nn.Module) -> AbstractContextManager[dict[str, Any]]:
        """What its blocks give inside, if that is asked for: it takes a copy of each output."""
        return self.pair.seen(model) if self.recipe.features else nullcontext({})

    def _epoch(self, number: int, losses: Sequence[Any], seconds: float) -> Epoch:
        metric = self._metric() if self.accelerator.is_main_process else None
        self.accelerator.wait_for_everyone()
        loss = sum(map(float, losses)) / len(losses)
        epoch = Epoch(epoch=number, loss=loss, metric=metric, seconds=round(seconds, 2))
        shown = "" if metric is None else f", metric {metric:.4f}"
        log.info("epoch %d of %d: loss %.4f%s, %.0f s", number, self.recipe.epochs, loss, shown, seconds)
        self.accelerator.log(epoch.model_dump(exclude_none=True), step=number)
        return epoch

    def _metric(self) -> float | None:
        model: nn.Module = self.mean.module
        with rebuilding(model, self.dense):
            if self.evaluate is not None:
                return float(scores(self.evaluate, model).mean())
            with undisturbed(model):
                right = [self._right(model, batch) for batch in self.draw.held_back()]
        return float(torch.cat(right).mean()) if right and all(part is not None for part in right) else None

    def _right(self, model: nn.Module, batch: Any) -> Any:
        inputs = batch_inputs(self.dense, batch).on(self.accelerator.device)
        outputs, target = model(*inputs.args, **inputs.kwargs), inputs.target
        if not isinstance(target, Tensor) or target.is_floating_point():
            return None
        try:
            axis = class_axis(outputs, target)
        except TenfoldError:  # of what a loss of its own knows
            return None
        return (outputs.argmax(axis) == target).double().flatten()

    def kept(self, like: nn.Module) -> nn.Module:
        """The averaged weights, on the device and in the mode that the small network came in."""
        kept: nn.Module = self.mean.module
        for each in self.hooks:
            each.at_end(kept)
        for parameter, before in zip(kept.parameters(), like.parameters(), strict=True):
            parameter.requires_grad_(before.requires_grad)
        for module, old in zip(kept.modules(), like.modules(), strict=True):
            module.training = old.training
        return kept.to(device_of(like))


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=0)
    momentum = recipe.momentum
    return torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=momentum, nesterov=momentum > 0)
