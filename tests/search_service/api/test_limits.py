"""Bodies that hardly come: let go of, while those that do come are taken."""

from __future__ import annotations

import asyncio
import inspect
import re
import selectors
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.responses import Response
from starlette.routing import Mount
from starlette.types import Message, Receive, Scope, Send

from search_service.api import limits
from search_service.api.limits import LEAST_RATE, BodyLimit, is_archive, is_photos, is_said
from tests.search_service.api.serving import Running

Step = tuple[float, bytes, bool]
"""Seconds until a piece of the body comes, the piece, and whether there is more."""


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        self.now = 0.0
        jumping = self

        class Selector(selectors.SelectSelector):
            def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
                jumping.now += timeout or 0
                return super().select(0)

        super().__init__(Selector())

    def time(self) -> float:
        return self.now


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> JumpingLoop:
    loop = JumpingLoop()
    monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=loop.time))
    return loop


def asked(
    loop: JumpingLoop,
    steps: Iterable[Step],
    grace: float,
    meant: Callable[[Scope], bool] = is_photos,
    path: str = "/v1/detect",
    late: float = 0,
) -> tuple[list[Message], list[bytes]]:
    """Returns what is answered to a body that arrives in these steps, and what of it the application received.

    The application asks for each piece `late` seconds after the one before.
    """
    got: list[bytes] = []
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            await asyncio.sleep(late)
            message = await receive()
            got.append(message["body"])
            more = message["more_body"]
        await Response("taken")(scope, receive, send)

    coming = iter(steps)

    async def receive() -> Message:
        seconds, piece, more = next(coming)
        if seconds:  # what is there is given at once, as uvicorn does
            await asyncio.sleep(seconds)
        return {"type": "http.request", "body": piece, "more_body": more}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Any = {"type": "http", "method": "POST", "path": path, "headers": [], "state": {}, "query_string": b""}
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(BodyLimit(app, 10**6, 10**6, meant, grace)(scope, receive, send))
    return sent, got


@pytest.mark.parametrize(
    ("meant", "path"), [(is_photos, "/v1/detect"), (is_archive, "/v1/galleries/staff/enrollments")]
)
def test_a_body_that_stops_coming_is_let_go(loop: JumpingLoop, meant: Callable[[Scope], bool], path: str) -> None:
    sent, got = asked(loop, [(0, b"abc", True), (3600, b"", False)], 0.05, meant, path)
    assert got == [b"abc"]
    assert sent[0]["status"] == 408
    headers = dict(sent[0]["headers"])
    assert headers[b"connection"] == b"close"
    assert b'"body_too_slow"' in sent[1]["body"]
    assert b"3 bytes of the request" in sent[1]["body"]


def test_what_comes_buys_time_up_to_the_grace(loop: JumpingLoop) -> None:
    piece = b"x" * LEAST_RATE
    steps = [(0.0 if i == 0 else 0.2, piece, i < 4) for i in range(5)]
    sent, got = asked(loop, steps, 0.5)
    assert (sent[0]["status"], len(got)) == (200, 5)


def test_a_body_that_trickles_after_much_came_fast_is_let_go(loop: JumpingLoop) -> None:
    fast = b"x" * LEAST_RATE * 1000
    sent, got = asked(loop, [(0, fast, True), *[(0.2, b"y", True)] * 100], 0.5)
    assert sent[0]["status"] == 408
    assert len(got) == 3


def test_what_was_there_already_is_taken_however_late_it_is_asked_for(loop: JumpingLoop) -> None:
    sent, got = asked(loop, [(0, b"abc", True), (0, b"def", False)], 0.5, late=1000)
    assert (sent[0]["status"], got) == (200, [b"abc", b"def"])


NAMES = ("staff", "search", "faces", "detect", "compare", "embed", "enrollments", "identities", "a\x1fsearch", "1")
"""Of galleries and identities, and an id: none of them changes what a path is for."""


def routes(service: Running) -> Iterator[tuple[str, str, set[str]]]:
    """Of each route its methods and path, and what its function calls."""
    for route in service.app.routes:
        included = getattr(route, "effective_route_contexts", None)  # how FastAPI 0.12x and later keep routers
        for one in included() if included else [route]:
            found: Any = getattr(one, "starlette_route", None) or one
            if not isinstance(found, Mount):
                called = set(inspect.unwrap(found.endpoint).__code__.co_names)
                yield from ((method, found.path, called) for method in found.methods)


def test_who_may_send_much_is_whoever_takes_photos_or_archives(service: Running) -> None:
    """A route that is new and takes either must be let have them, and no other may be."""
    documents = service.app.openapi()["paths"]
    kinds = []
    for method, route, called in routes(service):
        body = documents.get(route, {}).get(method.lower(), {}).get("requestBody", {}).get("content", {})
        reads = "photos" if "read_body" in called else "archive" if "receive" in called else "said"
        told = "archive" if "application/zip" in body else "photos" if "multipart/form-data" in body else "said"
        assert reads == told, f"{method} {route} does not read the body that it tells of"
        kinds.append(told)
        for names in product(NAMES, repeat=route.count("{")):
            path = re.sub(r"\{[^}]*\}", "{}", route).format(*names)
            scope: Any = {"type": "http", "method": method, "path": path}
            found = {"photos": is_photos(scope), "archive": is_archive(scope), "said": is_said(scope)}
            assert found == {kind: kind == told for kind in found}, f"{method} {path}"
    assert (kinds.count("photos"), kinds.count("archive")) == (5, 1)
    assert kinds.count("said") > 30
