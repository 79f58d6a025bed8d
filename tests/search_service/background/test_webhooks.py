"""What is sent to a webhook, to a real receiver that fails, hangs and comes back."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from indexer.types import Gallery, NamedIdentity
from search_service.background.webhooks import AT_ONCE, Deliverer, Schedule, body_of, send, signed
from search_service.serializers import event_object
from search_service.service_context import ServiceContext
from search_service.store.events import DEAD, WAITING, Direction, Event, Sighting
from search_service.store.webhooks import MAX_DELAY, ClaimedDelivery
from tests.indexer.gallery.faces import make_gallery
from tests.search_service.background.receiver import DRIP, HANG, REDIRECT, genuine, receiving
from tests.waiting import DEADLINE, wait_for

SOON = Schedule(timeout_seconds=DEADLINE, lease_seconds=2 * DEADLINE, first_seconds=0.02, longest_seconds=0.1, tries=4)

EVENT = Event(
    7,
    "staff",
    datetime(2026, 11, 24, 12, tzinfo=UTC),
    3,
    "ana",
    "Ana é",
    "door",
    Direction.IN,
    "match",
    0.61234567,
    0.42,
    "request-1",
)
SECRET = "s" * 64


@pytest.fixture
def staff(home: ServiceContext) -> Gallery:
    return make_gallery(home.store)


@contextmanager
def delivering(home: ServiceContext, schedule: Schedule = SOON) -> Iterator[Deliverer]:
    deliverer = Deliverer(home, schedule)
    deliverer.start()
    try:
        yield deliverer
    finally:
        deliverer.stop()


def record(home: ServiceContext, gallery: Gallery, external_id: str = "ana") -> int:
    person = NamedIdentity(3, external_id, None, {}, 1)
    seen = Sighting("door", Direction.IN, "match", True, person, 0.6, 0.4)
    return home.events.record(gallery, seen, timedelta()).event.id


def claimed(url: str) -> ClaimedDelivery:
    return ClaimedDelivery(5, "wh_1", url, SECRET, 1, EVENT)


def test_the_signature_is_hmac_sha256_of_timestamp_and_body() -> None:
    body = body_of(claimed("http://a"))
    headers = signed(claimed("http://a"), body, 1_790_000_000)
    mac = hmac.new(SECRET.encode(), b"1790000000." + body, hashlib.sha256).hexdigest()
    assert headers["X-Whosthere-Signature"] == f"v1={mac}"
    assert headers["X-Whosthere-Timestamp"] == "1790000000"
    assert headers["X-Whosthere-Delivery"] == "5"


def test_receivers_can_tell_what_is_genuine() -> None:
    check, now = genuine(), int(time.time())
    body = body_of(claimed("http://a"))
    headers = signed(claimed("http://a"), body, now)
    assert check(SECRET, headers, body)
    assert not check("t" * 64, headers, body)
    assert not check(SECRET, headers, body + b" ")
    assert not check(SECRET, {**headers, "X-Whosthere-Timestamp": str(now + 1)}, body)
    assert not check(SECRET, signed(claimed("http://a"), body, now - 3600), body)


def test_what_is_sent() -> None:
    with receiving() as receiver:
        assert send(claimed(receiver.url), DEADLINE, ssl.create_default_context()) is None
        (received,) = receiver.received
    assert received.path == "/doors?of=staff"
    assert received.headers["Content-Type"] == "application/json"
    assert received.headers["X-Whosthere-Delivery"] == "5"
    assert genuine()(SECRET, received.headers, received.body)
    assert received.told == {"webhook": "wh_1", "event": event_object(EVENT)}
    assert received.told["event"]["name"] == "Ana é"
    assert received.told["event"]["score"] == 0.6123


@pytest.mark.parametrize("status", [200, 202, 204])
def test_any_2xx_is_an_arrival(status: int) -> None:
    with receiving(status) as receiver:
        assert send(claimed(receiver.url), DEADLINE, ssl.create_default_context()) is None


@pytest.mark.parametrize("status", [301, 400, 410, 500, 503])
def test_anything_else_is_none(status: int) -> None:
    with receiving(status) as receiver:
        assert send(claimed(receiver.url), DEADLINE, ssl.create_default_context()) == f"answered {status}"


def test_redirects_are_not_followed() -> None:
    with receiving(REDIRECT) as receiver:
        assert send(claimed(receiver.url), DEADLINE, ssl.create_default_context()) == "answered 307"
        assert [one.path for one in receiver.received] == ["/doors?of=staff"]


@pytest.mark.parametrize("how", [HANG, DRIP])
def test_a_slow_answer_is_not_waited_for(how: int) -> None:
    with receiving(how) as receiver:
        assert send(claimed(receiver.url), 0.3, ssl.create_default_context()) == "no answer within 0.3 s"


def test_a_slow_handshake_is_not_waited_for() -> None:
    """A TLS record that comes byte by byte: a socket's own timeout counts anew with each."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def trickle() -> None:
            connection, _ = listening.accept()
            with connection, suppress(OSError):
                for byte in itertools.chain(b"\x16\x03\x03\x3f\xff", itertools.repeat(0)):
                    connection.sendall(bytes([byte]))
                    if over.wait(0.05):
                        break

        receiver = threading.Thread(target=trickle)
        receiver.start()
        url = f"https://127.0.0.1:{listening.getsockname()[1]}/"
        assert send(claimed(url), 0.3, ssl.create_default_context()) == "no answer within 0.3 s"
        over.set()
        receiver.join()


def test_a_slow_name_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever knows names says nothing here until the test is over."""
    over, ask = threading.Event(), socket.getaddrinfo

    def silent(*asked: Any, **more: Any) -> Any:
        over.wait(DEADLINE)
        return ask("127.0.0.1", 9)

    before = threading.active_count()
    monkeypatch.setattr(socket, "getaddrinfo", silent)
    assert send(claimed("http://slow.invalid/"), 0.1, ssl.create_default_context()) == "no answer within 0.1 s"
    over.set()
    wait_for(lambda: threading.active_count() <= before, "no thread is left")


def test_the_next_address_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one of `localhost` has nobody listening, as often with IPv6."""
    with receiving() as receiver, socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = closed.getsockname()
        closed.close()
        there = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", receiver.port))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(*there[:4], nobody), there])
        assert send(claimed("http://localhost:1/doors"), DEADLINE, ssl.create_default_context()) is None
        (received,) = receiver.received
        assert received.headers["Host"] == "localhost:1"


def test_nobody_listens() -> None:
    with receiving() as receiver:
        port = receiver.port
    problem = send(claimed(f"http://127.0.0.1:{port}/"), DEADLINE, ssl.create_default_context())
    assert problem is not None
    assert problem.startswith("not reached: ")


def test_what_the_other_side_says_is_told_in_signs_that_logs_and_databases_take(
    home: ServiceContext, staff: Gallery
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        hook, _ = home.webhooks.create(url, staff, ["match"])

        def answer() -> None:
            for _ in range(SOON.tries):
                connection, _ = listening.accept()
                with connection:
                    connection.recv(2**16)
                    connection.sendall(b"\0\x1b[2J oops\r\n\r\n")

        receiver = threading.Thread(target=answer)
        receiver.start()
        with delivering(home):
            record(home, staff)
            wait_for(lambda: home.webhooks.get(hook.id).dead == 1, "it is dead")
        receiver.join()
    (dead,) = home.webhooks.deliveries(hook.id, DEAD)
    assert dead.problem == "not reached: ??[2J oops"


@pytest.mark.parametrize("url", ["http://no-such-host.invalid/", f"http://{'a' * 70}.invalid/", "http://a..b/"])
def test_a_host_that_is_none(url: str) -> None:
    problem = send(claimed(url), DEADLINE, ssl.create_default_context())
    assert problem is not None
    assert problem.startswith("not reached: ")


def test_tls_is_asked_for_and_checked() -> None:
    with receiving() as receiver:  # speaks no TLS
        url = receiver.url.replace("http:", "https:")
        problem = send(claimed(url), DEADLINE, ssl.create_default_context())
        assert problem is not None
        assert problem.startswith("not reached: ")
        assert receiver.received == []


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


def test_an_event_arrives_once_recorded(home: ServiceContext, staff: Gallery) -> None:
    with receiving() as receiver, delivering(home) as deliverer:
        hook, secret = home.webhooks.create(receiver.url, None, ["match"])
        made = [record(home, staff, f"person-{n}") for n in range(20)]
        deliverer.wake()
        wait_for(lambda: not home.webhooks.get(hook.id).waiting, "everything has arrived")
        assert receiver.events() == made  # in their order, while nothing fails
        check = genuine()
        assert all(check(secret, one.headers, one.body) for one in receiver.received)
        assert len({one.headers["X-Whosthere-Delivery"] for one in receiver.received}) == len(made)


def test_a_receiver_that_fails_and_comes_back(home: ServiceContext, staff: Gallery) -> None:
    with receiving(500, HANG, 503, 200) as receiver, delivering(home, replace(SOON, timeout_seconds=1.0)):
        hook, _ = home.webhooks.create(receiver.url, None, ["match"])
        event = record(home, staff)
        wait_for(lambda: not home.webhooks.get(hook.id).waiting, "it has arrived")
        assert receiver.events() == [event] * 4
        assert len({one.headers["X-Whosthere-Delivery"] for one in receiver.received}) == 1
        assert len({one.body for one in receiver.received}) == 1


def test_one_that_is_down_is_asked_once_a_pause(home: ServiceContext, staff: Gallery) -> None:
    """By whichever process, and however many events wait; with the first that arrives go all."""
    slow = replace(SOON, first_seconds=1000, longest_seconds=1000)
    with receiving(500) as down, receiving() as well:
        hook, _ = home.webhooks.create(down.url, None, ["match"])
        other, _ = home.webhooks.create(well.url, None, ["match"])
        made = [record(home, staff) for _ in range(20)]
        with delivering(home, slow), delivering(home, slow):
            wait_for(lambda: not home.webhooks.get(other.id).waiting, "the others have arrived")
        assert len(down.received) <= 2  # the two began at once
        tried = len(down.received)
        down.statuses = [200]
        home.webhooks.replay(hook.id)  # ends the pause
        (due,) = [one.id for one in home.webhooks.due(())]
        trial = home.webhooks.claim(due, timedelta(seconds=1000))
        assert trial is not None
        home.webhooks.mark_failed(trial, "answered 500", timedelta(), timedelta())
        with delivering(home, slow):
            wait_for(lambda: home.webhooks.get(hook.id).waiting == tried, "the rest has arrived")
    assert sorted(down.events()[tried:]) == made[tried:]


def test_one_that_was_not_there_yet(home: ServiceContext, staff: Gallery) -> None:
    with receiving() as receiver:
        port, url = receiver.port, receiver.url
    hook, _ = home.webhooks.create(url, None, ["match"])
    event = record(home, staff)
    with delivering(home, replace(SOON, tries=10_000)):
        wait_for(lambda: any(one.attempts > 1 for one in home.webhooks.deliveries(hook.id, WAITING)), "it was tried")
        with receiving(port=port) as receiver:
            wait_for(lambda: not home.webhooks.get(hook.id).waiting, "it has arrived")
            assert receiver.events() == [event]


def test_a_dead_letter_is_replayed(home: ServiceContext, staff: Gallery) -> None:
    with receiving(500, 500, 500, 500, 200) as receiver, delivering(home) as deliverer:
        hook, _ = home.webhooks.create(receiver.url, None, ["match"])
        event = record(home, staff)
        wait_for(lambda: home.webhooks.get(hook.id).dead == 1, "it was tried too often")
        (dead,) = home.webhooks.deliveries(hook.id, DEAD)
        assert (dead.event_id, dead.attempts, dead.problem) == (event, SOON.tries, "answered 500")
        assert len(receiver.received) == SOON.tries
        assert home.webhooks.replay(hook.id) == 1
        deliverer.wake()
        wait_for(lambda: len(receiver.received) == SOON.tries + 1, "it was sent again")
        wait_for(lambda: not home.webhooks.get(hook.id).waiting, "it has arrived")
        assert home.webhooks.get(hook.id).dead == 0


def test_one_that_hangs_keeps_no_other_waiting(home: ServiceContext, staff: Gallery) -> None:
    with receiving(HANG) as stuck, receiving() as quick, delivering(home):
        home.webhooks.create(stuck.url, None, ["match"])
        hook, _ = home.webhooks.create(quick.url, None, ["match"])
        made = [record(home, staff) for _ in range(AT_ONCE * 2)]
        wait_for(lambda: not home.webhooks.get(hook.id).waiting, "the others have arrived")
        assert quick.events() == made
        assert len(stuck.received) == 1
        stuck.released.set()
        stuck.statuses = [200]


def test_each_of_many_has_its_turn(home: ServiceContext, staff: Gallery) -> None:
    """One more than are sent to at once, and all have more to come: nobody waits until the others have it all."""
    with receiving() as receiver:
        base = receiver.url.partition("/doors")[0]
        hooks = [home.webhooks.create(f"{base}/{n}", None, ["match"])[0] for n in range(AT_ONCE + 1)]
        made = [record(home, staff) for _ in range(10)]
        with delivering(home):
            wait_for(lambda: not any(home.webhooks.get(hook.id).waiting for hook in hooks), "everything has arrived")
    turns = [one.path for one in receiver.received]
    assert len(turns) == len(hooks) * len(made)
    for n in range(AT_ONCE + 1):
        before = Counter(turns[: turns.index(f"/{n}")])
        assert max(before.values(), default=0) <= 3, f"the others had {before} before /{n} had anything"


def test_two_processes_worth_of_deliverers_send_each_once(home: ServiceContext, staff: Gallery) -> None:
    """Nothing fails and nobody is killed: at least once is once."""
    with receiving() as receiver, delivering(home), delivering(home):
        hook, _ = home.webhooks.create(receiver.url, None, ["match"])
        made = [record(home, staff) for _ in range(30)]
        wait_for(lambda: not home.webhooks.get(hook.id).waiting, "everything has arrived")
        assert sorted(receiver.events()) == made


def test_a_forgotten_event_is_not_sent(home: ServiceContext, staff: Gallery) -> None:
    with receiving() as receiver:
        hook, _ = home.webhooks.create(receiver.url, None, ["match"])
        record(home, staff)
        kept = record(home, staff, "ben")
        home.events.delete(staff, "ana")
        with delivering(home):
            wait_for(lambda: not home.webhooks.get(hook.id).waiting, "the rest has arrived")
        assert receiver.events() == [kept]


def test_stopping_waits_for_what_is_being_sent(home: ServiceContext, staff: Gallery) -> None:
    with receiving(HANG) as receiver:
        hook, _ = home.webhooks.create(receiver.url, None, ["match"])
        record(home, staff)
        before = threading.active_count()
        with delivering(home, replace(SOON, timeout_seconds=0.5)):
            wait_for(lambda: len(receiver.received) == 1, "it is being sent")
        (waiting,) = home.webhooks.deliveries(hook.id, WAITING)
        assert waiting.problem == "no answer within 0.5 s"
        receiver.released.set()
        wait_for(lambda: threading.active_count() <= before, "no thread is left")
