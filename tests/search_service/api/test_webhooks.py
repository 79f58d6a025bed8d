"""/v1/webhooks, and deliveries of a service that is killed."""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from search_service.store.webhooks import ClaimedDelivery
from tests import photos as sources
from tests.search_service.api.conftest import new_home
from tests.search_service.api.serving import Running, command, image, ok, refused, serving
from tests.search_service.background.receiver import HANG, Receiver, genuine, receiving
from tests.waiting import wait_for

DOOR = {"record": "true", "device": "north-door"}


@pytest.fixture
def receiver(client: httpx.Client) -> Iterator[Receiver]:
    """Every webhook is gone after the test: the service is shared."""
    with receiving() as receiver:
        yield receiver
        for hook in ok(client.get("/v1/webhooks"))["webhooks"]:
            ok(client.delete(f"/v1/webhooks/{hook['id']}"))


@pytest.fixture
def staff(client: httpx.Client, gallery: str) -> str:
    ok(client.post(f"{gallery}/identities/collins/faces", files=image(sources.astronaut())), 201)
    return gallery


def search(client: httpx.Client, gallery: str, photo: bytes | None = None, /, **fields: str) -> Any:
    data = {**DOOR, **fields}
    answer = ok(client.post(f"{gallery}/search", files=image(photo or sources.astronaut()), data=data))
    event = dict(answer["faces"][0]["event"])
    assert event.pop("recorded")
    return event


def test_webhook_receives_the_event_as_it_is_listed(client: httpx.Client, staff: str, receiver: Receiver) -> None:
    made = ok(client.post("/v1/webhooks", json={"url": receiver.url}), 201)
    event = search(client, staff)
    wait_for(lambda: len(receiver.received) == 1, "it has arrived")
    (received,) = receiver.received
    assert received.told == {"webhook": made["id"], "event": event}
    assert genuine()(made["secret"], received.headers, received.body)


@pytest.mark.numeric
def test_webhooks_receive_events_of_their_gallery_and_decisions(
    client: httpx.Client, staff: str, receiver: Receiver, stranger: bytes
) -> None:
    name = staff.rpartition("/")[2]
    ok(client.post("/v1/galleries", json={"name": f"{name}-other"}), 201)
    for wanted in (
        {"gallery": name},
        {"gallery": f"{name}-other"},
        {"decisions": ["no_match", "review"]},
        {"gallery": name, "decisions": ["match", "no_match"]},
    ):
        ok(client.post("/v1/webhooks", json={"url": receiver.url, **wanted}), 201)
    match, no_match = search(client, staff)["id"], search(client, staff, stranger)["id"]
    wait_for(lambda: len(receiver.received) == 4, "they have arrived")
    assert sorted(receiver.events()) == [match, match, no_match, no_match]


def test_webhooks_are_created_listed_and_deleted(
    service: Running, client: httpx.Client, gallery: str, receiver: Receiver
) -> None:
    name = gallery.rpartition("/")[2]
    made = ok(client.post("/v1/webhooks", json={"url": receiver.url, "gallery": name}), 201)
    assert len(made.pop("secret")) == 64
    assert {**made, "id": "", "created_at": ""} == {
        "id": "",
        "url": receiver.url,
        "gallery": name,
        "decisions": ["match"],
        "created_at": "",
        "waiting": 0,
        "dead": 0,
    }
    assert ok(client.get(f"/v1/webhooks/{made['id']}")) == made
    assert ok(client.get("/v1/webhooks")) == {"webhooks": [made]}
    place = service.context.settings.home
    assert command(place, "webhooks", "list") == (0, [made])
    code, other = command(place, "webhooks", "create", "--url", receiver.url, "--decision", "no_match")
    assert code == 0
    assert (len(other["secret"]), other["decisions"], other["gallery"]) == (64, ["no_match"], None)
    assert len(ok(client.get("/v1/webhooks"))["webhooks"]) == 2
    assert command(place, "webhooks", "dead", other["id"]) == (0, [])
    assert command(place, "webhooks", "replay", other["id"]) == (0, {"replayed": 0})
    assert command(place, "webhooks", "delete", other["id"]) == (0, {"deleted": other["id"], "undelivered": 0})
    assert ok(client.delete(f"/v1/webhooks/{made['id']}")) == {"deleted": made["id"], "undelivered": 0}
    for suffix in ("", "/deliveries"):
        refused(client.get(f"/v1/webhooks/{made['id']}{suffix}"), 404, "webhook_not_found")
    refused(client.post(f"/v1/webhooks/{made['id']}/replay"), 404, "webhook_not_found")
    refused(client.delete(f"/v1/webhooks/{made['id']}"), 404, "webhook_not_found")


@pytest.mark.parametrize(
    ("new", "status", "code"),
    [
        ({}, 400, "invalid_request"),
        ({"url": "ftp://a"}, 400, "invalid_request"),
        ({"url": "http://user:password@a"}, 400, "invalid_request"),
        ({"url": "http://a", "gallery": "none"}, 404, "gallery_not_found"),
        ({"url": "http://a", "decisions": []}, 400, "invalid_request"),
        ({"url": "http://a", "decisions": ["maybe"]}, 400, "invalid_request"),
        ({"url": "http://a", "secret": "mine"}, 400, "invalid_request"),
    ],
)
def test_invalid_webhook_is_rejected(client: httpx.Client, new: dict[str, Any], status: int, code: str) -> None:
    refused(client.post("/v1/webhooks", json=new), status, code)
    assert ok(client.get("/v1/webhooks")) == {"webhooks": []}


def test_dead_deliveries_are_listed_and_replayed(
    service: Running, client: httpx.Client, staff: str, receiver: Receiver
) -> None:
    receiver.statuses = [500]
    hook = ok(client.post("/v1/webhooks", json={"url": receiver.url}), 201)
    path = f"/v1/webhooks/{hook['id']}"
    events = [search(client, staff, device=f"door-{n}")["id"] for n in range(3)]

    def failed() -> bool:
        shown = ok(client.get(f"{path}/deliveries", params={"state": "waiting"}))["deliveries"]
        return [one["problem"] for one in shown] == ["answered 500", None, None]

    wait_for(failed, "the first was tried once, and the others wait with it")
    webhooks, given_up = service.context.webhooks, []
    for one in webhooks.deliveries(hook["id"], "waiting")[:2]:  # as after a day of tries
        event = service.context.events.get(one.event_id)
        claimed = ClaimedDelivery(one.id, hook["id"], "", "", one.attempts, event)
        webhooks.mark_failed(claimed, "answered 500", None, timedelta(hours=1))
        given_up.append(one)
    page = ok(client.get(f"{path}/deliveries", params={"limit": "1"}))
    (dead,) = page["deliveries"]
    assert (dead["id"], dead["event_id"], dead["state"]) == (given_up[0].id, events[0], "dead")
    assert (dead["attempts"], dead["problem"], dead["webhook_id"]) == (1, "answered 500", hook["id"])
    page = ok(client.get(f"{path}/deliveries", params={"limit": "1", "cursor": page["cursor"]}))
    assert ([one["event_id"] for one in page["deliveries"]], page["cursor"]) == ([events[1]], None)
    code, reported = command(service.context.settings.home, "webhooks", "dead", hook["id"])
    assert (code, [one["id"] for one in reported]) == (0, [one.id for one in given_up])
    shown = ok(client.get(path))
    assert (shown["waiting"], shown["dead"]) == (1, 2)
    receiver.statuses = [200]
    receiver.received.clear()
    assert ok(client.post(f"{path}/replay")) == {"replayed": 2}
    wait_for(lambda: ok(client.get(path))["waiting"] == 0, "they have arrived, and so has the one that waited")
    assert sorted(receiver.events()) == events
    assert ok(client.get(path))["dead"] == 0


def test_events_are_delivered_after_the_service_was_killed(tmp_path: Path, models_folder: Path) -> None:
    """The service is killed while it records, and before the receiver has answered the first event. Every event that
    was acknowledged is there after the next start, and every event that is there arrives, under its own number."""
    home = tmp_path / "home"
    home.mkdir()
    new_home(home, models_folder)
    staff = "/v1/galleries/staff"
    acknowledged: list[int] = []
    numbers = itertools.count()

    def record(client: httpx.Client, embedding: list[float]) -> None:
        """Until the service is gone."""
        body = {"embedding": embedding, "record": True}
        with suppress(httpx.TransportError):
            while True:
                answer = ok(client.post(f"{staff}/search", json={**body, "device": f"door-{next(numbers)}"}))
                acknowledged.append(answer["faces"][0]["event"]["id"])

    with receiving(HANG) as receiver:
        port, url = receiver.port, receiver.url
        with serving(home, tmp_path / "one.log") as serve:
            ok(serve.client.post("/v1/galleries", json={"name": "staff"}), 201)
            ok(serve.client.post(f"{staff}/identities/collins/faces", files=image(sources.astronaut())), 201)
            hook = ok(serve.client.post("/v1/webhooks", json={"url": url}), 201)
            event = search(serve.ready().client, staff)
            wait_for(lambda: len(receiver.received) == 1, "it is on its way")
            embedding = ok(serve.client.post("/v1/embed", files=image(sources.astronaut())))["faces"][0]["embedding"]
            recording = [threading.Thread(target=record, args=(serve.client, embedding)) for _ in range(4)]
            for thread in recording:
                thread.start()
            wait_for(lambda: len(acknowledged) >= 20, "some were recorded")
            serve.process.send_signal(signal.SIGKILL)
            for thread in recording:
                thread.join()
            assert serve.end(signal.SIGKILL) == -signal.SIGKILL
        (first,) = receiver.received
    with receiving(port=port) as receiver, serving(home, tmp_path / "two.log") as serve:
        there = [one["id"] for one in ok(serve.client.get("/v1/events", params={"limit": 1000}))["events"]]
        assert len(acknowledged) >= 20
        assert {event["id"], *acknowledged} <= set(there)
        wait_for(lambda: ok(serve.client.get(f"/v1/webhooks/{hook['id']}"))["waiting"] == 0, "all have arrived")
        assert sorted(receiver.events()) == there
        (again,) = (one for one in receiver.received if one.told["event"]["id"] == event["id"])
        assert again.told == {"webhook": hook["id"], "event": event}
        assert again.body == first.body
        assert again.headers["X-Whosthere-Delivery"] == first.headers["X-Whosthere-Delivery"]
        check = genuine()
        assert all(check(hook["secret"], one.headers, one.body) for one in receiver.received)
    assert command(home, "doctor")[0] == 0
