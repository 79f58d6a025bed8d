"""Many readers or one writer."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class SharedLock:
    """Readers hold it together, a writer alone. Who comes first goes first, so that nobody waits for ever: readers
    that come after a waiting writer wait as well. It must not be taken twice by one thread."""

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

    def _wait(self, free: Callable[[], bool]) -> None:
        if not self._waiting and free():
            return
        me = object()
        self._waiting.append(me)
        try:
            self._changed.wait_for(lambda: self._waiting[0] is me and free())
        finally:
            self._waiting.remove(me)
            self._changed.notify_all()  # the next one may be free to go as well
