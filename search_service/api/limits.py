"""Bodies are bounded while they arrive, whatever their headers say."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from indexer.errors import Overloaded, WhosthereError
from search_service.api.errors import BodyTooLarge, BodyTooSlow, domain_error

ARCHIVES = re.compile(r"/v1/galleries/[^/]+/enrollments")
"""Paths to which archives are posted."""


def is_archive(scope: Scope) -> bool:
    """Whether the request's body is written to a file while it comes."""
    return scope["method"] == "POST" and ARCHIVES.fullmatch(scope["path"]) is not None


PHOTOS = re.compile(r"/v1/(detect|compare|embed|galleries/[^/]+/(search|identities/[^/]+/faces))")
"""Paths to which photos are posted. Whole ones: a gallery or an identity may be called as any part of them."""

SAID_BYTES = 2**20
"""Of a body without photos, which is parsed while nobody else is answered: as many as nginx lets through unless told
otherwise. Metadata of more would come back with every search."""


def is_photos(scope: Scope) -> bool:
    """Whether the request's body may hold photos, and is held in memory."""
    return scope["method"] == "POST" and PHOTOS.fullmatch(scope["path"]) is not None


def is_said(scope: Scope) -> bool:
    """Whether it is any other request."""
    return not (is_archive(scope) or is_photos(scope))


GRACE_SECONDS, LEAST_RATE = 20.0, 500
"""A body may be waited for so long, and a second more for each LEAST_RATE bytes that come, but never longer than the
first of the two at once: who holds a connection and sends next to nothing is let go, also after the first 60 MB. The
figures are those of Apache's mod_reqtimeout, `body=20,MinRate=500`, which lets that one keep them for a day."""


class BodyLimit:
    """ASGI middleware: answers 413 as soon as a body is known to have more than `max_bytes`, 429 when it and those of
    the other requests that are not answered yet have more than `max_together`, and 408 when it comes too slowly. Bodies
    of requests that it is not `meant` for are not looked at."""

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int,
        max_together: int,
        meant: Callable[[Scope], bool],
        grace: float = GRACE_SECONDS,
    ) -> None:
        self._app = app
        self._meant = meant
        self._max_bytes = max_bytes
        self._max_together = max_together
        self._grace = grace
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._meant(scope):
            await self._app(scope, receive, send)
            return
        started = replaced = False
        received, whole, patience = 0, False, self._grace
        refusal: WhosthereError | None = None
        declared = dict(scope["headers"]).get(b"content-length", b"0")

        async def bounded() -> Message:
            nonlocal received, whole, patience, refusal
            begun = time.monotonic()
            try:
                async with asyncio.timeout(None if whole else patience):
                    message = await receive()
            except TimeoutError:
                refusal = BodyTooSlow(f"{received:,} bytes of the request's body came, and then next to nothing")
                raise refusal from None
            whole = not message.get("more_body", False)
            size = len(message.get("body", b""))
            patience = min(self._grace, patience - (time.monotonic() - begun) + size / LEAST_RATE)
            received += size
            self._held += size
            if received > self._max_bytes:
                refusal = self._too_large()
            elif size and received < self._held > self._max_together:  # one alone is always taken
                refusal = Overloaded(f"requests of {self._held:,} bytes are being answered already; try again soon")
            if refusal is not None:
                raise refusal
            return message

        async def watched(message: Message) -> None:
            nonlocal started, replaced
            if refusal is not None and not started:  # FastAPI makes a 400 of whatever a body's reading raises
                started = replaced = True
                await domain_error(Request(scope), refusal)(scope, receive, send)
            if not replaced:
                started = started or message["type"] == "http.response.start"
                await send(message)

        try:
            if declared.isdigit() and int(declared) > self._max_bytes:
                refusal = self._too_large()
                raise refusal
            await self._app(scope, bounded, watched)
        except WhosthereError as error:
            if started or error is not refusal:
                raise
            await domain_error(Request(scope), error)(scope, receive, send)
        finally:
            self._held -= received

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the request's body has more than the {self._max_bytes:,} bytes allowed")
