"""The threads on which requests wait for the database, in groups so that none of them holds up another.

While one connection holds the database's write lock, all other writers wait. Requests that write use `Writers`; all
others use the threads of the event loop, and checks of API keys and of the service's health their own few.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial, wraps
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread

from search_service.api.errors import StorageBusy

Result = TypeVar("Result")

CHECKING = 4
"""Threads that check API keys and the service's health, a millisecond each."""

WRITING = 8
"""Threads of requests that write. SQLite has one writer at a time; on PostgreSQL the other connections are for reading
(`indexer.gallery.database.CONNECTIONS`)."""

MOST_WAITING = 248
"""Requests that wait for a thread to write: together with those that write as many as images may wait for the networks
by default."""

PATIENCE_SECONDS = 10.0
"""How long a request waits for a thread to write. Writes take some milliseconds each, so the lock is then held by
something else, such as a copy of the database."""


class Threads:
    """A group of threads of its own. To be used by one event loop."""

    def __init__(self, count: int) -> None:
        self._limiter = CapacityLimiter(count)

    async def run(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        return await to_thread.run_sync(partial(function, *args, **kwargs), limiter=self._limiter)


class Writers:
    """The threads of requests that write, and how many requests may wait for them."""

    def __init__(
        self, count: int = WRITING, most_waiting: int = MOST_WAITING, patience: float = PATIENCE_SECONDS
    ) -> None:
        self._threads = Threads(count)
        self._free = asyncio.Semaphore(count)
        self.waiting = 0
        """Requests that wait for a thread."""
        self._most_waiting = most_waiting
        self._patience = patience

    async def run(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Runs a function that writes. Raises StorageBusy when too many are waiting, or one waited too long."""
        if self.waiting >= self._most_waiting:
            raise StorageBusy("too many requests wait for the database's write lock")
        async with self._slot():
            return await self._threads.run(function, *args, **kwargs)

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        self.waiting += 1
        try:
            async with asyncio.timeout(self._patience):
                await self._free.acquire()
        except TimeoutError:
            raise StorageBusy(f"the database's write lock was not free for {self._patience:g} s") from None
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self._free.release()


def writes(route: Callable[..., Result]) -> Callable[..., Awaitable[Result]]:
    """Decorates a route that is a plain function and writes: it runs on a thread of the writers."""

    @wraps(route)
    async def run(*args: Any, service: Any, **kwargs: Any) -> Result:
        writers: Writers = service.writers
        return await writers.run(route, *args, service=service, **kwargs)

    return run
