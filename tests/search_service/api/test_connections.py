"""What a connection may send, and how long it may take, before the application sees a request."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from indexer.settings import read_settings
from search_service.api import connections
from search_service.api.connections import MAX_HEAD_BYTES, MAX_HEADERS, MAX_PIPELINED, Rank, protocol_of
from tests.search_service.api.serving import Running
from tests.waiting import DEADLINE, wait_for

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = (
    b"POST /v1/galleries HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"
)
LONG = b"a" * (MAX_HEAD_BYTES + 1)

TOO_LARGE = {
    "request line": b"GET /" + LONG + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "header": GET + b"X-A: " + LONG + b"\r\n\r\n",
    "header without end": GET + b"X-A: " + 10 * LONG,
    "name of a header": GET + LONG + b": a\r\n\r\n",
    "headers": GET + b"X-A: a\r\n" * (MAX_HEADERS + 1) + b"\r\n",
    "empty lines": b"\r\n" * MAX_HEAD_BYTES,
    "trailer": CHUNKED + b"0\r\nX-A: " + LONG + b"\r\n\r\n",
    "trailer without end": CHUNKED + b"0\r\nX-A: " + 10 * LONG,
    "trailers": CHUNKED + b"0\r\n" + b"X-A: a\r\n" * (MAX_HEADERS + 1) + b"\r\n",
    "line of a chunk": CHUNKED + b"1;a=" + 10 * LONG,
}


def connect(url: str, source: str = "127.0.0.1") -> socket.socket:
    port = int(url.rpartition(":")[2])
    return socket.create_connection(("127.0.0.1", port), DEADLINE, source_address=(source, 0))


def answered(connection: socket.socket) -> bytes:
    """Returns everything that is received until the other end closes."""
    received = b""
    with suppress(ConnectionError):
        while more := connection.recv(2**16):
            received += more
    return received


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize("what", TOO_LARGE)
def test_what_comes_before_and_after_a_body_is_bounded(service: Running, what: str) -> None:
    with connect(service.url) as connection:
        connection.sendall(TOO_LARGE[what])
        answer = answered(connection)
    assert status(answer) == 431
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert body["error"]["code"] == "headers_too_large"
    assert body["request_id"].encode() in answer.partition(b"\r\n\r\n")[0]


def test_headers_up_to_the_bounds_are_taken(service: Running) -> None:
    longest = GET + b"X-A: " + b"a" * (MAX_HEAD_BYTES - 100) + b"\r\n"
    most = GET + b"X-A: a\r\n" * (MAX_HEADERS - 2)
    for head in (longest, most):
        with connect(service.url) as connection:
            connection.sendall(head + b"Connection: close\r\n\r\n")
            assert status(answered(connection)) == 200


def test_what_is_not_http_is_refused_in_the_shape_of_every_error(service: Running) -> None:
    with connect(service.url) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        answer = answered(connection)
    assert status(answer) == 400
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_request"


def test_trailers_do_not_become_headers(service: Running) -> None:
    with connect(service.url) as connection:
        connection.sendall(CHUNKED + b"0\r\nX-Request-ID: trailer\r\nIdempotency-Key: trailer\r\n\r\n")
        answer = connection.recv(2**16)
    assert status(answer) == 400
    assert b"trailer" not in answer


class Small:
    """An application behind the connections of the service, of which there may be 8, and 4 of one address."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.waiting = self.hung_up = 0
        settings = read_settings({}, max_connections=8, max_connections_per_address=4, trusted_proxies="")
        config = uvicorn.Config(
            self._app,
            port=0,
            http=protocol_of(settings),
            interface="asgi3",
            lifespan="off",
            log_config=None,
            timeout_keep_alive=1000,
        )
        self.server = uvicorn.Server(config)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"

    @property
    def connected(self) -> int:
        return len(self.server.server_state.connections)

    def ranks(self) -> list[Rank]:
        connected: set[Any] = self.server.server_state.connections
        return [one.rank for one in list(connected)]

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/wait":
            self.waiting += 1
            await asyncio.to_thread(self.go_on.wait, DEADLINE)
        while scope["path"] == "/read" and (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/stream":
            await receive()
            gone = asyncio.ensure_future(receive())
            while not gone.done():
                await send({"type": "http.response.body", "body": bytes(2**20), "more_body": True})
            self.hung_up += 1
        await send({"type": "http.response.body", "body": b"x"})


@pytest.fixture
def small() -> Iterator[Small]:
    small = Small()
    thread = threading.Thread(target=small.server.run)
    thread.start()
    try:
        wait_for(lambda: small.server.started, "the server starts")
        yield small
    finally:
        small.go_on.set()
        small.server.should_exit = small.server.force_exit = True
        thread.join(DEADLINE)


WAIT = b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n"
BODY = b"POST /read HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhalf"
STREAM = b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n"
CLOSE = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
ADDRESSES = ("127.0.0.2", "127.0.0.3", "127.0.0.4")


@pytest.mark.parametrize("sent", [b"", CLOSE[:20]])
def test_a_connection_without_a_request_gives_way_to_a_new_one(small: Small, sent: bytes) -> None:
    with ExitStack() as stack:
        opened = []
        for number, address in enumerate([*ADDRESSES[:2] * 4, ADDRESSES[2]]):
            opened.append(stack.enter_context(connect(small.url, address)))
            opened[-1].sendall(sent)
            wait_for(lambda number=number: small.connected == min(number + 1, 8), "the connection")  # type: ignore[misc]
        assert answered(opened[0]) == b""
        opened[-1].sendall(CLOSE.removeprefix(sent))
        assert status(answered(opened[-1])) == 200


def test_one_address_has_a_share_of_the_connections(small: Small) -> None:
    with ExitStack() as stack:
        for number in range(4):
            stack.enter_context(connect(small.url, ADDRESSES[0])).sendall(WAIT)
            wait_for(lambda number=number: small.waiting == number + 1, "the request")  # type: ignore[misc]
        with connect(small.url, ADDRESSES[0]) as refused:
            answer = answered(refused)
        assert status(answer) == 503
        assert b"retry-after: 1" in answer
        with connect(small.url, ADDRESSES[1]) as other:
            other.sendall(CLOSE)
            assert status(answered(other)) == 200


@pytest.mark.parametrize("slow", [BODY, STREAM])
def test_callers_that_send_or_receive_slowly_give_way(small: Small, slow: bytes) -> None:
    with ExitStack() as stack:
        opened = [stack.enter_context(connect(small.url, address)) for address in ADDRESSES[:2] * 4]
        for connection in opened:
            connection.sendall(slow)
        wait_for(lambda: small.ranks() == [Rank.WAITING] * 8, "the requests")
        with connect(small.url, ADDRESSES[2]) as new:
            new.sendall(CLOSE)
            assert status(answered(new)) == 200


def test_connections_with_requests_do_not_give_way(small: Small) -> None:
    with ExitStack() as stack:
        opened = [stack.enter_context(connect(small.url, address)) for address in ADDRESSES[:2] * 4]
        for connection in opened:
            connection.sendall(WAIT)
        wait_for(lambda: small.waiting == 8, "the requests")
        with connect(small.url, ADDRESSES[2]) as refused:
            assert status(answered(refused)) == 503
        small.go_on.set()
        assert [status(connection.recv(2**16)) for connection in opened] == [200] * 8


def test_trusted_proxies_have_no_limit_of_their_own(service: Running) -> None:
    most = service.context.settings.max_connections_per_address
    with ExitStack() as stack:
        opened = [stack.enter_context(connect(service.url)) for _ in range(most + 1)]
        for connection in (opened[0], opened[-1]):
            connection.sendall(GET + b"\r\n")
            assert status(connection.recv(2**16)) == 200


@pytest.mark.parametrize(
    ("sent", "answers"),
    [(b"", []), (GET, [408]), (WAIT[:-2], [408]), (CLOSE.replace(b"close", b"") + GET, [200, 408])],
)
def test_slow_headers_are_refused_and_silent_connections_closed(
    small: Small, monkeypatch: pytest.MonkeyPatch, sent: bytes, answers: list[int]
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    with connect(small.url) as connection:
        connection.sendall(sent)
        answer = answered(connection)
    assert [int(code) for code in re.findall(rb"HTTP/1.1 (\d+) ", answer)] == answers


def test_the_rest_of_a_body_that_was_answered_has_a_deadline(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    with connect(small.url) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n")
        assert status(connection.recv(2**16)) == 200

        def is_closed() -> bool:
            try:
                connection.sendall(b"x")
            except OSError:
                return True
            return False

        wait_for(is_closed, "the connection is closed")


def test_a_caller_that_takes_nothing_of_an_answer_is_disconnected(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "SEND_SECONDS", 0.1)
    with connect(small.url) as connection:
        connection.sendall(STREAM)
        wait_for(lambda: small.hung_up == 1, "the caller is disconnected")


@pytest.mark.parametrize(("pipelined", "answers"), [(MAX_PIPELINED, MAX_PIPELINED + 1), (10 * MAX_PIPELINED, 0)])
def test_pipelined_requests_are_bounded(small: Small, pipelined: int, answers: int) -> None:
    with connect(small.url) as connection:
        connection.sendall(WAIT)
        wait_for(lambda: small.waiting == 1, "the request")
        connection.sendall(CLOSE.replace(b"close", b"keep-alive") * (pipelined - 1) + CLOSE)
        if not answers:
            wait_for(lambda: small.connected == 0, "the connection is closed")
        small.go_on.set()
        assert answered(connection).count(b"HTTP/1.1 200 ") == answers
