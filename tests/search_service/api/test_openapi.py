"""What OpenAPI says is complete, and true of every answer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from search_service.api.middleware.idempotency import CHANGES_NOTHING
from tests import photos as sources
from tests.search_service.api.schemas import Mismatch, check
from tests.search_service.api.serving import Running, base64_of, image, ok

Told = dict[str, Any]


@pytest.fixture(scope="module")
def told(service: Running) -> Told:
    return dict(service.app.openapi())


def operations(told: Told) -> Iterator[tuple[str, str, Told]]:
    for path, methods in told["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def answers_of(operation: Told) -> Iterator[tuple[str, Told]]:
    """The JSON schemas of its answers that are no errors, by status; of one that has a body."""
    for status, answer in operation["responses"].items():
        if status.startswith("2") and status != "204":
            yield status, answer.get("content", {}).get("application/json", {}).get("schema", {})


def named(schema: Told) -> set[str]:
    """The objects that a schema is one of; none where it is not made of such."""
    choices = schema.get("anyOf", [schema])
    return {one["$ref"].rpartition("/")[2] for one in choices if "$ref" in one}


def test_every_operation_is_described(told: Told) -> None:
    for method, path, operation in operations(told):
        place = f"{method} {path}"
        assert operation.get("summary"), place
        assert operation.get("description"), place
        if "text/plain" in str(operation["responses"].get("200", {}).get("content", {})):
            continue  # metrics
        for status, schema in answers_of(operation):
            assert named(schema), f"{place} {status} is not typed"


def test_every_object_that_is_sent_has_an_example(told: Told) -> None:
    schemas = told["components"]["schemas"]
    for method, path, operation in operations(told):
        place = f"{method} {path}"
        for _, schema in answers_of(operation):
            for name in named(schema):
                assert schemas[name].get("examples"), f"{place}: {name}"
        asked = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if asked is not None:
            names = named(asked["schema"])
            assert "example" in asked or (names and all(schemas[name].get("examples") for name in names)), place
    assert schemas["ErrorAnswer"]["examples"]


def test_the_examples_are_true(told: Told) -> None:
    schemas = told["components"]["schemas"]
    for name, schema in schemas.items():
        for example in schema.get("examples", ()):
            check(example, schema, schemas, name)
    for _, _, operation in operations(told):
        for content in operation.get("requestBody", {}).get("content", {}).values():
            if "example" in content:
                check(content["example"], content["schema"], schemas)


def test_names_of_operations_are_stable_and_their_own(told: Told) -> None:
    found = [operation["operationId"] for _, _, operation in operations(told)]
    assert [name for name, times in Counter(found).items() if times > 1] == []
    assert all(re.fullmatch("[a-z][a-z_]*", name) for name in found)
    assert {
        "healthz",
        "readyz",
        "list_galleries",
        "create_gallery",
        "show_gallery",
        "delete_gallery",
        "gallery_duplicates",
        "calibrate_gallery",
        "list_identities",
        "create_identity",
        "show_identity",
        "put_identity",
        "patch_identity",
        "delete_identity",
        "merge_identities",
        "list_faces",
        "enroll_face",
        "show_face",
        "delete_face",
        "search",
        "detect",
        "embed",
        "compare",
        "models",
    } <= set(found)


def test_posts_that_change_something_tell_of_the_key(told: Told) -> None:
    for method, path, operation in operations(told):
        headers = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "header"}
        wanted = method == "POST" and path not in CHANGES_NOTHING
        assert ("Idempotency-Key" in headers) == wanted, f"{method} {path}"
        assert not wanted or {"409", "422"} <= operation["responses"].keys(), f"{method} {path}"
    assert {path for method, path, _ in operations(told) if method == "POST"} >= CHANGES_NOTHING


def test_every_answer_is_what_openapi_says(client: httpx.Client, told: Told, gallery: str) -> None:
    """A tour through every route of galleries, identities and faces."""
    visited: set[tuple[str, str]] = set()
    name, schemas = gallery.rpartition("/")[2], told["components"]["schemas"]

    def visit(method: str, path: str, status: int, **asked: Any) -> Any:
        places = {"gallery": name, "external_id": "ana", **asked.pop("places", {})}
        body = ok(client.request(method, path.format(**places), **asked), status)
        schema = dict(answers_of(told["paths"][path][method.lower()]))[str(status)]
        check(body, schema, schemas, f"{method} {path}")
        visited.add((method, path))
        return body

    galleries, one = "/v1/galleries", "/v1/galleries/{gallery}"
    people, person = f"{one}/identities", f"{one}/identities/{{external_id}}"
    data = sources.astronaut()
    visit("GET", "/healthz", 200)
    visit("GET", "/readyz", 200)
    visit("GET", "/v1/models", 200)
    visit("GET", galleries, 200)
    visit("POST", galleries, 201, json={"name": f"{name}-2"})
    visit("DELETE", one, 200, places={"gallery": f"{name}-2"})
    visit("POST", people, 201, json={"external_id": "ana", "metadata": {"a": [1, None]}, "valid_until": "2099-01-01"})
    visit("GET", person, 200)
    visit("PUT", person, 200, json={"name": "Ana"})
    visit("PUT", person, 201, json={}, places={"external_id": "ben"})
    visit("PATCH", person, 200, json={"name": None})
    enrolled = visit("POST", f"{person}/faces", 201, files=image(data))
    visit("POST", f"{person}/faces", 200, files=image(data))
    visit("POST", f"{person}/faces", 200, json={"images": [base64_of(data), base64_of(b"no image")]})
    visit("GET", f"{person}/faces", 200)
    visit("GET", people, 200, params={"limit": 1})
    visit("POST", f"{person}/merge", 200, json={"other": "ben"})
    face = {"face_id": enrolled["face_id"]}
    visit("GET", f"{one}/faces/{{face_id}}", 200, places=face)
    visit("GET", f"{one}/duplicates", 200)
    visit("POST", f"{one}/calibration", 200)
    visit("GET", one, 200)
    for asked in ({}, {"all_faces": "true"}, {"same_person": "true"}, {"threshold": "0.3"}):
        visit("POST", f"{one}/search", 200, files=image(data), data=asked)
    visit("POST", f"{one}/search", 200, json={"images": [base64_of(data), base64_of(b"no image")]})
    embedding = visit("POST", "/v1/embed", 200, files=image(data))["faces"][0]["embedding"]
    visit("POST", f"{one}/search", 200, json={"embedding": embedding})
    visit("POST", "/v1/detect", 200, files=image(sources.six_people()))
    visit("POST", "/v1/compare", 200, files={"image_a": ("a", data), "image_b": ("b", data)})
    visit("DELETE", f"{one}/faces/{{face_id}}", 200, places=face)
    visit("DELETE", person, 200)
    for answer in (client.get(f"{gallery}x"), client.post(galleries, json={}), client.get("/v1/x")):
        check(answer.json(), schemas["ErrorAnswer"], schemas)
    ours = {(m, p) for m, p, operation in operations(told) if set(operation["tags"]) <= TAGS} - {("GET", "/metrics")}
    assert ours - visited == set()


TAGS = {"health", "galleries", "identities", "faces"}
"""Of the routes that the tour visits; others have tours of their own."""


@pytest.mark.parametrize(
    ("value", "schema"),
    [
        (1.5, {"type": "integer"}),
        (True, {"type": "integer"}),
        (None, {"anyOf": [{"type": "string"}, {"type": "number"}]}),
        ({"a": 1}, {"type": "object", "properties": {}, "additionalProperties": False}),
        ({}, {"type": "object", "required": ["a"]}),
        ([1, "2"], {"type": "array", "items": {"type": "integer"}}),
        (["1"], {"prefixItems": [{"type": "integer"}]}),
        ("b", {"enum": ["a"]}),
        ("2026-01-01T00:00:00", {"type": "string", "format": "date-time"}),
        ({"x": [{"y": 1}]}, {"properties": {"x": {"items": {"$ref": "#/components/schemas/Y"}}}}),
    ],
)
def test_the_checker_finds_what_is_wrong(value: object, schema: Told) -> None:
    with pytest.raises(Mismatch):
        check(value, schema, {"Y": {"properties": {"y": {"type": "string"}}}})
