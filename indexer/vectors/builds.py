"""Runs the builds of indexes on threads of their own, and decides how long their callers wait."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from indexer.errors import IndexBuilding, WhosthereError
from indexer.types import Gallery

log = logging.getLogger(__name__)

Page = TypeVar("Page")

PATIENCE_S = 2.0
"""Seconds from the start of a build for which callers of a service wait for it. The index of a new gallery, and an
exact one of 10,000 faces, are ready by then even on busy cores, so that their callers notice nothing."""

MAX_WAITING = 24
"""Callers of a service that wait for builds at the same time; more are refused at once. Fewer than the service's 40
threads, so that other galleries, authentication and health checks always find a free one."""

LONGEST_RETRY_AFTER_S = 30
"""Longest wait suggested to a refused caller: a million faces are built in about that time."""

FAILURE_S = 5.0
"""Seconds for which callers of a service get the error of a failed build before the next one starts."""


class Build:
    """One build of an index, or another slow change of it, on a daemon thread."""

    def __init__(self, work: Callable[[], object], is_blocking: bool) -> None:
        """`is_blocking` is whether there is no usable index until it ends."""
        self.is_blocking = is_blocking
        self.error: Exception | None = None
        self.started = time.monotonic()
        self._failed_at = 0.0
        self._work = work
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="index builder", daemon=True).start()

    @property
    def is_running(self) -> bool:
        return not self._ended.is_set()

    @property
    def has_just_failed(self) -> bool:
        return self.error is not None and time.monotonic() < self._failed_at + FAILURE_S

    def wait(self, seconds: float | None = None) -> bool:
        """Waits, at most so many seconds, and returns whether it has ended."""
        return self._ended.wait(seconds)

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:
            if not isinstance(error, (WhosthereError, OSError)):
                log.exception("An index could not be built")
            self.error, self._failed_at = error, time.monotonic()
        finally:
            self._ended.set()


class Builds:
    """What the builds of all indexes of a process have in common."""

    def __init__(self) -> None:
        self.is_service = False
        """Whether callers get IndexBuilding instead of waiting for the end of a build: in a service, waiting callers
        block other requests."""
        self._closed = threading.Event()
        self._places = threading.BoundedSemaphore(MAX_WAITING)

    def close(self) -> None:
        """Makes running builds end at the next page that they read."""
        self._closed.set()

    def until_closed(self, pages: Iterable[Page]) -> Iterator[Page]:
        """Yields the pages. Raises IndexBuilding after `close`."""
        for page in pages:
            if self._closed.is_set():
                raise IndexBuilding("the process is stopping; the index is built at the next start")
            yield page

    def wait(self, build: Build, gallery: Gallery, seconds: float | None) -> None:
        """Returns when the build has ended.

        Args:
            build: A build of the gallery's index.
            gallery: The gallery.
            seconds: How long to wait; None waits to the end in a command, and briefly in a service.

        Raises:
            IndexBuilding: It has not ended by then.
            Exception: The error with which it ended.
        """
        if not self._has_ended(build, seconds):
            raise _building(build, gallery)
        if build.error is not None and build.is_blocking:
            raise build.error.with_traceback(None)  # it would grow with each caller

    def check_wait(self, build: Build, gallery: Gallery) -> None:
        """Raises IndexBuilding if callers of a service no longer wait for this build."""
        if self.is_service and build.is_running and time.monotonic() >= build.started + PATIENCE_S:
            raise _building(build, gallery)

    def _has_ended(self, build: Build, seconds: float | None) -> bool:
        if seconds is not None or not self.is_service:
            return build.wait(seconds)
        if not self._places.acquire(blocking=False):
            return not build.is_running
        try:
            return build.wait(max(0.0, build.started + PATIENCE_S - time.monotonic()))
        finally:
            self._places.release()


def _building(build: Build, gallery: Gallery) -> IndexBuilding:
    elapsed = time.monotonic() - build.started  # it may take about as long again
    return IndexBuilding(
        f"the index of gallery {gallery.name!r} is being built; try again soon",
        details={"retry_after_seconds": min(max(1, round(elapsed)), LONGEST_RETRY_AFTER_S)},
    )
