"""Who may call: checks the API key of each request against what the route declares (`search_service.api.permissions`).

Until the first key is created, only callers on this machine are answered. From then on every request needs a key. The
database is asked about it each time, so a revoked key stops working at once, in every worker.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import Security
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Scope

from indexer.clock import now
from indexer.errors import InvalidSetting, NotFound, StorageUnavailable, WhosthereError
from indexer.settings import Settings
from search_service.api.errors import Forbidden, RateLimited, Unauthorized
from search_service.api.hosts import is_loopback
from search_service.api.permissions import DeclaredRoutes, Permission, RouteMatch
from search_service.api.proxies import came_through_proxy
from search_service.api.threads import CHECKING, Threads
from search_service.service_context import ServiceContext
from search_service.store import api_keys
from search_service.store.api_keys import ApiKey

log = logging.getLogger(__name__)

PIXELS_OF_REQUEST = 16_000_000
"""Pixels of images that count as one more request of a key: a phone's photo of 12 million costs one in all."""

DOCUMENTATION = frozenset({"/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json", "/static-offline-docs"})
"""Paths of FastAPI's own routes, which need no key: they are the same for every service and reveal no data."""

KEY_HEADERS = (
    Security(HTTPBearer(auto_error=False, description="A key of `whosthere keys create`.")),
    Security(APIKeyHeader(name="X-API-Key", auto_error=False, description="The same, where it is easier to send.")),
)
"""Dependencies that describe in OpenAPI how keys are sent; the guard is what checks them."""


def key_of(request: Request) -> ApiKey | None:
    """Returns the API key that the request was sent with, or None where the service has no keys."""
    key: ApiKey | None = getattr(request.state, "key", None)
    return key


async def check_key_again(scope: Scope) -> None:
    """Raises Unauthorized if the key of a request was revoked, or has expired, since the request was admitted.

    For before a change, after something that takes long, such as a body that arrives slowly.
    """
    check = scope.get("state", {}).get("check_key_again")
    if check is not None:
        await check()


def check_scope(request: Request, scope: api_keys.Scope) -> None:
    """Raises Forbidden unless the request's key opens the scope. For what only the body shows."""
    _check(key_of(request), Permission(scope), {})


def check_gallery(request: Request, name: str) -> None:
    """Raises Forbidden unless the request's key opens the gallery. For galleries that are named outside of the path."""
    _check_gallery(key_of(request), name)


def check_address(settings: Settings, any_key: bool) -> None:
    """Raises InvalidSetting if a service without keys would listen on an address that other machines can reach."""
    if not (any_key or settings.open or is_loopback(settings.host)):
        raise InvalidSetting(
            f"WHOSTHERE_HOST is {settings.host!r}, and there are no API keys yet: anyone who reaches it could search "
            "and enroll. `whosthere keys create --name NAME --scope admin` creates the first key; WHOSTHERE_OPEN=true "
            "is for services behind something that authenticates callers"
        )


class Guard:
    """Decides which requests are answered. Knows whether there are keys, and how often each was used lately."""

    def __init__(self, context: ServiceContext) -> None:
        self.routes = DeclaredRoutes()
        self._context = context
        self._has_keys = False
        """Whether a key was ever created, as far as this process knows; once true, it stays true."""
        self._buckets = Buckets()
        self.threads = Threads(CHECKING)

    async def start(self) -> None:
        """Logs a warning if no key is needed."""
        if not await self._any_key():
            who = "everybody" if self._context.settings.open else "this machine alone"
            log.warning("there are no API keys: %s is answered. `whosthere keys create` creates the first one", who)

    async def admit(self, scope: Scope, match: RouteMatch) -> ApiKey | None:
        """Returns the key of a request that may be answered, None where no key is needed.

        Args:
            scope: The request.
            match: What it fits, by `routes.match`.

        Raises:
            Unauthorized, Forbidden, RateLimited: The caller may not use the route.
            HTTPException: No declared route fits the path (404) or the method (405).
        """
        if match.is_public:
            return None
        key = await self._key(scope)
        if not match.permissions:
            raise HTTPException(405 if match.path_exists else 404)
        for permission, params in match.permissions:
            _check(key, permission, params)
        return key

    def charge(self, key: ApiKey | None, pixels: int) -> None:
        """Counts a request with images of many pixels as several of its key."""
        if key is not None:
            self._buckets.charge(key, pixels // PIXELS_OF_REQUEST)

    async def check_again(self, key: ApiKey | None) -> None:
        """Raises Unauthorized if a key that `admit` returned is not valid any more; where it returned None, if there is
        a key by now."""
        if key is not None:
            try:
                _check_valid(await self.threads.run(lambda: self._context.keys.get(key.id)))
            except NotFound as error:  # the database was replaced
                raise Unauthorized("the API key is not known here") from error
        elif await self._any_key():
            raise Unauthorized("the first API key was created meanwhile; every request needs one now")

    async def trusts(self, request: Request) -> bool:
        """Returns whether a public route may show this caller details of the galleries: the caller has an admin's key
        for all of them, or no keys exist and the caller is answered without."""
        try:
            key = await self._key(request.scope)
        except StorageUnavailable:
            return not self._has_keys and self._is_local(request.scope)
        except WhosthereError:
            return False
        return key is None or (key.allows(api_keys.Scope.ADMIN) and key.galleries is None)

    async def needs_key(self, request: Request) -> bool:
        """Returns whether the caller is answered only with a key."""
        return await self._any_key() or not self._is_local(request.scope)

    async def _key(self, scope: Scope) -> ApiKey | None:
        """Returns the valid key that was sent and counts one use of it; None where there are no keys and the caller is
        answered without. Raises Unauthorized, RateLimited."""
        sent = _sent_key(Headers(scope=scope))
        if not await self._any_key():
            if self._is_local(scope):
                return None
            raise Unauthorized(
                "this service has no API keys yet and answers its own machine only; `whosthere keys create` creates one"
            )
        if sent is None:
            raise Unauthorized("expected an API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`")
        key = await self.threads.run(lambda: self._context.keys.authenticate(sent))
        if key is None:
            raise Unauthorized("the API key is not known here")
        _check_valid(key)
        if wait := self._buckets.take(key):
            raise RateLimited(
                f"the API key {key.name!r} may make {key.per_minute} requests a minute (images of "
                f"{PIXELS_OF_REQUEST / 1e6:.0f} megapixels count as one more)",
                wait,
            )
        return key

    async def _any_key(self) -> bool:
        if not self._has_keys:
            self._has_keys = await self.threads.run(lambda: self._context.keys.has_any())
        return self._has_keys

    def _is_local(self, scope: Scope) -> bool:
        """Returns whether the caller is answered while there are no keys: it is on this machine and not a proxy."""
        if self._context.settings.open:
            return True
        client = scope.get("client")
        return client is not None and is_loopback(client[0]) and not came_through_proxy(scope)


class Buckets:
    """Token buckets that limit how often each key is used in this process: `per_minute` requests at once, and as many
    again each minute. Not thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}
        """By key: how many requests it had left, and when."""

    def take(self, key: ApiKey) -> int:
        """Counts one use and returns 0; or returns the whole seconds until the key may be used again."""
        if key.per_minute is None:
            return 0
        left = self._now_left(key, key.per_minute)
        if left < 1:
            return math.ceil((1 - left) * 60 / key.per_minute)
        self._left[key.id] = (left - 1, self._clock())
        return 0

    def charge(self, key: ApiKey, uses: int) -> None:
        """Counts more uses of a request that was taken, also if fewer are left: later requests wait for them."""
        if key.per_minute is not None and uses:
            self._left[key.id] = (self._now_left(key, key.per_minute) - uses, self._clock())

    def _now_left(self, key: ApiKey, per_minute: int) -> float:
        time = self._clock()
        left, then = self._left.get(key.id, (float(per_minute), time))
        return min(float(per_minute), left + (time - then) * per_minute / 60)


def _sent_key(headers: Headers) -> str | None:
    """Returns the key that was sent, valid or not. `X-API-Key` comes first: `Authorization` may be for a gateway."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    return headers.get("x-api-key") or (bearer.strip() if scheme.lower() == "bearer" else None)


def _check_valid(key: ApiKey) -> None:
    """Raises Unauthorized."""
    if key.revoked_at is not None:
        raise Unauthorized(f"the API key {key.name!r} was revoked")
    if key.is_expired(now()):
        raise Unauthorized(f"the API key {key.name!r} has expired")


def _check(key: ApiKey | None, needed: Permission, params: Mapping[str, Any]) -> None:
    """Raises Forbidden unless the key opens what is needed. Nothing is looked up before, so that a caller without
    access to a gallery does not learn whether it exists."""
    if key is None or needed.scope is None:
        return
    if not key.allows(needed.scope):
        message = f"the API key {key.name!r} has the scope {' and '.join(sorted(key.scopes))}; expected {needed.scope}"
        raise Forbidden(message, code="forbidden_scope")
    if needed.every_gallery and key.galleries is not None:
        raise Forbidden(f"the API key {key.name!r} is limited to single galleries", code="forbidden_gallery")
    if "gallery" in params:
        _check_gallery(key, params["gallery"])


def _check_gallery(key: ApiKey | None, name: str) -> None:
    if key is not None and not key.allows_gallery(name):
        raise Forbidden(f"the API key {key.name!r} does not open the gallery {name!r}", code="forbidden_gallery")
