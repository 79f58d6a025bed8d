"""Paths and queries: ids that contain a slash, and text that cannot be decoded.

`a/b` is `a%2Fb` in a path, which servers decode before the route is found. So ENCODED_SLASH stands for an encoded slash
until then, and `ExternalId` replaces it by a slash again.
"""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import unquote, unquote_to_bytes

from fastapi import Path
from pydantic import AfterValidator
from starlette.types import Scope

from indexer.errors import InvalidRequest

ENCODED_SLASH = "\x1f"
"""No name contains it, as names are printable."""

MAX_QUOTED_BYTES = 50
"""How much of a query parameter's name an error message quotes."""

ExternalId = Annotated[
    str,
    Path(description="The caller's key of the person, percent-encoded."),
    AfterValidator(lambda part: part.replace(ENCODED_SLASH, "/")),
]


def keep_encoded_slashes(scope: Scope) -> None:
    """Changes the path of a request so that encoded slashes do not separate parts of it."""
    raw = scope.get("raw_path") or b""
    if b"%2f" in raw.lower():
        scope["path"] = unquote(re.sub("%2f", f"%{ord(ENCODED_SLASH):02x}", raw.decode("ascii"), flags=re.IGNORECASE))


def route_path(scope: Scope) -> str:
    """Returns the path of a request as routes have it, without the prefix of a proxy."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def check_text(scope: Scope) -> None:
    """Raises InvalidRequest for paths and queries that are not UTF-8, which the framework would decode to other text,
    and for those with a NUL byte, which PostgreSQL cannot store."""
    _check("path", scope.get("raw_path") or b"")
    for part in scope["query_string"].split(b"&"):
        name = unquote(part.partition(b"=")[0][:MAX_QUOTED_BYTES].decode("latin-1"))
        _check(f"query.{name}", part)


def _check(field: str, encoded: bytes) -> None:
    """Raises InvalidRequest with the same details as FastAPI's validation."""
    try:
        problem = "contains a NUL byte (%00)" if "\0" in unquote_to_bytes(encoded).decode() else None
    except UnicodeDecodeError:
        problem = "is not UTF-8"
    if problem is not None:
        message = f"{field}: {problem}; expected text, percent-encoded"
        raise InvalidRequest(message, details={"fields": [{"field": field, "problem": problem}]})
