"""Refuses what a route would ignore: unknown query parameters, and a body where the route takes none."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from indexer.errors import InvalidRequest
from search_service.api.parameters import Parameters

MAX_BYTES = 2**16
"""Of a body where the route takes none, which is read to name its fields. Callers without a key can send one."""


class KnownParameters:
    """ASGI middleware. Raises InvalidRequest, which InputLimits answers.

    What the route takes is in the request's state (`parameters`). Unknown fields of a body that a route does take are
    refused where the body is read.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            parameters: Parameters = scope["state"]["parameters"]
            parameters.check_query(scope["query_string"])
            headers = Headers(scope=scope)
            if not parameters.takes_body and (
                "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
            ):
                receive = await _checked(receive, parameters)
        await self.app(scope, receive, send)


async def _checked(receive: Receive, parameters: Parameters) -> Receive:
    """Receives the body and returns a `receive` that starts with it again. Raises InvalidRequest unless it is empty."""
    messages: list[Message] = []
    size = 0
    while not messages or messages[-1].get("more_body", False):
        messages.append(await receive())
        size += len(messages[-1].get("body", b""))
        if size > MAX_BYTES:
            raise InvalidRequest("this route takes no body")
    parameters.check_empty_body(b"".join(message.get("body", b"") for message in messages))
    remaining = iter(messages)

    async def receive_again() -> Message:
        return next(remaining, None) or await receive()

    return receive_again
