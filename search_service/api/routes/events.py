"""/v1/events"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request

from indexer.errors import NotFound
from search_service.api import security
from search_service.api.models.base import Utc
from search_service.api.models.events import EventList, EventPayload, Forgotten
from search_service.api.pages import BY_ID, LARGEST_ID, Paged
from search_service.api.permissions import requires
from search_service.api.state import Service
from search_service.api.threads import writes
from search_service.matching.decision import Decision
from search_service.serializers import event_object
from search_service.store.api_keys import Scope
from search_service.store.event_pages import Direction, EventFilter

# Who was where, and when, is not for keys that only open a door or enroll.
router = APIRouter(prefix="/v1/events", tags=["events"], dependencies=[requires(Scope.ADMIN)])


@router.get("", response_model=EventList)
def list_events(
    service: Service,
    request: Request,
    page: Paged,
    gallery: str | None = None,
    since: Annotated[Utc | None, Query(description="From this time on; without a zone it is UTC.")] = None,
    until: Annotated[Utc | None, Query(description="Before this time.")] = None,
    external_id: str | None = None,
    device: str | None = None,
    decision: Decision | None = None,
    direction: Direction | None = None,
) -> Any:
    """Lists the events that match all given parameters, in the order in which they were recorded."""
    after = BY_ID.decode(page.cursor)
    wanted = EventFilter(_galleries(request), since, until, external_id, device, decision, direction)
    if gallery is not None:
        security.check_gallery(request, gallery)
        wanted = replace(wanted, galleries=[service.context.store.galleries.get(gallery).name])
    return page.answer("events", service.context.events.find(wanted, after, page.wanted), event_object)


@router.get("/{event_id}", response_model=EventPayload)
def show_event(service: Service, request: Request, event_id: Annotated[int, Path(ge=1, le=LARGEST_ID)]) -> Any:
    """Returns one event."""
    event = service.context.events.get(event_id)
    galleries = _galleries(request)
    if galleries is not None and event.gallery not in galleries:
        raise NotFound(f"there is no event {event_id}", code="event_not_found")
    return event_object(event)


@router.delete("", response_model=Forgotten)
@writes
def forget_events(
    service: Service,
    request: Request,
    gallery: str,
    external_id: str | None = None,
    before: Annotated[Utc | None, Query(description="Only events before this time.")] = None,
) -> Any:
    """Deletes the events of a person, or of everybody before a time, with their pending deliveries."""
    security.check_gallery(request, gallery)
    found = service.context.store.galleries.get(gallery)
    return Forgotten(forgotten=service.context.events.delete(found, external_id, before))


def _galleries(request: Request) -> tuple[str, ...] | None:
    """Returns the galleries that the request's key may use; None for all."""
    key = security.key_of(request)
    return None if key is None or key.galleries is None else tuple(sorted(key.galleries))
