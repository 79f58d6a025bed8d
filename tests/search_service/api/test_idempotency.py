"""A POST with an `Idempotency-Key` that is sent twice is executed once."""

from __future__ import annotations

import io
import json
import threading
import uuid
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from indexer.settings import read_settings
from search_service.service_context import ServiceContext
from search_service.store.idempotency import LEASE_SECONDS, Claim, IdempotencyStore
from search_service.store.schema import AnswerRow
from tests import photos as sources
from tests.indexer.gallery.together import in_threads
from tests.search_service.api.conftest import MAX_BODY_BYTES, new_home
from tests.search_service.api.serving import Running, base64_of, image, ok, refused, serving
from tests.variants import SETTINGS
from tests.waiting import DEADLINE, wait_for


def keyed(key: str | None = None) -> dict[str, str]:
    return {"Idempotency-Key": key or uuid.uuid4().hex}


def check_replayed(answer: httpx.Response, first: httpx.Response) -> None:
    """Checks that it is the first answer, sent again."""
    assert "idempotency-replayed" not in first.headers
    assert answer.headers["idempotency-replayed"] == "true"
    assert (answer.status_code, answer.content) == (first.status_code, first.content)
    for name in ("content-type", "content-length", "etag"):
        assert answer.headers.get(name) == first.headers.get(name)
    assert answer.headers["x-request-id"] != first.headers["x-request-id"]


def test_a_gallery_is_created_once(client: httpx.Client) -> None:
    name = f"g-{uuid.uuid4().hex}"
    first, second = (keyed() for _ in range(2))
    created = client.post("/v1/galleries", json={"name": name}, headers=first)
    ok(created, 201)
    check_replayed(client.post("/v1/galleries", json={"name": name}, headers=first), created)
    exists = client.post("/v1/galleries", json={"name": name}, headers=second)
    refused(exists, 409, "gallery_exists")
    check_replayed(client.post("/v1/galleries", json={"name": name}, headers=second), exists)
    ok(client.delete(f"/v1/galleries/{name}"))
    check_replayed(client.post("/v1/galleries", json={"name": name}, headers=first), created)
    refused(client.get(f"/v1/galleries/{name}"), 404, "gallery_not_found")


def test_every_post_that_changes_something_is_executed_once(client: httpx.Client, gallery: str) -> None:
    data = sources.astronaut()
    ok(client.put(f"{gallery}/identities/ben", json={}), 201)
    posts: list[tuple[str, dict[str, Any]]] = [
        ("identities", {"json": {"external_id": "ana"}}),
        ("identities/collins/faces", {"files": image(data)}),
        ("identities/collins/faces", {"files": [*image(data).items(), *image(b"no image").items()]}),
        ("identities/collins/faces", {"files": image(b"no image")}),
        ("identities/ana/merge", {"json": {"other": "ben"}}),
        ("search", {"files": image(data), "data": {"record": "true", "device": "door"}}),
    ]
    for path, asked in posts:
        key = keyed()
        first = client.post(f"{gallery}/{path}", headers=key, **asked)
        assert first.status_code < 500
        check_replayed(client.post(f"{gallery}/{path}", headers=key, **asked), first)
        without = client.post(f"{gallery}/{path}", **asked)
        assert "idempotency-replayed" not in without.headers
    shown = ok(client.get(gallery))
    assert (shown["identities"], shown["faces"]) == (2, 1)


def test_a_repeated_search_without_events_is_answered_from_the_present_state(
    client: httpx.Client, gallery: str
) -> None:
    key, files = keyed(), image(sources.astronaut())
    ok(client.post(f"{gallery}/identities/collins/faces", files=files), 201)
    first = client.post(f"{gallery}/search", files=files, headers=key)
    assert [c["external_id"] for c in ok(first)["faces"][0]["candidates"]] == ["collins"]
    ok(client.delete(f"{gallery}/identities/collins"))
    then = client.post(f"{gallery}/search", files=files, headers=key)
    assert ok(then)["faces"][0]["candidates"] == []
    assert "idempotency-replayed" not in then.headers


def test_a_repeated_search_with_events_names_no_deleted_person(
    client: httpx.Client, service: Running, gallery: str
) -> None:
    """It is searched again, and returns the first event as long as that is about the same person."""
    key, files = keyed(), image(sources.astronaut())
    data = {"record": "true", "device": "door", "cooldown": "0"}
    asked: dict[str, Any] = {"files": files, "data": data, "headers": key}
    ok(client.post(f"{gallery}/identities/collins/faces", files=files), 201)
    first = client.post(f"{gallery}/search", **asked)
    assert ok(first)["faces"][0]["event"]["recorded"]
    check_replayed(client.post(f"{gallery}/search", **asked), first)
    ok(client.patch(f"{gallery}/identities/collins", json={"valid_until": "2020-01-01"}))
    (expired,) = ok(client.post(f"{gallery}/search", **asked))["faces"]
    assert (expired["candidates"], expired["event"]) == ([], None)
    ok(client.patch(f"{gallery}/identities/collins", json={"valid_until": None}))
    check_replayed(client.post(f"{gallery}/search", **asked), first)
    ok(client.delete(f"{gallery}/identities/collins"))
    gone = client.post(f"{gallery}/search", **asked)
    assert "collins" not in gone.text
    assert ok(gone)["faces"][0]["event"] is None
    assert gone.headers["idempotency-replayed"] == "true"
    ok(client.post(f"{gallery}/identities/collins/faces", files=files), 201)  # another person, under the same id
    (anew,) = ok(client.post(f"{gallery}/search", **asked))["faces"]
    assert (anew["decision"], anew["event"]) == ("match", None)
    events = ok(client.get("/v1/events", params={"gallery": gallery.rpartition("/")[2]}))["events"]
    assert len(events) == 1, "created again, it records nothing"
    with Session(service.context.engine) as session:
        (kept,) = session.scalars(select(AnswerRow).where(AnswerRow.key == key["Idempotency-Key"]))
    assert b"collins" not in (kept.body or b""), "nothing personal is stored"


def test_a_repeated_search_of_several_images_returns_the_same_events(client: httpx.Client, gallery: str) -> None:
    astronaut = sources.astronaut()
    photos = [("images", ("a.jpg", data)) for data in (astronaut, b"no image", sources.six_people(), astronaut)]
    data = {"record": "true", "device": "door", "all_faces": "true"}
    asked: dict[str, Any] = {"files": photos, "data": data, "headers": keyed()}
    ok(client.post(f"{gallery}/identities/collins/faces", files=image(astronaut)), 201)
    first = client.post(f"{gallery}/search", **asked)
    events = [face["event"] for answer in ok(first)["answers"] for face in answer["faces"]]
    assert {event["recorded"] for event in events} == {True, False}, "within the cooldown the same again"
    check_replayed(client.post(f"{gallery}/search", **asked), first)
    forgotten = {"gallery": gallery.rpartition("/")[2], "external_id": "collins"}
    assert ok(client.delete("/v1/events", params=forgotten)) == {"forgotten": 1}
    then = ok(client.post(f"{gallery}/search", **asked))["answers"]
    left = [face["event"] for answer in then for face in answer["faces"]]
    assert left == [None if event["external_id"] == "collins" else event for event in events]


def test_the_key_of_a_search_with_events_is_refused_for_other_requests(client: httpx.Client, gallery: str) -> None:
    key, files = keyed(), image(sources.astronaut(), "a.jpg")
    record = {"record": "true", "device": "door"}
    ok(client.post(f"{gallery}/search", files=files, data=record, headers=key))
    others: list[tuple[str, dict[str, Any]]] = [
        ("search", {"files": files, "data": {**record, "device": "gate"}}),
        ("search", {"files": files}),
        ("search", {"json": {"image": base64_of(sources.astronaut()), **record}}),
        ("identities/ana/faces", {"files": files}),
        ("identities", {"json": {"external_id": "ana"}}),
    ]
    for path, asked in others:
        refused(client.post(f"{gallery}/{path}", headers=key, **asked), 422, "idempotency_key_reused")
    assert ok(client.get(gallery))["identities"] == 0
    events = ok(client.get("/v1/events", params={"gallery": gallery.rpartition("/")[2]}))["events"]
    assert [event["device"] for event in events] == ["door"]


def test_a_repeated_bulk_enrollment_is_one_job(client: httpx.Client, gallery: str) -> None:
    key, packed = keyed(), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("collins/1.png", sources.astronaut())
    for name, asked in (
        ("zip", {"content": packed.getvalue(), "headers": key | {"Content-Type": "application/zip"}}),
        ("form", {"files": {"archive": ("staff.zip", packed.getvalue())}, "headers": keyed()}),
    ):
        first = client.post(f"{gallery}/enrollments", **asked)
        assert first.status_code == 202, (name, first.text)
        answer = client.post(f"{gallery}/enrollments", **asked)
        check_replayed(answer, first)
        assert answer.headers["location"] == first.headers["location"]
    jobs = ok(client.get("/v1/jobs", params={"gallery": gallery.rpartition("/")[2]}))["jobs"]
    assert len(jobs) == 2


def test_a_key_is_refused_for_another_request(client: httpx.Client, gallery: str) -> None:
    key, data = keyed(), sources.astronaut()
    path = f"{gallery}/identities/collins/faces"
    first = client.post(path, files=image(data, "a.jpg"), headers=key)
    ok(first, 201)
    for other_path, asked in (
        (path, {"files": image(data + b"\0", "a.jpg")}),
        (path, {"files": image(data, "b.jpg")}),
        (path, {"files": image(data, "a.jpg"), "data": {"pick": "center"}}),
        (path, {"json": {"image": base64_of(data)}}),
        (f"{gallery}/identities/another/faces", {"files": image(data, "a.jpg")}),
        (f"{gallery}/search", {"files": image(data, "a.jpg")}),
    ):
        answer = client.post(other_path, headers=key, **asked)
        assert "Idempotency-Key" in refused(answer, 422, "idempotency_key_reused")["message"]
    check_replayed(client.post(path, files=image(data, "a.jpg"), headers=key), first)
    assert ok(client.get(gallery))["identities"] == 1


def test_a_key_that_another_worker_holds_is_in_progress_until_its_lease_ends(
    client: httpx.Client, service: Running, gallery: str
) -> None:
    key, asked = keyed(), {"external_id": "ana"}
    elsewhere = IdempotencyStore(service.context.engine)
    claim = elsewhere.claim("", key["Idempotency-Key"])
    assert isinstance(claim, Claim)
    answer = client.post(f"{gallery}/identities", json=asked, headers=key)
    refused(answer, 409, "request_in_progress")
    assert int(answer.headers["retry-after"]) > 0
    refused(client.get(f"{gallery}/identities/ana"), 404, "identity_not_found")
    with Session(service.context.engine) as session, session.begin():  # as if it was killed some time ago
        row = update(AnswerRow).where(AnswerRow.key == claim.key)
        session.execute(row.values(locked_until=datetime.now(UTC) - timedelta(seconds=1)))
    first = client.post(f"{gallery}/identities", json=asked, headers=key)
    ok(first, 201)
    elsewhere.release(claim)
    check_replayed(client.post(f"{gallery}/identities", json=asked, headers=key), first)


def test_of_simultaneous_requests_one_is_executed(service: Running, gallery: str) -> None:
    key = keyed()

    def post() -> httpx.Response:
        with service.client() as client:
            return client.post(f"{gallery}/identities", json={"external_id": "ana"}, headers=key)

    answers = in_threads([post] * 8)
    done = [answer for answer in answers if answer.status_code == 201]
    assert len({answer.content for answer in done}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in done) == 1
    for answer in answers:
        if answer not in done:
            refused(answer, 409, "request_in_progress")


@pytest.mark.parametrize("key", ["", "x" * 201, "a\tb", "é".encode().decode("latin-1")])
def test_an_invalid_key_is_refused(client: httpx.Client, gallery: str, key: str) -> None:
    headers = [(b"Idempotency-Key", key.encode("latin-1"))]
    answer = client.post(f"{gallery}/identities", json={"external_id": "ana"}, headers=headers)
    assert "Idempotency-Key must be" in refused(answer, 400, "invalid_request")["message"]
    assert ok(client.get(f"{gallery}/identities"))["identities"] == []


def test_a_request_that_is_too_large_does_not_use_up_its_key(client: httpx.Client, gallery: str) -> None:
    key, path = keyed(), f"{gallery}/identities/collins/faces"
    refused(client.post(path, files=image(bytes(MAX_BODY_BYTES)), headers=key), 413, "body_too_large")
    first = client.post(path, files=image(sources.astronaut()), headers=key)
    ok(first, 201)
    refused(client.post(path, files=image(bytes(MAX_BODY_BYTES)), headers=key), 413, "body_too_large")
    check_replayed(client.post(path, files=image(sources.astronaut()), headers=key), first)


def test_two_keys_in_one_request_are_refused(client: httpx.Client, gallery: str) -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    refused(client.post(f"{gallery}/identities", json={"external_id": "a"}, headers=headers), 400, "invalid_request")


def test_requests_that_change_nothing_are_executed_again(client: httpx.Client, service: Running, gallery: str) -> None:
    key = keyed()
    for _ in range(2):
        answer = client.post("/v1/embed", files=image(sources.astronaut()), headers=key)
        assert "idempotency-replayed" not in answer.headers
    for method in ("PUT", "PATCH"):
        answer = client.request(method, f"{gallery}/identities/ana", json={}, headers=key)
        assert answer.status_code in (200, 201)
    with Session(service.context.engine) as session:
        assert session.scalar(select(AnswerRow).where(AnswerRow.key == key["Idempotency-Key"])) is None


def test_the_request_of_a_killed_worker_is_executed_once_by_another(tmp_path: Path, models_folder: Path) -> None:
    """Its key is in progress until its lease ends; then the request is executed, once."""
    place = new_home(tmp_path, models_folder)
    path, key, go_on = "/v1/galleries/staff/identities", keyed("k"), threading.Event()
    body = json.dumps({"external_id": "ana"}).encode()

    def in_halves() -> Iterator[bytes]:
        yield body[:5]
        assert go_on.wait(DEADLINE)
        yield body[5:]

    with serving(place, tmp_path / "first.log") as first, ThreadPoolExecutor(1) as pool:
        ok(first.client.post("/v1/galleries", json={"name": "staff"}), 201)
        headers = key | {"Content-Type": "application/json", "Content-Length": str(len(body))}
        asked = pool.submit(first.client.post, path, content=in_halves(), headers=headers)
        home = ServiceContext(read_settings(SETTINGS, home=place))
        wait_for(lambda: _row(home) is not None, "the request has its key")
        first.process.kill()
        first.process.wait(DEADLINE)
        go_on.set()
        with pytest.raises(httpx.HTTPError):
            asked.result(DEADLINE)
    with serving(place, tmp_path / "second.log") as second:
        ask = partial(second.client.post, path, content=body, headers=key | {"Content-Type": "application/json"})
        lock_until(home, timedelta(seconds=LEASE_SECONDS))  # starting may have taken longer than the claim lasts
        refused(ask(), 409, "request_in_progress")
        lock_until(home, timedelta(seconds=-1))
        answer = ask()
        ok(answer, 201)
        check_replayed(ask(), answer)
    assert [person.external_id for person in home.store.identities.list(home.store.galleries.get("staff").id)] == [
        "ana"
    ]
    home.close()


def lock_until(home: ServiceContext, from_now: timedelta) -> None:
    with Session(home.engine) as session, session.begin():
        session.execute(update(AnswerRow).values(locked_until=datetime.now(UTC) + from_now))


def _row(home: ServiceContext) -> AnswerRow | None:
    with Session(home.engine) as session:
        return session.scalar(select(AnswerRow))
