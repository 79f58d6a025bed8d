"""Gives every request an id, counts it, and writes one line of the log about it."""

from __future__ import annotations

import logging
import time

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from indexer.supervision import notify
from search_service.api.errors import METHODS, request_id
from search_service.api.metrics import Metrics
from search_service.logs import FIELDS

log = logging.getLogger(__name__)

NO_ROUTE = "none"
"""The route of requests that fit none, whose paths callers make up."""

OTHER_METHOD = "other"
"""Counted as the method of requests whose method is not a standard one."""

QUIET_ROUTES = frozenset({"/healthz", "/readyz", "/metrics"})
"""Requested every few seconds by machines: counted, but logged only if they fail."""

FAILED = 500


class RequestContext:
    """ASGI middleware. The log line contains the route, not the path, which may hold ids and names of people."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started_at = time.perf_counter()
        known_as = request_id(Request(scope))
        status, sent = FAILED, 0

        async def send_with_id(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [(name, value) for name, value in message["headers"] if name.lower() != b"x-request-id"]
                message = {**message, "headers": [*headers, (b"x-request-id", known_as.encode("ascii"))]}
            else:
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            self._record(scope, known_as, status, sent, time.perf_counter() - started_at)

    def _record(self, scope: Scope, known_as: str, status: int, sent: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", NO_ROUTE)
        method = scope["method"] if scope["method"] in METHODS else OTHER_METHOD
        notify(self._metrics.request, method, route, status, seconds)
        if route in QUIET_ROUTES and status < FAILED:
            return
        fields = {
            "request_id": known_as,
            "method": scope["method"],
            "route": route,
            "status": status,
            "milliseconds": round(1000 * seconds, 1),
            "bytes": sent,
            "key": getattr(scope.get("state", {}).get("key"), "id", None),
        }
        log.info("request", extra={FIELDS: fields})
