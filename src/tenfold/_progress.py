"""How long jobs tell whoever listens how far they are; the library itself prints nothing."""

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
Listener = Callable[[str, int, int | None], None]  # what is being done, how many are done, of how many

_listener: ContextVar[Listener | None] = ContextVar("tenfold_progress", default=None)


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield `items`, and report to the listener before the first and after each."""
    listener = _listener.get()
    total = len(items) if isinstance(items, Sized) else total
    if listener:
        listener(what, 0, total)
    for done, item in enumerate(items, 1):
        yield item
        if listener:
            listener(what, done, total)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send the progress of everything inside to `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
