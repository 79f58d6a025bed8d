"""Bodies are bounded while they arrive, whatever their headers say."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from search_service.api.errors import BodyTooLarge, domain_error


class BodyLimit:
    """ASGI middleware: answers 413 as soon as a body is known to have more than `max_bytes`."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = replaced = False
        received = 0
        declared = dict(scope["headers"]).get(b"content-length", b"0")

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise BodyTooLarge(self._explain())
            return message

        async def watched(message: Message) -> None:
            nonlocal started, replaced
            if received > self._max_bytes and not started:  # FastAPI makes a 400 of whatever a body's reading raises
                started = replaced = True
                error = BodyTooLarge(self._explain())
                await domain_error(Request(scope), error)(scope, receive, send)
            if not replaced:
                started = started or message["type"] == "http.response.start"
                await send(message)

        try:
            if declared.isdigit() and int(declared) > self._max_bytes:
                raise BodyTooLarge(self._explain())
            await self._app(scope, bounded, watched)
        except BodyTooLarge as error:
            if started:
                raise
            await domain_error(Request(scope), error)(scope, receive, send)

    def _explain(self) -> str:
        return f"the request's body has more than the {self._max_bytes:,} bytes allowed"
