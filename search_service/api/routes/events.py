"""/v1/events"""

from __future__ import annotations

import io
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from indexer.errors import InvalidRequest, NotFound
from search_service.api import security
from search_service.api.models.base import Utc
from search_service.api.models.events import AttendancePayload, EventList, EventPayload, Forgotten
from search_service.api.pages import BY_ID, BY_ID_BACKWARDS, LARGEST_ID, Paged
from search_service.api.permissions import requires
from search_service.api.routes.openapi import Responses, failures
from search_service.api.state import Service
from search_service.api.streams import events_stream
from search_service.api.threads import writes
from search_service.events.attendance import write
from search_service.events.attendance_report import attendance, parse_days, parse_zone, row_object
from search_service.matching.decision import Decision
from search_service.serializers import event_object
from search_service.store.api_keys import Scope
from search_service.store.event_pages import Direction, EventFilter

STREAM: Responses = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
TABLE: Responses = {200: {"content": {"text/csv": {"schema": {"type": "string"}}}}}

MOST_DAYS = 366
"""Days of one request for attendance, whose events are in memory while it is computed."""

# Who was where, and when, is not for keys that only open a door or enroll.
router = APIRouter(prefix="/v1/events", tags=["events"], dependencies=[requires(Scope.ADMIN)])


async def _filter(
    service: Service,
    request: Request,
    gallery: str | None = None,
    since: Annotated[Utc | None, Query(description="From this time on; without a zone it is UTC.")] = None,
    until: Annotated[Utc | None, Query(description="Before this time.")] = None,
    external_id: str | None = None,
    device: str | None = None,
    decision: Decision | None = None,
    direction: Direction | None = None,
) -> EventFilter:
    names = _galleries(request)
    if gallery is not None:
        security.check_gallery(request, gallery)
        names = ((await service.gallery(gallery)).name,)
    return EventFilter(names, since, until, external_id, device, decision, direction)


Wanted = Annotated[EventFilter, Depends(_filter)]


@router.get("", response_model=EventList)
def list_events(
    service: Service,
    page: Paged,
    wanted: Wanted,
    order: Annotated[Literal["oldest", "newest"], Query(description="Which events come first.")] = "oldest",
) -> Any:
    """Lists the events that match all given parameters, in the order in which they were recorded or backwards."""
    events = service.context.events
    if order == "oldest":
        return page.answer("events", events.find(wanted, BY_ID.decode(page.cursor), page.wanted), event_object)
    found = events.latest(wanted, page.wanted, BY_ID_BACKWARDS.decode(page.cursor))[::-1]
    return page.answer("events", found, event_object, BY_ID_BACKWARDS)


@router.get("/stream", response_class=StreamingResponse, responses=STREAM | failures(429))
async def stream_events(
    service: Service,
    wanted: Wanted,
    last_event_id: Annotated[
        int | None, Header(ge=0, le=LARGEST_ID, description="Continues after this event; without it, from now on.")
    ] = None,
) -> StreamingResponse:
    """Sends the events that match all given parameters as they are recorded: server-sent events, whose `id` is the
    event's and whose `data` is the event.

    An answer ends after some seconds. Browsers connect again by themselves with `Last-Event-ID`, after which nothing is
    missing or repeated; other programs do the same.
    """
    return StreamingResponse(
        await events_stream(service, wanted, last_event_id),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},  # nginx would collect the events
    )


@router.get("/attendance", response_model=AttendancePayload, responses=TABLE)
def show_attendance(
    service: Service,
    request: Request,
    gallery: str,
    first: Annotated[str, Query(description="First day.", examples=["2026-11-01"])],
    until: Annotated[str, Query(description="Day after the last one.", examples=["2026-12-01"])],
    timezone: Annotated[str, Query(description="In which days begin.", examples=["Europe/Berlin"])] = "UTC",
    as_csv: Annotated[bool, Query(alias="csv", description="Answers with CSV.")] = False,
) -> Any:
    """Returns first arrival, last departure and hours by day and person, like `whosthere events export`; only matches
    count."""
    security.check_gallery(request, gallery)
    found = service.context.store.galleries.get(gallery)
    days = parse_days(("first", "until"), first, until)
    if (days[1] - days[0]).days > MOST_DAYS:
        raise InvalidRequest(f"first and until are {(days[1] - days[0]).days} days apart; expected {MOST_DAYS} at most")
    rows = attendance(service.context.events, found, days, parse_zone("timezone", timezone))
    if not as_csv:
        return {"rows": [row_object(row) for row in rows]}
    file = io.StringIO()
    write(rows, file)
    disposition = f'attachment; filename="attendance-{days[0]}.csv"'
    content = file.getvalue().encode("utf-8-sig")  # Excel needs the mark
    return Response(content, media_type="text/csv; charset=utf-8", headers={"Content-Disposition": disposition})


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
