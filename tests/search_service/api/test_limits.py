"""Bodies that hardly come: let go of, while those that do come are taken."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import Any

import pytest
from starlette.responses import Response
from starlette.routing import Mount
from starlette.types import Message, Receive, Scope, Send

from search_service.api.limits import LEAST_RATE, BodyLimit, is_archive, is_photos, is_said
from tests.search_service.api.serving import Running

Step = tuple[float, bytes, bool]
"""Seconds until a piece of the body comes, the piece, and whether there is more."""


def asked(
    steps: Iterable[Step], grace: float, meant: Callable[[Scope], bool] = is_photos, path: str = "/v1/detect"
) -> tuple[list[Message], list[bytes]]:
    """What is answered to a body that comes so, and what of it the application got."""
    got: list[bytes] = []
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
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
    asyncio.run(BodyLimit(app, 10**6, 10**6, meant, grace)(scope, receive, send))
    return sent, got


@pytest.mark.parametrize(
    ("meant", "path"), [(is_photos, "/v1/detect"), (is_archive, "/v1/galleries/staff/enrollments")]
)
def test_a_body_that_stops_coming_is_let_go(meant: Callable[[Scope], bool], path: str) -> None:
    sent, got = asked([(0, b"abc", True), (3600, b"", False)], 0.05, meant, path)
    assert got == [b"abc"]
    assert sent[0]["status"] == 408
    headers = dict(sent[0]["headers"])
    assert headers[b"connection"] == b"close"
    assert b'"body_too_slow"' in sent[1]["body"]
    assert b"3 bytes of the request" in sent[1]["body"]


def test_what_comes_buys_time_up_to_the_grace() -> None:
    piece = b"x" * LEAST_RATE
    steps = [(0.0 if i == 0 else 0.2, piece, i < 4) for i in range(5)]
    sent, got = asked(steps, 0.5)
    assert (sent[0]["status"], len(got)) == (200, 5)


def test_a_body_that_trickles_after_much_came_fast_is_let_go() -> None:
    fast = b"x" * LEAST_RATE * 1000
    sent, got = asked([(0, fast, True), *[(0.2, b"y", True)] * 100], 0.5)
    assert sent[0]["status"] == 408
    assert 1 <= len(got) <= 4


def test_what_was_there_already_is_taken_however_late_it_is_asked_for() -> None:
    sent, got = asked([(0, b"abc", True), (0, b"def", False)], 1e-9)
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
