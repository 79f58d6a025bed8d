"""Bodies that hardly come: let go of, while those that do come are taken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from search_service.api.limits import LEAST_RATE, BodyLimit, is_archive, is_photos

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
