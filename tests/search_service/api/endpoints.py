"""Lists every method and path that an application answers, with what the route declares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.routing import Mount

from indexer.settings import read_settings
from search_service.api.app import create_app
from search_service.api.permissions import BodyKind, Permission, declarations
from search_service.service_context import ServiceContext
from tests.variants import SETTINGS


@dataclass(frozen=True)
class Endpoint:
    method: str
    path: str
    function: Callable[..., Any] | None
    permissions: tuple[Permission, ...]
    body: BodyKind = BodyKind.JSON


def application() -> FastAPI:
    """An application that is not started, over a home that does not exist."""
    return create_app(ServiceContext(read_settings(SETTINGS, home=Path("nowhere"))))


def endpoints(app: FastAPI) -> list[Endpoint]:
    """All of them, whether they are documented or not, by path and method."""
    found = []
    for route in iter_route_contexts(app.routes):
        declared = declarations(route.original_route)
        permissions = tuple(one for one in declared if isinstance(one, Permission))
        (body,) = [one for one in declared if isinstance(one, BodyKind)] or [BodyKind.JSON]
        path = f"{route.path}/{{path}}" if isinstance(route.original_route, Mount) else str(route.path)
        for method in route.methods or ("GET", "HEAD"):
            found.append(Endpoint(method, path, route.endpoint, permissions, body))
    return sorted(found, key=lambda one: (one.path, one.method))
