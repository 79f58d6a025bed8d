"""Ids that hold a slash: `a/b` is `a%2Fb` in a path, which servers decode before routes are looked for."""

from __future__ import annotations

import re
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

STAND_IN = "\x1f"
"""Stands for an encoded slash while the route is found. No name holds it: names are printable."""


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


def with_slashes(part: str) -> str:
    """A part of the path as the caller meant it."""
    return part.replace(STAND_IN, "/")
