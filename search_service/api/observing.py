"""Every request is known by an id, counted, and told in one line of the log."""

from __future__ import annotations

import logging
import time

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from search_service.api.errors import METHODS, request_id
from search_service.api.metrics import Metrics
from search_service.logs import FIELDS

log = logging.getLogger(__name__)

NO_ROUTE = "none"
"""The route of requests that fit none: their paths are anybody's to make up."""

OTHER = "other"
"""Counted as the method of requests that have one of their own making."""

QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked every few seconds by machines: counted, and told only where they fail."""

FAILED = 500


class Observed:
    """ASGI middleware. The log line says the route, not the path, in which ids and names of people stand."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        known = request_id(Request(scope))
        status, sent = FAILED, 0

        async def watched(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [(name, value) for name, value in message["headers"] if name.lower() != b"x-request-id"]
                message = {**message, "headers": [*headers, (b"x-request-id", known.encode("ascii"))]}
            else:
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            self._tell(scope, known, status, sent, time.perf_counter() - begun)

    def _tell(self, scope: Scope, known: str, status: int, sent: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", NO_ROUTE)
        self._metrics.request(scope["method"] if scope["method"] in METHODS else OTHER, route, status, seconds)
        if route in QUIET and status < FAILED:
            return
        key = scope.get("state", {}).get("key")
        fields = {
            "request_id": known,
            "method": scope["method"],
            "route": route,
            "status": status,
            "milliseconds": round(1000 * seconds, 1),
            "bytes": sent,
            "key": getattr(key, "id", None),
        }
        log.info("request", extra={FIELDS: fields})
