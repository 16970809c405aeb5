"""Measured times: interleaved, medians, never a formula."""

import sys
import time
from collections.abc import Callable, MutableMapping, Sequence
from statistics import median
from typing import Any

_MOST = 4  # times as many rounds, where medians are not yet sure


def interleaved_ms(
    runs: Sequence[Callable[[], Any]], *, rounds: int = 15, least_ms: float = 5.0, sure: float = 0.02
) -> list[float]:
    """Median milliseconds of each run, timed in turn so that a busy moment of the machine meets all of them.

    A run shorter than `least_ms` is repeated within a round until it lasts that long. Rounds go on, up to four times
    as many, until the standard error of every median is below the share `sure` of it.
    """
    repeats = [max(1, round(least_ms / max(min(_timed(run, 1) for _ in range(3)), 1e-3))) for run in runs]
    samples: list[list[float]] = [[] for _ in runs]
    for number in range(1, _MOST * rounds + 1):
        for run, repeat, sample in zip(runs, repeats, samples, strict=True):
            sample.append(_timed(run, repeat))
        if number >= rounds and all(_error(sample) <= sure * median(sample) for sample in samples):
            break
    return [median(sample) for sample in samples]


def paced_ms(
    runs: Sequence[Callable[[], Any]], pacemaker: Callable[[], Any], known: MutableMapping[str, float], **how: Any
) -> list[float]:
    """As `interleaved_ms`, in milliseconds of a machine that is as fast as it was at first.

    Processors change their pace with whatever else they do, and what is compared is not all measured at one time: so a
    pacemaker, which is always the same, is timed in turn with the runs. Its first time is kept as `known["pace"]`.
    """
    now, *each = interleaved_ms([pacemaker, *runs], **how)
    pace = known.setdefault("pace", now) / now
    return [pace * ms for ms in each]


def _error(sample: Sequence[float]) -> float:
    """The standard error of the median, from the median deviation, which a few disturbed rounds do not move."""
    middle = median(sample)
    deviation = 1.4826 * median(abs(value - middle) for value in sample)
    return float(1.2533 * deviation / len(sample) ** 0.5)


def _timed(run: Callable[[], Any], repeat: int) -> float:
    _synchronize()
    start = time.perf_counter()
    for _ in range(repeat):
        run()
    _synchronize()
    return (time.perf_counter() - start) * 1e3 / repeat


def _synchronize() -> None:
    torch = sys.modules.get("torch")  # not there on machines that have other engines only
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
