"""Measured times: interleaved, medians, never a formula."""

import sys
import time
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

_MOST = 4  # times as many rounds, where medians are not yet sure
_QUEUE = Path("/proc/thread-self/schedstat")  # of Linux: nanoseconds that this thread ran, and that it was kept waiting


def interleaved_ms(
    runs: Sequence[Callable[[], Any]], *, rounds: int = 15, least_ms: float = 5.0, sure: float = 0.02
) -> list[float]:
    """Median milliseconds of each run, timed in turn so that a busy moment of the machine meets all of them.

    Moments in which other processes had the processor do not count, where the system tells of them and nothing goes on
    elsewhere meanwhile: on Linux, on a CPU.

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
    start, waited = time.perf_counter(), _waited_s()  # in this order: what was waited lies inside what was taken
    for _ in range(repeat):
        run()
    _synchronize()
    waited = _waited_s() - waited
    return (time.perf_counter() - start - waited) * 1e3 / repeat


def _synchronize() -> None:
    if _on_gpu():
        sys.modules["torch"].cuda.synchronize()


def _waited_s() -> float:
    """Seconds for which this thread could run and others had the processor, so far; 0 where that is not known."""
    try:
        return 0.0 if _on_gpu() else int(_QUEUE.read_bytes().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _on_gpu() -> bool:
    torch = sys.modules.get("torch")  # not there on machines that have other engines only
    return torch is not None and torch.cuda.is_initialized()
