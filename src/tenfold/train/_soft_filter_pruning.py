"""Soft filter pruning: filters are zeroed while the network trains, and may come back until the end."""

from math import exp, floor
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tenfold._errors import TenfoldError
from tenfold._filters import FilterGroup, mask, rows
from tenfold._plan import Plan
from tenfold._pruning import dense_groups
from tenfold._removal import producers
from tenfold.methods import FilterPruning
from tenfold.train._hooks import Hooks

_SPEED = 11.08999  # three quarters of the filters by an eighth of the epochs


class SoftFilterPruning(Hooks):
    """Zero the filters that matter least after every epoch, and go on training all (He et al. 2018, arXiv 1808.06866).

    The plan says how many filters of each group are to go, and what they are ranked by; `Ranks(share=0.6)` makes one
    that goes by rate. With `schedule="asymptotic"` (He et al. 2019, arXiv 1808.07471) they become more from epoch to
    epoch, `floor(n (1 - e^(-c d)) / (1 - e^-c))` after a share d of all epochs, c = 11.08999; with "constant" all n go
    from the first on. Train the dense network so, then `apply` the plan to it, which removes what is 0, and fine-tune:

    ```python
    plan = tenfold.plan(dense, Budget(params=0.3), example=x, methods=[FilterPruning()])
    done = finetune(dense, dense, examples, recipe, hooks=[SoftFilterPruning(dense, plan)])
    small = tenfold.apply(done.model, plan)
    ```

    A zeroed filter competes again as it is by then, or as it was when it was zeroed, whichever has the larger norm:
    behind a norm whose shift is not above 0, a ReLU would let no gradient through to bring it back. At the end, the
    norms of what is zeroed are zeroed too, so that removing it changes nothing.

    Raises:
        TenfoldError: if there is no such schedule, or the plan is of another network or does more than remove filters.
    """

    def __init__(
        self, dense: nn.Module, plan: Plan, *, schedule: Literal["asymptotic", "constant"] = "asymptotic"
    ) -> None:
        super().__init__()
        if schedule not in ("asymptotic", "constant"):
            raise TenfoldError(f'SoftFilterPruning has no schedule {schedule!r}; use "asymptotic" or "constant".')
        if not plan.steps or not all(step.links for step in plan.steps):
            raise TenfoldError("SoftFilterPruning: the plan must remove filters and nothing else; see FilterPruning.")
        plan.check_made_for(dense)
        self.plan, self.schedule = plan, schedule
        self._groups = dense_groups(plan.steps)
        for number, (group, _) in enumerate(self._groups):
            self.register_buffer(f"zeroed{number}", torch.zeros(group.filters, dtype=torch.bool))
            for place, values in enumerate(_values(dense, group)):
                self.register_buffer(f"before{number}_{place}", torch.zeros_like(values))

    def share(self, done: int, epochs: int) -> float:
        """Of the filters that are to go, how many are zeroed after so many epochs."""
        if self.schedule == "constant" or done == epochs:
            return 1.0
        return (1 - exp(-_SPEED * done / epochs)) / (1 - exp(-_SPEED))

    @torch.no_grad()
    def after_epoch(self, model: nn.Module, done: int, epochs: int) -> None:
        for number, ((group, most), step) in enumerate(zip(self._groups, self.plan.steps, strict=True)):
            self._bring_back(model, number, group)
            ranking = FilterPruning.of(step.method).ranking(producers(model, group, None))
            zeroed = torch.zeros(group.filters, dtype=torch.bool)
            zeroed[ranking.order[: floor(most * self.share(done, epochs) + 1e-9)]] = True
            getattr(self, f"zeroed{number}").copy_(zeroed)
            for place, values in enumerate(_values(model, group)):
                getattr(self, f"before{number}_{place}").copy_(values)
                values[zeroed.to(values.device)] = 0

    @torch.no_grad()
    def at_end(self, model: nn.Module) -> None:
        drops = [
            (group, getattr(self, f"zeroed{number}").nonzero().flatten().tolist())
            for number, (group, _) in enumerate(self._groups)
        ]
        mask(model, drops)

    def _bring_back(self, model: nn.Module, number: int, group: FilterGroup) -> None:
        """Give zeroed filters the values from before, where these are the larger ones."""
        now = _values(model, group)
        before = [getattr(self, f"before{number}_{place}") for place in range(len(now))]
        larger = _squares(before) > _squares(now)
        back = getattr(self, f"zeroed{number}") & larger
        for values, old in zip(now, before, strict=True):
            values[back] = old[back]


def _values(model: nn.Module, group: FilterGroup) -> list[Tensor]:
    """Views of the weights and biases that make the filters, one row a filter."""
    return [view for link in group.links if link.side == "out" for view in rows(link, model.get_submodule(link.module))]


def _squares(values: list[Any]) -> Tensor:
    return torch.stack([each.double().square().flatten(1).sum(1) for each in values]).sum(0)
