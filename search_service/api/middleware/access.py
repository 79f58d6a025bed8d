"""Refuses requests whose caller may not use the route, before any of their body is read."""

from __future__ import annotations

from functools import partial

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from indexer.errors import WhosthereError
from search_service.api.errors import http_error, send_error
from search_service.api.hosts import check_host
from search_service.api.paths import keep_encoded_slashes
from search_service.api.security import Guard


class Access:
    """ASGI middleware. Checks the host name, the origin and the API key of a request; the guard decides about the key.

    An admitted request has `key`, `charge`, `body_kind` and `parameters` in its state, `check_key_again` unless its
    route is public, and a path in which encoded slashes do not separate.
    """

    def __init__(
        self, app: ASGIApp, guard: Guard, allowed_hosts: frozenset[str] | None, allowed_origins: frozenset[str]
    ) -> None:
        self.app = app
        self.guard = guard
        self._allowed = allowed_hosts, allowed_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # there are none, and one that is added must not be open to everyone
            await send({"type": "websocket.close", "code": 1008, "reason": "not served"})
            return
        if scope["type"] == "http":
            request = Request(scope)
            keep_encoded_slashes(scope)
            match = self.guard.routes.match(scope)
            try:
                check_host(Headers(scope=scope), *self._allowed)
                request.state.key = await self.guard.admit(scope, match)
            except WhosthereError as error:
                await send_error(error, scope, receive, send)
                return
            except HTTPException as error:
                await http_error(request, error)(scope, receive, send)
                return
            if not match.is_public:
                request.state.check_key_again = partial(self.guard.check_again, request.state.key)
            request.state.charge = partial(self.guard.charge, request.state.key)
            request.state.body_kind, request.state.parameters = match.body, match.parameters
        await self.app(scope, receive, send)
