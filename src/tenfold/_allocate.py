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

_SMALL = 1e-3  # a sum of errors that is not far enough from the solver's tolerance of 1e-6


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
        # The solver's tolerance lets a row exceed its bound by 1e-12 of it: a whole unit, for costs of 1e12.
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
    """Solve on a core of promising options, which is then proven (or grown) to hold the best choice.

    An option whose reduced cost in the linear relaxation exceeds the gap between the relaxation and a known choice
    cannot be part of a better one (Balas & Zemel 1980). Thousands of options so become a few hundred.
    """
    scale = 1e6 / np.maximum(np.abs(limits), 1)  # the solver's tolerance of 1e-6 is then 1e-12 of a limit
    costs, bounds = costs * scale, limits * scale
    relaxed = _solve(errors, covers, costs, bounds, integer=False)
    if not _feasible(relaxed):
        return None
    if 0 < (least := relaxed.getInfo().objective_function_value) < _SMALL:
        errors = errors / least
        relaxed = _solve(errors, covers, costs, bounds, integer=False)
    reduced = np.array(relaxed.getSolution().col_dual)
    size = min(len(errors), max(100, 5 * covers.shape[1]))
    while True:
        core = np.sort(np.argsort(reduced, kind="stable")[:size])
        solved = _solve(errors[core], covers[core], costs[core], bounds)
        if _feasible(solved):
            gap = solved.getInfo().objective_function_value - relaxed.getInfo().objective_function_value
            needed = int((reduced <= gap).sum())
        else:
            needed = min(2 * size, len(errors))
        if needed <= size:
            return core[_chosen(solved, len(core))].tolist() if _feasible(solved) else None
        size = needed


def _least_ratio(covers: Floats, costs: Floats, limits: Floats) -> list[int]:
    # Minimise t subject to costs <= t * limits: one more column, free and continuous.
    rows = np.r_[np.zeros(covers.shape[1]), np.full(len(limits), -1.0)]
    solved = _solve(np.zeros(len(costs)), covers, costs / np.maximum(np.abs(limits), 1), 0 * limits, slack=rows)
    return _chosen(solved, len(costs)).tolist()


def _solve(
    errors: Floats, covers: Floats, costs: Floats, bounds: Floats, *, integer: bool = True, slack: Floats | None = None
) -> highspy.Highs:
    count, layers = covers.shape
    columns = np.concatenate([covers, costs], axis=1)
    lower, upper, price = np.zeros(count), np.ones(count), errors
    if slack is not None:
        columns = np.concatenate([columns, slack[None]])
        lower, upper, price = np.append(lower, -np.inf), np.append(upper, np.inf), np.append(price, 1.0)

    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = columns.shape
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = price, lower, upper
    lp.row_lower_ = np.r_[np.ones(layers), np.full(len(bounds), -np.inf)]
    lp.row_upper_ = np.r_[np.ones(layers), bounds]
    column, row = columns.nonzero()
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = np.r_[0, np.bincount(column, minlength=len(columns)).cumsum()]
    lp.a_matrix_.index_, lp.a_matrix_.value_ = row, columns[column, row]
    if integer:
        lp.integrality_ = [highspy.HighsVarType.kInteger] * count + [highspy.HighsVarType.kContinuous] * (
            len(columns) - count
        )

    solver = highspy.Highs()
    solver.silent()
    # Serial, and stopped by a count of nodes, never by the clock: the same options give the same plan everywhere.
    # Choices that reach the limit of nodes (flat spectra, several limits) were within 1e-4 of the bound.
    # The core needs no presolve, which took half of the time.
    settings = {"mip_rel_gap": 0.0, "mip_abs_gap": 0.0, "parallel": "off", "presolve": "off", "mip_max_nodes": 100}
    for name, value in settings.items():
        solver.setOptionValue(name, value)
    solver.passModel(lp)
    solver.run()
    return solver


def _feasible(solver: highspy.Highs) -> bool:
    return bool(solver.getInfo().primal_solution_status == int(highspy.SolutionStatus.kSolutionStatusFeasible))


def _chosen(solver: highspy.Highs, count: int) -> NDArray[np.int64]:
    return np.flatnonzero(np.array(solver.getSolution().col_value[:count]) > 0.5)
