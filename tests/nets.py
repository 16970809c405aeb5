"""Small networks that tests share."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


def small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, groups=2),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding="same"),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 24),
        nn.ReLU(),
        nn.Linear(24, 10),
    )


class TokenNet(nn.Module):
    """Takes keyword arguments, gives a dict, ties its head to its embedding."""

    def __init__(self, vocabulary: int = 50, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.full((1,), 0.5), persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        hidden = self.embed(input_ids)
        if attention_mask is not None:
            hidden = hidden * attention_mask[..., None]
        hidden = hidden + self.scale * self.down(F.gelu(self.up(hidden)))
        return {"logits": self.head(hidden), "hidden": hidden}


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with random weights and random statistics of its batch norms, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.uniform_(0.5, 1.0, generator=generator)
        else:
            parameter.data.normal_(0, (2 / parameter[0].numel()) ** 0.5, generator=generator)
    return model.eval()


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Stopped(Exception):  # noqa: N818
    """What stops a run that could go on."""


class StopsAt:
    """An augmentation that changes nothing, counts its calls, and stops the run at one of them."""

    def __init__(self, call: int, then: Callable[[Tensor, Tensor], Tensor] = lambda x, _: x) -> None:
        self.call, self.then, self.calls = call, then, 0

    def __call__(self, x: Tensor, noise: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.call:
            raise Stopped
        return self.then(x, noise)
