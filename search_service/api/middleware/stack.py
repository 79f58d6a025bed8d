"""The middlewares that every request passes, and why they are in this order."""

from __future__ import annotations

from ipaddress import ip_network

from fastapi import FastAPI

from search_service.api.hosts import allowed_hosts
from search_service.api.metrics import Metrics
from search_service.api.middleware.access import Access
from search_service.api.middleware.allowed_origins import AllowedOrigins
from search_service.api.middleware.idempotency import Idempotency
from search_service.api.middleware.input_limits import MAX_JSON_BYTES, MAX_JSON_VALUES, BodyLimit, InputLimits
from search_service.api.middleware.known_parameters import KnownParameters
from search_service.api.middleware.path_prefix import PathPrefix
from search_service.api.middleware.request_context import RequestContext
from search_service.api.middleware.unexpected_errors import UnexpectedErrors
from search_service.api.permissions import BodyKind
from search_service.api.security import Guard
from search_service.api.threads import Writers
from search_service.service_context import ServiceContext

ORDER = (
    RequestContext,
    AllowedOrigins,
    UnexpectedErrors,
    PathPrefix,
    Access,
    InputLimits,
    KnownParameters,
    Idempotency,
)
"""Outermost first.

1. RequestContext: every answer has a request id, is counted and logged, also those of the other middlewares.
2. AllowedOrigins: preflight requests carry no API key, and pages of allowed origins can read every refusal.
3. UnexpectedErrors: pages of allowed origins can read that a request failed, too.
4. PathPrefix: what follows finds routes and parameters by the path behind the prefix.
5. Access: a caller without permission gets nothing else to know, and none of the body is read.
6. InputLimits: everything that reads a body reads a limited one, the next middleware included.
7. KnownParameters: a request that is refused for what its route would ignore is not stored.
8. Idempotency: each API key has Idempotency-Keys of its own, so the key is known here; it hashes the body it receives.
"""

ARCHIVES_AT_ONCE = 4
"""Archives of the largest size that one process receives at the same time, on its disk."""


ARCHIVE_SECONDS = 3600.0
"""How long one archive may take while more than half of those bytes are held: 600 kB a second for the largest."""


def add_middlewares(app: FastAPI, context: ServiceContext, guard: Guard, metrics: Metrics, writers: Writers) -> None:
    """Adds the middlewares of ORDER. Starlette calls the one that was added last first."""
    settings = context.settings
    max_archive, max_body = settings.max_archive_bytes, settings.max_body_bytes
    limits = {
        BodyKind.ARCHIVE: BodyLimit(max_archive, ARCHIVES_AT_ONCE * max_archive, ARCHIVE_SECONDS),
        BodyKind.IMAGES: BodyLimit(max_body, settings.max_waiting_bytes),
        BodyKind.JSON: BodyLimit(min(MAX_JSON_BYTES, max_body), settings.max_waiting_bytes, max_values=MAX_JSON_VALUES),
    }
    app.add_middleware(Idempotency, context=context, writers=writers)
    app.add_middleware(KnownParameters)
    app.add_middleware(InputLimits, limits=limits)
    hosts = allowed_hosts(settings.host, settings.allowed_hosts.split(","))
    origins = frozenset(settings.allowed_origins.split(",")) - {""}
    proxies = tuple(ip_network(network) for network in settings.trusted_proxies.split(",") if network)
    app.add_middleware(Access, guard=guard, allowed_hosts=hosts, allowed_origins=origins)
    app.add_middleware(PathPrefix, root_path=settings.root_path, trusted=proxies)
    app.add_middleware(UnexpectedErrors)
    app.add_middleware(AllowedOrigins, origins=origins)
    app.add_middleware(RequestContext, metrics=metrics)
