"""What the routes share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from indexer.home import Home
from indexer.types import Gallery
from indexer.vision.packs import Pack
from search_service.batching import Batcher
from search_service.search import SearchService

Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class State:
    """One running service."""

    home: Home
    search: SearchService
    batcher: Batcher

    async def gallery(self, name: str) -> Gallery:
        """Raises NotFound."""
        return await self.off_loop(self.home.store.gallery, name)

    def pack(self, name: object = None) -> Pack:
        """The installed pack of that name, or the one that new galleries are bound to. Raises NotFound,
        ModelUnavailable."""
        return self.home.usable(None if name is None else str(name))

    async def off_loop(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Runs what waits for the database or the index on a thread."""
        return await run_in_threadpool(function, *args, **kwargs)


def _state(request: Request) -> State:
    state: State = request.app.state.service
    return state


Service = Annotated[State, Depends(_state)]
