"""Paths and queries: ids that contain a slash, and text that cannot be decoded.

`a/b` is `a%2Fb` in a path, which servers decode before the route is found. So `EncodedSlashes` puts STAND_IN in place
of an encoded slash, and `ExternalId` replaces it by a slash again.
"""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import unquote, unquote_to_bytes

from fastapi import Path
from pydantic import AfterValidator
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from indexer.errors import InvalidRequest
from search_service.api.errors import domain_error

STAND_IN = "\x1f"
"""No name contains it, as names are printable."""

LONGEST_SHOWN = 50
"""Bytes of a query parameter's name that an error message quotes."""

ExternalId = Annotated[
    str,
    Path(description="The caller's key of the person, percent-encoded."),
    AfterValidator(lambda part: part.replace(STAND_IN, "/")),
]


class EncodedSlashes:
    """ASGI middleware: an encoded slash does not separate parts of the path."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = scope.get("raw_path") or b""
        if scope["type"] == "http" and b"%2f" in raw.lower():
            path = unquote(re.sub("%2f", f"%{ord(STAND_IN):02x}", raw.decode("ascii"), flags=re.IGNORECASE))
            scope.setdefault("state", {})  # shared with the copy, so that errors outside know the request's id
            scope = {**scope, "path": path}
        await self._app(scope, receive, send)


class PlainText:
    """ASGI middleware: rejects paths and queries that are not UTF-8, which the framework would decode to other text,
    and those with a NUL byte, which PostgreSQL cannot store."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                _check_text("path", scope.get("raw_path") or b"")
                for part in scope["query_string"].split(b"&"):
                    name = unquote(part.partition(b"=")[0][:LONGEST_SHOWN].decode("latin-1"))
                    _check_text(f"query.{name}", part)
            except InvalidRequest as error:
                await domain_error(Request(scope), error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _check_text(field: str, encoded: bytes) -> None:
    """Raises InvalidRequest with the same details as FastAPI's validation."""
    try:
        problem = "contains a NUL byte (%00)" if "\0" in unquote_to_bytes(encoded).decode() else None
    except UnicodeDecodeError:
        problem = "is not UTF-8"
    if problem is not None:
        message = f"{field}: {problem}; expected percent-encoded text"
        raise InvalidRequest(message, details={"fields": [{"field": field, "problem": problem}]})
