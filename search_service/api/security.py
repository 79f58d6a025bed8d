"""Who may ask what. Everything that is answered stands in NEEDS; what does not is not there, whatever routes the
application has.

As long as no key was ever made, whoever is on this machine is answered and nobody else. Once one was made, every
request shows a key, and the database is asked about it each time, so that one that was revoked opens nothing from then
on, in any worker.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fastapi import Security
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from indexer.clock import now
from indexer.errors import InvalidSetting, StorageUnavailable, WhosthereError
from indexer.settings import Settings
from search_service.api.errors import Forbidden, RateLimited, Unauthorized, domain_error, http_error
from search_service.api.hosts import is_loopback
from search_service.service_context import ServiceContext
from search_service.store import api_keys
from search_service.store.api_keys import Key

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Need:
    """What a key must open to ask this; of a route of one gallery, that gallery as well."""

    scope: api_keys.Scope
    everywhere: bool = False
    """Only keys that are not limited to galleries."""


OPEN = None
SEARCH = Need(api_keys.Scope.SEARCH)
ENROLL = Need(api_keys.Scope.ENROLL)
ADMIN = Need(api_keys.Scope.ADMIN)
OWNER = Need(api_keys.Scope.ADMIN, everywhere=True)

NEEDS: Mapping[str, Mapping[str, Need | None]] = MappingProxyType(
    {
        # They tell whether the process runs and is ready, to those who start it and know no key.
        "/healthz": {"GET": OPEN, "HEAD": OPEN},
        "/readyz": {"GET": OPEN, "HEAD": OPEN},
        # They are the same for every service and say nothing of this one.
        "/docs": {"GET": OPEN},
        "/docs/oauth2-redirect": {"GET": OPEN},
        "/redoc": {"GET": OPEN},
        "/openapi.json": {"GET": OPEN, "HEAD": OPEN},
        "/static-offline-docs/{path:path}": {"GET": OPEN, "HEAD": OPEN},
        # Counts of every gallery, which a key for all of them can ask for anyway: no admin key lies in a scraper.
        "/metrics": {"GET": Need(api_keys.Scope.SEARCH, everywhere=True)},
        "/v1/galleries": {"GET": SEARCH, "POST": OWNER},
        "/v1/galleries/{gallery}": {"GET": SEARCH, "DELETE": ADMIN},
        "/v1/galleries/{gallery}/search": {"POST": SEARCH},
        "/v1/galleries/{gallery}/identities": {"GET": ENROLL, "POST": ENROLL},
        "/v1/galleries/{gallery}/identities/{id}": {"GET": ENROLL, "PUT": ENROLL, "PATCH": ENROLL, "DELETE": ENROLL},
        "/v1/galleries/{gallery}/identities/{id}/merge": {"POST": ENROLL},
        "/v1/galleries/{gallery}/identities/{id}/faces": {"GET": ENROLL, "POST": ENROLL},
        "/v1/galleries/{gallery}/faces/{id}": {"GET": ENROLL, "DELETE": ENROLL},
        "/v1/galleries/{gallery}/duplicates": {"GET": ENROLL},
        "/v1/galleries/{gallery}/calibration": {"POST": ADMIN},
        "/v1/galleries/{gallery}/enrollments": {"POST": ENROLL},
        "/v1/jobs": {"GET": ENROLL},
        "/v1/jobs/{id}": {"GET": ENROLL},
        "/v1/jobs/{id}/cancel": {"POST": ENROLL},
        "/v1/detect": {"POST": SEARCH},
        "/v1/compare": {"POST": SEARCH},
        "/v1/embed": {"POST": SEARCH},
        "/v1/models": {"GET": SEARCH},
        # Who was where, and when, is not for whoever only opens a door or enrols.
        "/v1/events": {"GET": ADMIN, "DELETE": ADMIN},
        "/v1/events/{id}": {"GET": ADMIN},
        # The service goes wherever a webhook says.
        "/v1/webhooks": {"GET": ADMIN, "POST": ADMIN},
        "/v1/webhooks/{id}": {"GET": ADMIN, "DELETE": ADMIN},
        "/v1/webhooks/{id}/deliveries": {"GET": ADMIN},
        "/v1/webhooks/{id}/replay": {"POST": ADMIN},
        # Whoever makes keys could make one that opens more than their own.
        "/v1/keys": {"GET": OWNER, "POST": OWNER},
        "/v1/keys/{id}": {"DELETE": OWNER},
    }
)
"""By path and method. A route that finds a gallery otherwise than by `{gallery}` in its path asks `check_gallery`."""

PATHS = tuple((compile_path(path), methods) for path, methods in NEEDS.items())

FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")
"""Headers of proxies: whoever is behind one need not be on this machine, though the proxy is."""

DECLARED = (
    Security(HTTPBearer(auto_error=False, description="A key of `whosthere keys create`.")),
    Security(APIKeyHeader(name="X-API-Key", auto_error=False, description="The same, where it is easier to send.")),
)
"""Dependencies that tell OpenAPI how keys are shown; the guard is what looks at them."""


def key_of(request: Request) -> Key | None:
    """The key that the request showed; None where the service has none."""
    key: Key | None = getattr(request.state, "key", None)
    return key


def check_gallery(request: Request, name: str) -> None:
    """For what names a gallery otherwise than in its path. Raises Forbidden."""
    _check_gallery(key_of(request), name)


def check_address(settings: Settings, any_key: bool) -> None:
    """Raises InvalidSetting where a service without keys is to be reached from elsewhere."""
    if not (any_key or settings.open or is_loopback(settings.host)):
        raise InvalidSetting(
            f"WHOSTHERE_HOST is {settings.host!r}, and there are no API keys yet: whoever reaches it could search and "
            "enrol. `whosthere keys create --name NAME --scope admin` makes the first key; WHOSTHERE_OPEN=true is for "
            "what asks who is there in front of this service"
        )


class Guard:
    """What one process knows of who may ask what: that there are keys, and how often each was used lately."""

    def __init__(self, context: ServiceContext) -> None:
        self._context = context
        self._keyed = False
        """Whether a key was ever made, as far as this process knows; never false again."""
        self._buckets = Buckets()

    async def start(self) -> None:
        """Says so where nobody needs a key."""
        if not await self._any_key():
            who = "everybody" if self._context.settings.open else "this machine alone"
            log.warning("there are no API keys: %s is answered. `whosthere keys create` makes the first one", who)

    async def admit(self, scope: Scope) -> Key | None:
        """The key of a request that may be answered. Raises Unauthorized, Forbidden, RateLimited, and HTTPException
        for what is not in NEEDS."""
        fitting = _fitting(scope["path"])
        needs = [(methods[scope["method"]], params) for methods, params in fitting if scope["method"] in methods]
        if needs and all(need is OPEN for need, _ in needs):
            return None
        key = await self._key(scope)
        if not needs:
            raise HTTPException(405 if fitting else 404)
        for need, params in needs:
            if need is not None:
                _check(key, need, params)
        return key

    async def trusts(self, request: Request) -> bool:
        """Whether what an open route knows of the galleries may be told to this caller: to an admin of all of them,
        and to whoever is answered where there are no keys."""
        try:
            key = await self._key(request.scope)
        except StorageUnavailable:
            return not self._keyed and self._at_home(request.scope)
        except WhosthereError:
            return False
        return key is None or (key.opens(OWNER.scope) and key.galleries is None)

    async def _key(self, scope: Scope) -> Key | None:
        """The valid key that was shown, one use of it counted; None where there are no keys and the caller is answered
        all the same."""
        shown = _shown(Headers(scope=scope))
        if not await self._any_key():
            if self._at_home(scope):
                return None
            raise Unauthorized(
                "this service has no API keys yet and answers its own machine only; `whosthere keys create` makes one"
            )
        if shown is None:
            raise Unauthorized("expected an API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`")
        key = await run_in_threadpool(lambda: self._context.keys.genuine(shown))
        if key is None:
            raise Unauthorized("the API key is not known here")
        if key.revoked_at is not None:
            raise Unauthorized(f"the API key {key.name!r} was revoked")
        if key.expired(now()):
            raise Unauthorized(f"the API key {key.name!r} has expired")
        if wait := self._buckets.take(key):
            raise RateLimited(f"the API key {key.name!r} may make {key.per_minute} requests a minute", wait)
        return key

    async def _any_key(self) -> bool:
        if not self._keyed:
            self._keyed = await run_in_threadpool(lambda: self._context.keys.any_key())
        return self._keyed

    def _at_home(self, scope: Scope) -> bool:
        """Whether the caller is answered where there are no keys: on this machine, and no proxy of it either."""
        if self._context.settings.open:
            return True
        headers = Headers(scope=scope)
        client = scope.get("client")
        return client is not None and is_loopback(client[0]) and not any(name in headers for name in FORWARDED)


class Guarded:
    """ASGI middleware: what the guard does not admit goes no further, and its body is not read. The key of what it
    admits is in the request's state."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope)
            try:
                request.state.key = await self._guard.admit(scope)
            except WhosthereError as error:
                await domain_error(request, error)(scope, receive, send)
                return
            except HTTPException as error:
                await http_error(request, error)(scope, receive, send)
                return
        elif scope["type"] == "websocket":  # there are none, and one that is added must not be open to all
            await send({"type": "websocket.close", "code": 1008, "reason": "not served"})
            return
        await self._app(scope, receive, send)


class Buckets:
    """How often each key was used lately, in this process: `per_minute` requests at once, and as many a minute again.
    For one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}
        """By key: how many it had left, and when."""

    def take(self, key: Key) -> int:
        """0, and one use is counted; or the whole seconds after which there is one again."""
        if key.per_minute is None:
            return 0
        time = self._clock()
        left, then = self._left.get(key.id, (float(key.per_minute), time))
        left = min(float(key.per_minute), left + (time - then) * key.per_minute / 60)
        if left < 1:
            return math.ceil((1 - left) * 60 / key.per_minute)
        self._left[key.id] = (left - 1, time)
        return 0


def _fitting(path: str) -> Sequence[tuple[Mapping[str, Need | None], Mapping[str, Any]]]:
    """Every entry of NEEDS that a path fits, each of which must be satisfied, and what its parameters are."""
    found = (((regex.match(path)), methods) for (regex, _, _), methods in PATHS)
    return [(methods, match.groupdict()) for match, methods in found if match]


def _shown(headers: Headers) -> str | None:
    """The key that was sent, genuine or not. `Authorization` may be for somebody else on the way here."""
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    return headers.get("x-api-key") or (bearer.strip() if scheme.lower() == "bearer" else None)


def _check(key: Key | None, need: Need, params: Mapping[str, Any]) -> None:
    """Raises Forbidden unless the key opens what is needed. Nothing is looked up before: who may not ask for a gallery
    does not learn whether there is one."""
    if key is None:
        return
    if not key.opens(need.scope):
        message = f"the API key {key.name!r} has the scope {' and '.join(sorted(key.scopes))}; expected {need.scope}"
        raise Forbidden(message, code="forbidden_scope")
    if need.everywhere and key.galleries is not None:
        raise Forbidden(f"the API key {key.name!r} is limited to single galleries", code="forbidden_gallery")
    if "gallery" in params:
        _check_gallery(key, params["gallery"])


def _check_gallery(key: Key | None, name: str) -> None:
    if key is not None and not key.opens_gallery(name):
        raise Forbidden(f"the API key {key.name!r} does not open the gallery {name!r}", code="forbidden_gallery")
