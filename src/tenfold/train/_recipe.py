"""How to train: plain data, written beside the results."""

import math
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from tenfold._plan import Record

Share = Annotated[float, Field(ge=0, le=1)]


class Recipe(Record):
    """How to train. Everything that is drawn follows from `seed` and the number of the step."""

    epochs: PositiveInt = 3
    batch: PositiveInt = 128  # examples of a step, over all processes
    optimizer: Literal["sgd", "adamw"] = "sgd"  # SGD with Nesterov's momentum
    lr: PositiveFloat = 0.002  # the largest
    warm_up: Share = 0.05  # of the steps, in which the learning rate rises from 0
    schedule: Literal["cosine", "constant"] = "cosine"  # after that: half a cosine to 0, or no change
    momentum: Share = 0.9
    weight_decay: NonNegativeFloat = 5e-4  # of the weights that factors stand for, not of the factors
    clip: PositiveFloat | None = 5.0  # the largest norm of the gradient
    distil: Share = 0.9  # the share of the loss that compares with the dense network, the rest with labels
    temperature: PositiveFloat = 4.0
    features: NonNegativeFloat = 0.0  # of the blocks' errors, added to the loss
    mixup: NonNegativeFloat = 0.0  # alpha: neighbours in a batch are mixed by a share from Beta(alpha, alpha)
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the weights that are kept: how much of the old stays a step
    balance: bool = True  # start with factors of equal norm, channel by channel
    precision: Literal["float32", "bfloat16"] = "float32"  # of what layers compute; weights stay as they are
    held_back: Annotated[float, Field(ge=0, lt=1)] = 0.05  # of the examples, for validation
    seed: NonNegativeInt = 0

    def lr_at(self, step: int, steps: int) -> float:
        """The learning rate of a step."""
        warm = self.warm_up * steps
        if step < warm:
            return self.lr * (step + 1) / (warm + 1)
        if self.schedule == "constant":
            return self.lr
        return self.lr * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1))) / 2
