"""Tests of webhooks and of claiming their deliveries."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, event, insert, text

from indexer.errors import Conflict, InvalidRequest, NotFound
from indexer.gallery.store import Store
from indexer.types import Gallery
from search_service.store.events import DEAD, WAITING, EventRepository, Sighting
from search_service.store.schema import DeliveryRow
from search_service.store.webhooks import MAX_DELAY, MAX_WAIT, MAX_WEBHOOKS, ClaimedDelivery, WebhookRepository
from tests.indexer.gallery.clock import NOON, Clock
from tests.indexer.gallery.faces import make_gallery
from tests.indexer.gallery.together import in_threads
from tests.postgres import execute

LEASE = timedelta(seconds=15)
URL = "https://receiver.example.com/doors?token=1"


def record(engine: Engine, gallery: Gallery) -> int:
    """Records an event and returns its id."""
    seen = Sighting("door", None, "match", True, None, 0.5, 0.4)
    return EventRepository(engine).record(gallery, seen, timedelta()).event.id


def claim(webhooks: WebhookRepository, delivery_id: int | None = None) -> ClaimedDelivery:
    """Claims a delivery, by default the only one that is due."""
    if delivery_id is None:
        (due,) = webhooks.due(())
        delivery_id = due.id
    claimed = webhooks.claim(delivery_id, LEASE)
    assert claimed is not None
    return claimed


def test_created_webhook_has_a_secret(webhooks: WebhookRepository, staff: Gallery, clock: Clock) -> None:
    hook, secret = webhooks.create(URL, staff, ["match", "review", "match"])
    other, other_secret = webhooks.create("http://10.0.0.7:9000", None, ["no_match"])
    assert (hook.url, hook.gallery, hook.decisions, hook.created_at) == (URL, "staff", ("match", "review"), NOON)
    assert (hook.waiting, hook.dead, other.gallery) == (0, 0, None)
    assert len(secret) == len(other_secret) == 64
    assert secret != other_secret
    assert hook.id != other.id
    assert {one.id: one for one in webhooks.list()} == {hook.id: hook, other.id: other}
    assert webhooks.get(hook.id) == hook
    assert webhooks.delete(hook.id) == hook
    assert webhooks.list() == [other]
    for call in (webhooks.get, webhooks.delete, webhooks.replay, lambda id_: webhooks.deliveries(id_, DEAD)):
        with pytest.raises(NotFound, match=f"there is no webhook '{hook.id}'"):
            call(hook.id)


@pytest.mark.parametrize(
    "url",
    [
        "http://a",
        "https://a:1/b?c=d",
        "http://[::1]:9000/x",
        "HTTP://localhost",
        "https://a/%C3%A9",
        "http://a" + "b" * 1990,
    ],
)
def test_valid_urls_are_accepted(webhooks: WebhookRepository, url: str) -> None:
    assert webhooks.create(url, None, ["match"])[0].url == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "receiver",
        "ftp://a",
        "file:///etc/passwd",
        "http://",
        "http:///path",
        "http://a:0",
        "http://a:port",
        "http://a:70000",
        "http://[::1",
        "http://a/b c",
        "http://a/\r\nX: y",
        "http://a/é",
        "http://user:secret@a",
        "http://@a",
        "http://a/#part",
        "http://a" + "b" * 2000,
    ],
)
def test_invalid_urls_are_rejected(webhooks: WebhookRepository, url: str) -> None:
    with pytest.raises(InvalidRequest, match="a webhook's url must") as caught:
        webhooks.create(url, None, ["match"])
    assert "secret" not in caught.value.message
    assert webhooks.list() == []


def test_webhook_without_decisions_is_rejected(webhooks: WebhookRepository) -> None:
    with pytest.raises(InvalidRequest, match="at least one decision"):
        webhooks.create(URL, None, [])


def test_number_of_webhooks_is_limited(webhooks: WebhookRepository) -> None:
    for n in range(MAX_WEBHOOKS):
        webhooks.create(f"http://a/{n}", None, ["match"])
    with pytest.raises(Conflict, match="the most allowed"):
        webhooks.create(URL, None, ["match"])


def test_claimed_delivery_is_due_again_after_its_lease(
    engine: Engine, webhooks: WebhookRepository, staff: Gallery, clock: Clock
) -> None:
    hook, secret = webhooks.create(URL, None, ["match"])
    event_id = record(engine, staff)
    assert webhooks.due([hook.id]) == []
    claimed = claim(webhooks)
    assert (claimed.webhook_id, claimed.url, claimed.secret, claimed.attempts) == (hook.id, URL, secret, 1)
    assert claimed.event == EventRepository(engine).get(event_id)
    assert webhooks.due(()) == []
    assert webhooks.claim(claimed.id, LEASE) is None
    clock.at += LEASE  # the process that claimed it was killed
    again = claim(webhooks)
    assert again.attempts == 2
    webhooks.mark_delivered(again)
    clock.at += LEASE
    assert webhooks.due(()) == []
    assert webhooks.deliveries(hook.id, WAITING) == []


def test_one_of_several_concurrent_claims_succeeds(engine: Engine, webhooks: WebhookRepository, staff: Gallery) -> None:
    webhooks.create(URL, None, ["match"])
    record(engine, staff)
    (delivery_id,) = [one.id for one in webhooks.due(())]
    claims = in_threads([lambda: webhooks.claim(delivery_id, LEASE)] * 4)
    assert len([one for one in claims if one is not None]) == 1


def test_failed_delivery_is_attempted_again(
    engine: Engine, webhooks: WebhookRepository, staff: Gallery, clock: Clock
) -> None:
    hook, _ = webhooks.create(URL, None, ["match"])
    record(engine, staff)
    webhooks.mark_failed(claim(webhooks), "answered 500", timedelta(seconds=40))
    assert webhooks.due(()) == []
    (waiting,) = webhooks.deliveries(hook.id, WAITING)
    assert (waiting.attempts, waiting.problem, waiting.next_at) == (1, "answered 500", NOON + timedelta(seconds=40))
    clock.at += timedelta(seconds=40)
    assert claim(webhooks).attempts == 2


def test_failure_pauses_its_webhook(engine: Engine, webhooks: WebhookRepository, staff: Gallery, clock: Clock) -> None:
    hook, _ = webhooks.create(URL, None, ["match"])
    recorded = [record(engine, staff) for _ in range(3)]
    first, second, third = (one.id for one in webhooks.deliveries(hook.id, WAITING))
    other, _ = webhooks.create("http://other", None, ["match"])
    last = record(engine, staff)
    failed = claim(webhooks, first)
    webhooks.mark_failed(failed, "answered 500", 3 * LEASE, 4 * LEASE)
    (due,) = [one.id for one in webhooks.due(())]
    assert webhooks.deliveries(other.id, WAITING)[0].id == due, "the other webhook is not paused"
    assert webhooks.claim(second, LEASE) is None, "a process that read it before the pause"
    clock.at += 4 * LEASE
    assert [one.id for one in webhooks.due([other.id])] == [second], "it was due for longest"
    trial = claim(webhooks, second)
    assert (failed.failures, trial.failures) == (0, 1)
    assert webhooks.due([other.id]) == []
    assert webhooks.claim(third, LEASE) is None, "only one delivery is attempted after a pause"
    webhooks.mark_failed(trial, "answered 500", 3 * LEASE, 8 * LEASE)
    clock.at += 8 * LEASE - timedelta(seconds=1)
    assert webhooks.due([other.id]) == []
    clock.at += timedelta(seconds=1)
    again = claim(webhooks, third)
    assert again.failures == 2
    webhooks.mark_delivered(again)
    rest = []
    while found := webhooks.due([other.id]):  # the rest at once
        rest.append(claim(webhooks, found[0].id))
        webhooks.mark_delivered(rest[-1])
    assert [one.event.id for one in rest] == [last, *recorded[:2]]
    assert {one.failures for one in rest} == {0}


def test_trial_delivery_of_a_killed_process_is_due_again(
    engine: Engine, webhooks: WebhookRepository, staff: Gallery, clock: Clock
) -> None:
    webhooks.create(URL, None, ["match"])
    for _ in range(3):
        record(engine, staff)
    webhooks.mark_failed(claim(webhooks), "answered 500", LEASE, LEASE)
    clock.at += LEASE
    claim(webhooks)
    assert webhooks.due(()) == []
    clock.at += LEASE
    assert claim(webhooks).failures == 1


def test_one_delivery_is_attempted_after_a_pause(engine: Engine, webhooks: WebhookRepository, staff: Gallery) -> None:
    """Each process claims another delivery."""
    hook, _ = webhooks.create(URL, None, ["match"])
    for _ in range(5):
        record(engine, staff)
    webhooks.mark_failed(claim(webhooks), "answered 500", LEASE)
    waiting = [one.id for one in webhooks.deliveries(hook.id, WAITING)[1:]]
    claims = in_threads([partial(webhooks.claim, one, LEASE) for one in waiting])
    assert len([one for one in claims if one is not None]) == 1


def test_deliveries_behind_a_failing_endpoint_become_dead(
    engine: Engine, webhooks: WebhookRepository, staff: Gallery, clock: Clock
) -> None:
    hook, _ = webhooks.create(URL, None, ["match"])
    recorded = [record(engine, staff) for _ in range(3)]
    clock.at += timedelta(hours=20)
    young = record(engine, staff)
    clock.at += MAX_DELAY - timedelta(hours=20, seconds=1)
    webhooks.mark_failed(claim(webhooks), "answered 500", LEASE, LEASE)
    assert webhooks.get(hook.id).dead == 0
    clock.at += LEASE
    webhooks.mark_failed(claim(webhooks), "answered 503", LEASE, LEASE)
    dead = webhooks.deliveries(hook.id, DEAD)
    assert [(one.event_id, one.problem) for one in dead] == [(one, "answered 503") for one in recorded]
    assert [one.event_id for one in webhooks.deliveries(hook.id, WAITING)] == [young]
    assert webhooks.replay(hook.id) == 3
    assert claim(webhooks).failures == 0, "a replay does not wait for the pause to end"
    clock.at += 2 * LEASE
    webhooks.mark_failed(claim(webhooks), "answered 500", LEASE, LEASE)
    assert webhooks.get(hook.id).dead == 0, "their time starts again"


def test_finding_due_deliveries_does_not_scan_the_queue(
    engine: Engine, webhooks: WebhookRepository, staff: Gallery
) -> None:
    hook, _ = webhooks.create(URL, None, ["match"])
    for n in range(20):
        webhooks.create(f"http://other/{n}", None, ["review"])
    event_id, at = record(engine, staff), datetime.now(UTC)
    row = {"webhook_id": hook.id, "event_id": event_id, "state": WAITING, "attempts": 0, "since": at, "next_at": at}
    with engine.connect().execution_options(writing=True) as connection, connection.begin():
        connection.execute(insert(DeliveryRow), [row] * 5000)
    execute(engine, "ANALYZE")
    queries: list[tuple[str, Any]] = []
    event.listen(engine, "before_cursor_execute", lambda *arguments: queries.append((arguments[2], arguments[3])))
    assert len(webhooks.due(())) == 1
    ((query, values),) = [one for one in queries if "deliveries" in one[0]]
    explain = "EXPLAIN QUERY PLAN " if engine.dialect.name == "sqlite" else "EXPLAIN "
    with engine.connect() as connection:
        plan = "\n".join(map(str, connection.exec_driver_sql(explain + query, values)))
    assert "ix_deliveries_webhook_id_state_next_at_id" in plan, plan
    assert not re.search("(SCAN|Seq Scan on) deliveries|Sort|TEMP B-TREE", plan), plan


def test_dead_deliveries_can_be_replayed(
    engine: Engine, webhooks: WebhookRepository, staff: Gallery, clock: Clock
) -> None:
    hook, _ = webhooks.create(URL, None, ["match"])
    other, _ = webhooks.create("http://other", None, ["review"])
    recorded = [record(engine, staff) for _ in range(3)]
    for _ in recorded:
        webhooks.mark_failed(claim(webhooks), "x" * 1000, None)
    clock.at += timedelta(days=365)
    assert webhooks.due(()) == []
    dead = webhooks.deliveries(hook.id, DEAD)
    assert [one.event_id for one in dead] == recorded
    assert {len(one.problem or "") for one in dead} == {200}
    assert webhooks.deliveries(hook.id, DEAD, after=dead[0].id, limit=1) == [dead[1]]
    assert webhooks.get(hook.id).dead == 3
    assert webhooks.replay(other.id) == 0
    assert webhooks.replay(hook.id) == 3
    assert (webhooks.get(hook.id).dead, webhooks.get(hook.id).waiting) == (0, 3)
    assert webhooks.replay(hook.id) == 0
    again = claim(webhooks)
    assert (again.id, again.attempts) == (dead[0].id, 1)


def test_late_failure_does_not_affect_next_attempt(
    engine: Engine, webhooks: WebhookRepository, staff: Gallery, clock: Clock
) -> None:
    hook, _ = webhooks.create(URL, None, ["match"])
    record(engine, staff)
    late = claim(webhooks)
    clock.at += LEASE
    claim(webhooks)
    webhooks.mark_failed(late, "slow", None)
    (waiting,) = webhooks.deliveries(hook.id, WAITING)
    assert (waiting.problem, waiting.next_at) == (None, clock.at + LEASE)


def test_clock_set_back_delays_delivery_at_most_one_wait(
    engine: Engine, webhooks: WebhookRepository, staff: Gallery, clock: Clock
) -> None:
    webhooks.create(URL, None, ["match"])
    record(engine, staff)
    clock.at -= timedelta(days=30)
    claimed = claim(webhooks)
    webhooks.mark_failed(claimed, "answered 500", MAX_WAIT, MAX_WAIT)
    assert webhooks.due(()) == []
    clock.at -= timedelta(days=30)
    assert claim(webhooks).id == claimed.id


def test_deliveries_are_deleted_with_webhook_gallery_and_event(
    engine: Engine, webhooks: WebhookRepository, staff: Gallery
) -> None:
    visitors = make_gallery(Store(engine), "visitors")
    hook, _ = webhooks.create(URL, None, ["match"])
    of_staff, _ = webhooks.create(URL, staff, ["match"])
    for gallery in (staff, visitors):
        record(engine, gallery)
    assert [len(webhooks.deliveries(one.id, WAITING)) for one in (hook, of_staff)] == [2, 1]
    Store(engine).galleries.delete("staff")
    assert [one.id for one in webhooks.list()] == [hook.id]
    assert webhooks.get(hook.id).waiting == 1
    assert webhooks.delete(hook.id).waiting == 1
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM deliveries")).scalar() == 0
