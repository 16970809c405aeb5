"""Which examples make which step: from the seed and the step's number alone, for any number of processes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from tenfold._errors import TenfoldError
from tenfold.train._recipe import Recipe

_NUMBERS = 8  # in [0, 1), drawn for each example of a step, for augmentation


@dataclass(frozen=True, eq=False)
class Draw:
    """The steps of one process. `examples` is a map-style data set, or a DataLoader whose set and workers are used."""

    examples: Any
    recipe: Recipe
    process: int
    processes: int

    def __post_init__(self) -> None:
        if not (hasattr(self._set, "__len__") and hasattr(self._set, "__getitem__")):
            raise TenfoldError("finetune draws examples by number; give a data set with a length, or its DataLoader.")
        if self.recipe.batch % self.processes:
            raise TenfoldError(
                f"a batch of {self.recipe.batch} does not part among {self.processes} processes; make it a multiple."
            )
        if self.recipe.mixup and self.recipe.batch // self.processes % 2:
            raise TenfoldError(
                f"mixup takes examples in pairs, and a batch of {self.recipe.batch} on {self.processes} process(es) "
                f"leaves one over; make it a multiple of {2 * self.processes}."
            )
        if not self.steps_of_an_epoch:
            raise TenfoldError(
                f"a batch of {self.recipe.batch} is more than the {len(self._used)} examples that train; "
                "give more data or a smaller batch."
            )

    @property
    def _set(self) -> Any:
        return self.examples.dataset if isinstance(self.examples, DataLoader) else self.examples

    @cached_property
    def _order(self) -> list[int]:
        # The same for every seed: a network that goes on from another must not be judged on what that one learnt.
        return torch.randperm(len(self._set), generator=_generator(0, -1)).tolist()

    @cached_property
    def _used(self) -> list[int]:
        return self._order[round(self.recipe.held_back * len(self._set)) :]

    @property
    def steps_of_an_epoch(self) -> int:
        """Whole batches only."""
        return len(self._used) // self.recipe.batch

    def held_back(self) -> DataLoader[Any]:
        """The examples that no step sees."""
        kept = self._order[: round(self.recipe.held_back * len(self._set))]
        parts = [kept[start : start + self.recipe.batch] for start in range(0, len(kept), self.recipe.batch)]
        return self._loader(parts)

    def steps_from(self, first: int) -> Iterator[tuple[Any, Tensor]]:
        """Of each step from the first on: this process's batch, and `(n, 8)` numbers for its examples."""
        batches = list(self._batches(first))
        for step, batch in enumerate(self._loader(batches), first):
            noise = torch.rand(self.recipe.batch, _NUMBERS, generator=_generator(self.recipe.seed, step))
            yield batch, self._own(noise)

    def _batches(self, first: int) -> Iterator[list[int]]:
        used, size, steps = self._used, self.recipe.batch, self.steps_of_an_epoch
        for epoch in range(first // steps, self.recipe.epochs):
            shuffled = torch.randperm(len(used), generator=_generator(self.recipe.seed, -2 - epoch)).tolist()
            for step in range(first - epoch * steps if epoch == first // steps else 0, steps):
                yield [used[index] for index in self._own(shuffled[step * size : (step + 1) * size])]

    def _own(self, drawn: Any) -> Any:
        share = self.recipe.batch // self.processes
        return drawn[self.process * share : (self.process + 1) * share]

    def _loader(self, batches: Sequence[list[int]]) -> DataLoader[Any]:
        given = self.examples if isinstance(self.examples, DataLoader) else None
        return DataLoader(
            self._set,
            batch_sampler=batches,
            collate_fn=given.collate_fn if given else default_collate,
            num_workers=given.num_workers if given else 0,
            generator=_generator(self.recipe.seed, 0),  # or the loader would draw from the global one
        )


def _generator(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(1_000_003 * seed + 1_000_000_007 + number)
