"""/v1/access and /v1/keys/self: what a caller may do, for programs with a sign-in."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from search_service.api.models.keys import AccessPayload, OwnKey
from search_service.api.permissions import public, requires
from search_service.api.security import Guard, key_of
from search_service.store.api_keys import Scope


def access_router(guard: Guard) -> APIRouter:
    """Returns the routes. They are apart from /v1/keys, whose routes need an admin's key for all galleries."""
    router = APIRouter(prefix="/v1", tags=["keys"])

    @router.get("/access", response_model=AccessPayload, dependencies=[public()])
    async def show_access(request: Request) -> Any:
        """Returns whether the caller needs an API key. A program asks before it shows a sign-in."""
        return AccessPayload(key_needed=await guard.needs_key(request))

    @router.get("/keys/self", response_model=OwnKey, dependencies=[requires(Scope.SEARCH)])
    async def show_own_key(request: Request) -> Any:
        """Returns what the request's key opens; everything where no key is needed yet."""
        key = key_of(request)
        if key is None:
            return OwnKey(name=None, scopes=list(Scope), galleries=None, expires_at=None)
        scopes = [scope for scope in Scope if key.allows(scope)]
        galleries = None if key.galleries is None else sorted(key.galleries)
        return OwnKey(name=key.name, scopes=scopes, galleries=galleries, expires_at=key.expires_at)

    return router
