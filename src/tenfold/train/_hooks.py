"""What a way of training does beside the loss. Any loop can call it; `finetune` does so by itself."""

import torch
from torch import Tensor, nn


class Hooks(nn.Module):
    """Called with the network that is trained. What has to survive a stop is a buffer.

    ```python
    for x, y in loader:
        (loss(model(x), y) + hooks.penalty(model)).backward()
        optimizer.step(); optimizer.zero_grad()
        hooks.after_step(model)
    hooks.after_epoch(model, epoch, epochs)
    ...
    hooks.at_end(model)
    ```
    """

    def extra_repr(self) -> str:
        """Its settings: runs with others are told apart by them."""
        settings = {
            name: value for name, value in vars(self).items() if not name.startswith("_") and name != "training"
        }
        return ", ".join(f"{name}={value!r}" for name, value in settings.items())

    def penalty(self, model: nn.Module) -> Tensor:  # noqa: ARG002
        """What is added to the loss of every step."""
        return torch.zeros((), requires_grad=True)  # so that it may be sent backward by itself

    def after_step(self, model: nn.Module) -> None:
        """Called when the optimizer has taken its step."""

    def after_epoch(self, model: nn.Module, done: int, epochs: int) -> None:
        """Called when `done` of so many epochs are done."""

    def at_end(self, model: nn.Module) -> None:
        """Called when all epochs are done, with the network that is kept."""
