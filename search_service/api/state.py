"""What all routes share: the parts of one running service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from indexer.errors import Conflict, IndexBuilding
from indexer.models.packs import Pack
from indexer.types import Gallery
from search_service.api.metrics import Metrics
from search_service.api.probe_budget import ProbeBudget
from search_service.api.threads import Writers
from search_service.background.webhooks import Deliverer
from search_service.inference_queue import InferenceQueue
from search_service.search import SearchService
from search_service.service_context import ServiceContext

Result = TypeVar("Result")

MOST_STREAMS = 100
"""Streams of events at a time in one process: each reads the database once a second."""


@dataclass(frozen=True, eq=False)
class State:
    """One running service."""

    context: ServiceContext
    search: SearchService
    queue: InferenceQueue
    metrics: Metrics
    deliverer: Deliverer
    budget: ProbeBudget
    writers: Writers
    comparing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while all faces of a gallery are compared, which takes every core for seconds."""
    listing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the images of an archive are listed: 200,000 take a quarter of a gigabyte."""
    streams: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MOST_STREAMS))
    """One for each stream of events."""

    async def gallery(self, name: str) -> Gallery:
        """Returns a gallery. Raises NotFound."""
        return await self.off_loop(self.context.store.galleries.get, name)

    def pack(self, name: object = None) -> Pack:
        """Returns an installed pack, by default the one for new galleries. Raises NotFound, ModelUnavailable."""
        return self.context.usable(None if name is None else str(name))

    def follow(self, gallery: Gallery) -> None:
        """Applies committed changes to the index. One that is being built will contain them, as will the next one after
        a re-embedding."""
        try:
            self.context.indexes.get(gallery).catch_up()
        except IndexBuilding:
            pass
        except Conflict as error:
            if error.code != "model_mismatch":
                raise

    async def off_loop(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Runs a function that reads from the database or the index on a thread; `writers` runs those that write."""
        return await run_in_threadpool(function, *args, **kwargs)


async def _state(request: Request) -> State:  # async, as FastAPI would use a thread for a plain function
    state: State = request.app.state.service
    return state


Service = Annotated[State, Depends(_state)]
