"""The smallest size that a noisy, costly measurement still allows. Knows nothing of networks or tensors."""

from collections.abc import Callable
from math import exp, log

_TRIALS = 8
_CLOSE = log(1.03)  # the search ends where 3 % of the size are left between what fails and what passes
_MIDDLE = 0.15  # a guess keeps this share of the bracket away from its ends


def smallest(drop_at: Callable[[int], float], least: int, most: int, drop: float, allowed: float) -> int | None:
    """The smallest of the tried sizes below `most` at which the drop is at most `allowed`; None if none is.

    At `most` the drop is known; `least` is the smallest size. At most eight trials. Where one size fails and a larger
    one passes, the next lies where a power law of the size through both drops meets the allowed one; drops are
    counted from a quarter of what is allowed, below which they are noise.
    """

    def level(drop: float) -> float:
        return log(max(drop, 0.0) + allowed / 4 + 1e-12)

    best, failed = None, None
    low, high, passed = log(least), log(most), level(drop)  # between these sizes; what the larger one loses
    for _ in range(_TRIALS):
        if high - low < _CLOSE:
            break
        if failed is None:  # by halves, and nearer than that to the least
            below = min(log(2), (high - low) / 2)
        else:
            share = (level(allowed) - passed) / max(failed - passed, 1e-12)
            below = (high - low) * min(max(share, _MIDDLE), 1 - _MIDDLE)
        size = min(most - 1, max(least, round(exp(high - below))))
        found = drop_at(size)
        if found <= allowed:
            best, high, passed = size, log(size), level(found)
        else:
            low, failed = log(size), level(found)
    return best
