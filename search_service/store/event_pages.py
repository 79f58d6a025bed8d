"""Reads events page by page: each page is a range of an index, so that it takes as long with any number of events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Executable, Select, bindparam, func, select, tuple_
from sqlalchemy.orm import Session

from indexer.gallery.schema import GalleryRow
from indexer.gallery.spelling import spellings
from search_service.store.schema import EventRow

PAGE = 1_000
"""Events read at a time."""


class Direction(StrEnum):
    IN = "in"
    OUT = "out"


@dataclass(frozen=True)
class Event:
    """A recorded sighting. The identity's data is that of the time of recording."""

    id: int
    gallery: str
    at: datetime
    identity_id: int | None
    external_id: str | None
    name: str | None
    device: str
    direction: Direction | None
    decision: str
    score: float | None
    threshold: float
    request_id: str | None
    reasons: tuple[str, ...]
    """Why it is no match or a review."""
    liveness: Mapping[str, Any] | None
    """The result of a check for presentation attacks, None where there was none."""


@dataclass(frozen=True)
class EventFilter:
    """Selects events that match every given criterion."""

    galleries: Sequence[str] | None = None
    """Names; None for all."""
    since: datetime | None = None
    until: datetime | None = None
    """The time is at or after `since` and before `until`."""
    external_id: str | None = None
    device: str | None = None
    decision: str | None = None
    direction: Direction | None = None


@dataclass(frozen=True)
class BriefEvent:
    """What attendance needs of an event."""

    id: int
    at: datetime
    external_id: str | None
    name: str | None
    direction: str | None


EVERYTHING = EventFilter()


def read_events(
    session: Session,
    wanted: EventFilter,
    after: int = 0,
    limit: int | None = None,
    newest: bool = False,
    before: int | None = None,
) -> list[Event]:
    """Returns the first `limit` events with an id above `after` in the order of their ids, or in the reverse order
    those with an id below `before`.

    They are read gallery by gallery, as the indexes are ordered by id within a gallery.
    """
    order = EventRow.id.desc() if newest else EventRow.id.asc()
    query = _events().where(*_conditions(wanted)).order_by(order).limit(limit)
    if before is not None:
        query = query.where(EventRow.id < before)
    if wanted == EVERYTHING:
        return [_event(*row) for row in session.execute(query.where(EventRow.id > after))]
    found: list[Event] = []
    for gallery_id in session.scalars(_gallery_ids(wanted)).all():
        begin = EventRow.id > after if after else _first_ids(gallery_id, wanted, newest)
        of_gallery = query.where(EventRow.gallery_id == gallery_id, begin)
        if limit is not None and len(found) == limit:
            last = found[-1].id
            of_gallery = of_gallery.where(EventRow.id > last if newest else EventRow.id < last)
        found += [_event(*row) for row in session.execute(of_gallery)]
        found = sorted(found, key=lambda event: event.id, reverse=newest)[:limit]
    return found


def select_between(gallery_id: int, until: datetime, decision: str) -> Executable:
    """Returns the query for the first PAGE events after the position `at`, `id` and before `until`, by time."""
    position = tuple_(EventRow.at, EventRow.id) > tuple_(bindparam("at", type_=EventRow.at.type), bindparam("id"))
    return (
        select(EventRow.id, EventRow.at, EventRow.external_id, EventRow.name, EventRow.direction)
        .where(EventRow.gallery_id == gallery_id, position, EventRow.at < until)
        .where(EventRow.decision == str(decision))
        .order_by(EventRow.at, EventRow.id)
        .limit(PAGE)
    )


def event_of(session: Session, event_id: int | None) -> Event | None:
    """Returns the event; None if there is none."""
    found = session.execute(_events().where(EventRow.id == event_id)).one_or_none()
    return None if found is None else _event(*found)


def text_of(value: str | None) -> str | None:
    """Returns an enumeration's value as a plain string: PostgreSQL's driver would write the member's name."""
    return None if value is None else str(value)


def _events() -> Select[EventRow, str]:
    return select(EventRow, GalleryRow.name).join(GalleryRow, GalleryRow.id == EventRow.gallery_id)


def _gallery_ids(wanted: EventFilter) -> Select[int]:
    query = select(GalleryRow.id).order_by(GalleryRow.id)
    return query if wanted.galleries is None else query.where(GalleryRow.name.in_(wanted.galleries))


def _first_ids(gallery_id: int, wanted: EventFilter, newest: bool) -> ColumnElement[bool]:
    """Returns the condition that skips the ids before the first event of the wanted time, or after the last one.

    Ids and times ascend together, unless a clock was set: the index of the times finds the first of all ids. The sum
    keeps the databases from looking for it by reading the events in the order of their ids.
    """
    of_time = EventRow.gallery_id == gallery_id, *_times(wanted)
    if newest and wanted.until is not None:
        return EventRow.id <= select(func.max(EventRow.id + 0)).where(*of_time).scalar_subquery()
    if not newest and wanted.since is not None:
        return EventRow.id >= select(func.min(EventRow.id + 0)).where(*of_time).scalar_subquery()
    return EventRow.id > 0


def _times(wanted: EventFilter) -> Iterator[ColumnElement[bool]]:
    if wanted.since is not None:
        yield EventRow.at >= wanted.since
    if wanted.until is not None:
        yield EventRow.at < wanted.until


def _conditions(wanted: EventFilter) -> Iterator[ColumnElement[bool]]:
    yield from _times(wanted)
    if wanted.external_id is not None:
        yield EventRow.external_id.in_(spellings(wanted.external_id))
    for column, value in (
        (EventRow.device, wanted.device),
        (EventRow.decision, wanted.decision),
        (EventRow.direction, wanted.direction),
    ):
        if value is not None:
            yield column == text_of(value)


def _event(row: EventRow, gallery: str) -> Event:
    return Event(
        row.id,
        gallery,
        row.at,
        row.identity_id,
        row.external_id,
        row.name,
        row.device,
        Direction(row.direction) if row.direction is not None else None,
        row.decision,
        row.score,
        row.threshold,
        row.request_id,
        tuple(row.reasons or ()),
        row.liveness,
    )
