"""Who was seen, where and when: recorded once a person, device and cooldown, together with what is to be sent of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, cast

from sqlalchemy import ColumnElement, CursorResult, Engine, Select, and_, delete, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from indexer.clock import now
from indexer.errors import InvalidRequest, NotFound
from indexer.gallery.database import Repository, lock_until_commit
from indexer.gallery.schema import GalleryRow
from indexer.gallery.validation import check_name
from indexer.types import Gallery, NamedIdentity
from search_service.store.schema import DeliveryRow, EventRow, SightingRow, WebhookRow

WAITING, DEAD = "waiting", "dead"
"""States of a delivery: it will be tried again, or was tried too often."""

ORDER_LOCK = 0x77686F75
"""Key of the PostgreSQL advisory lock under which events get their ids."""

NOBODY = ""
"""The external id under which whoever was not recognised is sighted."""


class Direction(StrEnum):
    IN = "in"
    OUT = "out"


@dataclass(frozen=True)
class Sighting:
    """What a search says of one face in front of a device."""

    device: str
    direction: Direction | None
    decision: str
    sure: bool
    """Whether it is a match. What is sure is recorded though something unsure was, a moment before."""
    identity: NamedIdentity | None
    """None where nobody was recognised."""
    score: float | None
    """Cosine of the best candidate, where there was one."""
    threshold: float
    request_id: str | None = None


@dataclass(frozen=True)
class Event:
    """A sighting as it was recorded. What it says of the identity was true then."""

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


@dataclass(frozen=True)
class Recorded:
    """The event of a sighting: a new one, or, within the cooldown, the earlier one that it repeats."""

    event: Event
    recorded: bool


@dataclass(frozen=True)
class EventFilter:
    """Which events are asked for: those to which everything applies that is said."""

    galleries: Sequence[str] | None = None
    """Names; None for all."""
    since: datetime | None = None
    until: datetime | None = None
    """From `since` on and before `until`."""
    external_id: str | None = None
    device: str | None = None
    decision: str | None = None
    direction: Direction | None = None


class EventRepository(Repository):
    """The events of one database. Thread-safe; each call is one transaction, `record` one or two."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert

    def record(self, gallery: Gallery, seen: Sighting, cooldown: timedelta) -> Recorded:
        """Records it, unless the same was recorded at that device less than `cooldown` ago: the same person (or nobody
        recognised), in the same direction, as surely. Of several processes that see it at once, one records it.

        With the event, in its transaction, goes a delivery for each webhook that wants it. Raises NotFound when the
        gallery is gone, InvalidRequest when the device has no name.
        """
        check_name("device", seen.device)
        at = now()
        with self._read() as session:  # a camera sees a person many times a second: most are told without a lock
            earlier = _repeated(session, gallery, seen, at, cooldown)
        if earlier is not None:
            return Recorded(earlier, recorded=False)
        try:
            with self._write() as session:
                _hold_gallery(session, gallery)
                if not self._take_turn(session, gallery, seen, at, cooldown):
                    earlier = event_of(session, session.scalar(_sighted(gallery, seen, select(SightingRow.event_id))))
                    if earlier is not None:
                        return Recorded(earlier, recorded=False)
                wanting = _hold_wanting(session, gallery.id, seen.decision)
                # Events are committed in the order of their ids, as in SQLite: PostgreSQL gives out an id before its
                # event is seen, and who reads on from a higher one would never see it. It is the last lock that is
                # taken: whoever has it waits for nobody, and keeps others for as long as a commit takes.
                lock_until_commit(session.connection(), ORDER_LOCK)
                event_id = _insert_event(session, gallery, seen, at)
                last = {"event_id": event_id, **_said(seen, at)}
                session.execute(_sighted(gallery, seen, update(SightingRow)).values(last))
                _insert_deliveries(session, wanting, event_id, at)
                return Recorded(_required(session, event_id), recorded=True)
        except IntegrityError as error:
            raise _gone() from error

    def find(self, wanted: EventFilter, after: int = 0, limit: int | None = None) -> list[Event]:
        """Those with an id above `after`, in the order of their recording: whoever has seen an event could have seen
        all with lower ids."""
        query = _events().where(EventRow.id > after, *_conditions(wanted)).order_by(EventRow.id).limit(limit)
        with self._read() as session:
            return [_event(*row) for row in session.execute(query)]

    def latest(self, wanted: EventFilter, limit: int) -> list[Event]:
        """The last ones recorded, in the order of their recording."""
        query = _events().where(*_conditions(wanted)).order_by(EventRow.id.desc()).limit(limit)
        with self._read() as session:
            return [_event(*row) for row in session.execute(query)][::-1]

    def get(self, event_id: int) -> Event:
        """Raises NotFound."""
        with self._read() as session:
            return _required(session, event_id)

    def delete(self, gallery: Gallery, external_id: str | None = None, before: datetime | None = None) -> int:
        """Deletes a person's events, or those `before` a time, or a person's before a time, with what was still to be
        sent of them; how many events. Raises InvalidRequest when neither is said."""
        if external_id is None and before is None:
            raise InvalidRequest("say whose events are to be forgotten, or before when; got neither")
        with self._write() as session:
            for table in (EventRow, SightingRow):
                which = [table.gallery_id == gallery.id]
                which += [table.external_id == external_id] if external_id is not None else []
                which += [table.at < before] if before is not None else []
                gone = session.execute(delete(table).where(*which).execution_options(synchronize_session=False))
                if table is EventRow:
                    forgotten = cast("CursorResult[Any]", gone).rowcount
        return forgotten

    def _take_turn(self, session: Session, gallery: Gallery, seen: Sighting, at: datetime, cooldown: timedelta) -> bool:
        """Whether it is this sighting's turn to be recorded. Keeps others from that until the transaction ends: in
        SQLite all writers, in PostgreSQL those of the same person and device, by the row's lock."""
        said = _said(seen, at)
        taken = self._insert(SightingRow).values(
            gallery_id=gallery.id, external_id=_whom(seen), device=seen.device, event_id=0, **said
        )
        taken = taken.on_conflict_do_update(
            index_elements=[SightingRow.gallery_id, SightingRow.external_id, SightingRow.device],
            set_=said,
            where=~_repeats(seen, at, cooldown),
        )
        return session.execute(taken.returning(SightingRow.event_id)).one_or_none() is not None


def event_of(session: Session, event_id: int | None) -> Event | None:
    found = session.execute(_events().where(EventRow.id == event_id)).one_or_none()
    return None if found is None else _event(*found)


def _whom(seen: Sighting) -> str:
    return NOBODY if seen.identity is None else seen.identity.external_id


def _said(seen: Sighting, at: datetime) -> dict[str, Any]:
    """What a sighting's row says of it, beside whom and where."""
    return {"at": at, "direction": _text(seen.direction), "sure": seen.sure}


def _text(word: str | None) -> str | None:
    """A word of an enumeration as a plain string: PostgreSQL's driver would write the name of the member."""
    return None if word is None else str(word)


def _sighted(gallery: Gallery, seen: Sighting, statement: Any) -> Any:
    """`statement` on the row of this person and device."""
    return statement.where(
        SightingRow.gallery_id == gallery.id,
        SightingRow.external_id == _whom(seen),
        SightingRow.device == seen.device,
    )


def _repeats(seen: Sighting, at: datetime, cooldown: timedelta) -> ColumnElement[bool]:
    """Whether a row of the same person and device already says what was seen.

    One that is a cooldown or more in the future was written before the clock was set back; one a little in the future,
    by a machine whose clock is ahead.
    """
    same = and_(
        SightingRow.at > at - cooldown,
        SightingRow.at < at + cooldown,
        SightingRow.direction.is_not_distinct_from(_text(seen.direction)),
    )
    return and_(same, SightingRow.sure) if seen.sure else same


def _repeated(session: Session, gallery: Gallery, seen: Sighting, at: datetime, cooldown: timedelta) -> Event | None:
    """The event that a sighting repeats."""
    query = _sighted(gallery, seen, select(SightingRow.event_id)).where(_repeats(seen, at, cooldown))
    return event_of(session, session.scalar(query))


def _hold_gallery(session: Session, gallery: Gallery) -> None:
    """Keeps the gallery from being deleted until the transaction ends: who deletes it takes its row before those of
    sightings, and so does whoever records. Raises NotFound when it is gone."""
    there = select(GalleryRow.id).where(GalleryRow.id == gallery.id).with_for_update(read=True, key_share=True)
    if session.scalar(there) is None:
        raise _gone()


def _gone() -> NotFound:
    return NotFound("the gallery was deleted meanwhile", code="gallery_not_found")


def _hold_wanting(session: Session, gallery_id: int, decision: str) -> list[str]:
    """Ids of the webhooks that want the event. The lock keeps one from being deleted meanwhile."""
    wanting = select(WebhookRow.id, WebhookRow.decisions).where(
        or_(WebhookRow.gallery_id.is_(None), WebhookRow.gallery_id == gallery_id)
    )
    rows = session.execute(wanting.with_for_update(read=True, key_share=True))
    return [row.id for row in rows if decision in row.decisions]


def _insert_event(session: Session, gallery: Gallery, seen: Sighting, at: datetime) -> int:
    person = seen.identity
    row = EventRow(
        gallery_id=gallery.id,
        at=at,
        identity_id=person.id if person else None,
        external_id=person.external_id if person else None,
        name=person.name if person else None,
        device=seen.device,
        direction=_text(seen.direction),
        decision=str(seen.decision),
        score=seen.score,
        threshold=seen.threshold,
        request_id=seen.request_id,
    )
    session.add(row)
    session.flush()
    return row.id


def _insert_deliveries(session: Session, webhook_ids: Sequence[str], event_id: int, at: datetime) -> None:
    rows = [
        {"webhook_id": webhook_id, "event_id": event_id, "state": WAITING, "attempts": 0, "since": at, "next_at": at}
        for webhook_id in webhook_ids
    ]
    if rows:
        session.execute(insert(DeliveryRow), rows)


def _events() -> Select[EventRow, str]:
    return select(EventRow, GalleryRow.name).join(GalleryRow, GalleryRow.id == EventRow.gallery_id)


def _conditions(wanted: EventFilter) -> Iterator[ColumnElement[bool]]:
    if wanted.galleries is not None:
        yield GalleryRow.name.in_(wanted.galleries)
    if wanted.since is not None:
        yield EventRow.at >= wanted.since
    if wanted.until is not None:
        yield EventRow.at < wanted.until
    for column, value in (
        (EventRow.external_id, wanted.external_id),
        (EventRow.device, wanted.device),
        (EventRow.decision, wanted.decision),
        (EventRow.direction, wanted.direction),
    ):
        if value is not None:
            yield column == _text(value)


def _required(session: Session, event_id: int) -> Event:
    found = event_of(session, event_id)
    if found is None:
        raise NotFound(f"there is no event {event_id}", code="event_not_found")
    return found


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
    )
