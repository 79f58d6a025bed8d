"""Probes that were seen together are searched together: one look at the index and the database for all of them.

Searches of one gallery that ask for the same are done one after the other; those that come meanwhile are the next one.
Nobody waits for others to come: alone, a probe is searched at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from starlette.concurrency import run_in_threadpool

from indexer.types import Gallery
from indexer.vision.batch_errors import isolate_failures
from indexer.vision.pipeline import Seen
from search_service.search import Answer, Query

Asked = tuple[Gallery, Query]
"""What the probes of one search have in common. A gallery that changed is another: each is searched as it was found."""


@dataclass(eq=False)
class _Group:
    task: asyncio.Task[list[Answer | Exception]]
    probes: list[Seen] = field(default_factory=list)


class Gathering:
    """For one event loop."""

    def __init__(self, search: Callable[[Sequence[Seen], Gallery, Query], Sequence[Answer]]) -> None:
        """`search` runs on a thread."""
        self._search = search
        self._coming: dict[Asked, _Group] = {}
        """Searches that have not begun."""
        self._turns: WeakValueDictionary[Asked, asyncio.Lock] = WeakValueDictionary()

    async def search_seen(self, probe: Seen, gallery: Gallery, query: Query) -> Answer:
        """The answer to one probe, or what `search` raises; an error that is another probe's is not told here."""
        asked = gallery, query
        group = self._coming.get(asked)
        if group is None:
            group = self._coming[asked] = _Group(asyncio.create_task(self._run(asked)))
        place = len(group.probes)
        group.probes.append(probe)
        answer = (await asyncio.shield(group.task))[place]  # one who hangs up takes nothing from the others
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _run(self, asked: Asked) -> list[Answer | Exception]:
        """Begins after everybody whom the loop wakes in the same turn has joined."""
        turn = self._turns.setdefault(asked, asyncio.Lock())
        async with turn:
            probes = self._coming.pop(asked).probes
            return await run_in_threadpool(isolate_failures, probes, lambda some: self._search(some, *asked))
