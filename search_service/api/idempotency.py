"""`Idempotency-Key`: a POST that is made twice is done once (draft-ietf-httpapi-idempotency-key-header-07).

The first request with a key is answered as any other, and its answer kept before it is sent. The same request again
gets that answer. Bodies are hashed as they stream by, and never held for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from contextlib import suppress

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from indexer.errors import InvalidRequest, WhosthereError
from indexer.gallery.answers import LOCKED_SECONDS, Answers, Claim, Pending, Stored
from indexer.gallery.schema import LONGEST_NAME
from indexer.home import Home
from search_service.api.errors import KeyReused, RequestInProgress, domain_error

log = logging.getLogger(__name__)

HEADER, REPLAYED = "Idempotency-Key", "Idempotency-Replayed"

CHANGES_NOTHING = frozenset({"/v1/detect", "/v1/compare", "/v1/embed"})
"""POSTs for which no answer is kept: made again, they are answered again."""

NOT_KEPT = frozenset({401, 403, 408, 413, 429})
"""What says nothing of the request itself, like everything from 500 on: it may be answered otherwise soon."""

KEPT_HEADERS = ("content-type", "etag", "location")
"""What of an answer's headers is given again: the rest belongs to one connection, or one moment."""

ALIVE_SECONDS = LOCKED_SECONDS / 4
"""How often whoever answers a request says so: it may fail twice."""

BOUNDARY = re.compile(r'boundary="?([^";]+)', re.IGNORECASE)


class Idempotency:
    """ASGI middleware, inside of whatever finds out who asks: each caller has keys of their own."""

    def __init__(self, app: ASGIApp, home: Home) -> None:
        self._app = app
        self._home = home

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        posted = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] not in CHANGES_NOTHING
        given = Headers(scope=scope).getlist(HEADER) if posted else []
        if not given:
            await self._app(scope, receive, send)
            return
        body = _Hashed(scope, receive)
        try:
            claim = await run_in_threadpool(self._claim, _owner(scope), _checked(given))
            if isinstance(claim, Pending):
                raise RequestInProgress(f"a request with this {HEADER} is being answered; try again soon")
            if isinstance(claim, Stored):
                await body.drain()
                if body.sha256() != claim.request_sha256:
                    raise KeyReused(f"the {HEADER} was used for another request; take a new one for each")
                await _again(claim)(scope, receive, send)
                return
        except WhosthereError as error:
            await domain_error(Request(scope), error)(scope, receive, send)
            return
        await self._first(claim, scope, body, send)

    async def _first(self, claim: Claim, scope: Scope, body: _Hashed, send: Send) -> None:
        """Answers, and keeps the answer before it is sent."""
        held = _Held(self._home.answers, claim)
        alive = asyncio.create_task(held.stay_alive())
        messages: list[Message] = []

        async def take(message: Message) -> None:
            messages.append(message)

        answer = None
        try:
            await self._app(scope, body.receive, take)
            answer = await _to_keep(messages, body)
        finally:
            alive.cancel()
            with suppress(asyncio.CancelledError):
                await alive
            await run_in_threadpool(held.end, answer)
        for message in messages:
            await send(message)

    def _claim(self, owner: str, key: str) -> Claim | Pending | Stored:
        return self._home.answers.claim(owner, key)


class _Held:
    """A claim while its request is being answered."""

    def __init__(self, answers: Answers, claim: Claim) -> None:
        self._answers = answers
        self._claim: Claim | None = claim

    async def stay_alive(self) -> None:
        """Until it is cancelled, or another one has the claim."""
        while self._claim is not None:
            await asyncio.sleep(ALIVE_SECONDS)
            await run_in_threadpool(self._renew)  # which is waited for also by whoever cancels

    def _renew(self) -> None:
        try:
            self._claim = self._answers.renew(self._claim) if self._claim is not None else None
        except WhosthereError as error:
            log.warning("a held Idempotency-Key could not be renewed: %s", error.message)

    def end(self, answer: Stored | None) -> None:
        """Keeps the answer, or lets the key go. A request that was answered is not failed because that cannot be
        written: its key goes when nobody says any more that they are alive."""
        if self._claim is None:
            return
        try:
            if answer is None:
                self._answers.give_up(self._claim)
            else:
                self._answers.put(self._claim, answer)
        except WhosthereError as error:
            log.warning("the answer to an Idempotency-Key could not be kept: %s", error.message)


class _Hashed:
    """A request's body, hashed as it is received.

    Two requests have one hash when method, path, query, content type and body are the same. The boundary of a
    multipart body is left out: clients make up another one each time.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        kind = Headers(scope=scope).get("content-type", "")
        found = BOUNDARY.search(kind) if kind.lower().startswith("multipart/") else None
        self._boundary = found[1].encode("latin-1") if found else b""
        self._receive = receive
        self._hash = hashlib.sha256()
        self._tail = b""
        """Not hashed yet: the boundary may begin in it."""
        self.complete = False
        """Whether the whole body was received."""
        path = scope.get("raw_path") or scope["path"].encode()
        for part in (path, scope["query_string"], BOUNDARY.sub("", kind).encode()):
            self._hash.update(part + b"\0")

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._take(message.get("body", b""))
            self.complete = not message.get("more_body", False)
        return message

    async def drain(self) -> None:
        """Receives what is left of it."""
        while not self.complete:
            if (await self.receive())["type"] == "http.disconnect":
                return

    def sha256(self) -> str:
        """Of a complete one."""
        whole = self._hash.copy()
        whole.update(self._tail)
        return whole.hexdigest()

    def _take(self, data: bytes) -> None:
        if not self._boundary:
            self._hash.update(data)
            return
        *parts, rest = (self._tail + data).split(self._boundary)
        for part in parts:
            self._hash.update(part)
        at = max(len(rest) - len(self._boundary) + 1, 0)
        self._hash.update(rest[:at])
        self._tail = rest[at:]


async def _to_keep(messages: list[Message], body: _Hashed) -> Stored | None:
    """The answer as it is to be given again; None where the request is to be tried again."""
    if not messages:
        return None
    start, headers = messages[0], Headers(raw=messages[0]["headers"])
    status: int = start["status"]
    if status >= 500 or status in NOT_KEPT or "no-store" in headers.get("cache-control", ""):
        return None
    if status < 400:
        await body.drain()
    if not body.complete:  # refused before it was read
        return None
    kept = {name: headers[name] for name in KEPT_HEADERS if name in headers}
    return Stored(body.sha256(), status, kept, b"".join(message.get("body", b"") for message in messages[1:]))


def _again(answer: Stored) -> Response:
    return Response(answer.body, answer.status, {**answer.headers, REPLAYED: "true"})


def _owner(scope: Scope) -> str:
    """Id of the API key that asks; empty without one."""
    key = scope.get("state", {}).get("key")
    return "" if key is None else str(key.id)


def _checked(given: list[str]) -> str:
    """Raises InvalidRequest."""
    key = given[0]
    if len(given) > 1 or not (1 <= len(key) <= LONGEST_NAME and key.isascii() and key.isprintable()):
        raise InvalidRequest(f"{HEADER} must be one of 1 to {LONGEST_NAME} printable ASCII characters; got {given!r}")
    return key
