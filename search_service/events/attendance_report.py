"""Attendance of a gallery, read from its events."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from indexer.errors import InvalidRequest
from indexer.types import Gallery
from search_service.events.attendance import LONGEST_PAUSE, LONGEST_SHIFT, Mark, Row, days_of, hours_of, span
from search_service.matching.decision import Decision
from search_service.store.event_pages import Direction
from search_service.store.events import EventRepository


def attendance(
    events: EventRepository,
    gallery: Gallery,
    days: tuple[date, date],
    zone: ZoneInfo,
    longest: timedelta = LONGEST_SHIFT,
    pause: timedelta = LONGEST_PAUSE,
) -> list[Row]:
    """Returns the rows from the first day up to the second, exclusive, by day and person (`external_id`)."""
    since, until = span(*days, zone, longest, pause)
    marks: dict[str, list[Mark]] = {}
    for page in events.between(gallery, since, until, Decision.MATCH):
        for event in page:
            entering = None if event.direction is None else event.direction == Direction.IN
            marks.setdefault(event.external_id or "", []).append(Mark(event.at, entering, event.name))
    rows = [row for who, seen in marks.items() for row in days_of(who, seen, zone, longest, pause)]
    within = [row for row in rows if days[0] <= row.day < days[1]]
    return sorted(within, key=lambda row: (row.day, row.external_id))


def row_object(row: Row) -> dict[str, Any]:
    """Returns the row as JSON values."""
    return {
        "day": row.day.isoformat(),
        "external_id": row.external_id,
        "name": row.name,
        "first_in": row.first_in.isoformat() if row.first_in else None,
        "last_out": row.last_out.isoformat() if row.last_out else None,
        "hours": hours_of(row),
        "remarks": list(row.remarks),
    }


def parse_days(names: tuple[str, str], first: str, until: str) -> tuple[date, date]:
    """Parses a first day and the day after the last one; `names` are those of the parameters. Raises InvalidRequest."""
    days = _day(names[0], first), _day(names[1], until)
    if days[0] >= days[1]:
        raise InvalidRequest(f"{names[1]} is {until}; expected a day after {names[0]}, {first}")
    return days


def parse_zone(parameter: str, name: str) -> ZoneInfo:
    """Raises InvalidRequest."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        message = f"{parameter} is {name!r}, unknown on this machine; expected a zone such as Europe/Berlin"
        raise InvalidRequest(message) from None


def _day(parameter: str, value: str) -> date:
    """Parses a day between 1900 and 9000. Raises InvalidRequest."""
    try:
        day = date.fromisoformat(value)
    except ValueError:
        day = date.min
    if not date(1900, 1, 1) <= day <= date(9000, 1, 1):
        raise InvalidRequest(f"{parameter} is {value!r}; expected a day, as 2026-11-01")
    return day
