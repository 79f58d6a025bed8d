"""Ids that hold a slash: `a/b` is `a%2Fb` in a path, which servers decode before routes are looked for. And paths and
queries that are no text."""

from __future__ import annotations

import re
from urllib.parse import unquote, unquote_to_bytes

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from indexer.errors import InvalidRequest
from search_service.api.errors import domain_error

STAND_IN = "\x1f"
"""Stands for an encoded slash while the route is found. No name holds it: names are printable."""

LONGEST_SAID = 50
"""Bytes that an error repeats of the name of a parameter, which anybody makes up."""


class EncodedSlashes:
    """ASGI middleware: an encoded slash does not end a part of the path. `with_slashes` brings it back."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = scope.get("raw_path") or b""
        if scope["type"] == "http" and b"%2f" in raw.lower():
            path = unquote(re.sub("%2f", f"%{ord(STAND_IN):02x}", raw.decode("ascii"), flags=re.IGNORECASE))
            scope.setdefault("state", {})  # shared by the copy: whoever answers an error knows the request's id
            scope = {**scope, "path": path}
        await self._app(scope, receive, send)


class PlainText:
    """ASGI middleware: refuses paths and queries that are not UTF-8, which the framework would take for others, and
    those that hold a NUL, which PostgreSQL does not look for."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                _check_text("path", scope.get("raw_path") or b"")
                for part in scope["query_string"].split(b"&"):
                    name = unquote(part.partition(b"=")[0][:LONGEST_SAID].decode("latin-1"))
                    _check_text(f"query.{name}", part)
            except InvalidRequest as error:
                await domain_error(Request(scope), error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _check_text(field: str, encoded: bytes) -> None:
    """Raises InvalidRequest, in the shape of what FastAPI finds wrong."""
    try:
        problem = "holds a NUL (%00)" if "\0" in unquote_to_bytes(encoded).decode() else None
    except UnicodeDecodeError:
        problem = "is not UTF-8"
    if problem is not None:
        message = f"{field}: {problem}; expected text, percent-encoded"
        raise InvalidRequest(message, details={"fields": [{"field": field, "problem": problem}]})


def with_slashes(part: str) -> str:
    """A part of the path as the caller meant it."""
    return part.replace(STAND_IN, "/")
