"""Lets scripts of configured other origins read answers (CORS, https://fetch.spec.whatwg.org/#http-cors-protocol)."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from search_service.api.errors import METHODS
from search_service.api.middleware.idempotency import REPLAYED, STORED

READABLE = ("ETag", "Location", "Retry-After", "X-Request-ID", REPLAYED, STORED)
"""Headers of answers that scripts may read besides those that they always may."""


class AllowedOrigins(CORSMiddleware):
    """ASGI middleware. Answers the preflight requests of allowed origins, which carry no API key, and marks every other
    answer to them. Requests of any other origin are passed on: Access refuses them."""

    def __init__(self, app: ASGIApp, origins: frozenset[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=METHODS,
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=READABLE,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_allowed = scope["type"] == "http" and self.is_allowed_origin(Headers(scope=scope).get("origin", ""))
        await (super().__call__ if is_allowed else self.app)(scope, receive, send)
