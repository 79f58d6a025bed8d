"""The middleware for `Idempotency-Key`, around a small application that answers from a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType, SimpleNamespace
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session
from starlette.types import Receive, Scope, Send

from search_service.api.middleware import idempotency
from search_service.api.middleware.idempotency import Idempotency
from search_service.service_context import ServiceContext
from search_service.store.schema import AnswerRow
from tests.waiting import DEADLINE, wait_for

Post = Callable[..., httpx.Response]

BIG = 8 * 2**20


class Scripted:
    """An application that answers with the next step of its script, after reading the body or not."""

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


async def post_to(
    app: Any, content: Any = b"", headers: Mapping[str, str] = MappingProxyType({}), path: str = "/x"
) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
        return await client.post(path, content=content, headers={"Idempotency-Key": "k", **headers})


@pytest.fixture
def post(scripted: Scripted, context: ServiceContext) -> Post:
    """Posts to the scripted application through the middleware."""
    app = Idempotency(scripted, context)

    def post(content: Any = b"body", owner: str | None = None, path: str = "/x", **headers: str) -> httpx.Response:
        async def as_owner(scope: Scope, receive: Receive, send: Send) -> None:
            state = {} if owner is None else {"key": SimpleNamespace(id=owner)}
            await app({**scope, "state": state}, receive, send)

        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return asyncio.run(post_to(as_owner, content, named, path))

    return post


@pytest.mark.parametrize("status", [200, 201, 202, 204, 303, 400, 404, 409, 412, 422])
def test_answers_that_depend_on_the_request_are_stored(scripted: Scripted, post: Post, status: int) -> None:
    scripted.script = [(status, {"content-type": "text/plain", "etag": '"1"', "location": "/y", "x-secret": "s"})]
    first, second = post(), post()
    assert scripted.asked == 1
    assert (second.status_code, second.content) == (status, b"one, 1") == (first.status_code, first.content)
    assert "x-secret" in first.headers
    kept = {"content-type": "text/plain", "etag": '"1"', "location": "/y", "idempotency-replayed": "true"}
    assert {name: value for name, value in second.headers.items() if name != "content-length"} == kept


@pytest.mark.parametrize("status", [401, 403, 408, 413, 429, 500, 503])
def test_answers_that_depend_on_the_moment_are_not_stored(scripted: Scripted, post: Post, status: int) -> None:
    scripted.script = [(status, {}), (201, {})]
    assert [post().status_code for _ in range(3)] == [status, 201, 201]
    assert scripted.asked == 2


@pytest.mark.parametrize("status", [400, 404, 409, 422])
def test_refused_searches_are_not_stored(scripted: Scripted, post: Post, status: int) -> None:
    scripted.script = [(status, {}), (200, {})]
    search = "/v1/galleries/staff/search"
    assert [post(path=search).status_code for _ in range(3)] == [status, 200, 200]
    scripted.script = [(status, {})]
    other = "/v1/galleries/staff/identities/search/faces"
    assert [post(path=other, owner="key").status_code for _ in range(2)] == [status, status]


def test_a_large_answer_is_not_stored_and_tells_it(
    scripted: Scripted, post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "MAX_ANSWER_BYTES", len(b"one, 1") - 1)
    scripted.script = [(201, {}), (200, {})]
    answers = [post(), post()]
    assert [answer.status_code for answer in answers] == [201, 200]
    assert [answer.headers["idempotency-stored"] for answer in answers] == ["false", "false"]
    monkeypatch.undo()
    scripted.script = [(201, {})]
    assert "idempotency-stored" not in post().headers
    assert post().headers["idempotency-replayed"] == "true"


def test_an_exception_releases_the_key(scripted: Scripted, post: Post) -> None:
    scripted.script = [RuntimeError("a bug"), (201, {})]
    with pytest.raises(RuntimeError, match="a bug"):
        post()
    assert post().status_code == 201


def test_answers_marked_no_store_are_not_stored(scripted: Scripted, post: Post) -> None:
    scripted.script = [(201, {"cache-control": "private, no-store"}), (409, {})]
    assert [post().status_code for _ in range(2)] == [201, 409]


def test_each_api_key_has_its_own_idempotency_keys(scripted: Scripted, post: Post) -> None:
    scripted.script = [(201, {})] * 3
    owners = (None, "key1", "key2") * 2
    assert [post(owner=owner).content for owner in owners] == [b"one, 1", b"one, 2", b"one, 3"] * 2


def test_the_hash_does_not_depend_on_how_a_body_is_split(scripted: Scripted, post: Post) -> None:
    scripted.script = [(201, {})]

    async def pieces(size: int) -> AsyncIterator[bytes]:
        data = bytes(range(256)) * (BIG // 256)
        for start in range(0, BIG, size):
            yield data[start : start + size]

    assert [post(content=pieces(size)).content for size in (2**16, 2**20 + 7, BIG)] == [b"one, 1"] * 3
    assert post(content=b"x" * BIG).json()["error"]["code"] == "idempotency_key_reused"


def test_a_body_that_the_application_ignored_is_hashed_too(scripted: Scripted, post: Post) -> None:
    scripted.reads = False
    scripted.script = [(404, {}), (204, {})]
    assert [post().status_code for _ in range(3)] == [404, 204, 204]
    assert post(content=b"other").status_code == 422


def form(boundary: str, value: bytes) -> tuple[bytes, str]:
    edge = b"--" + boundary.encode()
    part = edge + b'\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + value + b"\r\n"
    return part * 2 + edge + b"--\r\n", f"multipart/form-data; boundary={boundary}"


async def bytewise(data: bytes) -> AsyncIterator[bytes]:
    for at in range(len(data)):
        yield data[at : at + 1]


def test_the_boundary_of_a_form_does_not_change_its_hash(scripted: Scripted, post: Post) -> None:
    scripted.script = [(201, {})]
    for boundary in ("xyz", "ababc", "-" * 20 + "7", "z"):
        body, kind = form(boundary, b"aaab-abab--")
        for content in (body, bytewise(body)):
            assert post(content=content, content_type=kind).content == b"one, 1"
    body, kind = form("xyz", b"aaab-abab-")
    assert post(content=body, content_type=kind).status_code == 422


def test_a_boundary_may_occur_in_a_value(scripted: Scripted, post: Post) -> None:
    scripted.script = [(201, {})]
    body, kind = form("aa", b"aaaaabaaa")
    for content in (body, bytewise(body)):
        assert post(content=content, content_type=kind).content == b"one, 1"


def test_a_slow_answer_renews_its_claim(
    scripted: Scripted, context: ServiceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "RENEWAL_SECONDS", 0.01)
    seen: list[datetime] = []

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        def locked_until() -> datetime:
            with Session(context.engine) as session:
                (locked,) = session.scalars(select(AnswerRow.locked_until))
            return locked

        seen.append(locked_until())
        wait_for(lambda: locked_until() != seen[0], "the claim was renewed, although the event loop is busy")
        seen.append(locked_until())
        await scripted(scope, receive, send)

    scripted.script = [(201, {})]
    app = Idempotency(slow, context)

    assert asyncio.run(asyncio.wait_for(post_to(app), DEADLINE)).status_code == 201
    assert seen[1] > seen[0]
    assert asyncio.run(post_to(app)).headers["idempotency-replayed"] == "true"


def test_a_process_that_lost_its_claim_answers_in_progress(scripted: Scripted, context: ServiceContext) -> None:
    """A process that was suspended: another one takes its request over and answers it."""
    answers: list[httpx.Response] = []

    async def held_up(scope: Scope, receive: Receive, send: Send) -> None:
        if not scripted.asked:
            scripted.asked = 1
            with Session(context.engine) as session, session.begin():
                session.execute(update(AnswerRow).values(locked_until=datetime.now(UTC) - timedelta(seconds=1)))
            answers.append(await post_to(app))
        await scripted(scope, receive, send)

    app = Idempotency(held_up, context)
    scripted.script = [(201, {}), (200, {})]
    late = asyncio.run(post_to(app))
    assert (late.status_code, late.json()["error"]["code"]) == (409, "request_in_progress")
    assert int(late.headers["retry-after"]) > 0
    for answer in (*answers, asyncio.run(post_to(app))):
        assert (answer.status_code, answer.content) == (201, b"one, 2")
