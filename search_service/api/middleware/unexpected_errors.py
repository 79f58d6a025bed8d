"""Answers errors that nothing else handles, inside the other middlewares, so that their headers are on the answer."""

from __future__ import annotations

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from search_service.api.errors import unexpected


class UnexpectedErrors:
    """ASGI middleware. Starlette answers such errors outside of all middlewares, without CORS headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except Exception as error:
            if scope["type"] != "http" or started:
                raise
            await unexpected(Request(scope), error)(scope, receive, send)
