"""Options and limits in, picks out: the global choice. Knows nothing of networks or tensors.

Choose options so that every layer is covered exactly once, no limit is exceeded and the summed error is least: a
multiple-choice knapsack, with sites that overlap a set-partitioning problem, solved as a mixed-integer program by
HiGHS (Huangfu & Hall 2018).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import highspy
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Option:
    """One way to run some layers: what it costs, in the unit of each limit, and the error that it makes."""

    layers: frozenset[str]
    costs: tuple[int, ...]
    error: float


class UnreachableError(Exception):
    """No choice meets every limit; `least` are the costs of the choice with the smallest worst cost/limit."""

    def __init__(self, least: tuple[int, ...]) -> None:
        super().__init__(least)
        self.least = least


def allocate(options: Sequence[Option], limits: Sequence[int]) -> list[int]:
    """Return the indices of the chosen options, rising.

    Raises:
        UnreachableError: if no choice meets every limit.
    """
    rows = sorted(set().union(*(option.layers for option in options)))
    covers = np.array([[layer in option.layers for layer in rows] for option in options], np.float64)
    costs = np.array([option.costs for option in options], np.float64).reshape(len(options), len(limits))
    errors = np.array([option.error for option in options])

    def totals(picks: list[int]) -> tuple[int, ...]:
        return tuple(sum(options[pick].costs[j] for pick in picks) for j in range(len(limits)))

    bounds = np.array(limits, np.float64)
    while (picks := _least_error(covers, costs, errors, bounds)) is not None:
        # The solver's tolerance lets a row exceed its bound by about 1e-10 of it, which can be a whole unit.
        excess = np.maximum(np.array(totals(picks)) - np.array(limits), 0)
        if not excess.any():
            return picks
        bounds = bounds - excess
    raise UnreachableError(totals(_least_ratio(covers, costs, np.array(limits, np.float64))))


def worthwhile(costs: Floats, errors: Floats, steps: Floats) -> list[int]:
    """Indices, by rising error, of the options for one set of layers that are worth handing to `allocate`.

    An option goes if another has no more error and costs no more, or if it saves less than `steps` in every cost
    against the one before it. The cheapest in each cost always stays, so that what is reachable stays reachable.
    """
    order = np.lexsort((*costs.T[::-1], errors))
    if costs.shape[1] == 1:
        column = costs[order, 0]
        order = order[np.r_[True, column[1:] < np.minimum.accumulate(column)[:-1]]]
    front: list[int] = []
    for index in order:
        if not (costs[front] <= costs[index]).all(axis=1).any():
            front.append(int(index))
    cheapest = {min(front, key=lambda index: costs[index, j]) for j in range(costs.shape[1])}
    kept: list[int] = []
    for index in front:
        saved = costs[kept[-1]] - costs[index] if kept else steps
        if index in cheapest or (saved >= steps).any() or (saved < 0).any():
            kept.append(index)
    return kept


def _least_error(covers: Floats, costs: Floats, errors: Floats, limits: Floats) -> list[int] | None:
    scale = 1e4 / np.maximum(np.abs(limits), 1)  # puts the solver's tolerance far below one unit of cost
    return _solve(errors, covers, costs * scale, limits * scale)


def _least_ratio(covers: Floats, costs: Floats, limits: Floats) -> list[int]:
    # Minimise t subject to costs <= t * limits: one more column, continuous, and no bound on the rows.
    scaled = costs / np.maximum(np.abs(limits), 1)
    picks = _solve(np.zeros(len(costs)), covers, scaled, np.zeros(len(limits)), slack=True)
    assert picks is not None, "some choice always exists: every layer can stay dense"
    return picks


def _solve(errors: Floats, covers: Floats, costs: Floats, bounds: Floats, *, slack: bool = False) -> list[int] | None:
    count, layers = covers.shape
    columns = np.concatenate([covers, costs], axis=1)
    lower, upper, price = np.zeros(count), np.ones(count), errors
    if slack:
        columns = np.concatenate([columns, np.r_[np.zeros(layers), -np.ones(len(bounds))][None]])
        lower, upper, price = np.append(lower, -np.inf), np.append(upper, np.inf), np.append(price, 1.0)
    kinds = [highspy.HighsVarType.kInteger] * count + [highspy.HighsVarType.kContinuous] * slack

    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = columns.shape
    lp.col_cost_, lp.col_lower_, lp.col_upper_, lp.integrality_ = price, lower, upper, kinds
    lp.row_lower_ = np.r_[np.ones(layers), np.full(len(bounds), -np.inf)]
    lp.row_upper_ = np.r_[np.ones(layers), bounds]
    column, row = columns.nonzero()
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = np.r_[0, np.bincount(column, minlength=len(columns)).cumsum()]
    lp.a_matrix_.index_, lp.a_matrix_.value_ = row, columns[column, row]

    solver = highspy.Highs()
    solver.silent()
    # Serial, to a zero gap, stopped by a count of nodes and never by the clock: the same options give the same
    # plan on every machine.
    for name, value in {
        "mip_rel_gap": 0.0,
        "mip_abs_gap": 0.0,
        "parallel": "off",
        "mip_max_nodes": 100_000,
    }.items():
        solver.setOptionValue(name, value)
    solver.passModel(lp)
    solver.run()
    if solver.getInfo().primal_solution_status != 2:  # 2: feasible
        return None
    return [index for index, x in enumerate(solver.getSolution().col_value[:count]) if x > 0.5]
