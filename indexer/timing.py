"""Durations of the stages of a search or enrollment, reported to listeners."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from indexer.supervision import notify

Listener = Callable[[str, float], None]
"""Receives the name of a stage and its duration in seconds."""

Stage = Callable[[str], AbstractContextManager[None]]
"""Returns a context manager that times a stage: `with stage("decode"): ...`"""


def untimed(_: str) -> AbstractContextManager[None]:
    """A Stage that measures nothing."""
    return nullcontext()


class Stopwatch:
    """Times stages and notifies listeners. Thread-safe; costs next to nothing without listeners."""

    def __init__(self) -> None:
        self._listeners: tuple[Listener, ...] = ()

    def add_listener(self, listener: Listener) -> None:
        self._listeners = (*self._listeners, listener)

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Times the block and notifies the listeners, unless it raises."""
        return self._timed(name) if self._listeners else nullcontext()

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        seconds = time.perf_counter() - begun
        for listener in self._listeners:
            notify(listener, name, seconds)
