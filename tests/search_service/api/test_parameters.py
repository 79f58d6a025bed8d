"""Every route refuses the query parameters and the fields that it does not take, and names where they belong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from search_service.api.middleware.known_parameters import MAX_BYTES
from tests import photos
from tests.search_service.api.bulk import packed
from tests.search_service.api.endpoints import Endpoint, application, endpoints
from tests.search_service.api.guarded import Guarded
from tests.search_service.api.guarded import guarded as guarded
from tests.search_service.api.serving import image, ok, refused

ENDPOINTS = [one for one in endpoints(application()) if one.method != "HEAD"]
DOCUMENTED: Mapping[str, Any] = application().openapi()["paths"]

every_route = pytest.mark.parametrize("route", ENDPOINTS, ids=[f"{one.method} {one.path}" for one in ENDPOINTS])


def operation(route: Endpoint) -> Mapping[str, Any]:
    """The route in OpenAPI; empty for the documentation's own pages."""
    found: Mapping[str, Any] = DOCUMENTED.get(route.path, {}).get(route.method.lower(), {})
    return found


def query_of(route: Endpoint) -> set[str]:
    return {one["name"] for one in operation(route).get("parameters", ()) if one["in"] == "query"}


EVERY_NAME = sorted(set().union(*map(query_of, ENDPOINTS)))


def problems(answer: httpx.Response) -> dict[str, str]:
    """The problem of each field that an answer names; a success may be no JSON."""
    error = {} if answer.is_success else answer.json()["error"]
    return {found["field"]: found["problem"] for found in error.get("details", {}).get("fields", ())}


@every_route
def test_an_unknown_query_parameter_is_refused(guarded: Guarded, route: Endpoint) -> None:
    answer = guarded.request(route.method, route.path, "admin", params={"nonsense": "1"})
    error = refused(answer, 400, "invalid_request")
    (problem,) = problems(answer).values()
    assert problem.startswith("is unknown; ")
    assert error["message"] == f"query.nonsense: {problem}"


@every_route
def test_every_documented_query_parameter_is_taken_and_no_other(guarded: Guarded, route: Endpoint) -> None:
    for name in EVERY_NAME:
        found = problems(guarded.request(route.method, route.path, "admin", params={name: "~"}))
        problem = found.get(f"query.{name}", "")
        assert problem.startswith(("is unknown; ", "belongs in the ")) == (name not in query_of(route)), name


@every_route
def test_a_query_parameter_that_is_sent_twice_is_refused(guarded: Guarded, route: Endpoint) -> None:
    for name in query_of(route):
        answer = guarded.request(route.method, route.path, "admin", params=[(name, "1"), (name, "2")])
        refused(answer, 400, "invalid_request")
        assert problems(answer) == {f"query.{name}": "was sent twice"}


@every_route
def test_an_unknown_field_of_the_body_is_refused(guarded: Guarded, route: Endpoint) -> None:
    answer = guarded.request(route.method, route.path, "admin", "staff", json={"nonsense": 1})
    error = refused(answer, 400, "invalid_request")
    if "enrollments" not in route.path:  # takes no JSON at all
        assert problems(answer)["body.nonsense"].startswith("is unknown; ")
        assert "body.nonsense: is unknown" in error["message"]


@every_route
def test_a_route_without_a_body_takes_an_empty_object(guarded: Guarded, route: Endpoint) -> None:
    if "requestBody" not in operation(route):
        path = route.path.replace("{path}", "swagger-ui.css").replace("{gallery}", "none")
        for body in (b"", b" ", b"{}", b"null"):
            headers = {"X-API-Key": guarded.keys["admin"]}
            answer = guarded.client.request(route.method, path, headers=headers, content=body)
            assert "body" not in answer.text or answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("method", "path", "field", "problem"),
    [
        ("DELETE", "/v1/events?gallery=staff&externalId=00042&before=2030-01-01", "query.externalId", "did you mean"),
        ("GET", "/v1/events?External-Id=1", "query.External-Id", "did you mean external_id?"),
        ("GET", "/v1/galleries?limits=1", "query.limits", "did you mean limit?"),
        ("POST", "/v1/galleries/staff/search?threshold=0.99", "query.threshold", "belongs in the body"),
        ("POST", "/v1/galleries/staff/search?topK=1", "query.topK", "belongs in the body"),
        ("POST", "/v1/galleries/staff/search?record=true", "query.record", "belongs in the body"),
        ("POST", "/v1/galleries?name=x", "query.name", "belongs in the body"),
        ("POST", "/v1/embed?model=sface", "query.model", "belongs in the body"),
        ("GET", "/v1/galleries/staff/identities?gallery=other", "query.gallery", "belongs in the path"),
        ("DELETE", "/v1/galleries/staff/identities/ana?if_match=x", "query.if_match", "belongs in the header if-match"),
        ("GET", "/v1/models?x_api_key=x", "query.x_api_key", "belongs in the header X-API-Key"),
        ("GET", "/healthz?verbose", "query.verbose", "nothing is expected there"),
    ],
)
def test_the_refusal_of_a_query_parameter_names_where_it_belongs(
    guarded: Guarded, method: str, path: str, field: str, problem: str
) -> None:
    answer = guarded.client.request(method, path, headers={"X-API-Key": guarded.keys["admin"]})
    refused(answer, 400, "invalid_request")
    assert problem in problems(answer)[field]


@pytest.mark.parametrize(
    ("method", "path", "body", "field", "problem"),
    [
        ("DELETE", "/v1/events?gallery=staff&before=2030-01-01", {"external_id": "1"}, "external_id", "in the query"),
        ("PUT", "/v1/galleries/staff/identities/ana", {"external_id": "ana"}, "external_id", "belongs in the path"),
        ("PUT", "/v1/galleries/staff/identities/ana", {"validUntil": None}, "validUntil", "did you mean valid_until?"),
        ("POST", "/v1/galleries/staff/search", {"externalId": "ana"}, "externalId", "is unknown; expected image, "),
        ("POST", "/v1/galleries/staff/search", {"treshold": 1}, "treshold", "did you mean threshold?"),
        ("POST", "/v1/keys", {"IdempotencyKey": "x"}, "IdempotencyKey", "belongs in the header Idempotency-Key"),
        ("POST", "/v1/galleries/staff/calibration", {"fpir": 0.01}, "fpir", "nothing is expected there"),
    ],
)
def test_the_refusal_of_a_body_field_names_where_it_belongs(
    guarded: Guarded, method: str, path: str, body: object, field: str, problem: str
) -> None:
    answer = guarded.client.request(method, path, headers={"X-API-Key": guarded.keys["admin"]}, json=body)
    refused(answer, 400, "invalid_request")
    assert problem in problems(answer)[f"body.{field}"]


def test_an_unknown_name_that_is_not_text_is_refused(guarded: Guarded) -> None:
    headers = {"X-API-Key": guarded.keys["admin"]}
    for path in ("/v1/galleries/staff", "/v1/galleries/staff/search"):
        method = "GET" if path.endswith("staff") else "POST"
        answer = guarded.client.request(
            method, path, headers=headers | {"Content-Type": "application/json"}, content=b'{"\\ud800": 1}'
        )
        assert "body.?: is unknown" in refused(answer, 400, "invalid_request")["message"]


@pytest.mark.parametrize("body", [b"external_id=00042", b"[1]", b'"x"', b"[" * 5000, b"\xff"])
def test_a_body_that_is_no_object_is_refused_where_none_is_taken(guarded: Guarded, body: bytes) -> None:
    headers = {"X-API-Key": guarded.keys["admin"]}
    path = "/v1/events?gallery=staff&before=2030-01-01"
    message = refused(guarded.client.request("DELETE", path, headers=headers, content=body), 400, "invalid_request")
    assert message["message"] == "this route takes no body; it takes query parameters: gallery, external_id, before"


def test_unknown_form_fields_name_where_they_belong(guarded: Guarded) -> None:
    client, headers = guarded.client, {"X-API-Key": guarded.keys["admin"]}
    for path, files in (
        ("/v1/galleries/staff/search", image(photos.astronaut())),
        ("/v1/galleries/staff/identities/ana/faces", image(photos.astronaut())),
        ("/v1/galleries/staff/enrollments", image(packed({"a.png": photos.astronaut()}), field="archive")),
    ):
        for name, problem in (("Gallery", "belongs in the path"), ("picks", "is unknown; did you mean pick?")):
            answer = client.post(path, headers=headers, files=files, data={name: "x"})
            refused(answer, 400, "invalid_request")
            assert problems(answer) == {f"body.{name}": problem}
    assert ok(client.get("/v1/galleries/staff/identities", headers=headers))["identities"] == []


def test_a_long_body_is_refused_where_none_is_taken(guarded: Guarded) -> None:
    for size, status in ((MAX_BYTES, 200), (MAX_BYTES + 1, 400)):
        assert guarded.client.request("GET", "/healthz", content=b" " * size).status_code == status


def test_long_and_many_unknown_names_give_a_short_message(guarded: Guarded) -> None:
    headers = {"X-API-Key": guarded.keys["admin"]}
    many = {f"{number}{'x' * 700}": "1" for number in range(40)}
    for answer in (
        guarded.client.get("/v1/models", params=many, headers=headers),
        guarded.client.request("GET", "/v1/models", json=many, headers=headers),
        guarded.client.post("/v1/keys", json=many, headers=headers),
        guarded.client.post("/v1/embed", json=many, headers=headers),
    ):
        assert len(refused(answer, 400, "invalid_request")["message"]) < 1500
        assert len(problems(answer)) == 10


def test_unknown_parameters_are_not_revealed_to_callers_without_a_key(guarded: Guarded) -> None:
    refused(guarded.client.get("/v1/events?nonsense=1"), 401, "unauthorized")


def test_a_refused_request_frees_its_idempotency_key(guarded: Guarded) -> None:
    headers = {"X-API-Key": guarded.keys["admin"], "Idempotency-Key": "parameters"}
    path = "/v1/galleries/staff/identities"
    refused(guarded.client.post(f"{path}?name=Ana", json={"external_id": "p"}, headers=headers), 400, "invalid_request")
    ok(guarded.client.post(path, json={"external_id": "p"}, headers=headers), 201)
    guarded.client.delete(f"{path}/p", headers=headers)
