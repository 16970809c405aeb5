"""What nothing else is better than."""

import numpy as np
from numpy.typing import NDArray


def pareto(costs: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of `(points, costs)` no other beats, by no cost above theirs and one below; equal ones all stay."""
    at_most = np.all(costs[:, None] <= costs[None], axis=2)
    below = np.any(costs[:, None] < costs[None], axis=2)
    return np.logical_not(np.any(at_most & below, axis=0))
