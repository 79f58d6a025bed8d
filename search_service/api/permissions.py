"""What a route declares for the middlewares that run before it: the scope that opens it, and the kind of its body.

    @router.post("/search", dependencies=[requires(Scope.SEARCH), accepts(BodyKind.IMAGES)])

The declarations are dependencies of a route or of its router. A route without `requires` or `public` is not answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from fastapi import Depends
from fastapi.params import Depends as Dependency
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Match
from starlette.types import Scope as RequestScope

from search_service.api.parameters import Parameters, parameters_of
from search_service.store.api_keys import Scope


class BodyKind(Enum):
    """What a request's body may hold, which decides how large it may be and where it is kept while it arrives."""

    JSON = "json"
    """Parsed on the event loop, so it is small."""
    IMAGES = "images"
    """Photos, held in memory."""
    ARCHIVE = "archive"
    """Written to a file as it arrives."""


@dataclass(frozen=True)
class Permission:
    """What an API key must open. Where the path has a `{gallery}`, it must open that gallery as well."""

    scope: Scope | None
    """None: no key is needed."""
    every_gallery: bool = False
    """Whether only keys that are not limited to single galleries will do."""


@dataclass(frozen=True)
class _Declaration:
    value: Permission | BodyKind

    async def __call__(self) -> None:
        """Does nothing when FastAPI calls it: the middlewares read `value` before the request's body is read."""


def requires(scope: Scope, every_gallery: bool = False) -> Any:
    """Returns the dependency of a route that only keys with this scope, or a higher one, may use."""
    return Depends(_Declaration(Permission(scope, every_gallery)))


def public() -> Any:
    """Returns the dependency of a route that anyone may use without a key."""
    return Depends(_Declaration(Permission(None)))


def accepts(body: BodyKind) -> Any:
    """Returns the dependency of a route whose body may be larger than plain JSON."""
    return Depends(_Declaration(body))


@dataclass(frozen=True)
class RouteMatch:
    """What the path and the method of a request fit."""

    permissions: tuple[tuple[Permission, Mapping[str, Any]], ...] = ()
    """Each must be given; with the values of the path's parameters. Empty where nothing fits."""
    body: BodyKind = BodyKind.JSON
    parameters: Parameters = field(default_factory=Parameters)
    path_exists: bool = False
    """Whether the path fits a route, be it for another method."""

    @property
    def is_public(self) -> bool:
        return bool(self.permissions) and all(permission.scope is None for permission, _ in self.permissions)


class DeclaredRoutes:
    """The routes that declare who may use them; no other route is answered."""

    def __init__(self) -> None:
        self._routes: list[tuple[BaseRoute, tuple[Permission, ...], BodyKind, Parameters]] = []

    def add(self, routes: Iterable[BaseRoute]) -> None:
        """Adds the routes of a router, as far as they declare a permission."""
        for route in routes:
            values = declarations(route)
            permissions = tuple(value for value in values if isinstance(value, Permission))
            bodies = [value for value in values if isinstance(value, BodyKind)]
            if permissions:
                body = bodies[-1] if bodies else BodyKind.JSON
                self._routes.append((route, permissions, body, parameters_of(route)))

    def add_public(self, routes: Iterable[BaseRoute]) -> None:
        """Adds routes that cannot declare anything, such as those of FastAPI's documentation pages, for anyone."""
        self._routes += [(route, (Permission(None),), BodyKind.JSON, parameters_of(route)) for route in routes]

    def match(self, scope: RequestScope) -> RouteMatch:
        """Returns what a request fits. Where several routes fit, the permissions of all of them are needed."""
        permissions: list[tuple[Permission, Mapping[str, Any]]] = []
        body, parameters, path_exists = BodyKind.JSON, Parameters(), False
        for route, needed, accepted, taken in self._routes:
            fit, found = route.matches(scope)
            path_exists |= fit is not Match.NONE
            if fit is Match.FULL:
                if not permissions:  # the framework answers with the first one
                    body, parameters = accepted, taken
                permissions += [(permission, found.get("path_params", {})) for permission in needed]
        return RouteMatch(tuple(permissions), body, parameters, path_exists)


def declarations(route: BaseRoute) -> list[Permission | BodyKind]:
    """Returns what a route and its router declare; nothing for a route that is not one of FastAPI's."""
    if not isinstance(route, APIRoute):
        return []
    dependencies: list[Dependency] = route.dependencies
    return [one.dependency.value for one in dependencies if isinstance(one.dependency, _Declaration)]
