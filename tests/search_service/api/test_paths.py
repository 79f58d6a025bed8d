"""Bytes that are not valid text are rejected anywhere in a request, with either database."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from indexer.settings import read_settings
from search_service.service_context import ServiceContext
from search_service.store.api_keys import Scope
from tests import photos
from tests.postgres import Database
from tests.search_service.api.conftest import new_home
from tests.search_service.api.serving import Running, base64_of, ok, refused, running
from tests.variants import SETTINGS

PLACES = {"gallery": "staff", "external_id": "ana"}
"""Existing things; other path parameters are 1."""

ENCODED = ("%00", "a%00b", "%2F%00", "%FF", "a%ED%A0%80")
"""NUL; bytes that are not UTF-8, the last ones half of a surrogate pair."""

DECODED = ("\\u0000", "a\\u0000b", "\\ud800", "a\\udfff")

FACE = '"image": "{face}"'

BODIES = [
    ("POST", "/v1/galleries", '{"name": "X"}'),
    ("POST", "/v1/galleries", '{"name": "new", "model": "X"}'),
    ("POST", "/v1/galleries/staff/identities", '{"external_id": "X"}'),
    ("POST", "/v1/galleries/staff/identities", '{"external_id": "new", "name": "X"}'),
    ("PUT", "/v1/galleries/staff/identities/new", '{"name": "X"}'),
    ("PATCH", "/v1/galleries/staff/identities/ana", '{"name": "X"}'),
    ("POST", "/v1/galleries/staff/identities/ana/merge", '{"other": "X"}'),
    ("POST", "/v1/galleries/staff/search", '{"record": true, "device": "X", ' + FACE + "}"),
    ("POST", "/v1/galleries/staff/search", '{"pick": "X", ' + FACE + "}"),
    ("POST", "/v1/galleries/staff/search", '{"image": "X"}'),
    ("POST", "/v1/detect", '{"image": "X"}'),
    ("POST", "/v1/embed", '{"model": "X", ' + FACE + "}"),
    ("POST", "/v1/webhooks", '{"url": "http://h/X"}'),
    ("POST", "/v1/webhooks", '{"url": "http://X"}'),
    ("POST", "/v1/webhooks", '{"url": "http://h", "gallery": "X"}'),
    ("POST", "/v1/keys", '{"name": "X", "scopes": ["admin"]}'),
    ("POST", "/v1/keys", '{"name": "new", "scopes": ["search"], "galleries": ["X"]}'),
]
"""Each is rejected for the text in place of X."""


@pytest.fixture
def service(database: Database, tmp_path: Path, models_folder: Path) -> Iterator[Running]:
    folder = new_home(tmp_path, models_folder)
    with running(ServiceContext(read_settings(SETTINGS, home=folder, database_url=database.url))) as service:
        yield service


@pytest.fixture
def client(service: Running) -> Iterator[httpx.Client]:
    with service.client() as client:
        ok(client.post("/v1/galleries", json={"name": "staff"}), 201)
        ok(client.put("/v1/galleries/staff/identities/ana", json={}), 201)
        yield client


def parameters(service: Running, kind: str) -> Iterator[tuple[str, str, str]]:
    """Method, path and name of each parameter in a path or a query."""
    for path, methods in service.app.openapi()["paths"].items():
        for method, operation in methods.items():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == kind:
                    yield method.upper(), path, parameter["name"]


def filled(path: str, **places: str) -> str:
    return re.sub(r"\{(\w+)\}", lambda place: {**PLACES, **places}.get(place[1], "1"), path)


def rejected_as(answer: httpx.Response, field: str, odd: str) -> None:
    """Checks that a part of a request was rejected as undecodable text."""
    error = refused(answer, 400, "invalid_request")
    problem = "contains a NUL byte (%00)" if "%00" in odd else "is not UTF-8"
    assert error["details"] == {"fields": [{"field": field, "problem": problem}]}
    assert error["message"].startswith(f"{field}: {problem}")


def test_undecodable_path_parameter_is_rejected(service: Running, client: httpx.Client) -> None:
    asked = list(parameters(service, "path"))
    assert ("GET", "/v1/webhooks/{webhook_id}/deliveries", "webhook_id") in asked
    for method, path, name in asked:
        for odd in ENCODED:
            rejected_as(client.request(method, filled(path, **{name: odd}), json={}), "path", odd)


def test_undecodable_query_parameter_is_rejected(service: Running, client: httpx.Client) -> None:
    asked = list(parameters(service, "query"))
    assert ("GET", "/v1/events", "device") in asked
    for method, path, name in asked:
        for odd in ENCODED:
            rejected_as(client.request(method, f"{filled(path)}?x=%C3%BC&{name}={odd}"), f"query.{name}", odd)


def test_undecodable_query_parameter_name_is_rejected(client: httpx.Client) -> None:
    rejected_as(client.get("/v1/events?a%00b=1"), "query.a\0b", "%00")
    rejected_as(client.get("/v1/events?%FF=1"), "query.\ufffd", "%FF")
    assert len(refused(client.get(f"/v1/events?{'x' * 9000}=%00"), 400, "invalid_request")["message"]) < 200


def test_undecodable_text_in_a_body_is_rejected(service: Running, client: httpx.Client) -> None:
    face = base64_of(photos.astronaut())
    headers = {"Content-Type": "application/json"}
    for method, path, body in BODIES:
        for odd in DECODED:
            content = body.replace("X", odd).replace("{face}", face)
            answer = client.request(method, path, content=content, headers=headers)
            assert answer.status_code in (400, 404, 422), (method, path, body, odd, answer.text)
            refused(answer, answer.status_code, answer.json()["error"]["code"])
    assert not service.context.keys.has_any()
    assert [one["external_id"] for one in ok(client.get("/v1/galleries/staff/identities"))["identities"]] == ["ana"]


def test_all_other_text_is_accepted(client: httpx.Client) -> None:
    for name in ("ü", "日本", "😀", "a/b", "a%b", "a+b", "%00", "\\ud800"):
        path = f"/v1/galleries/staff/identities/{quote(name, safe='')}"
        assert ok(client.put(path, json={}), 201)["external_id"] == name
        assert ok(client.get("/v1/events", params={"external_id": name, "device": name}))["events"] == []
    kept: dict[str, Any] = {"metadata": {"a\0b": "\0"}}
    assert ok(client.put("/v1/galleries/staff/identities/ana", json=kept))["metadata"] == kept["metadata"]


def test_missing_key_is_reported_before_undecodable_text(service: Running, client: httpx.Client) -> None:
    service.context.keys.create("first", [Scope.ADMIN])
    refused(client.get("/v1/events?device=%00"), 401, "unauthorized")
    refused(client.get("/v1/jobs/%00"), 401, "unauthorized")
