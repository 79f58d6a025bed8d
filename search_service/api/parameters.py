"""What each route takes from a request: query parameters, and fields of the path, the headers and the body.

A field that a route does not take would be ignored: a filter with a misspelled name selects everything. So it is
refused, with the place where it belongs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl

from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.routing import BaseRoute

from indexer.errors import InvalidRequest
from search_service.api.shortening import short_name

QUERY, PATH, BODY = "query", "path", "body"

HEADERS = ("Authorization", "X-API-Key", "X-Request-ID", "Idempotency-Key")
"""Headers that no route declares: the middlewares read them."""

MOST_NAMES = 10
"""Unknown names that an error message quotes."""


@dataclass(frozen=True)
class Parameters:
    """The names that a route takes."""

    query: tuple[str, ...] = ()
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    """Where each other name belongs: PATH, BODY, or which header."""
    takes_body: bool = False

    def check_query(self, query: bytes) -> None:
        """Raises InvalidRequest where the query string has an unknown parameter, or one twice."""
        counts = Counter(name for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True))
        self.refuse(QUERY, [name for name in counts if name not in self.query or counts[name] > 1])

    def check_empty_body(self, body: bytes) -> None:
        """Raises InvalidRequest where the body of a route that takes none holds anything but an empty object."""
        try:
            content = json.loads(body) if body.strip() else None
        except (ValueError, RecursionError):
            content = body
        if isinstance(content, dict):
            self.refuse(BODY, content)
        elif content is not None:
            expected = f"; it takes query parameters: {', '.join(self.query)}" if self.query else ""
            raise InvalidRequest(f"this route takes no body{expected}")

    def problem(self, place: str, name: str) -> str:
        """Returns what is wrong with a name that was sent in that place, QUERY or BODY."""
        places = {**dict.fromkeys(self.query, QUERY), **self.elsewhere}
        if place == QUERY and name in self.query:
            return "was sent twice"
        same = next((known for known in places if _key(known) == _key(name)), None)
        if same is not None and places[same] != place:
            return f"belongs in the {places[same]}"
        expected = [known for known in places if places[known] == place]
        close = get_close_matches(_key(name), [_key(known) for known in expected], 1)
        if close:
            return f"is unknown; did you mean {next(known for known in expected if _key(known) == close[0])}?"
        return f"is unknown; expected {', '.join(expected)}" if expected else "is unknown; nothing is expected there"

    def refuse(self, place: str, names: Iterable[str]) -> None:
        """Raises InvalidRequest for names that were sent in that place, with the same details as FastAPI's validation;
        not if there are none."""
        shown = [short_name(name) for name in islice(names, MOST_NAMES)]
        found = [{"field": f"{place}.{name}", "problem": self.problem(place, name)} for name in shown]
        if found:
            message = "; ".join(f"{one['field']}: {one['problem']}" for one in found)
            raise InvalidRequest(message, details={"fields": found})


def parameters_of(route: BaseRoute) -> Parameters:
    """Returns what a route takes; nothing for a route that is not one of FastAPI's."""
    if not isinstance(route, APIRoute):
        return Parameters()
    parts = list(_with_dependencies(route.dependant))
    body = (route.openapi_extra or {}).get("requestBody")
    headers = [*HEADERS, *(one.alias for part in parts for one in part.header_params)]
    return Parameters(
        query=tuple(one.alias for part in parts for one in part.query_params),
        elsewhere={
            **{name: f"header {name}" for name in headers},
            **dict.fromkeys([one.alias for part in parts for one in part.path_params], PATH),
            **dict.fromkeys([*_properties(body or {}), *_model_fields(parts)], BODY),
        },
        takes_body=body is not None or route.body_field is not None,
    )


def _with_dependencies(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for one in dependant.dependencies:
        yield from _with_dependencies(one)


def _model_fields(parts: Iterable[Dependant]) -> Iterator[str]:
    """Yields the fields of a body that a model describes."""
    for part in parts:
        for one in part.body_params:
            model = one.field_info.annotation
            if isinstance(model, type) and issubclass(model, BaseModel):
                yield from model.model_fields


def _properties(body: Mapping[str, Any]) -> Iterator[str]:
    """Yields the fields of a body that only OpenAPI describes."""
    for content in body.get("content", {}).values():
        yield from content["schema"].get("properties", ())


def _key(name: str) -> str:
    """Returns the name as it is compared: `externalId`, `external-id` and `external_id` are the same."""
    return name.replace("_", "").replace("-", "").lower()
