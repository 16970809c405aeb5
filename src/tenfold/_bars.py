"""Progress on a terminal: bars for what takes long."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from tenfold._progress import listening


@contextmanager
def progress_bars(err: Console, patience_s: float = 2.0) -> Iterator[None]:
    """Bars for what takes longer than two seconds, on a terminal only, and gone when done."""
    if not err.is_terminal:
        yield
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bars, listening(_late(bars, patience_s)):
        yield


def _late(bars: Progress, patience_s: float) -> Callable[[str, int, int | None], None]:
    started: dict[str, float] = {}
    tasks: dict[str, TaskID] = {}

    def listener(what: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if done == 0:
            started[what] = now
        if what not in tasks and now - started[what] > patience_s:
            tasks[what] = bars.add_task(what, total=total)
        if what in tasks:
            bars.update(tasks[what], completed=done, total=total)
            if done == total:
                bars.remove_task(tasks.pop(what))

    return listener
