"""Bounds what a connection may send and how long it may take before the application sees a request.

uvicorn bounds neither the request line, headers and trailers nor the time they take. Its `limit_concurrency` refuses
those who come last, so that connections that send nothing lock everybody else out; `timeout_keep_alive` begins after an
answer only.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from http import HTTPStatus
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from math import inf
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from indexer.settings import Settings

MAX_HEAD_BYTES = 32 * 2**10
"""Of a request line and headers, of trailers, and of the line before a chunk; the same as in nginx
(`large_client_header_buffers 4 8k`)."""

MAX_HEADERS = 100
"""Headers, or trailers, of a request; the same as in Apache (`LimitRequestFields`)."""

MAX_PIPELINED = 16
"""Requests that may wait on a connection behind the one that is answered. Each takes about 3 kB, of 18 bytes sent."""

HEAD_SECONDS = 30.0
"""How long the headers of a request may take, from the connection or the last answer, and the rest of a body whose
request is answered already; the same as nginx's `lingering_time`."""

SEND_SECONDS = 60.0
"""How long none of an answer may be taken; the same as nginx's `send_timeout`."""

LINGER_SECONDS = 2.0
"""How long a refused connection is read on, or its caller, still sending, would get a reset instead of the answer."""


@dataclass(frozen=True)
class ConnectionLimits:
    """How many connections a process keeps."""

    total: int
    per_address: int
    proxies: tuple[IPv4Network | IPv6Network, ...]
    """Addresses that hold the connections of many callers, and are limited by the total only."""

    def make_room(self, new: BoundedProtocol, connections: Collection[Any]) -> bool:
        """Returns whether there is room for a new connection, after ending others."""
        same = [one for one in connections if one is not new and one.address == new.address]
        if not self._is_proxy(new.address) and not _has_room(same, self.per_address):
            return False
        return _has_room([one for one in connections if one is not new], self.total)

    def _is_proxy(self, address: str) -> bool:
        try:
            return any(ip_address(address) in network for network in self.proxies)
        except ValueError:  # a Unix socket
            return True


def _has_room(connections: Collection[BoundedProtocol], most: int) -> bool:
    """Returns whether one more may be there, after ending the one that is worth least if necessary."""
    if len(connections) < most:
        return True
    waiting = [one for one in connections if one.rank is not Rank.ANSWERED]
    if waiting:
        min(waiting, key=lambda one: (one.rank, one.heard_at)).give_way()
    return bool(waiting)


def protocol_of(settings: Settings) -> Any:
    """Returns what uvicorn takes as `http`; it can be pickled for workers."""
    proxies = tuple(ip_network(network) for network in settings.trusted_proxies.split(",") if network)
    limits = ConnectionLimits(settings.max_connections, settings.max_connections_per_address, proxies)
    return partial(BoundedProtocol, limits=limits)


class Rank(IntEnum):
    """Which of several connections is ended first."""

    IDLE = 0
    """No request was received in full, as far as its headers."""
    WAITING = 1
    """A request waits for its caller, who has not sent all of the body, or does not take the answer."""
    ANSWERED = 2
    """A request is being answered. It is not ended."""


class _TooLarge(Exception):
    """Raised in callbacks of the parser, which ends parsing."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection.

    When there are too many, the one from which nothing was received for longest gives way to a new one, first of those
    without a request. So callers that send or receive slowly, or nothing, keep nobody out; a new connection is refused
    (503) only while a request is being answered on each of the others.
    """

    def __init__(self, *args: Any, limits: ConnectionLimits, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heard_at = 0.0
        """When something was received last, or an answer ended, by `time.monotonic`: uvloop counts milliseconds."""
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._is_in_head = self._is_too_large = self._is_refused = False
        self._head_bytes = self._head_fields = 0
        """Of the headers, or trailers, that are parsed."""
        self._unparsed = 0
        """Bytes received since the parser completed something."""
        self._unsent: float = inf
        """Bytes of answers that were not sent yet when the timer last ended."""

    @property
    def is_busy(self) -> bool:
        """Whether a request is being answered."""
        cycle: Any = self.cycle  # None before the first request
        return cycle is not None and not cycle.response_complete

    @property
    def rank(self) -> Rank:
        if not self.is_busy:
            return Rank.IDLE
        return Rank.WAITING if self.cycle.more_body or self.flow.write_paused else Rank.ANSWERED

    @property
    def address(self) -> str:
        """The IP address of the other end; empty for a Unix socket."""
        return self.client[0] if self.client else ""

    def give_way(self) -> None:
        """Ends the connection, so that another one has room."""
        self.connections.discard(self)
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_waiting()
        if not self._limits.make_room(self, self.connections):
            self._refuse(503, "overloaded", "requests are being answered on all connections; try again soon")
            self.connections.discard(self)
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self.heard_at = time.monotonic()
        self._unparsed += len(data)
        super().data_received(data)
        if self._unparsed > MAX_HEAD_BYTES and not self._is_refused:
            self._refuse_size()

    def on_message_begin(self) -> None:
        self._is_in_head = True
        self._head_bytes = self._head_fields = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url), fields=0)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value), fields=1)
        if self._is_in_head:  # uvicorn appends trailers to the headers, past proxies that check headers only
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise _TooLarge
        self._is_in_head = False
        self._head_bytes = self._head_fields = self._unparsed = 0
        self._stop_timer()
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        self._unparsed = 0

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unparsed = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()  # may begin to answer the next request
        if not self.is_busy:
            self._start_waiting()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_timer(SEND_SECONDS)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.is_busy:
            self._stop_timer()

    def send_400_response(self, msg: str) -> None:
        """Answers a request that the parser, or a callback above, refuses."""
        if self._is_too_large:
            self._refuse_size()
        else:
            self._refuse(400, "invalid_request", "the request is not valid HTTP/1.1")

    def _count(self, size: int, fields: int) -> None:
        """Raises _TooLarge."""
        self._head_bytes += size
        self._head_fields += fields
        if self._head_bytes > MAX_HEAD_BYTES or self._head_fields > MAX_HEADERS:
            self._is_too_large = True
            raise _TooLarge

    def _refuse_size(self) -> None:
        message = f"request line and headers may have {MAX_HEAD_BYTES:,} bytes, and the request {MAX_HEADERS} headers"
        self._refuse(431, "headers_too_large", message)

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answers an error in place of the request that is received, and ends the connection."""
        self._is_refused = True
        if self.pipeline or (self.is_busy and self.cycle.response_started):  # the answer would be part of another one
            self.transport.close()
            return
        if self.is_busy:  # its trailers are refused
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write(_error(status, code, message))
        if self.flow.read_paused or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self._start_timer(LINGER_SECONDS)

    def _start_waiting(self) -> None:
        """Begins the time that the next request may take."""
        self.heard_at = time.monotonic()
        self._start_timer(HEAD_SECONDS)

    def _start_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._time_out)

    def _stop_timer(self) -> None:
        self._unsent = inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self) -> None:
        """Ends the connection, unless some of an answer was sent since the last call."""
        unsent = self.transport.get_write_buffer_size()
        if 0 < unsent < self._unsent:
            self._start_timer(SEND_SECONDS)
            self._unsent = unsent
        elif self._is_in_head and not (self._is_refused or unsent):
            self._refuse(408, "headers_too_slow", f"the headers of the request took more than {HEAD_SECONDS:g} seconds")
        else:
            self.transport.abort()


def _error(status: int, code: str, message: str) -> bytes:
    """Returns a whole answer. It does not depend on the application, which has not seen the request."""
    request_id = uuid.uuid4().hex
    body = json.dumps({"error": {"code": code, "message": message, "details": {}}, "request_id": request_id})
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        f"x-request-id: {request_id}",
        *(["retry-after: 1"] if status == 503 else []),
        "connection: close",
    )
    return "\r\n".join((*head, "", body)).encode("ascii")
