"""`Idempotency-Key`: a POST that is made twice is done once (draft-ietf-httpapi-idempotency-key-header-07).

The first request with a key is answered as any other, and its answer kept before it is sent. The same request again
gets that answer; where the route says so (`Memory`), it is answered anew, from what was kept in place of the answer.
Bodies are hashed as they stream by, and never held for it.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from indexer.errors import InvalidRequest, WhosthereError
from indexer.gallery.schema import MAX_NAME_LENGTH
from search_service.api.errors import KeyReused, RequestInProgress, domain_error
from search_service.service_context import ServiceContext
from search_service.store.idempotency import LEASE_SECONDS, Claim, Pending, StoredAnswer

log = logging.getLogger(__name__)

HEADER, REPLAYED = "Idempotency-Key", "Idempotency-Replayed"

CHANGES_NOTHING = frozenset({"/v1/detect", "/v1/compare", "/v1/embed"})
"""POSTs for which no answer is kept: made again, they are answered again."""

NOT_KEPT = frozenset({401, 403, 408, 413, 429})
"""What says nothing of the request itself, like everything from 500 on: it may be answered otherwise soon."""

KEPT_HEADERS = ("content-type", "etag", "location")
"""What of an answer's headers is given again: the rest belongs to one connection, or one moment."""

ALIVE_SECONDS = LEASE_SECONDS / 5
"""How often whoever answers requests says so: four times before they are taken over."""

BOUNDARY = re.compile(r'boundary="?([^";]+)', re.IGNORECASE)


@dataclass
class Memory:
    """For a route whose answer must not be given again as it was, as it names people who may be gone by then. What the
    route keeps here is kept in place of its answer. When the request is made again, it finds that in `then`, must
    change nothing, and answers as things are."""

    then: bytes | None = None
    keep: bytes | None = None


def memory_of(request: Request) -> Memory:
    """Nothing is kept of a request without an Idempotency-Key."""
    found: Memory = getattr(request.state, "memory", None) or Memory()
    return found


class Idempotency:
    """ASGI middleware, inside of whatever finds out who asks: each caller has keys of their own."""

    def __init__(self, app: ASGIApp, context: ServiceContext) -> None:
        self._app = app
        self._context = context
        self._alive = _Alive(context)

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
            if isinstance(claim, StoredAnswer):
                messages = await self._again(claim, scope, body)
            else:
                messages = await self._first(claim, scope, body)
        except WhosthereError as error:
            await domain_error(Request(scope), error)(scope, receive, send)
            return
        for message in messages:
            await send(message)

    async def _first(self, claim: Claim, scope: Scope, body: _Hashed) -> list[Message]:
        """Answers, and keeps the answer before it is sent. Raises RequestInProgress when this process was held up for
        so long that another one took the request over: what that one answers is the answer."""
        memory, answer, is_ours = Memory(), None, True
        with self._alive.holding(claim):
            try:
                messages = await self._answered(scope, body, memory)
                answer = await _to_keep(messages, body, memory)
            finally:
                is_ours = await run_in_threadpool(self._end, claim, answer)
        if not is_ours:
            raise RequestInProgress(f"another worker answers this {HEADER} meanwhile; try again soon")
        return messages

    async def _again(self, stored: StoredAnswer, scope: Scope, body: _Hashed) -> list[Message]:
        """Raises KeyReused. A request that is answered anew is known by its head to be for the same route, which
        changes nothing, before it is known by its body to be the same."""
        anew = stored.headers is None and stored.body.startswith(body.head)
        memory = Memory(then=stored.body.removeprefix(body.head))
        messages = await self._answered(scope, body, memory) if anew else _messages(stored)
        await body.drain()
        if body.sha256() != stored.request_sha256:
            raise KeyReused(f"the {HEADER} was used for another request; take a new one for each")
        if messages and messages[0]["status"] == stored.status:
            messages[0]["headers"] = [*messages[0]["headers"], (REPLAYED.lower().encode(), b"true")]
        return messages

    async def _answered(self, scope: Scope, body: _Hashed, memory: Memory) -> list[Message]:
        messages: list[Message] = []

        async def take(message: Message) -> None:
            messages.append(message)

        scope.setdefault("state", {})["memory"] = memory
        await self._app(scope, body.receive, take)
        return messages

    def _claim(self, owner: str, key: str) -> Claim | Pending | StoredAnswer:
        return self._context.idempotency.claim(owner, key)

    def _end(self, claim: Claim, answer: StoredAnswer | None) -> bool:
        """Keeps the answer, or lets the key go; False where another one has it. A request that was answered is not
        failed because that cannot be written: its key goes when nobody says any more that they are alive."""
        try:
            if answer is not None:
                return self._context.idempotency.put(claim, answer)
            self._context.idempotency.release(claim)
        except WhosthereError as error:
            log.warning("the answer to an Idempotency-Key could not be kept: %s", error.message)
        return True


class _Alive:
    """Says of the requests that are being answered here that they are. It does so from a thread of its own, which no
    busy event loop and no full thread pool keeps waiting; it ends when there is nothing to say."""

    def __init__(self, context: ServiceContext) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._held: set[Claim] = set()
        self._runs = False

    @contextmanager
    def holding(self, claim: Claim) -> Iterator[None]:
        with self._lock:
            self._held.add(claim)
            if not self._runs:
                self._runs = True
                threading.Thread(target=self._run, name="idempotency", daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                self._held.discard(claim)

    def _run(self) -> None:
        while True:
            time.sleep(ALIVE_SECONDS)
            with self._lock:
                held = list(self._held)
                self._runs = bool(held)
            if not held:
                return
            try:
                self._context.idempotency.renew(held)
            except WhosthereError as error:
                log.warning("held Idempotency-Keys could not be renewed: %s", error.message)
            except Exception:
                log.exception("held Idempotency-Keys could not be renewed")


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
        self.head = self._hash.digest()
        """Of all but the body."""

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


async def _to_keep(messages: list[Message], body: _Hashed, memory: Memory) -> StoredAnswer | None:
    """The answer as it is to be given again, or what it is to be made from; None where the request is to be tried
    again."""
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
    if status < 400 and memory.keep is not None:
        return StoredAnswer(body.sha256(), status, None, body.head + memory.keep)
    kept = {name: headers[name] for name in KEPT_HEADERS if name in headers}
    return StoredAnswer(body.sha256(), status, kept, b"".join(message.get("body", b"") for message in messages[1:]))


def _messages(stored: StoredAnswer) -> list[Message]:
    """The answer that was kept."""
    answer = Response(stored.body, stored.status, stored.headers)
    return [
        {"type": "http.response.start", "status": answer.status_code, "headers": answer.raw_headers},
        {"type": "http.response.body", "body": answer.body},
    ]


def _owner(scope: Scope) -> str:
    """Id of the API key that asks; empty without one."""
    key = scope.get("state", {}).get("key")
    return "" if key is None else str(key.id)


def _checked(given: list[str]) -> str:
    """Raises InvalidRequest."""
    key = given[0]
    if len(given) > 1 or not (1 <= len(key) <= MAX_NAME_LENGTH and key.isascii() and key.isprintable()):
        raise InvalidRequest(
            f"{HEADER} must be one of 1 to {MAX_NAME_LENGTH} printable ASCII characters; got {given!r}"
        )
    return key
