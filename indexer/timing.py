"""How long the stages of an answer take, told to whoever listens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

Listener = Callable[[str, float], None]
"""Hears the name of a stage, and the seconds that it took."""

Stage = Callable[[str], AbstractContextManager[None]]
"""`with stage("decode"): ...`"""


def untimed(_: str) -> AbstractContextManager[None]:
    """The Stage that nobody listens to."""
    return nullcontext()


class Stopwatch:
    """Thread-safe. Costs next to nothing while nobody listens."""

    def __init__(self) -> None:
        self._listeners: tuple[Listener, ...] = ()

    def add_listener(self, listener: Listener) -> None:
        self._listeners = (*self._listeners, listener)

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Times what is done within; what raises is not told of."""
        return self._timed(name) if self._listeners else nullcontext()

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        seconds = time.perf_counter() - begun
        for listener in self._listeners:
            listener(name, seconds)
