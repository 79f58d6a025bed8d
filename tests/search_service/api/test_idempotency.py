"""A POST that is made twice is done once: over the service, and around a small app that answers what it is told to."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import uuid
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session
from starlette.types import Receive, Scope, Send

from indexer.settings import read_settings
from search_service.api.middleware import idempotency
from search_service.api.middleware.idempotency import Idempotency
from search_service.service_context import ServiceContext
from search_service.store.idempotency import LEASE_SECONDS, Claim, IdempotencyStore
from search_service.store.schema import AnswerRow
from tests import photos as sources
from tests.indexer.gallery.together import in_threads
from tests.search_service.api.conftest import MAX_BODY_BYTES, new_home
from tests.search_service.api.serving import Running, base64_of, image, ok, refused, serving
from tests.variants import SETTINGS
from tests.waiting import DEADLINE, wait_for

BIG = 8 * 2**20


def keyed(key: str | None = None) -> dict[str, str]:
    return {"Idempotency-Key": key or uuid.uuid4().hex}


def again(answer: httpx.Response, first: httpx.Response) -> None:
    """Whether it is the first answer, given again."""
    assert "idempotency-replayed" not in first.headers
    assert answer.headers["idempotency-replayed"] == "true"
    assert (answer.status_code, answer.content) == (first.status_code, first.content)
    for name in ("content-type", "content-length", "etag"):
        assert answer.headers.get(name) == first.headers.get(name)
    assert answer.headers["x-request-id"] != first.headers["x-request-id"]


# Over the service


def test_a_gallery_is_made_once(client: httpx.Client) -> None:
    name = f"g-{uuid.uuid4().hex}"
    first, second = (keyed() for _ in range(2))
    made = client.post("/v1/galleries", json={"name": name}, headers=first)
    ok(made, 201)
    again(client.post("/v1/galleries", json={"name": name}, headers=first), made)
    exists = client.post("/v1/galleries", json={"name": name}, headers=second)
    refused(exists, 409, "gallery_exists")
    again(client.post("/v1/galleries", json={"name": name}, headers=second), exists)
    ok(client.delete(f"/v1/galleries/{name}"))
    again(client.post("/v1/galleries", json={"name": name}, headers=first), made)
    refused(client.get(f"/v1/galleries/{name}"), 404, "gallery_not_found")


def test_every_post_that_changes_something(client: httpx.Client, gallery: str) -> None:
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
        again(client.post(f"{gallery}/{path}", headers=key, **asked), first)
        without = client.post(f"{gallery}/{path}", **asked)
        assert "idempotency-replayed" not in without.headers
    shown = ok(client.get(gallery))
    assert (shown["identities"], shown["faces"]) == (2, 1)


def test_a_search_that_changes_nothing_is_answered_as_things_are_then(client: httpx.Client, gallery: str) -> None:
    key, files = keyed(), image(sources.astronaut())
    ok(client.post(f"{gallery}/identities/collins/faces", files=files), 201)
    first = client.post(f"{gallery}/search", files=files, headers=key)
    assert [c["external_id"] for c in ok(first)["faces"][0]["candidates"]] == ["collins"]
    ok(client.delete(f"{gallery}/identities/collins"))
    then = client.post(f"{gallery}/search", files=files, headers=key)
    assert ok(then)["faces"][0]["candidates"] == []
    assert "idempotency-replayed" not in then.headers


def test_a_search_that_recorded_names_nobody_who_is_gone(client: httpx.Client, service: Running, gallery: str) -> None:
    """It is searched anew, and tells the event that was recorded then as long as that tells of the same person."""
    key, files = keyed(), image(sources.astronaut())
    data = {"record": "true", "device": "door", "cooldown": "0"}
    asked: dict[str, Any] = {"files": files, "data": data, "headers": key}
    ok(client.post(f"{gallery}/identities/collins/faces", files=files), 201)
    first = client.post(f"{gallery}/search", **asked)
    assert ok(first)["faces"][0]["event"]["recorded"]
    again(client.post(f"{gallery}/search", **asked), first)
    ok(client.patch(f"{gallery}/identities/collins", json={"valid_until": "2020-01-01"}))
    (expired,) = ok(client.post(f"{gallery}/search", **asked))["faces"]
    assert (expired["candidates"], expired["event"]) == ([], None)
    ok(client.patch(f"{gallery}/identities/collins", json={"valid_until": None}))
    again(client.post(f"{gallery}/search", **asked), first)
    ok(client.delete(f"{gallery}/identities/collins"))
    gone = client.post(f"{gallery}/search", **asked)
    assert "collins" not in gone.text
    assert ok(gone)["faces"][0]["event"] is None
    assert gone.headers["idempotency-replayed"] == "true"
    ok(client.post(f"{gallery}/identities/collins/faces", files=files), 201)  # somebody else, under the same id
    (anew,) = ok(client.post(f"{gallery}/search", **asked))["faces"]
    assert (anew["decision"], anew["event"]) == ("match", None)
    events = ok(client.get("/v1/events", params={"gallery": gallery.rpartition("/")[2]}))["events"]
    assert len(events) == 1, "made again, it records nothing"
    with Session(service.context.engine) as session:
        (kept,) = session.scalars(select(AnswerRow).where(AnswerRow.key == key["Idempotency-Key"]))
    assert b"collins" not in (kept.body or b""), "nothing personal lies in what is kept"


def test_a_search_of_several_that_recorded_tells_the_same_events(client: httpx.Client, gallery: str) -> None:
    astronaut = sources.astronaut()
    photos = [("images", ("a.jpg", data)) for data in (astronaut, b"no image", sources.six_people(), astronaut)]
    data = {"record": "true", "device": "door", "all_faces": "true"}
    asked: dict[str, Any] = {"files": photos, "data": data, "headers": keyed()}
    ok(client.post(f"{gallery}/identities/collins/faces", files=image(astronaut)), 201)
    first = client.post(f"{gallery}/search", **asked)
    events = [face["event"] for answer in ok(first)["answers"] for face in answer["faces"]]
    assert {event["recorded"] for event in events} == {True, False}, "within the cooldown the same again"
    again(client.post(f"{gallery}/search", **asked), first)
    forgotten = {"gallery": gallery.rpartition("/")[2], "external_id": "collins"}
    assert ok(client.delete("/v1/events", params=forgotten)) == {"forgotten": 1}
    then = ok(client.post(f"{gallery}/search", **asked))["answers"]
    left = [face["event"] for answer in then for face in answer["faces"]]
    assert left == [None if event["external_id"] == "collins" else event for event in events]


def test_a_key_of_a_search_that_recorded_is_for_no_other_request(client: httpx.Client, gallery: str) -> None:
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


def test_a_bulk_enrolment_is_one_job(client: httpx.Client, gallery: str) -> None:
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
        again(answer, first)
        assert answer.headers["location"] == first.headers["location"]
    jobs = ok(client.get("/v1/jobs", params={"gallery": gallery.rpartition("/")[2]}))["jobs"]
    assert len(jobs) == 2


def test_a_key_is_for_one_request(client: httpx.Client, gallery: str) -> None:
    key, data = keyed(), sources.astronaut()
    path = f"{gallery}/identities/collins/faces"
    first = client.post(path, files=image(data, "a.jpg"), headers=key)
    ok(first, 201)
    for other_path, asked in (
        (path, {"files": image(data + b"\0", "a.jpg")}),
        (path, {"files": image(data, "b.jpg")}),
        (path, {"files": image(data, "a.jpg"), "data": {"pick": "center"}}),
        (path, {"json": {"image": base64_of(data)}}),
        (f"{path}?x=1", {"files": image(data, "a.jpg")}),
        (f"{gallery}/identities/another/faces", {"files": image(data, "a.jpg")}),
        (f"{gallery}/search", {"files": image(data, "a.jpg")}),
    ):
        answer = client.post(other_path, headers=key, **asked)
        assert "Idempotency-Key" in refused(answer, 422, "idempotency_key_reused")["message"]
    again(client.post(path, files=image(data, "a.jpg"), headers=key), first)
    assert ok(client.get(gallery))["identities"] == 1


def test_a_key_that_another_worker_answers_is_in_progress(client: httpx.Client, service: Running, gallery: str) -> None:
    key, asked = keyed(), {"external_id": "ana"}
    elsewhere = IdempotencyStore(service.context.engine)
    claim = elsewhere.claim("", key["Idempotency-Key"])
    assert isinstance(claim, Claim)
    answer = client.post(f"{gallery}/identities", json=asked, headers=key)
    refused(answer, 409, "request_in_progress")
    assert int(answer.headers["retry-after"]) > 0
    refused(client.get(f"{gallery}/identities/ana"), 404, "identity_not_found")
    with Session(service.context.engine) as session, session.begin():  # it was killed, and time went by
        row = update(AnswerRow).where(AnswerRow.key == claim.key)
        session.execute(row.values(locked_until=datetime.now(UTC) - timedelta(seconds=1)))
    first = client.post(f"{gallery}/identities", json=asked, headers=key)
    ok(first, 201)
    elsewhere.release(claim)
    again(client.post(f"{gallery}/identities", json=asked, headers=key), first)


def test_of_many_at_once_one_is_done(service: Running, gallery: str) -> None:
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
def test_a_bad_key_is_refused(client: httpx.Client, gallery: str, key: str) -> None:
    headers = [(b"Idempotency-Key", key.encode("latin-1"))]
    answer = client.post(f"{gallery}/identities", json={"external_id": "ana"}, headers=headers)
    assert "Idempotency-Key must be" in refused(answer, 400, "invalid_request")["message"]
    assert ok(client.get(f"{gallery}/identities"))["identities"] == []


def test_a_request_that_is_too_large_is_no_first_one(client: httpx.Client, gallery: str) -> None:
    key, path = keyed(), f"{gallery}/identities/collins/faces"
    refused(client.post(path, files=image(bytes(MAX_BODY_BYTES)), headers=key), 413, "body_too_large")
    first = client.post(path, files=image(sources.astronaut()), headers=key)
    ok(first, 201)
    refused(client.post(path, files=image(bytes(MAX_BODY_BYTES)), headers=key), 413, "body_too_large")
    again(client.post(path, files=image(sources.astronaut()), headers=key), first)


def test_two_keys_are_none(client: httpx.Client, gallery: str) -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    refused(client.post(f"{gallery}/identities", json={"external_id": "a"}, headers=headers), 400, "invalid_request")


def test_what_changes_nothing_is_answered_again(client: httpx.Client, service: Running, gallery: str) -> None:
    key = keyed()
    for _ in range(2):
        answer = client.post("/v1/embed", files=image(sources.astronaut()), headers=key)
        assert "idempotency-replayed" not in answer.headers
    for method in ("PUT", "PATCH"):
        answer = client.request(method, f"{gallery}/identities/ana", json={}, headers=key)
        assert answer.status_code in (200, 201)
    with Session(service.context.engine) as session:
        assert session.scalar(select(AnswerRow).where(AnswerRow.key == key["Idempotency-Key"])) is None


# Around a small app


class Scripted:
    """An app that answers with what is next in its script, after it has read the body or not."""

    def __init__(self) -> None:
        self.script: list[tuple[int, dict[str, str]] | Exception] = []
        self.asked = 0
        self.reads = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked += 1
        step = self.script.pop(0)
        while self.reads and (await receive()).get("more_body"):
            pass
        if isinstance(step, Exception):
            raise step
        status, headers = step
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": b"one, ", "more_body": True})
        await send({"type": "http.response.body", "body": str(self.asked).encode()})


@pytest.fixture
def scripted() -> Scripted:
    return Scripted()


@pytest.fixture
def around(scripted: Scripted, home: ServiceContext) -> Callable[..., httpx.Response]:
    """Posts through the middleware, once each call."""
    app = Idempotency(scripted, home)

    def post(*, key: str = "k", content: Any = b"body", owner: str | None = None, **more: Any) -> httpx.Response:
        async def as_owner(scope: Scope, receive: Receive, send: Send) -> None:
            state = {} if owner is None else {"key": type("Key", (), {"id": owner})()}
            await app({**scope, "state": state}, receive, send)

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(as_owner)
            async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
                return await client.post("/x", content=content, headers=keyed(key) | more.get("headers", {}))

        return asyncio.run(ask())

    return post


@pytest.mark.parametrize("status", [200, 201, 202, 204, 303, 400, 404, 409, 412, 422])
def test_an_answer_is_kept(scripted: Scripted, around: Callable[..., httpx.Response], status: int) -> None:
    scripted.script = [(status, {"content-type": "text/plain", "etag": '"1"', "location": "/y", "x-secret": "s"})]
    first, second = around(), around()
    assert scripted.asked == 1
    assert (second.status_code, second.content) == (status, b"one, 1") == (first.status_code, first.content)
    assert "x-secret" in first.headers
    kept = {"content-type": "text/plain", "etag": '"1"', "location": "/y", "idempotency-replayed": "true"}
    assert {name: value for name, value in second.headers.items() if name != "content-length"} == kept


@pytest.mark.parametrize("status", [401, 403, 408, 413, 429, 500, 503])
def test_what_may_be_otherwise_soon_is_not_kept(
    scripted: Scripted, around: Callable[..., httpx.Response], status: int
) -> None:
    scripted.script = [(status, {}), (201, {})]
    assert [around().status_code for _ in range(3)] == [status, 201, 201]
    assert scripted.asked == 2


def test_a_failure_frees_the_key(scripted: Scripted, around: Callable[..., httpx.Response]) -> None:
    scripted.script = [RuntimeError("a bug"), (201, {})]
    with pytest.raises(RuntimeError, match="a bug"):
        around()
    assert around().status_code == 201


def test_a_secret_is_not_kept(scripted: Scripted, around: Callable[..., httpx.Response]) -> None:
    scripted.script = [(201, {"cache-control": "private, no-store"}), (409, {})]
    assert [around().status_code for _ in range(2)] == [201, 409]


def test_each_api_key_has_keys_of_its_own(scripted: Scripted, around: Callable[..., httpx.Response]) -> None:
    scripted.script = [(201, {})] * 3
    owners = (None, "key1", "key2") * 2
    assert [around(owner=owner).content for owner in owners] == [b"one, 1", b"one, 2", b"one, 3"] * 2


def test_a_body_is_hashed_however_it_comes(scripted: Scripted, around: Callable[..., httpx.Response]) -> None:
    scripted.script = [(201, {})]

    async def pieces(size: int) -> AsyncIterator[bytes]:
        data = bytes(range(256)) * (BIG // 256)
        for start in range(0, BIG, size):
            yield data[start : start + size]

    assert [around(content=pieces(size)).content for size in (2**16, 2**20 + 7, BIG)] == [b"one, 1"] * 3
    assert around(content=b"x" * BIG).json()["error"]["code"] == "idempotency_key_reused"


def test_a_body_that_was_not_read_is_read_for_its_hash(
    scripted: Scripted, around: Callable[..., httpx.Response]
) -> None:
    scripted.reads = False
    scripted.script = [(404, {}), (204, {})]
    assert [around().status_code for _ in range(3)] == [404, 204, 204]
    assert around(content=b"other").status_code == 422


def form(boundary: str, value: bytes) -> tuple[bytes, dict[str, str]]:
    edge = b"--" + boundary.encode()
    part = edge + b'\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + value + b"\r\n"
    return part * 2 + edge + b"--\r\n", {"Content-Type": f"multipart/form-data; boundary={boundary}"}


async def bytewise(data: bytes) -> AsyncIterator[bytes]:
    for at in range(len(data)):
        yield data[at : at + 1]


def test_the_boundary_of_a_form_is_not_part_of_it(scripted: Scripted, around: Callable[..., httpx.Response]) -> None:
    scripted.script = [(201, {})]
    for boundary in ("xyz", "ababc", "-" * 20 + "7", "z"):
        body, headers = form(boundary, b"aaab-abab--")
        for content in (body, bytewise(body)):
            assert around(content=content, headers=headers).content == b"one, 1"
    body, headers = form("xyz", b"aaab-abab-")
    assert around(content=body, headers=headers).status_code == 422


def test_a_boundary_that_is_found_in_a_value_too(scripted: Scripted, around: Callable[..., httpx.Response]) -> None:
    scripted.script = [(201, {})]
    body, headers = form("aa", b"aaaaabaaa")
    for content in (body, bytewise(body)):
        assert around(content=content, headers=headers).content == b"one, 1"


def test_whoever_answers_for_long_says_that_it_is_alive(
    scripted: Scripted, around: Callable[..., httpx.Response], home: ServiceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "RENEWAL_SECONDS", 0.01)
    seen: list[datetime] = []

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        def locked_until() -> datetime:
            with Session(home.engine) as session:
                (locked,) = session.scalars(select(AnswerRow.locked_until))
            return locked

        seen.append(locked_until())
        wait_for(lambda: locked_until() != seen[0], "it has said so, though the event loop is busy with this")
        seen.append(locked_until())
        await scripted(scope, receive, send)

    scripted.script = [(201, {})]
    app = Idempotency(slow, home)

    async def post() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
            return await client.post("/x", headers=keyed("k"))

    assert asyncio.run(asyncio.wait_for(post(), DEADLINE)).status_code == 201
    assert seen[1] > seen[0]
    assert asyncio.run(post()).headers["idempotency-replayed"] == "true"


def test_whoever_was_held_up_tells_what_the_other_one_answered(scripted: Scripted, home: ServiceContext) -> None:
    """As a process that was stopped, or whose machine was: its request is taken over and answered meanwhile."""
    answers: list[httpx.Response] = []

    async def post() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
            return await client.post("/x", headers=keyed("k"))

    async def held_up(scope: Scope, receive: Receive, send: Send) -> None:
        if not scripted.asked:
            scripted.asked = 1
            with Session(home.engine) as session, session.begin():
                session.execute(update(AnswerRow).values(locked_until=datetime.now(UTC) - timedelta(seconds=1)))
            answers.append(await post())
        await scripted(scope, receive, send)

    app = Idempotency(held_up, home)
    scripted.script = [(201, {}), (200, {})]
    late = asyncio.run(post())
    assert (late.status_code, late.json()["error"]["code"]) == (409, "request_in_progress")
    assert int(late.headers["retry-after"]) > 0
    for answer in (*answers, asyncio.run(post())):
        assert (answer.status_code, answer.content) == (201, b"one, 2")


# With a process that is killed


def test_a_worker_that_is_killed_while_it_answers(tmp_path: Path, models_folder: Path) -> None:
    """Its key is in progress until it is taken for dead; then the request is done, once."""
    place = new_home(tmp_path, models_folder)
    path, key, go_on = "/v1/galleries/staff/identities", keyed("k"), threading.Event()
    said = json.dumps({"external_id": "ana"}).encode()

    def halting() -> Iterator[bytes]:
        yield said[:5]
        assert go_on.wait(DEADLINE)
        yield said[5:]

    with serving(place, tmp_path / "first.log") as first, ThreadPoolExecutor(1) as pool:
        ok(first.client.post("/v1/galleries", json={"name": "staff"}), 201)
        headers = key | {"Content-Type": "application/json", "Content-Length": str(len(said))}
        asked = pool.submit(first.client.post, path, content=halting(), headers=headers)
        home = ServiceContext(read_settings(SETTINGS, home=place))
        wait_for(lambda: _row(home) is not None, "the request has its key")
        first.process.kill()
        first.process.wait(DEADLINE)
        go_on.set()
        with pytest.raises(httpx.HTTPError):
            asked.result(DEADLINE)
    with serving(place, tmp_path / "second.log") as second:
        ask = partial(second.client.post, path, content=said, headers=key | {"Content-Type": "application/json"})
        lock_until(home, timedelta(seconds=LEASE_SECONDS))  # starting may have taken longer than the claim lasts
        refused(ask(), 409, "request_in_progress")
        lock_until(home, timedelta(seconds=-1))
        answer = ask()
        ok(answer, 201)
        again(ask(), answer)
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
