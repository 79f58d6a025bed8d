"""Refuses paths and queries that are not text, and limits bodies while they arrive, regardless of their headers."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from indexer.errors import InvalidRequest, Overloaded, WhosthereError
from search_service.api.errors import BodyTooLarge, BodyTooSlow, CallerGone, send_error
from search_service.api.paths import check_text
from search_service.api.permissions import BodyKind
from search_service.api.security import check_key_again

MAX_JSON_BYTES = 2**20
"""The largest body without photos, which is parsed on the event loop: nginx's default limit. Metadata of more would be
returned with every search."""

MAX_JSON_VALUES = 20_000
"""Commas in a body without photos, whose metadata has 16 KiB at most. Validation describes each unknown field, on the
event loop: 95,000 of them took seconds."""

GRACE_SECONDS, LEAST_RATE = 20.0, 500
"""How long a body may take: the first number of seconds, and a second more for each LEAST_RATE bytes received (more
while much is held), but never more than the first number ahead. It closes connections that send next to nothing, also
after the first 60 MB. The numbers are those of Apache's mod_reqtimeout, `body=20,MinRate=500`, which would keep such a
connection for a day."""


SHARE = 3
"""A caller may hold three times as many bytes as are still free: alone three quarters of all, and however many callers
do the same, something is left for the next one. (Dynamic thresholds of Choudhury and Hahne, IEEE/ACM Transactions on
Networking 6(2), 1998.)"""


class BodyLimit:
    """How large a body of one kind may be, alone and together with others that are not answered yet."""

    def __init__(
        self, max_bytes: int, max_bytes_together: int, hold_seconds: float = 60.0, max_values: int | None = None
    ) -> None:
        """Takes how long a body may take that arrives while more than half of `max_bytes_together` are held, as
        `hold_seconds`; and how many values a body of JSON may have."""
        self.max_bytes = max_bytes
        self.max_values = max_values
        self._max_bytes_together = max_bytes_together
        self._hold_seconds = hold_seconds
        self._held_by: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """Bytes of the requests that are being answered."""
        return self._held_by.total()

    def hold(self, caller: str, size: int) -> None:
        self._held_by[caller] += size

    def release(self, caller: str, size: int) -> None:
        self._held_by[caller] -= size
        if not self._held_by[caller]:
            del self._held_by[caller]

    def check_room(self, caller: str, received: int) -> None:
        """Raises Overloaded where a request of which so many bytes are held is too much together with others. A
        request alone is always taken."""
        held, own = self.held, self._held_by[caller]
        if received < held > self._max_bytes_together:
            raise Overloaded(f"requests of {held:,} bytes are being answered already; try again soon")
        if received < own > SHARE * (self._max_bytes_together - held):
            raise Overloaded(f"requests of yours of {own:,} bytes are being answered already; try again soon")

    def least_rate(self, received: int) -> float:
        """Returns how many bytes a second a body must send of which so many are held already. While much is held, it
        grows with them, or slow bodies would hold the bytes that others need."""
        is_crowded = 2 * self.held > self._max_bytes_together
        return max(LEAST_RATE, received / self._hold_seconds) if is_crowded else LEAST_RATE


class InputLimits:
    """ASGI middleware. Answers 400 where path or query are not text, 413 once a body is known to be too large, 429
    while bodies of that kind together are too large, 408 when a body arrives too slowly, and 401 if the key was revoked
    meanwhile. Ends a request whose caller hangs up before it is complete.

    The kind of a body is in the request's state (`body_kind`).
    """

    def __init__(self, app: ASGIApp, limits: Mapping[BodyKind, BodyLimit], grace: float = GRACE_SECONDS) -> None:
        self.app = app
        self.limits = limits
        self._grace = grace

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self.limits[scope.get("state", {}).get("body_kind", BodyKind.JSON)]
        exchange = _Exchange(limit, self._grace, scope, receive, send)
        try:
            check_text(scope)
            exchange.check_declared_size()
            await self.app(scope, exchange.receive, exchange.send)
        except WhosthereError as error:
            if exchange.started:
                raise
            await send_error(error, scope, receive, send)
        finally:
            exchange.release()


class _Exchange:
    """One request's body, counted while it arrives, and the answer, which a refusal of the body replaces."""

    def __init__(self, limit: BodyLimit, grace: float, scope: Scope, receive: Receive, send: Send) -> None:
        self.received = 0
        self.started = False
        """Whether an answer was started."""
        self._limit = limit
        self._caller = _caller(scope)
        self._held = self._values = 0
        self._grace = self._seconds_left = grace
        self._scope, self._receive, self._send = scope, receive, send
        self._is_complete = self._is_replaced = False
        self._refusal: WhosthereError | None = None

    def check_declared_size(self) -> None:
        """Raises BodyTooLarge where the Content-Length is already too large."""
        declared = Headers(scope=self._scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > self._limit.max_bytes:
            raise self._too_large()

    async def receive(self) -> Message:
        """Raises BodyTooLarge, BodyTooSlow, CallerGone, InvalidRequest, Overloaded, Unauthorized."""
        waiting_since = time.monotonic()
        try:
            async with asyncio.timeout(None if self._is_complete else self._seconds_left):
                message = await self._receive()
        except TimeoutError:
            slow = BodyTooSlow(f"{self.received:,} bytes of the request's body arrived, and then next to nothing")
            raise self._refuse(slow) from None
        if message["type"] == "http.disconnect" and not self._is_complete:
            raise self._refuse(CallerGone("the connection was closed before the body was complete"))
        size = len(message.get("body", b""))
        was_complete, self._is_complete = self._is_complete, not message.get("more_body", False)
        self.received += size
        self._held += size
        self._limit.hold(self._caller, size)
        gained = size / self._limit.least_rate(self.received) - (time.monotonic() - waiting_since)
        self._seconds_left = min(self._grace, self._seconds_left + gained)
        try:
            if self.received > self._limit.max_bytes:
                raise self._too_large()
            if self._limit.max_values is not None:
                self._count_values(message.get("body", b""), self._limit.max_values)
            if size:
                self._limit.check_room(self._caller, self.received)
            if self._is_complete and not was_complete and self.received > size:  # in one piece, it was just admitted
                await check_key_again(self._scope)
        except WhosthereError as error:
            raise self._refuse(error) from None
        return message

    def _count_values(self, part: bytes, most: int) -> None:
        self._values += part.count(b",")
        if self._values > most:
            raise InvalidRequest(f"the body holds more than the {most:,} values allowed")

    def release(self) -> None:
        """Gives back what the body holds."""
        self._limit.release(self._caller, self._held)
        self._held = 0

    def _refuse(self, error: WhosthereError) -> WhosthereError:
        self._refusal = error
        self.release()  # at once, as other bodies that arrive at this moment would be refused for the same bytes
        return error

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the request's body has more than the {self._limit.max_bytes:,} bytes allowed")

    async def send(self, message: Message) -> None:
        if self._refusal is not None and not self.started:  # FastAPI answers 400 to any error while a body is read
            self.started = self._is_replaced = True
            await send_error(self._refusal, self._scope, self._receive, self._send)
        if not self._is_replaced:
            self.started = self.started or message["type"] == "http.response.start"
            await self._send(message)


def _caller(scope: Scope) -> str:
    """Returns who sends a request: its API key's id, or its address where no key is needed."""
    key = scope.get("state", {}).get("key")
    client = scope.get("client") or ("",)
    return str(client[0]) if key is None else str(key.id)
