"""A read-write lock that serves threads in the order of their arrival."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ReadWriteLock:
    """Held by any number of readers, or by one writer. Not reentrant.

    First come, first served: readers that arrive after a waiting writer wait as well, so that nobody starves.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._readers = 0
        self._writing = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        with self._changed:
            self._wait(lambda: not self._writing)
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        with self._changed:
            self._wait(lambda: not self._writing and not self._readers)
            self._writing = True
        try:
            yield
        finally:
            with self._changed:
                self._writing = False
                self._changed.notify_all()

    def _wait(self, is_free: Callable[[], bool]) -> None:
        if not self._waiting and is_free():
            return
        ticket = object()
        self._waiting.append(ticket)
        try:
            self._changed.wait_for(lambda: self._waiting[0] is ticket and is_free())
        finally:
            self._waiting.remove(ticket)
            self._changed.notify_all()  # the next thread may be able to continue as well
