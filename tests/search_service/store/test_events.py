"""Tests of recording, finding and deleting events."""

from __future__ import annotations

import threading
import unicodedata
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from indexer.errors import InvalidRequest, NotFound
from indexer.gallery.database import open_database
from indexer.gallery.store import Store
from indexer.types import Gallery, NamedIdentity, Person
from search_service.store import events as module
from search_service.store.event_pages import Direction, EventFilter
from search_service.store.events import WAITING, EventRepository, Recorded, Sighting
from search_service.store.webhooks import WebhookRepository
from tests.indexer.gallery.clock import NOON, Clock
from tests.indexer.gallery.faces import make_gallery
from tests.indexer.gallery.together import in_processes, in_threads
from tests.postgres import Database, execute
from tests.waiting import DEADLINE

MINUTE = timedelta(minutes=1)


def seen(
    external_id: str | None = "ana",
    device: str = "door",
    direction: Direction | None = None,
    decision: str = "match",
) -> Sighting:
    person = NamedIdentity(7, external_id, f"Name of {external_id}", {}, 1) if external_id else None
    return Sighting(device, direction, decision, decision == "match", person, 0.61, 0.42, "request-1")


def ids(events: EventRepository, **wanted: Any) -> list[int]:
    return [event.id for event in events.find(EventFilter(**wanted))]


def test_event_contains_the_sighting(events: EventRepository, staff: Gallery, clock: Clock) -> None:
    results = events.record(staff, seen(direction=Direction.IN), MINUTE)
    assert results.recorded
    event = results.event
    assert (event.gallery, event.at, event.identity_id, event.external_id) == ("staff", NOON, 7, "ana")
    assert (event.name, event.device, event.direction) == ("Name of ana", "door", Direction.IN)
    assert (event.decision, event.score, event.threshold, event.request_id) == ("match", 0.61, 0.42, "request-1")
    assert events.get(event.id) == event
    assert events.find(EventFilter()) == [event]


def test_repetition_within_cooldown_is_not_recorded(events: EventRepository, staff: Gallery, clock: Clock) -> None:
    first = events.record(staff, seen(), MINUTE)
    clock.at += MINUTE - timedelta(microseconds=1)
    assert events.record(staff, seen(), MINUTE) == Recorded(first.event, recorded=False)
    assert events.record(staff, seen("ben"), MINUTE).recorded
    assert events.record(staff, seen(device="gate"), MINUTE).recorded
    clock.at += timedelta(microseconds=1)
    second = events.record(staff, seen(), MINUTE)
    assert second.recorded
    assert second.event.id > first.event.id
    assert events.record(staff, seen(), MINUTE) == Recorded(second.event, recorded=False)
    assert len(events.find(EventFilter())) == 4


def test_galleries_do_not_share_a_cooldown(
    engine: Engine, events: EventRepository, staff: Gallery, clock: Clock
) -> None:
    visitors = make_gallery(Store(engine), "visitors")
    assert [events.record(gallery, seen(), MINUTE).recorded for gallery in (staff, visitors)] == [True, True]


def test_zero_cooldown_records_every_sighting(events: EventRepository, staff: Gallery, clock: Clock) -> None:
    assert [events.record(staff, seen(), timedelta()).recorded for _ in range(3)] == [True] * 3


STRANGER = seen(None, decision="no_match")


@pytest.mark.parametrize(
    ("sightings", "recorded"),
    [
        # People who press the wrong button first, and people who return.
        ([seen(direction=Direction(way)) for way in ("in", "in", "out", "in")], [True, False, True, True]),
        ([seen(direction=way) for way in (Direction.IN, None)], [True, True]),
        # A match after an uncertain sighting.
        ([seen(decision=one) for one in ("review", "review", "match", "review")], [True, False, True, False]),
        # Everybody who is not recognized.
        ([STRANGER, STRANGER, STRANGER, seen()], [True, False, False, True]),
    ],
)
def test_sighting_that_differs_is_recorded(
    events: EventRepository, staff: Gallery, clock: Clock, sightings: list[Sighting], recorded: list[bool]
) -> None:
    assert [events.record(staff, one, MINUTE).recorded for one in sightings] == recorded


def test_event_of_an_unrecognized_person_has_no_identity(events: EventRepository, staff: Gallery) -> None:
    event = events.record(staff, STRANGER, MINUTE).event
    assert (event.external_id, event.name, event.identity_id) == (None, None, None)


@pytest.mark.parametrize("back", [timedelta(minutes=1), timedelta(days=400)])
def test_clock_set_back_does_not_block_recording(
    events: EventRepository, staff: Gallery, clock: Clock, back: timedelta
) -> None:
    events.record(staff, seen(), MINUTE)
    clock.at -= back
    assert events.record(staff, seen(), MINUTE).recorded
    assert not events.record(staff, seen(), MINUTE).recorded


def test_clock_slightly_behind_repeats_no_event(events: EventRepository, staff: Gallery, clock: Clock) -> None:
    events.record(staff, seen(), MINUTE)
    clock.at -= timedelta(seconds=3)
    assert not events.record(staff, seen(), MINUTE).recorded
    clock.at += MINUTE + timedelta(seconds=3)
    assert events.record(staff, seen(), MINUTE).recorded


def test_device_without_name_is_rejected(events: EventRepository, staff: Gallery) -> None:
    with pytest.raises(InvalidRequest, match="device must be 1 to 200 printable characters"):
        events.record(staff, seen(device=""), MINUTE)


def test_recording_in_deleted_gallery_raises_not_found(engine: Engine, events: EventRepository, staff: Gallery) -> None:
    events.record(staff, seen(), MINUTE)
    Store(engine).galleries.delete("staff")
    assert events.find(EventFilter()) == []
    with pytest.raises(NotFound, match="the gallery was deleted meanwhile"):
        events.record(staff, seen(), MINUTE)


def test_events_outlive_their_identity(engine: Engine, events: EventRepository, staff: Gallery) -> None:
    store = Store(engine)
    store.identities.put(staff.id, Person("ana"))
    event = events.record(staff, seen(), MINUTE).event
    store.identities.delete(staff.id, "ana")
    assert events.get(event.id) == event


def test_find_filters_events_and_pages(engine: Engine, events: EventRepository, staff: Gallery, clock: Clock) -> None:
    visitors = make_gallery(Store(engine), "visitors")
    everything = []
    for gallery, one in (
        (staff, seen()),
        (staff, seen("ben", "gate", Direction.OUT)),
        (visitors, seen(decision="review")),
        (staff, STRANGER),
    ):
        everything.append(events.record(gallery, one, MINUTE).event.id)
        clock.at += MINUTE
    a, b, c, d = everything
    assert ids(events) == everything
    assert ids(events, galleries=["staff"]) == [a, b, d]
    assert ids(events, galleries=["staff", "visitors"]) == everything
    assert ids(events, galleries=[]) == ids(events, galleries=["none"]) == []
    assert ids(events, external_id="ana") == [a, c]
    assert ids(events, device="gate") == ids(events, direction=Direction.OUT) == [b]
    assert ids(events, decision="review") == [c]
    assert ids(events, since=NOON + MINUTE, until=NOON + 3 * MINUTE) == [b, c]
    assert ids(events, galleries=["staff"], external_id="ana", since=NOON + MINUTE) == []
    assert [event.id for event in events.find(EventFilter(), after=a, limit=2)] == [b, c]
    assert [event.id for event in events.latest(EventFilter(), 2)] == [c, d]
    assert [event.id for event in events.latest(EventFilter(external_id="ana"), 9)] == [a, c]
    with pytest.raises(NotFound, match=f"there is no event {d + 1}"):
        events.get(d + 1)


def test_events_are_deleted_by_person_and_time(
    engine: Engine, events: EventRepository, staff: Gallery, clock: Clock
) -> None:
    visitors = make_gallery(Store(engine), "visitors")
    WebhookRepository(engine).create("http://receiver", None, ["match"])
    a = events.record(staff, seen(), MINUTE).event.id
    b = events.record(staff, seen("ben"), MINUTE).event.id
    c = events.record(visitors, seen(), MINUTE).event.id
    clock.at += timedelta(days=1)
    d = events.record(staff, seen(), MINUTE).event.id
    with pytest.raises(InvalidRequest, match="got neither"):
        events.delete(staff)
    assert events.delete(staff, "ana", before=NOON + MINUTE) == 1
    assert ids(events) == [b, c, d]
    assert events.delete(staff, "ana") == 1
    assert ids(events) == [b, c]
    assert events.delete(staff, before=NOON) == 0
    assert events.delete(staff, before=NOON + MINUTE) == 1
    assert ids(events) == [c]
    assert a not in ids(events)
    assert deliveries(engine) == [c]
    assert events.record(staff, seen(), MINUTE).recorded  # the cooldown was deleted, too


def test_events_are_found_and_deleted_by_every_spelling_of_a_person(events: EventRepository, staff: Gallery) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Zoë") for form in ("NFC", "NFD"))
    made = [events.record(staff, seen(form), MINUTE).event.id for form in (composed, decomposed)]
    assert ids(events, external_id=composed) == ids(events, external_id=decomposed) == made
    assert events.delete(staff, decomposed) == 2


def deliveries(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.execute(text("SELECT event_id FROM deliveries ORDER BY id")).scalars())


def test_event_is_queued_for_subscribed_webhooks(engine: Engine, events: EventRepository, staff: Gallery) -> None:
    visitors, hooks = make_gallery(Store(engine), "visitors"), WebhookRepository(engine)
    everything, _ = hooks.create("http://all", None, ["match", "review", "no_match"])
    matches, _ = hooks.create("http://matches", staff, ["match"])
    elsewhere, _ = hooks.create("http://elsewhere", visitors, ["match", "review"])
    match = events.record(staff, seen(), MINUTE).event.id
    events.record(staff, seen(), MINUTE)
    stranger = events.record(staff, STRANGER, MINUTE).event.id
    queued = [[one.event_id for one in hooks.deliveries(h.id, WAITING)] for h in (everything, matches, elsewhere)]
    assert queued == [[match, stranger], [match], []]


def test_failed_recording_stores_nothing(engine: Engine, events: EventRepository, staff: Gallery) -> None:
    """A failure stores neither the cooldown without the event nor the event without its deliveries."""
    WebhookRepository(engine).create("http://receiver", None, ["match"])
    execute(engine, "ALTER TABLE deliveries RENAME TO elsewhere")
    with pytest.raises(Exception, match="deliveries"):
        events.record(staff, seen(), MINUTE)
    execute(engine, "ALTER TABLE elsewhere RENAME TO deliveries")
    assert events.find(EventFilter()) == []
    assert events.record(staff, seen(), MINUTE).recorded
    assert len(deliveries(engine)) == 1


def record(url: str, gallery: Gallery, external_ids: tuple[str, ...]) -> list[bool]:
    """Records sightings in another process."""
    engine = open_database(url)
    try:
        return [EventRepository(engine).record(gallery, seen(one), timedelta(hours=1)).recorded for one in external_ids]
    finally:
        engine.dispose()


def test_concurrent_processes_record_a_sighting_once(
    database: Database, engine: Engine, events: EventRepository, staff: Gallery
) -> None:
    WebhookRepository(engine).create("http://receiver", None, ["match"])
    people = tuple(f"person-{n}" for n in range(20))
    results = in_processes(record, [(database.url, staff, people), (database.url, staff, people)])
    assert [one + other for one, other in zip(*results, strict=True)] == [1] * len(people)
    assert {event.external_id for event in events.find(EventFilter())} == set(people)
    assert len(events.find(EventFilter())) == len(deliveries(engine)) == len(people)


def test_concurrent_threads_record_a_sighting_once(events: EventRepository, staff: Gallery) -> None:
    for n in range(10):
        results = in_threads([lambda n=n: events.record(staff, seen(f"person-{n}"), MINUTE)] * 4)  # type: ignore[misc]
        assert sorted(one.recorded for one in results) == [False, False, False, True]
        assert len({one.event for one in results}) == 1


def test_sighting_of_a_missing_event_is_recorded_again(engine: Engine, events: EventRepository, staff: Gallery) -> None:
    events.record(staff, seen(), MINUTE)
    execute(engine, "DELETE FROM events")
    again = events.record(staff, seen(), MINUTE)
    assert again.recorded
    assert events.record(staff, replace(seen(), score=0.7), MINUTE) == Recorded(again.event, recorded=False)


def test_events_become_visible_in_order_of_ids(
    database: Database, engine: Engine, events: EventRepository, staff: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that continues after the last event it saw misses none, however slowly another one commits."""
    inserted, may_commit = threading.Event(), threading.Event()
    insert = module._insert_event

    def insert_slowly(session: Session, gallery: Gallery, sighting: Sighting, at: datetime) -> int:
        event_id = insert(session, gallery, sighting, at)
        if sighting.identity is not None and sighting.identity.external_id == "slow":
            inserted.set()
            may_commit.wait(DEADLINE)
        return event_id

    monkeypatch.setattr(module, "_insert_event", insert_slowly)
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(events.record, staff, seen("slow"), MINUTE)
        assert inserted.wait(DEADLINE)
        quick = pool.submit(events.record, staff, seen("quick"), MINUTE)
        wait([quick], timeout=0.5)  # it can be committed and visible by now
        page = events.find(EventFilter())
        may_commit.set()
        results = [slow.result(DEADLINE).event, quick.result(DEADLINE).event]
    page += events.find(EventFilter(), after=page[-1].id if page else 0)
    assert page == results


def test_deleting_a_gallery_waits_for_recording(
    engine: Engine, events: EventRepository, staff: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The person was recorded before, so both transactions need the same rows."""
    events.record(staff, seen(), timedelta())
    holds_locks, may_continue = threading.Event(), threading.Event()
    insert = module._insert_event

    def insert_later(session: Session, gallery: Gallery, sighting: Sighting, at: datetime) -> int:
        holds_locks.set()
        may_continue.wait(DEADLINE)
        return insert(session, gallery, sighting, at)

    monkeypatch.setattr(module, "_insert_event", insert_later)
    with ThreadPoolExecutor(2) as pool:
        recording = pool.submit(events.record, staff, seen(), timedelta())
        assert holds_locks.wait(DEADLINE)
        deleting = pool.submit(Store(engine).galleries.delete, "staff")
        assert not wait([deleting], timeout=0.5).done
        may_continue.set()
        assert recording.result(DEADLINE).recorded
        deleting.result(DEADLINE)
    assert events.find(EventFilter()) == []


@pytest.mark.parametrize("what", ["gallery", "webhook", "events"])
def test_recording_and_deleting_do_not_deadlock(
    engine: Engine, events: EventRepository, staff: Gallery, what: str
) -> None:
    store, webhooks = Store(engine), WebhookRepository(engine)
    other = make_gallery(store, "visitors")
    people = [f"person-{n}" for n in range(4)]

    def record(gallery: Gallery, external_id: str) -> int:
        count = 0
        with suppress(NotFound):
            for _ in range(25):
                count += events.record(gallery, seen(external_id), timedelta()).recorded
        return count

    def delete_others() -> int:
        for _ in range(10):
            hook, _ = webhooks.create("http://receiver", None, ["match"])
            if what == "events":
                events.delete(staff, "person-0")
            webhooks.delete(hook.id)
        if what == "gallery":
            store.galleries.delete("staff")
        return 0

    calls = [lambda g=g, p=p: record(g, p) for g in (staff, other) for p in people]
    in_threads([*calls, delete_others])
    assert len(ids(events, galleries=["visitors"])) == 25 * len(people)
