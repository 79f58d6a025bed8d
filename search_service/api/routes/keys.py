"""/v1/keys"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from pydantic import Field

from indexer.errors import InvalidRequest
from search_service.api.payloads import Payload, Utc
from search_service.api.permissions import requires
from search_service.api.routes.galleries import Cursor, Limit
from search_service.api.routes.openapi import failures
from search_service.api.state import Service
from search_service.serializers import key_object
from search_service.store.api_keys import MAX_GALLERIES, MAX_PER_MINUTE, ApiKey, Scope

# A key that creates keys could create one that opens more than it does itself.
router = APIRouter(prefix="/v1/keys", tags=["keys"], dependencies=[requires(Scope.ADMIN, every_gallery=True)])


class NewKey(Payload):
    name: str = Field(examples=["north-door"])
    scopes: list[Scope] = Field(min_length=1, description="`admin` contains `enroll`, which contains `search`.")
    galleries: list[str] | None = Field(
        default=None, min_length=1, max_length=MAX_GALLERIES, description="Those that it opens; null for all."
    )
    expires_at: Utc | None = None
    per_minute: int | None = Field(
        default=None, ge=1, le=MAX_PER_MINUTE, description="Requests a minute, in each worker; null for any number."
    )


class KeyPayload(Payload):
    """A key, without its secret."""

    id: str
    name: str
    scopes: list[Scope]
    galleries: list[str] | None
    per_minute: int | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class MadeKey(KeyPayload):
    key: str = Field(description="Shown this once, and kept nowhere.")


class KeyList(Payload):
    keys: list[KeyPayload]
    cursor: str | None


@router.get("", response_model=KeyList)
async def list_keys(service: Service, limit: Limit = 100, cursor: Cursor = None) -> Any:
    """Every key that was made, by name, the revoked ones too."""
    found = await service.off_loop(service.context.keys.list, _name_after(cursor), limit + 1)
    return {"keys": [key_object(key) for key in found[:limit]], "cursor": _cursor(found, limit)}


@router.post("", status_code=201, response_model=MadeKey, responses=failures(409, 413))
async def create_key(service: Service, new: NewKey, response: Response) -> Any:
    """Makes a key. From the first one on, every request needs one."""
    made, text = await service.off_loop(
        service.context.keys.create, new.name, new.scopes, new.galleries, new.expires_at, new.per_minute
    )
    response.headers["Cache-Control"] = "no-store"  # nor is it kept for an Idempotency-Key
    return key_object(made) | {"key": text}


@router.delete("/{id}", response_model=KeyPayload)
async def revoke_key(service: Service, key_id: Annotated[str, Path(alias="id")]) -> Any:
    """Revokes a key: it opens nothing any more, in any worker. It stays in the list."""
    return key_object(await service.off_loop(service.context.keys.revoke, key_id))


def _name_after(cursor: str | None) -> str:
    """The name that a page starts after. Raises InvalidRequest on a cursor that was not given out."""
    if cursor is None:
        return ""
    try:
        kind, _, name = base64.urlsafe_b64decode(cursor.encode()).decode().partition(":")
        if kind != "name" or not name.isprintable():
            raise ValueError
    except (ValueError, binascii.Error):
        raise InvalidRequest(f"the cursor {cursor!r} was not given out here") from None
    return name


def _cursor(found: Sequence[ApiKey], limit: int) -> str | None:
    if len(found) <= limit:
        return None
    return base64.urlsafe_b64encode(f"name:{found[limit - 1].name}".encode()).decode()
