"""Wire models of API keys."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from search_service.api.models.base import Cursor, Payload, Time, Utc
from search_service.store.api_keys import MAX_DAILY_PROBES, MAX_GALLERIES, MAX_PER_MINUTE, Scope


class NewKey(Payload):
    name: str = Field(examples=["north-door"])
    scopes: list[Scope] = Field(
        min_length=1,
        description="Each of `search`, `investigate`, `enroll` and `admin` includes those before it.",
        examples=[["search"]],
    )
    galleries: list[str] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_GALLERIES,
        description="The galleries that the key may use; null for all.",
        examples=[["staff"]],
    )
    expires_at: Utc | None = None
    per_minute: int | None = Field(
        default=None, ge=1, le=MAX_PER_MINUTE, description="Requests a minute to each worker; null for no limit."
    )
    daily_probes: int | None = Field(
        default=None,
        ge=0,
        le=MAX_DAILY_PROBES,
        description="Different probes a day (UTC); 0 for no limit. null: the service's default for keys of the scopes "
        "`search` and `investigate`, no limit for others.",
    )


class KeyPayload(Payload):
    """A key, without its secret."""

    id: str = Field(examples=["5f2c81d09a3e"])
    name: str = Field(examples=["north-door"])
    scopes: list[Scope] = Field(examples=[["search"]])
    galleries: list[str] | None = Field(examples=[["staff"]])
    per_minute: int | None = Field(examples=[None])
    daily_probes: int | None = Field(
        default=None, description="Different probes a day (UTC); null for no limit.", examples=[20_000]
    )
    created_at: Time
    expires_at: datetime | None = Field(examples=[None])
    revoked_at: datetime | None = Field(examples=[None])


class MadeKey(KeyPayload):
    key: str = Field(description="The secret. Shown only once and not stored.", examples=["wt_5f2c81d09a3e_..."])


class AccessPayload(Payload):
    key_needed: bool = Field(description="false while the service has no keys and the caller is answered without.")


class OwnKey(Payload):
    """What the key of the request opens."""

    name: str | None = Field(description="Null where the service has no keys yet.", examples=["north-door"])
    scopes: list[Scope] = Field(description="With those that a scope includes, lowest first.", examples=[["search"]])
    galleries: list[str] | None = Field(description="Null for all.", examples=[["staff"]])
    expires_at: datetime | None = Field(examples=[None])


class KeyList(Payload):
    keys: list[KeyPayload]
    cursor: Cursor
