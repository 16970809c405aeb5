"""Measured times: interleaved, medians, never a formula."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch


def interleaved_ms(runs: Sequence[Callable[[], Any]], *, rounds: int = 15, least_ms: float = 5.0) -> list[float]:
    """Median milliseconds of each run, timed in turn so that a busy moment of the machine meets all of them.

    A run shorter than `least_ms` is repeated within a round until it lasts that long.
    """
    repeats = [max(1, round(least_ms / max(min(_timed(run, 1) for _ in range(3)), 1e-3))) for run in runs]
    samples: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, repeat, sample in zip(runs, repeats, samples, strict=True):
            sample.append(_timed(run, repeat))
    return [median(sample) for sample in samples]


def _timed(run: Callable[[], Any], repeat: int) -> float:
    _synchronize()
    start = time.perf_counter()
    for _ in range(repeat):
        run()
    _synchronize()
    return (time.perf_counter() - start) * 1e3 / repeat


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
