"""Events as they are recorded, by whichever process: each stream reads the database again and again."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

from indexer.errors import Overloaded
from search_service.api.state import MOST_STREAMS, State
from search_service.serializers import event_object
from search_service.store.event_pages import EventFilter

LONGEST_SECONDS = 15.0
"""After which an answer ends: within the time that running requests have when the service stops, and soon enough for a
key that was revoked, because the next request is checked again."""

POLL_SECONDS = 1.0
RECONNECT_MILLISECONDS = 500

PAGE = 500


async def events_stream(service: State, wanted: EventFilter, after: int | None) -> AsyncIterator[str]:
    """Returns the lines of a stream of server-sent events that follow the event `after`, or from now on.

    Events become visible in the order of their ids (`EventRepository.record`), so continuing after the last one loses
    and repeats none. Raises Overloaded.
    """
    if service.streams.locked():
        raise Overloaded(f"{MOST_STREAMS} streams of events are open already; try again later")
    last = await service.off_loop(service.context.events.last_id) if after is None else after
    return _lines(service, wanted, last)


async def _lines(service: State, wanted: EventFilter, last: int) -> AsyncIterator[str]:
    async with service.streams:
        # An id without data moves the browser's Last-Event-ID, also where no event comes before it connects again.
        yield f"retry: {RECONNECT_MILLISECONDS}\nid: {last}\n\n"
        end = time.monotonic() + LONGEST_SECONDS
        while True:
            found = await service.off_loop(service.context.events.find, wanted, last, PAGE)
            for event in found:
                yield f"id: {event.id}\nevent: event\ndata: {json.dumps(event_object(event))}\n\n"
                last = event.id
            if time.monotonic() >= end:
                return
            if len(found) < PAGE:
                yield ": waiting\n\n"  # shows a closed connection
                await asyncio.sleep(POLL_SECONDS)
