"""/v1/events"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request

from indexer.errors import NotFound
from search_service.api import security
from search_service.api.payloads import EventPayload, Payload, Utc
from search_service.api.permissions import requires
from search_service.api.requests import LARGEST_ID, cursor_after, page_of
from search_service.api.routes.galleries import Cursor, Limit
from search_service.api.state import Service
from search_service.matching.decision import Decision
from search_service.serializers import event_object
from search_service.store.api_keys import Scope
from search_service.store.events import Direction, EventFilter

# Who was where, and when, is not for keys that only open a door or enroll.
router = APIRouter(prefix="/v1/events", tags=["events"], dependencies=[requires(Scope.ADMIN)])


class EventList(Payload):
    events: list[EventPayload]
    cursor: str | None


class Forgotten(Payload):
    forgotten: int


@router.get("", response_model=EventList)
async def list_events(
    service: Service,
    request: Request,
    gallery: str | None = None,
    since: Annotated[Utc | None, Query(description="From this time on; without a zone it is UTC.")] = None,
    until: Annotated[Utc | None, Query(description="Before this time.")] = None,
    external_id: str | None = None,
    device: str | None = None,
    decision: Decision | None = None,
    direction: Direction | None = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Any:
    """Those to which all that is said applies, in the order of their recording."""
    wanted = EventFilter(_galleries(request), since, until, external_id, device, decision, direction)

    def page() -> dict[str, Any]:
        after, asked = cursor_after(cursor), wanted
        if gallery is not None:
            security.check_gallery(request, gallery)
            asked = replace(wanted, galleries=[service.context.store.galleries.get(gallery).name])
        shown, following = page_of(service.context.events.find(asked, after, limit + 1), limit)
        return {"events": [event_object(event) for event in shown], "cursor": following}

    return await service.off_loop(page)


@router.get("/{event_id}", response_model=EventPayload)
async def show_event(service: Service, request: Request, event_id: Annotated[int, Path(ge=1, le=LARGEST_ID)]) -> Any:
    """One event."""
    event = await service.off_loop(service.context.events.get, event_id)
    galleries = _galleries(request)
    if galleries is not None and event.gallery not in galleries:
        raise NotFound(f"there is no event {event_id}", code="event_not_found")
    return event_object(event)


@router.delete("", response_model=Forgotten)
async def forget_events(
    service: Service,
    request: Request,
    gallery: str,
    external_id: str | None = None,
    before: Annotated[Utc | None, Query(description="Only events before this time.")] = None,
) -> Any:
    """Deletes a person's events for good, or everybody's before a time, and what was still to be sent of them."""
    security.check_gallery(request, gallery)
    found = await service.gallery(gallery)
    return Forgotten(forgotten=await service.off_loop(service.context.events.delete, found, external_id, before))


def _galleries(request: Request) -> tuple[str, ...] | None:
    """Those that the request's key opens; None for all."""
    key = security.key_of(request)
    return None if key is None or key.galleries is None else tuple(sorted(key.galleries))
