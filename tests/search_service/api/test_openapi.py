"""The OpenAPI document is complete, and every answer is what it describes."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import jsonschema_rs
import pytest

from search_service.api.middleware.idempotency import CHANGES_NOTHING
from tests import photos as sources
from tests.search_service.api.serving import Running, base64_of, image, ok

Schema = Mapping[str, Any]


@pytest.fixture(scope="module")
def document(service: Running) -> Schema:
    return dict(service.app.openapi())


def check(value: object, schema: Schema, document: Schema) -> None:
    """Raises jsonschema_rs.ValidationError where a value is not what a schema of the document describes."""
    validator = jsonschema_rs.Draft202012Validator(
        {**schema, "components": document["components"]}, validate_formats=True
    )
    validator.validate(json.loads(json.dumps(value)))


def operations(document: Schema) -> Iterator[tuple[str, str, Schema]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def answers_of(operation: Schema) -> Iterator[tuple[str, Schema]]:
    """Yields status and JSON schema of each successful answer with a body."""
    for status, answer in operation["responses"].items():
        if status.startswith("2") and status != "204":
            yield status, answer.get("content", {}).get("application/json", {}).get("schema", {})


def named(schema: Schema) -> set[str]:
    """Returns the names of the objects that a schema allows."""
    choices = schema.get("anyOf", [schema])
    return {one["$ref"].rpartition("/")[2] for one in choices if "$ref" in one}


UNTYPED = {"/metrics", "/v1/events/stream", "/v1/galleries/{gallery}/faces/{face_id}/crop"}
"""Paths whose answers are no JSON."""


def test_every_operation_is_described_and_typed(document: Schema) -> None:
    for method, path, operation in operations(document):
        place = f"{method} {path}"
        assert operation.get("summary"), place
        assert operation.get("description"), place
        if path not in UNTYPED:
            for status, schema in answers_of(operation):
                assert named(schema), f"{place} {status} is not typed"


def test_every_body_and_answer_has_an_example(document: Schema) -> None:
    schemas = document["components"]["schemas"]
    for method, path, operation in operations(document):
        place = f"{method} {path}"
        for _, schema in answers_of(operation):
            assert all(schemas[name].get("examples") for name in named(schema)), place
        body = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if body is not None and "example" not in body:
            assert named(body["schema"]), place
            assert all(schemas[name].get("examples") for name in named(body["schema"])), place
    assert schemas["ErrorAnswer"]["examples"]


def test_every_example_fits_its_schema(document: Schema) -> None:
    for schema in document["components"]["schemas"].values():
        for example in schema.get("examples", ()):
            check(example, schema, document)
    for _, _, operation in operations(document):
        for content in operation.get("requestBody", {}).get("content", {}).values():
            if "example" in content:
                check(content["example"], content["schema"], document)


def test_operation_ids_are_unique_and_stable(document: Schema) -> None:
    found = [operation["operationId"] for _, _, operation in operations(document)]
    assert [name for name, times in Counter(found).items() if times > 1] == []
    assert all(re.fullmatch("[a-z][a-z_]*", name) for name in found)
    stable = """
        healthz readyz list_galleries create_gallery show_gallery delete_gallery gallery_duplicates calibrate_gallery
        list_identities create_identity show_identity put_identity patch_identity delete_identity merge_identities
        list_faces enroll_face show_face delete_face search detect embed compare models
    """
    assert set(stable.split()) <= set(found)


def test_posts_that_change_something_document_the_idempotency_key(document: Schema) -> None:
    for method, path, operation in operations(document):
        headers = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "header"}
        expected = method == "POST" and path not in CHANGES_NOTHING
        assert ("Idempotency-Key" in headers) == expected, f"{method} {path}"
        assert not expected or {"409", "422"} <= operation["responses"].keys(), f"{method} {path}"
    assert {path for method, path, _ in operations(document) if method == "POST"} >= CHANGES_NOTHING


def test_every_answer_about_galleries_identities_and_faces_fits_its_schema(
    client: httpx.Client, document: Schema, gallery: str
) -> None:
    visited: set[tuple[str, str]] = set()
    name = gallery.rpartition("/")[2]

    def visit(method: str, path: str, status: int, **request: Any) -> Any:
        places = {"gallery": name, "external_id": "ana", **request.pop("places", {})}
        body = ok(client.request(method, path.format(**places), **request), status)
        check(body, dict(answers_of(document["paths"][path][method.lower()]))[str(status)], document)
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
    for fields in ({}, {"all_faces": "true"}, {"same_person": "true"}, {"threshold": "0.3"}):
        visit("POST", f"{one}/search", 200, files=image(data), data=fields)
    visit("POST", f"{one}/search", 200, json={"images": [base64_of(data), base64_of(b"no image")]})
    embedding = visit("POST", "/v1/embed", 200, files=image(data))["faces"][0]["embedding"]
    visit("POST", f"{one}/search", 200, json={"embedding": embedding})
    visit("POST", "/v1/detect", 200, files=image(sources.six_people()))
    visit("POST", "/v1/compare", 200, files={"image_a": ("a", data), "image_b": ("b", data)})
    visit("DELETE", f"{one}/faces/{{face_id}}", 200, places=face)
    visit("DELETE", person, 200)
    for answer in (client.get(f"{gallery}x"), client.post(galleries, json={}), client.get("/v1/x")):
        check(answer.json(), {"$ref": "#/components/schemas/ErrorAnswer"}, document)
    tags = {"health", "galleries", "identities", "faces"}
    ours = {(method, path) for method, path, operation in operations(document) if set(operation["tags"]) <= tags}
    assert ours - visited <= {("GET", path) for path in UNTYPED}
