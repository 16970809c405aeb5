"""One decomposition of one layer, by this library or by tensorly, in a process of its own: time, memory, error."""

# O outputs, I inputs, H x W kernel, R rank; Tucker: R1 inputs, R2 outputs of the core

import ctypes
import gc
import math
import multiprocessing
import resource
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import tensorly as tl
import torch
from numpy.typing import NDArray
from tensorly.decomposition import parafac, partial_tucker
from torch import Tensor, nn

import tenfold
from tenfold._cp import alternating, cancellation, rebuilt, sliced
from tenfold._method import Site
from tenfold.methods import CP, Method, Tucker

Shape = tuple[int, int, int, int]  # OIHW
Rank = tuple[int, ...]

CPU_SECONDS = 150  # of all threads that a CP of tensorly may take: other work of the machine takes none of it
WALL_SECONDS = 600  # that any fit may take
BYTES = 6 * 2**30  # that a fit may allocate
LONG = {"n_iter_max": 20_000, "tol": 1e-6}

# Each process is a fork of one that has done nothing but these imports.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["benchmarks._fits", "benchmarks._images", "benchmarks._nets", "matplotlib.figure"])


@dataclass(frozen=True)
class Form:
    """A decomposition, and its rank at a share of the layer's parameters: the largest that stays below it."""

    method: Method
    rank: Callable[[Shape, float], Rank]


def _cp3_rank(shape: Shape, share: float) -> Rank:
    outputs, inputs, height, width = shape
    return (max(1, int(share * math.prod(shape) / (outputs + inputs + height * width))),)


def _cp4_rank(shape: Shape, share: float) -> Rank:
    return (max(1, int(share * math.prod(shape) / sum(shape))),)


def _tucker_rank(shape: Shape, share: float) -> Rank:
    # R1 = t I and R2 = t O, where t solves t (I^2 + O^2) + t^2 OIHW = share OIHW.
    outputs, inputs = shape[:2]
    factors, core = inputs**2 + outputs**2, math.prod(shape)
    t = (math.sqrt(factors**2 + 4 * share * core**2) - factors) / (2 * core)
    return max(1, int(t * inputs)), max(1, int(t * outputs))


FORMS: Mapping[str, Form] = {
    "cp3": Form(CP(factors=3), _cp3_rank),
    "cp4": Form(CP(factors=4), _cp4_rank),
    "tucker": Form(Tucker(), _tucker_rank),
}


@dataclass(frozen=True)
class Found:
    """What a fit found, read from its factors after the clock was stopped."""

    weight: Tensor  # OIHW, what the factors stand for, in float64
    terms: float | None = None  # the summed squared norms of the rank-one terms of CP
    sweeps: int | None = None  # of tensorly; this library does not tell
    stopped: bool = False  # by the clock


class Fitter(Protocol):
    """A way to fit. Calling it is what is timed; what it returns reads the factors."""

    def __call__(self, conv: nn.Conv2d, form: Form, rank: Rank) -> Callable[[], Found]:
        """Factors of the convolution's weight at this rank."""


@dataclass(frozen=True)
class Tenfold:
    """`tenfold.apply` with a plan of one step: from a dense layer to its factor layers, in the layer's own dtype."""

    def __call__(self, conv: nn.Conv2d, form: Form, rank: Rank) -> Callable[[], Found]:
        """Apply the plan."""
        plan = tenfold.Plan([tenfold.Step(layers=("0",), method=form.method, rank=rank)])
        factored: Any = tenfold.apply(nn.Sequential(conv), plan)[0]  # type: ignore[index]
        return lambda: self._read(factored.double())

    def _read(self, factored: tenfold.Factored) -> Found:
        weight = factored.weight.detach()
        cancellation = factored.cancellation()  # over the energy of the rebuilt weight
        return Found(weight, None if cancellation is None else cancellation * float(weight.square().sum()))


@dataclass(frozen=True)
class TenfoldUntil:
    """This library's CP from its closed form, until it has the error of another fit: how long that takes.

    Without what comes after: the correction of terms that cancel, and the writing of layers.
    """

    goal: float = 0.0  # ||W - What||^2 / ||W||^2

    def __call__(self, conv: nn.Conv2d, form: Form, rank: Rank) -> Callable[[], Found]:
        """Fit."""
        method: Any = form.method
        site = Site(("conv",), (conv,))
        weight = method._weight(site)
        enough = self.goal * float(weight.square().sum())
        terms = alternating(weight, sliced(weight, rank[0]), 1000, enough=enough)
        return lambda: Found(rebuilt(terms)[0].movedim(-1, 0).reshape(conv.weight.shape), cancellation(terms))


@dataclass(frozen=True)
class Tensorly:
    """`parafac` or `partial_tucker` with tensorly's own defaults, where no field says else."""

    init: Literal["svd", "random"] = "svd"
    dtype: torch.dtype = torch.float32  # the weights' own
    long: bool = False  # as many sweeps as it takes to converge

    def __call__(self, conv: nn.Conv2d, form: Form, rank: Rank) -> Callable[[], Found]:
        """Fit on tensorly's PyTorch backend."""
        weight_OIHW = conv.weight.detach().to(self.dtype)
        with tl.backend_context("pytorch", local_threadsafe=True):
            if isinstance(form.method, CP):
                return self._cp(weight_OIHW, form.method.factors, *rank)
            return self._tucker(weight_OIHW, rank)

    def _cp(self, weight_OIHW: Tensor, factors: int, rank: int) -> Callable[[], Found]:
        tensor = weight_OIHW.flatten(2).mT.contiguous() if factors == 3 else weight_OIHW  # (O, HW, I), or as stored
        end = time.process_time() + CPU_SECONDS
        fit, errors = parafac(
            tensor,
            rank,
            init=self.init,
            random_state=0,
            return_errors=True,
            callback=lambda *_: time.process_time() > end,  # stops, and keeps what is found so far
            **self._limits,
        )
        stopped = time.process_time() > end

        def read() -> Found:
            scales, parts = fit[0].double(), [part.double() for part in fit[1]]
            with tl.backend_context("pytorch", local_threadsafe=True):
                rebuilt = tl.cp_to_tensor((scales, parts))
            norms = reduce(torch.mul, [part.square().sum(0) for part in parts], scales.square())
            weight = rebuilt.mT.reshape(weight_OIHW.shape) if factors == 3 else rebuilt
            return Found(weight, float(norms.sum()), len(errors), stopped)

        return read

    def _tucker(self, weight_OIHW: Tensor, rank: Rank) -> Callable[[], Found]:
        inputs, outputs = rank
        (core, (u_OR, u_IR)), errors = partial_tucker(
            weight_OIHW, (outputs, inputs), modes=(0, 1), init=self.init, random_state=0, **self._limits
        )

        def read() -> Found:
            weight = torch.einsum("rskl,or,is->oikl", core.double(), u_OR.double(), u_IR.double())
            return Found(weight, sweeps=len(errors))

        return read

    @property
    def _limits(self) -> dict[str, Any]:
        return LONG if self.long else {}


@dataclass(frozen=True)
class Outcome:
    """What one fit took, and how good it is; without an error where it failed, and the note says why."""

    seconds: float | None = None
    peak_bytes: int | None = None  # the most memory at any moment of the fit, less that before
    error: float | None = None  # ||W - What||^2 / ||W||^2
    cancellation: float | None = None  # sum_r ||term_r||^2 / ||W||^2
    sweeps: int | None = None
    note: str = ""  # why it ended early
    weight: NDArray[np.float32] | None = None  # OIHW, what the factors stand for


def measured(weight_OIHW: NDArray[np.float32], form: str, rank: Rank, fitter: Fitter, threads: int) -> Outcome:
    """Fit in a process of its own: one that fails, or is killed, is a row like any other."""
    receiver, sender = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=_run, args=(sender, weight_OIHW, form, rank, fitter, threads))
    process.start()
    sender.close()
    try:
        if not receiver.poll(WALL_SECONDS):
            process.kill()
            return Outcome(note=f"killed after {WALL_SECONDS} s")
        return receiver.recv()
    except EOFError:
        process.join()
        return Outcome(note=f"the process ended with exit code {process.exitcode}")
    finally:
        process.join()


def _run(
    sender: Connection, weight_OIHW: NDArray[np.float32], form: str, rank: Rank, fitter: Fitter, threads: int
) -> None:
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")  # of tensorly, wherever the rank exceeds a mode
    small = np.random.default_rng(0).standard_normal((12, 10, 3, 3), dtype=np.float32)
    fitter(_convolution(small), FORMS[form], FORMS[form].rank(small.shape, 0.5))()  # first calls load libraries
    conv = _convolution(weight_OIHW)
    before = _rested()
    try:
        start = time.perf_counter()
        read = fitter(conv, FORMS[form], rank)
        seconds, peak = time.perf_counter() - start, _status("VmHWM") - before
        outcome = _judged(read(), conv, seconds, peak)
    except (ArithmeticError, MemoryError, RuntimeError, ValueError) as error:
        reason, _, _ = str(error).strip().partition("\n")
        outcome = Outcome(note=f"{type(error).__name__}: {reason}")
    sender.send(outcome)


def _judged(found: Found, conv: nn.Conv2d, seconds: float, peak: int) -> Outcome:
    dense_OIHW = conv.weight.detach().double()
    energy = float(dense_OIHW.square().sum())
    error = float((dense_OIHW - found.weight).square().sum()) / energy
    if not math.isfinite(error):
        return Outcome(seconds, peak, sweeps=found.sweeps, note="the factors are not finite")
    cancellation = None if found.terms is None else found.terms / energy
    note = f"stopped after {CPU_SECONDS} CPU seconds" if found.stopped else ""
    return Outcome(seconds, peak, error, cancellation, found.sweeps, note, found.weight.float().numpy())


def _convolution(weight_OIHW: NDArray[np.float32]) -> nn.Conv2d:
    outputs, inputs, height, width = weight_OIHW.shape
    with torch.device("meta"):
        conv = nn.Conv2d(inputs, outputs, (height, width), bias=False)
    conv.weight = nn.Parameter(torch.from_numpy(weight_OIHW))
    return conv


def _rested() -> int:
    """The bytes that the process holds; from here its peak counts, and what more it may allocate is limited."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that the fit would use again, unseen
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_status("VmData") + BYTES, hard))
    Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is held now
    return _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(f"{key}:"))
    return 1024 * int(kilobytes)
