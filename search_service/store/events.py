"""Events in SQL: who was seen, where and when. An event is stored together with its deliveries to webhooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Engine, and_, delete, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from indexer.clock import now
from indexer.errors import InvalidRequest, NotFound
from indexer.gallery.change_log import gallery_deleted
from indexer.gallery.database import Repository, change_rows, lock_until_commit
from indexer.gallery.schema import GalleryRow
from indexer.gallery.spelling import spellings
from indexer.gallery.validation import check_name
from indexer.types import Gallery, NamedIdentity
from search_service.store.event_pages import (
    BriefEvent,
    Direction,
    Event,
    EventFilter,
    event_of,
    read_events,
    select_between,
    text_of,
)
from search_service.store.schema import DeliveryRow, EventRow, SightingRow, WebhookRow

WAITING, DEAD = "waiting", "dead"
"""States of a delivery: it will be tried, or has failed too often."""

ORDER_LOCK = 0x77686F75
"""Key of the PostgreSQL advisory lock held while an event gets its id."""

NOBODY = ""
"""External id in the sightings of people who were not recognized."""

ATTACKER = " attack"
"""The same of presentation attacks, which are recorded although somebody was not recognized just before. No identity
has an id that begins with a space."""


@dataclass(frozen=True)
class Sighting:
    """The result of a search for one face seen by a device."""

    device: str
    direction: Direction | None
    decision: str
    sure: bool
    """Whether it is a match. A match is recorded even if an uncertain sighting was recorded just before."""
    identity: NamedIdentity | None
    """None if nobody was recognized."""
    score: float | None
    """Cosine of the best candidate; None if there was none."""
    threshold: float
    request_id: str | None = None
    reasons: Sequence[str] = ()
    """Why it is no match or a review."""
    liveness: Mapping[str, object] | None = None
    """The result of a check for presentation attacks, None where there was none."""
    is_attack: bool = False
    """Whether it is an attempted presentation attack."""


@dataclass(frozen=True)
class Recorded:
    """The event of a sighting: a new one, or the earlier one that it repeats within the cooldown."""

    event: Event
    recorded: bool


class EventRepository(Repository):
    """The events of one database. Thread-safe; each call is one transaction, `record` up to two."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._insert = postgresql.insert if engine.dialect.name == "postgresql" else sqlite.insert

    def record(self, gallery: Gallery, seen: Sighting, cooldown: timedelta) -> Recorded:
        """Records a sighting, unless it repeats one recorded at that device less than `cooldown` ago.

        A sighting repeats another one if person (or nobody recognized) and direction are the same, and it is not a
        match after an uncertain sighting. Of several processes that record it at the same time, one succeeds. The same
        transaction inserts a delivery for each webhook that subscribes to the event.

        Raises:
            InvalidRequest: The device's name is not valid.
            NotFound: The gallery was deleted.
        """
        check_name("device", seen.device)
        at = now()
        with self._read() as session:  # a camera sees a person many times a second: usually without a lock
            earlier = _repeated(session, gallery, seen, at, cooldown)
        if earlier is not None:
            return Recorded(earlier, recorded=False)
        try:
            with self._write() as session:
                _lock_gallery(session, gallery)
                if not self._claim_sighting(session, gallery, seen, at, cooldown):
                    earlier = event_of(session, session.scalar(_sighted(gallery, seen, select(SightingRow.event_id))))
                    if earlier is not None:
                        return Recorded(earlier, recorded=False)
                subscribers = _lock_subscribers(session, gallery.id, seen.decision)
                # Events are committed in the order of their ids, as in SQLite: PostgreSQL assigns an id before the
                # event is visible, and a reader that continues after a higher id would never see it. This lock is taken
                # last, so its holder waits for no other lock and blocks others only for the time of a commit.
                lock_until_commit(session.connection(), ORDER_LOCK)
                event_id = _insert_event(session, gallery, seen, at)
                last = {"event_id": event_id, **_sighting_values(seen, at)}
                session.execute(_sighted(gallery, seen, update(SightingRow)).values(last))
                _insert_deliveries(session, subscribers, event_id, at)
                return Recorded(_required(session, event_id), recorded=True)
        except IntegrityError as error:
            raise gallery_deleted() from error

    def find(self, wanted: EventFilter, after: int = 0, limit: int | None = None) -> list[Event]:
        """Returns events with an id above `after`, in the order of recording: all events with lower ids are visible
        when an event is."""
        with self._read() as session:
            return read_events(session, wanted, after, limit)

    def latest(self, wanted: EventFilter, limit: int, before: int | None = None) -> list[Event]:
        """Returns the last `limit` events, or the last with an id below `before`, in the order of recording."""
        with self._read() as session:
            return read_events(session, wanted, 0, limit, newest=True, before=before)[::-1]

    def between(
        self, gallery: Gallery, since: datetime, until: datetime, decision: str
    ) -> Iterator[Sequence[BriefEvent]]:
        """Yields the events at or after `since` and before `until` with that decision, by time, a page at a time."""
        query = select_between(gallery.id, until, decision)
        after = since, 0
        while True:
            with self._read_rows() as connection:
                page = [BriefEvent(*row) for row in connection.execute(query, {"at": after[0], "id": after[1]})]
            if not page:
                return
            yield page
            after = page[-1].at, page[-1].id

    def last_id(self) -> int:
        """Returns the id of the last event of all galleries; 0 if there is none."""
        with self._read() as session:
            return session.scalar(select(EventRow.id).order_by(EventRow.id.desc()).limit(1)) or 0

    def get(self, event_id: int) -> Event:
        """Returns the event. Raises NotFound."""
        with self._read() as session:
            return _required(session, event_id)

    def delete(self, gallery: Gallery, external_id: str | None = None, before: datetime | None = None) -> int:
        """Deletes events of a person, `before` a time, or both, with their deliveries, and returns how many.

        Raises InvalidRequest if neither is given.
        """
        if external_id is None and before is None:
            raise InvalidRequest("name whose events to delete, or a time before which; got neither")

        def deletion(table: type[EventRow | SightingRow]) -> Any:
            which = [table.gallery_id == gallery.id]
            which += [table.external_id.in_(spellings(external_id))] if external_id is not None else []
            which += [table.at < before] if before is not None else []
            return delete(table).where(*which)

        with self._write() as session:
            change_rows(session, deletion(SightingRow))  # in the order in which `record` locks them
            return change_rows(session, deletion(EventRow))

    def _claim_sighting(
        self, session: Session, gallery: Gallery, seen: Sighting, at: datetime, cooldown: timedelta
    ) -> bool:
        """Returns whether this sighting is the one to record, and locks out others until the transaction ends.

        In SQLite all writers wait; in PostgreSQL those of the same person and device, for the lock of their row.
        """
        values = _sighting_values(seen, at)
        taken = self._insert(SightingRow).values(
            gallery_id=gallery.id, external_id=_external_id(seen), device=seen.device, event_id=0, **values
        )
        taken = taken.on_conflict_do_update(
            index_elements=[SightingRow.gallery_id, SightingRow.external_id, SightingRow.device],
            set_=values,
            where=~_repeats(seen, at, cooldown),
        )
        return session.execute(taken.returning(SightingRow.event_id)).one_or_none() is not None


def _external_id(seen: Sighting) -> str:
    if seen.identity is not None:
        return seen.identity.external_id
    return ATTACKER if seen.is_attack else NOBODY


def _sighting_values(seen: Sighting, at: datetime) -> dict[str, Any]:
    """Returns the columns of a sighting's row that are not part of its key."""
    return {"at": at, "direction": text_of(seen.direction), "sure": seen.sure}


def _sighted(gallery: Gallery, seen: Sighting, statement: Any) -> Any:
    """Restricts `statement` to the row of this person and device."""
    return statement.where(
        SightingRow.gallery_id == gallery.id,
        SightingRow.external_id == _external_id(seen),
        SightingRow.device == seen.device,
    )


def _repeats(seen: Sighting, at: datetime, cooldown: timedelta) -> ColumnElement[bool]:
    """Returns the condition under which a row of the same person and device already records what was seen.

    A row a cooldown or more in the future was written before the clock was set back; a row a little in the future, by a
    machine whose clock is ahead.
    """
    same = and_(
        SightingRow.at > at - cooldown,
        SightingRow.at < at + cooldown,
        SightingRow.direction.is_not_distinct_from(text_of(seen.direction)),
    )
    return and_(same, SightingRow.sure) if seen.sure else same


def _repeated(session: Session, gallery: Gallery, seen: Sighting, at: datetime, cooldown: timedelta) -> Event | None:
    """Returns the event that a sighting repeats."""
    query = _sighted(gallery, seen, select(SightingRow.event_id)).where(_repeats(seen, at, cooldown))
    return event_of(session, session.scalar(query))


def _lock_gallery(session: Session, gallery: Gallery) -> None:
    """Locks the gallery against deletion until the transaction ends. Raises NotFound.

    Deleting a gallery locks its row before the rows of sightings; recording uses the same order.
    """
    there = select(GalleryRow.id).where(GalleryRow.id == gallery.id).with_for_update(read=True, key_share=True)
    if session.scalar(there) is None:
        raise gallery_deleted()


def _lock_subscribers(session: Session, gallery_id: int, decision: str) -> list[str]:
    """Returns the ids of the webhooks that subscribe to the event, locked against deletion."""
    subscribers = select(WebhookRow.id, WebhookRow.decisions).where(
        or_(WebhookRow.gallery_id.is_(None), WebhookRow.gallery_id == gallery_id)
    )
    rows = session.execute(subscribers.with_for_update(read=True, key_share=True))
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
        direction=text_of(seen.direction),
        decision=str(seen.decision),
        score=seen.score,
        threshold=seen.threshold,
        request_id=seen.request_id,
        reasons=[str(reason) for reason in seen.reasons],
        liveness=dict(seen.liveness) if seen.liveness else None,
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


def _required(session: Session, event_id: int) -> Event:
    found = event_of(session, event_id)
    if found is None:
        raise NotFound(f"there is no event {event_id}", code="event_not_found")
    return found
