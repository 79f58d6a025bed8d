"""Bodies are limited while they arrive: slow ones are refused, and only some routes take large ones."""

from __future__ import annotations

import asyncio
import re
import selectors
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import count, product
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from indexer.errors import Overloaded
from search_service.api.middleware import input_limits
from search_service.api.middleware.access import Access
from search_service.api.middleware.input_limits import LEAST_RATE, BodyLimit, InputLimits
from search_service.api.permissions import BodyKind
from tests.search_service.api.endpoints import endpoints
from tests.search_service.api.serving import Running

Step = tuple[float, bytes, bool]
"""Seconds until a piece of the body arrives, the piece, and whether there is more."""


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
    monkeypatch.setattr(input_limits, "time", SimpleNamespace(monotonic=loop.time))
    return loop


def send_body(
    loop: JumpingLoop,
    steps: Iterable[Step],
    grace: float,
    kind: BodyKind = BodyKind.IMAGES,
    late: float = 0,
    held: int = 0,
) -> tuple[list[Message], list[bytes]]:
    """Returns what is answered to a body that arrives in these steps, and what of it the application received.

    The application asks for each piece `late` seconds after the one before. Of the 1,000,000 bytes that bodies may have
    together, another caller has `held`.
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

    arriving = iter(steps)

    async def receive() -> Message:
        seconds, piece, more = next(arriving)
        if seconds:  # uvicorn hands over what has arrived at once
            await asyncio.sleep(seconds)
        return {"type": "http.request", "body": piece, "more_body": more}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Any = {"type": "http", "method": "POST", "headers": [], "state": {"body_kind": kind}, "query_string": b""}
    limit = BodyLimit(10**6, 10**6, hold_seconds=10)
    limit.hold("other", held)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(InputLimits(app, {kind: limit}, grace)(scope, receive, send))
    assert limit.held == held
    return sent, got


@pytest.mark.parametrize("kind", BodyKind)
def test_a_body_that_stops_arriving_is_refused_with_408(loop: JumpingLoop, kind: BodyKind) -> None:
    sent, got = send_body(loop, [(0, b"abc", True), (3600, b"", False)], 0.05, kind)
    assert got == [b"abc"]
    assert sent[0]["status"] == 408
    headers = dict(sent[0]["headers"])
    assert headers[b"connection"] == b"close"
    assert b'"body_too_slow"' in sent[1]["body"]
    assert b"3 bytes of the request" in sent[1]["body"]


def test_received_bytes_extend_the_time_up_to_the_grace(loop: JumpingLoop) -> None:
    piece = b"x" * LEAST_RATE
    steps = [(0.0 if i == 0 else 0.2, piece, i < 4) for i in range(5)]
    sent, got = send_body(loop, steps, 0.5)
    assert (sent[0]["status"], len(got)) == (200, 5)


def test_a_body_that_trickles_after_a_fast_start_is_refused(loop: JumpingLoop) -> None:
    fast = b"x" * LEAST_RATE * 1000
    sent, got = send_body(loop, [(0, fast, True), *[(0.2, b"y", True)] * 100], 0.5)
    assert sent[0]["status"] == 408
    assert len(got) == 3


@pytest.mark.parametrize(
    ("held", "rate", "status"),
    [(0, 2 * LEAST_RATE, 200), (600_000, 2 * LEAST_RATE, 408), (600_000, 20_000, 200)],
)
def test_a_body_must_arrive_faster_the_more_it_holds_while_much_is_held(
    loop: JumpingLoop, held: int, rate: int, status: int
) -> None:
    steps = [(0, b"x" * 100_000, True), *[(1, b"y" * rate, i < 4) for i in range(5)]]
    sent, _ = send_body(loop, steps, 2, held=held)
    assert sent[0]["status"] == status


def test_what_callers_may_hold_leaves_something_for_the_next_one() -> None:
    limit = BodyLimit(1000, 10_000)

    def hold_all() -> Iterator[int]:
        for caller in "abcde":
            with suppress(Overloaded):
                for taken in count():  # noqa: B007
                    limit.hold(caller, 1)
                    limit.check_room(caller, received=1)
            limit.release(caller, 1)
            yield taken

    assert list(hold_all()) == [7500, 1875, 468, 117, 30]


def test_bytes_that_have_arrived_are_taken_however_late_the_application_reads_them(loop: JumpingLoop) -> None:
    sent, got = send_body(loop, [(0, b"abc", True), (0, b"def", False)], 0.5, late=1000)
    assert (sent[0]["status"], got) == (200, [b"abc", b"def"])


NAMES = ("staff", "search", "faces", "detect", "compare", "embed", "enrollments", "identities", "a\x1fsearch", "1")
"""Names of galleries and identities, and an id: none of them changes which bodies a path takes."""


def test_only_routes_for_images_and_archives_take_large_bodies(service: Running) -> None:
    documents, declared = service.app.openapi()["paths"], service.middleware(Access).guard.routes
    kinds = Counter()  # type: ignore[var-annotated]
    for one in endpoints(service.app):
        content = documents.get(one.path, {}).get(one.method.lower(), {}).get("requestBody", {}).get("content", {})
        documented = BodyKind.IMAGES if "multipart/form-data" in content else BodyKind.JSON
        documented = BodyKind.ARCHIVE if "application/zip" in content else documented
        assert one.body is documented, f"{one.method} {one.path} does not accept the body that it documents"
        kinds[one.body] += 1
        for names in product(NAMES, repeat=one.path.count("{")):
            path = re.sub(r"\{[^}]*\}", "{}", one.path).format(*names)
            match = declared.match({"type": "http", "method": one.method, "path": path})
            assert match.body is one.body, f"{one.method} {path}"
    assert (kinds[BodyKind.IMAGES], kinds[BodyKind.ARCHIVE]) == (5, 1)
    assert kinds[BodyKind.JSON] > 30
