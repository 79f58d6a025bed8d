"""Events are delivered at least once, in order and fairly, to real receivers that fail, hang and recover."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

import httpx
import pytest

from indexer import supervision
from indexer.types import Gallery, NamedIdentity
from search_service.background import webhooks
from search_service.background.webhooks import AT_ONCE, Deliverer, Schedule, open_client
from search_service.service_context import ServiceContext
from search_service.store.event_pages import Direction
from search_service.store.events import DEAD, WAITING, Sighting
from search_service.store.webhooks import MAX_DELAY
from tests.indexer.gallery.faces import make_gallery
from tests.search_service.background.receiver import HANG, genuine, receiving
from tests.waiting import DEADLINE, wait_for

SOON = Schedule(timeout_seconds=DEADLINE, lease_seconds=2 * DEADLINE, first_seconds=0.02, longest_seconds=0.1, tries=4)


@pytest.fixture
def staff(context: ServiceContext) -> Gallery:
    return make_gallery(context.store)


@contextmanager
def delivering(context: ServiceContext, schedule: Schedule = SOON) -> Iterator[Deliverer]:
    deliverer = Deliverer(context, schedule)
    deliverer.start()
    try:
        yield deliverer
    finally:
        deliverer.stop()


def record(context: ServiceContext, gallery: Gallery, external_id: str = "ana") -> int:
    person = NamedIdentity(3, external_id, None, {}, 1)
    seen = Sighting("door", Direction.IN, "match", True, person, 0.6, 0.4)
    return context.events.record(gallery, seen, timedelta()).event.id


def test_a_problem_that_quotes_the_receiver_is_printable(context: ServiceContext, staff: Gallery) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        hook, _ = context.webhooks.create(url, staff, ["match"])

        def answer() -> None:
            for _ in range(SOON.tries):
                connection, _ = listening.accept()
                with connection:
                    connection.recv(2**16)
                    connection.sendall(b"\0\x1b[2J oops\r\n\r\n")

        receiver = threading.Thread(target=answer)
        receiver.start()
        with delivering(context):
            record(context, staff)
            wait_for(lambda: context.webhooks.get(hook.id).dead == 1, "it is dead")
        receiver.join()
    (dead,) = context.webhooks.deliveries(hook.id, DEAD)
    assert dead.problem is not None
    assert dead.problem.startswith("not reached: ")
    assert dead.problem.isprintable()


def test_the_wait_grows_to_an_hour_and_ends_after_a_day() -> None:
    schedule = Schedule()
    waits = [schedule.waits(tried, tried) for tried in range(1, schedule.tries)]
    assert all(again == pause for again, pause in waits), "it is due when the pause is over"
    assert schedule.waits(schedule.tries, 1)[0] is None
    seconds = [pause.total_seconds() for _, pause in waits]
    for tried, wait in enumerate(seconds):
        full = min(5 * 2**tried, 3600)
        assert full * 0.75 <= wait <= full * 1.25
    longest = sum(min(5 * 2**tried, 3600) for tried in range(schedule.tries - 1))
    assert 24 * 3600 <= longest <= 26 * 3600
    again, pause = schedule.waits(2, 9)
    assert again is not None
    assert pause > 100 * again
    assert timedelta(seconds=longest * 1.02) < MAX_DELAY  # what was tried each time is dead before that
    assert len({schedule.waits(20, 20) for _ in range(10)}) > 1
    assert schedule.lease_seconds > schedule.timeout_seconds


def test_every_recorded_event_is_delivered_once_and_in_order(context: ServiceContext, staff: Gallery) -> None:
    with receiving() as receiver, delivering(context) as deliverer:
        hook, secret = context.webhooks.create(receiver.url, None, ["match"])
        recorded = [record(context, staff, f"person-{n}") for n in range(20)]
        deliverer.wake()
        wait_for(lambda: not context.webhooks.get(hook.id).waiting, "everything has arrived")
        assert receiver.events() == recorded  # in their order, while nothing fails
        check = genuine()
        assert all(check(secret, one.headers, one.body) for one in receiver.received)
        assert len({one.headers["X-Whosthere-Delivery"] for one in receiver.received}) == len(recorded)


def test_events_are_delivered_after_the_thread_failed(
    context: ServiceContext, staff: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "RESTART_SECONDS", 0.01)
    clients = []

    def failing_once() -> httpx.AsyncClient:
        clients.append("one")
        if len(clients) == 1:
            raise OSError("Too many open files")
        return open_client()

    monkeypatch.setattr(webhooks, "open_client", failing_once)
    with receiving() as receiver, delivering(context) as deliverer:
        hook, _ = context.webhooks.create(receiver.url, None, ["match"])
        event = record(context, staff)
        deliverer.wake()
        wait_for(lambda: not context.webhooks.get(hook.id).waiting, "it has arrived")
        assert receiver.events() == [event]


def test_a_delivery_is_repeated_until_the_receiver_recovers(context: ServiceContext, staff: Gallery) -> None:
    with receiving(500, HANG, 503, 200) as receiver, delivering(context, replace(SOON, timeout_seconds=1.0)):
        hook, _ = context.webhooks.create(receiver.url, None, ["match"])
        event = record(context, staff)
        wait_for(lambda: not context.webhooks.get(hook.id).waiting, "it has arrived")
        assert receiver.events() == [event] * 4
        assert len({one.headers["X-Whosthere-Delivery"] for one in receiver.received}) == 1
        assert len({one.body for one in receiver.received}) == 1


def test_a_receiver_that_is_down_gets_one_attempt_for_each_pause(context: ServiceContext, staff: Gallery) -> None:
    """Whichever process sends, and however many events wait. All are sent after the first success."""
    slow = replace(SOON, first_seconds=1000, longest_seconds=1000)
    with receiving(500) as down, receiving() as well:
        hook, _ = context.webhooks.create(down.url, None, ["match"])
        other, _ = context.webhooks.create(well.url, None, ["match"])
        recorded = [record(context, staff) for _ in range(20)]
        with delivering(context, slow), delivering(context, slow):
            wait_for(lambda: not context.webhooks.get(other.id).waiting, "the others have arrived")
        assert len(down.received) <= 2  # the two began at once
        tried = len(down.received)
        down.statuses = [200]
        context.webhooks.replay(hook.id)  # ends the pause
        (due,) = [one.id for one in context.webhooks.due(())]
        trial = context.webhooks.claim(due, timedelta(seconds=1000))
        assert trial is not None
        context.webhooks.mark_failed(trial, "answered 500", timedelta(), timedelta())
        with delivering(context, slow):
            wait_for(lambda: context.webhooks.get(hook.id).waiting == tried, "the rest has arrived")
    assert sorted(down.events()[tried:]) == recorded[tried:]


def test_a_receiver_may_start_after_the_event(context: ServiceContext, staff: Gallery) -> None:
    with receiving() as receiver:
        port, url = receiver.port, receiver.url
    hook, _ = context.webhooks.create(url, None, ["match"])
    event = record(context, staff)
    with delivering(context, replace(SOON, tries=10_000)):
        wait_for(lambda: any(one.attempts > 1 for one in context.webhooks.deliveries(hook.id, WAITING)), "it was tried")
        with receiving(port=port) as receiver:
            wait_for(lambda: not context.webhooks.get(hook.id).waiting, "it has arrived")
            assert receiver.events() == [event]


def test_a_dead_delivery_can_be_replayed(context: ServiceContext, staff: Gallery) -> None:
    with receiving(500, 500, 500, 500, 200) as receiver, delivering(context) as deliverer:
        hook, _ = context.webhooks.create(receiver.url, None, ["match"])
        event = record(context, staff)
        wait_for(lambda: context.webhooks.get(hook.id).dead == 1, "it was tried too often")
        (dead,) = context.webhooks.deliveries(hook.id, DEAD)
        assert (dead.event_id, dead.attempts, dead.problem) == (event, SOON.tries, "answered 500")
        assert len(receiver.received) == SOON.tries
        assert context.webhooks.replay(hook.id) == 1
        deliverer.wake()
        wait_for(lambda: len(receiver.received) == SOON.tries + 1, "it was sent again")
        wait_for(lambda: not context.webhooks.get(hook.id).waiting, "it has arrived")
        assert context.webhooks.get(hook.id).dead == 0


def test_a_hanging_receiver_does_not_delay_others(context: ServiceContext, staff: Gallery) -> None:
    with receiving(HANG) as stuck, receiving() as quick, delivering(context):
        context.webhooks.create(stuck.url, None, ["match"])
        hook, _ = context.webhooks.create(quick.url, None, ["match"])
        recorded = [record(context, staff) for _ in range(AT_ONCE * 2)]
        wait_for(lambda: not context.webhooks.get(hook.id).waiting, "the others have arrived")
        assert quick.events() == recorded
        assert len(stuck.received) == 1
        stuck.released.set()
        stuck.statuses = [200]


def test_webhooks_take_turns_when_there_are_many(context: ServiceContext, staff: Gallery) -> None:
    """One webhook more than are sent to at once, each with many events: none waits until the others are done."""
    with receiving() as receiver:
        base = receiver.url.partition("/doors")[0]
        hooks = [context.webhooks.create(f"{base}/{n}", None, ["match"])[0] for n in range(AT_ONCE + 1)]
        recorded = [record(context, staff) for _ in range(10)]
        with delivering(context):
            wait_for(lambda: not any(context.webhooks.get(hook.id).waiting for hook in hooks), "everything has arrived")
    turns = [one.path for one in receiver.received]
    assert len(turns) == len(hooks) * len(recorded)
    for n in range(AT_ONCE + 1):
        before = Counter(turns[: turns.index(f"/{n}")])
        assert max(before.values(), default=0) <= 3, f"the others had {before} before /{n} had one"


def test_two_deliverers_send_each_event_once(context: ServiceContext, staff: Gallery) -> None:
    """Nothing fails and no process is killed, so at least once means once."""
    with receiving() as receiver, delivering(context), delivering(context):
        hook, _ = context.webhooks.create(receiver.url, None, ["match"])
        recorded = [record(context, staff) for _ in range(30)]
        wait_for(lambda: not context.webhooks.get(hook.id).waiting, "everything has arrived")
        assert sorted(receiver.events()) == recorded


def test_a_deleted_event_is_not_sent(context: ServiceContext, staff: Gallery) -> None:
    with receiving() as receiver:
        hook, _ = context.webhooks.create(receiver.url, None, ["match"])
        record(context, staff)
        kept = record(context, staff, "ben")
        context.events.delete(staff, "ana")
        with delivering(context):
            wait_for(lambda: not context.webhooks.get(hook.id).waiting, "the rest has arrived")
        assert receiver.events() == [kept]


def test_stopping_waits_for_running_attempts(context: ServiceContext, staff: Gallery) -> None:
    with receiving(HANG) as receiver:
        hook, _ = context.webhooks.create(receiver.url, None, ["match"])
        record(context, staff)
        before = threading.active_count()
        with delivering(context, replace(SOON, timeout_seconds=0.5)):
            wait_for(lambda: len(receiver.received) == 1, "it is being sent")
        (waiting,) = context.webhooks.deliveries(hook.id, WAITING)
        assert waiting.problem == "no answer within 0.5 s"
        receiver.released.set()
        wait_for(lambda: threading.active_count() <= before, "no thread is left")
