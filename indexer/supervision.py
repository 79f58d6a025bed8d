"""Keeps threads that must live alive, and the failures of observers away from the work that they observe."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import ParamSpec

log = logging.getLogger(__name__)

Arguments = ParamSpec("Arguments")

RESTART_SECONDS = 1.0
"""How long a thread waits before its function is called again, so that a lasting failure does not fill the log."""

REPORT_SECONDS = 60.0
"""The failures of observers are logged once in this time, because each request notifies several of them."""

_reported_at = -REPORT_SECONDS


class SupervisedThread:
    """A daemon thread whose function is called again whenever it raises, until it returns or `join` is called."""

    def __init__(self, name: str, function: Callable[[], object]) -> None:
        self._function = function
        self._joined = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        """Returns when the function has ended, also if it was never started. It is not called again."""
        self._joined.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                self._function()
                return
            except BaseException:  # SystemExit would end the thread as well, unlogged
                log.exception("the thread %s failed; it goes on in %g s", self._thread.name, RESTART_SECONDS)
            if self._joined.wait(RESTART_SECONDS):
                return


def notify(observer: Callable[Arguments, object], *args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
    """Calls an observer. Its exceptions are logged and not raised: what it observes must not fail because of it."""
    global _reported_at
    try:
        observer(*args, **kwargs)
    except Exception:
        if time.monotonic() - _reported_at >= REPORT_SECONDS:
            _reported_at = time.monotonic()
            log.exception("an observer failed; further failures are not logged for %g s", REPORT_SECONDS)
