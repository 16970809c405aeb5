"""Independent pieces of work: one after the other in this process, spread over others, or over a Ray cluster."""

import logging
import multiprocessing
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from tenfold._errors import TenfoldError, first_line
from tenfold._progress import track
from tenfold._resume import keeping, resumable

_cluster: ContextVar[Any] = ContextVar("tenfold_workers", default=None)

_processes: ContextVar[Executor | None] = ContextVar("tenfold_processes", default=None)

_AHEAD = 2  # pieces for each worker that are handed out before the first comes back


@contextmanager
def workers(address: str) -> Iterator[None]:
    """Inside, statistics, curves and factors are found by the workers of a Ray cluster, layer by layer.

    What comes of it is the same bit for bit as in one process, on machines of the same kind: every piece runs with as
    many threads as torch has here. A piece whose worker is lost is done again by another. Needs `tenfold[ray]`.

    Args:
        address: of a running cluster, `"auto"` for the one that this machine belongs to, or `"local"` to start one
            here that ends with the block. On every machine of it this package is installed.

    Raises:
        TenfoldError: if Ray is not installed, or there is no such cluster.
    """
    try:
        import ray
    except ImportError:
        raise TenfoldError("workers need Ray: pip install tenfold[ray].") from None
    started = not ray.is_initialized()
    if started:
        _start(ray, address)
    token = _cluster.set(ray)
    try:
        yield
    finally:
        _cluster.reset(token)
        if started:
            ray.shutdown()


def _start(ray: Any, address: str) -> None:
    imports = os.pathsep.join(str(Path(place).absolute()) for place in sys.path)
    try:
        if ":" in address:  # Ray itself tries for minutes
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(
            address,
            runtime_env={"env_vars": {"PYTHONPATH": imports}},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise TenfoldError(f'there is no Ray cluster at "{address}": {first_line(error)}') from None


@contextmanager
def processes(count: int) -> Iterator[None]:
    """Inside, pieces of work are shared out to `count` other processes of this machine, if it is more than one.

    Each runs with as many threads as torch has here, and ends with the block or with this process.
    """
    if count == 1:
        yield
        return
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _start_process)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which they inherit: this process hears it, and ends them
    try:
        pool.submit(os.getpid)  # starts all of them
    finally:
        signal.signal(signal.SIGINT, before)
    token = _processes.set(pool)
    try:
        yield
    except BaseException:
        for process in pool._processes.values():  # terminate_workers of Python 3.14
            process.terminate()
        raise
    finally:
        _processes.reset(token)
        pool.shutdown(cancel_futures=True)


def _start_process() -> None:
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "processes has started this one"
    parent.join()
    os._exit(1)  # even where it was killed


def each(
    what: str, work: Callable[..., Any], pieces: Iterable[Sequence[Any]], common: Sequence[Any] = ()
) -> Iterator[Any]:
    """`work(*common, *piece)` for every piece, in order.

    Inside `workers` or `processes` by them, so `work` is a function of a module. Few pieces at a time are sent to
    workers, so that what they hold need not fit into memory together.
    """
    ray, pool, total = _cluster.get(), _processes.get(), len(pieces) if isinstance(pieces, Sized) else None
    if ray is not None:
        found = _by_workers(ray, work, pieces, common)
    elif pool is not None:
        found = _by_processes(pool, work, pieces, common)
    else:
        found = (work(*common, *piece) for piece in pieces)
    return track(found, what, total)


def _by_processes(
    pool: Executor, work: Callable[..., Any], pieces: Iterable[Sequence[Any]], common: Sequence[Any]
) -> Iterator[Any]:
    threads, folder = torch.get_num_threads(), keeping()
    sent = [pool.submit(_done, work, threads, folder, *common, *piece) for piece in pieces]
    try:
        for one in sent:
            yield one.result()
    except BrokenProcessPool:
        raise TenfoldError("a process was lost, perhaps for want of memory; use fewer at a time.") from None


def _by_workers(
    ray: Any, work: Callable[..., Any], pieces: Iterable[Sequence[Any]], common: Sequence[Any]
) -> Iterator[Any]:
    threads, folder = torch.get_num_threads(), keeping()
    most = int(max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0))
    if most < threads:
        raise TenfoldError(
            f"torch uses {threads} threads here and so would each worker, but no machine of the Ray cluster has more "
            f"than {most} processors; torch.set_num_threads({max(most, 1)}) before."
        )
    there, sent = ray.remote(num_cpus=threads, max_retries=-1)(_done), [ray.put(one) for one in common]
    ahead = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1) // threads))
    waiting: deque[Any] = deque()
    left = iter(pieces)
    while True:
        waiting.extend(
            there.remote(work, threads, folder, *sent, *piece) for piece in islice(left, ahead - len(waiting))
        )
        if not waiting:
            return
        try:
            done = ray.get(waiting.popleft())
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None  # what the work itself said
        yield done


def _done(work: Callable[..., Any], threads: int, folder: str | None, *piece: Any) -> Any:
    torch.set_num_threads(threads)  # the process is the cluster's
    with nullcontext() if folder is None else resumable(folder):
        return work(*piece)
