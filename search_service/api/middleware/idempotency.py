"""`Idempotency-Key`: a POST that is sent twice is executed once (draft-ietf-httpapi-idempotency-key-header-07).

The first request with a key is answered like any other, and its answer stored before it is sent. The same request again
gets the stored answer, unless the route stored something else (`Memory`) to answer it from. Bodies are hashed as they
are received and never held in memory for it.
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

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from indexer.errors import InvalidRequest, WhosthereError
from indexer.gallery.schema import MAX_NAME_LENGTH
from indexer.supervision import SupervisedThread
from search_service.api.errors import KeyReused, RequestInProgress, send_error
from search_service.api.paths import route_path
from search_service.api.threads import Threads, Writers
from search_service.service_context import ServiceContext
from search_service.store.idempotency import (
    LEASE_SECONDS,
    MAX_ANSWER_BYTES,
    Claim,
    IdempotencyStore,
    Pending,
    StoredAnswer,
)

log = logging.getLogger(__name__)

HEADER, REPLAYED, STORED = "Idempotency-Key", "Idempotency-Replayed", "Idempotency-Stored"

CHANGES_NOTHING = frozenset({"/v1/detect", "/v1/compare", "/v1/embed"})
"""POST routes whose answers are not stored: a repeated request is simply executed again."""

SEARCH = re.compile(r"/v1/galleries/[^/]+/search")
"""The route whose refusals are not stored: they change nothing, and any key can cause as many as it likes."""

NOT_STORED = frozenset({401, 403, 408, 413, 429})
"""Statuses, besides 500 and above, that depend on the moment rather than on the request."""

STORED_HEADERS = ("content-type", "etag", "location")
"""Headers that are stored with an answer; the others belong to one connection or one moment."""

FINISHING = 4
"""Threads that store answers. They wait as long as it takes: what the request changed is committed."""

RENEWAL_SECONDS = LEASE_SECONDS / 5
"""How often a process renews its claims: four times before another process takes them over."""

BOUNDARY = re.compile(r'boundary="?([^";]+)', re.IGNORECASE)


@dataclass
class Memory:
    """What a route stores in place of its answer, where the answer must not be repeated as it was because it names
    people who may be deleted by then."""

    previous: bytes | None = None
    """What the route stored the first time. It must change nothing then, and answers from the present state."""
    keep: bytes | None = None
    """Set by the route: what to store."""


def memory_of(request: Request) -> Memory:
    """Returns the memory of a request; what is put there is lost if the request has no Idempotency-Key."""
    found: Memory = getattr(request.state, "memory", None) or Memory()
    return found


class Idempotency:
    """ASGI middleware, inside of the one that checks API keys: each API key has Idempotency-Keys of its own."""

    def __init__(self, app: ASGIApp, context: ServiceContext, writers: Writers | None = None) -> None:
        self.app = app
        self._context = context
        self._writers = writers or Writers()
        self._finishing = Threads(FINISHING)
        self._renewer = _ClaimRenewer(context)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        applies = scope["type"] == "http" and scope["method"] == "POST" and route_path(scope) not in CHANGES_NOTHING
        keys = Headers(scope=scope).getlist(HEADER) if applies else []
        if not keys:
            await self.app(scope, receive, send)
            return
        body = _HashedBody(scope, receive)
        try:
            claim = await self._writers.run(self._claim, _owner(scope), _checked(keys))
            if isinstance(claim, Pending):
                raise RequestInProgress(f"a request with this {HEADER} is being answered; try again soon")
            if isinstance(claim, StoredAnswer):
                messages = await self._replay(claim, scope, body)
            else:
                messages = await self._answer_first(claim, scope, body)
        except WhosthereError as error:
            await send_error(error, scope, receive, send)
            return
        for message in messages:
            await send(message)

    async def _answer_first(self, claim: Claim, scope: Scope, body: _HashedBody) -> list[Message]:
        """Returns the answer after storing it. Raises RequestInProgress if this process was stopped for so long that
        another one took the request over: then the other one's answer counts."""
        memory, answer, still_ours = Memory(), None, True
        with self._renewer.holding(claim):
            try:
                messages = await self._run_app(scope, body, memory)
                if not (_is_failure(messages) and SEARCH.fullmatch(route_path(scope))):
                    answer = await _to_store(messages, body, memory)
                if answer is not None and len(answer.body) > MAX_ANSWER_BYTES:
                    answer = None
                    messages[0]["headers"] = [*messages[0]["headers"], (STORED.lower().encode(), b"false")]
            finally:
                still_ours = await self._finishing.run(self._finish, claim, answer)
        if not still_ours:
            raise RequestInProgress(f"another worker answers this {HEADER} meanwhile; try again soon")
        return messages

    async def _replay(self, stored: StoredAnswer, scope: Scope, body: _HashedBody) -> list[Message]:
        """Returns the answer to a repeated request. Raises KeyReused for another request.

        Where the route stored something else than its answer, it runs before the body's hash is known. That changes
        nothing: the hash of the request's head, which is stored in front, shows that it is the same route.
        """
        runs_again = stored.headers is None and stored.body.startswith(body.head)
        memory = Memory(previous=stored.body.removeprefix(body.head))
        messages = await self._run_app(scope, body, memory) if runs_again else _messages(stored)
        await body.drain()
        if body.sha256() != stored.request_sha256:
            raise KeyReused(f"the {HEADER} was used for another request; take a new one for each")
        if messages and messages[0]["status"] == stored.status:
            messages[0]["headers"] = [*messages[0]["headers"], (REPLAYED.lower().encode(), b"true")]
        return messages

    async def _run_app(self, scope: Scope, body: _HashedBody, memory: Memory) -> list[Message]:
        messages: list[Message] = []

        async def collect(message: Message) -> None:
            messages.append(message)

        scope.setdefault("state", {})["memory"] = memory
        await self.app(scope, body.receive, collect)
        return messages

    def _claim(self, owner: str, key: str) -> Claim | Pending | StoredAnswer:
        return self._store.claim(owner, key)

    def _finish(self, claim: Claim, answer: StoredAnswer | None) -> bool:
        """Stores the answer, or releases the key without one. Returns False where another process has the key.

        A request that was answered does not fail because the database is gone: its key is free again when the claim is
        no longer renewed.
        """
        try:
            if answer is not None:
                return self._store.put(claim, answer)
            self._store.release(claim)
        except WhosthereError as error:
            log.warning("the answer to an Idempotency-Key could not be stored: %s", error.message)
        return True

    @property
    def _store(self) -> IdempotencyStore:
        return self._context.idempotency


class _ClaimRenewer:
    """Renews the claims of the requests that are being answered here, from a thread of its own, which no busy event
    loop and no full thread pool holds up. The thread ends when there is nothing to renew."""

    def __init__(self, context: ServiceContext) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._held: set[Claim] = set()
        self._is_running = False

    @contextmanager
    def holding(self, claim: Claim) -> Iterator[None]:
        with self._lock:
            if not self._is_running:
                SupervisedThread("idempotency", self._run).start()
                self._is_running = True
            self._held.add(claim)
        try:
            yield
        finally:
            with self._lock:
                self._held.discard(claim)

    def _run(self) -> None:
        while True:
            time.sleep(RENEWAL_SECONDS)
            with self._lock:
                held = list(self._held)
                self._is_running = bool(held)
            if not held:
                return
            try:
                self._context.idempotency.renew(held)
            except WhosthereError as error:
                log.warning("claimed Idempotency-Keys could not be renewed: %s", error.message)
            except Exception:
                log.exception("claimed Idempotency-Keys could not be renewed")


class _HashedBody:
    """A request's body, hashed as it is received.

    Two requests have the same hash if method, path, query, content type and body are the same. The boundary of a
    multipart body is left out, because clients choose a new one each time.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        content_type = Headers(scope=scope).get("content-type", "")
        boundary = BOUNDARY.search(content_type) if content_type.lower().startswith("multipart/") else None
        self.is_complete = False
        """Whether the whole body was received."""
        self._boundary = boundary[1].encode("latin-1") if boundary else b""
        self._receive = receive
        self._hash = hashlib.sha256()
        self._tail = b""
        """Not hashed yet, because the boundary may begin in it."""
        path = scope.get("raw_path") or scope["path"].encode()
        for part in (path, scope["query_string"], BOUNDARY.sub("", content_type).encode()):
            self._hash.update(part + b"\0")
        self.head = self._hash.digest()
        """Hash of everything but the body."""

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._update(message.get("body", b""))
            self.is_complete = not message.get("more_body", False)
        return message

    async def drain(self) -> None:
        """Receives the rest of the body."""
        while not self.is_complete:
            if (await self.receive())["type"] == "http.disconnect":
                return

    def sha256(self) -> str:
        """Returns the hash of the complete request, in hexadecimal."""
        whole = self._hash.copy()
        whole.update(self._tail)
        return whole.hexdigest()

    def _update(self, data: bytes) -> None:
        if not self._boundary:
            self._hash.update(data)
            return
        *parts, rest = (self._tail + data).split(self._boundary)
        for part in parts:
            self._hash.update(part)
        at = max(len(rest) - len(self._boundary) + 1, 0)
        self._hash.update(rest[:at])
        self._tail = rest[at:]


def _is_failure(messages: list[Message]) -> bool:
    return bool(messages) and messages[0]["status"] >= 400


async def _to_store(messages: list[Message], body: _HashedBody, memory: Memory) -> StoredAnswer | None:
    """Returns what to store of an answer, or None if a repeated request is to be executed again."""
    if not messages:
        return None
    status: int = messages[0]["status"]
    headers = Headers(raw=messages[0]["headers"])
    if status >= 500 or status in NOT_STORED or "no-store" in headers.get("cache-control", ""):
        return None
    if status < 400:
        await body.drain()
    if not body.is_complete:  # refused before it was read
        return None
    if status < 400 and memory.keep is not None:
        return StoredAnswer(body.sha256(), status, None, body.head + memory.keep)
    stored_headers = {name: headers[name] for name in STORED_HEADERS if name in headers}
    return StoredAnswer(
        body.sha256(), status, stored_headers, b"".join(message.get("body", b"") for message in messages[1:])
    )


def _messages(stored: StoredAnswer) -> list[Message]:
    """Returns the ASGI messages of a stored answer."""
    answer = Response(stored.body, stored.status, stored.headers)
    return [
        {"type": "http.response.start", "status": answer.status_code, "headers": answer.raw_headers},
        {"type": "http.response.body", "body": answer.body},
    ]


def _owner(scope: Scope) -> str:
    """Returns the id of the request's API key; empty without one."""
    key = scope.get("state", {}).get("key")
    return "" if key is None else str(key.id)


def _checked(keys: list[str]) -> str:
    """Returns the one Idempotency-Key of a request. Raises InvalidRequest."""
    key = keys[0]
    if len(keys) > 1 or not (1 <= len(key) <= MAX_NAME_LENGTH and key.isascii() and key.isprintable()):
        raise InvalidRequest(f"{HEADER} must be one of 1 to {MAX_NAME_LENGTH} printable ASCII characters; got {keys!r}")
    return key
