"""Every route, with every kind of key that must not open it and with those that do."""

from __future__ import annotations

import socket

import pytest

from search_service.api.permissions import Permission
from search_service.api.security import DOCUMENTATION
from search_service.store.api_keys import Scope
from tests.search_service.api.endpoints import application, endpoints
from tests.search_service.api.guarded import Guarded
from tests.search_service.api.guarded import guarded as guarded
from tests.search_service.api.serving import ok, refused
from tests.waiting import DEADLINE

NEED_NO_GALLERY = {
    ("POST", "/v1/detect"),
    ("POST", "/v1/compare"),
    ("POST", "/v1/embed"),
    ("GET", "/v1/models"),
    ("GET", "/v1/galleries"),
    ("GET", "/v1/jobs"),
    ("GET", "/v1/jobs/{id}"),
    ("POST", "/v1/jobs/{id}/cancel"),
    ("GET", "/v1/keys/self"),
    ("GET", "/v1/events"),
    ("DELETE", "/v1/events"),
    ("GET", "/v1/events/stream"),
    ("GET", "/v1/events/attendance"),
    ("GET", "/v1/events/{event_id}"),
    ("GET", "/v1/webhooks"),
    ("POST", "/v1/webhooks"),
    ("GET", "/v1/webhooks/{webhook_id}"),
    ("DELETE", "/v1/webhooks/{webhook_id}"),
    ("GET", "/v1/webhooks/{webhook_id}/deliveries"),
    ("POST", "/v1/webhooks/{webhook_id}/replay"),
}
"""Routes that a key limited to galleries may use without a gallery in the path. Either they reveal nothing of any
gallery, or they check the key themselves, as a test of theirs shows. Think before you add one."""

PUBLIC_PATHS = {
    "/healthz",
    "/readyz",
    "/v1/access",
    "/docs",
    "/docs/oauth2-redirect",
    "/redoc",
    "/openapi.json",
    "/static-offline-docs/{path}",
    "/console",
    "/console/{path:path}",
}
"""They reveal no data, to callers who start the service and have no key. Think before you add one."""

ENDPOINTS = endpoints(application())
PUBLIC = [(one.method, one.path) for one in ENDPOINTS if one.path in PUBLIC_PATHS]
GUARDED = [(one.method, one.path, *one.permissions) for one in ENDPOINTS if one.path not in PUBLIC_PATHS]
SCOPES = list(Scope)
"""From the lowest to the highest."""


def test_every_route_declares_one_permission() -> None:
    """Where this fails, add `requires(...)` or `public()` to the route: until then it is not answered."""
    for one in ENDPOINTS:
        assert len(one.permissions) == (0 if one.path.startswith(tuple(DOCUMENTATION)) else 1), one
        assert all((permission.scope is None) == (one.path in PUBLIC_PATHS) for permission in one.permissions), one
    documented = application().openapi()["paths"]
    assert {(method.upper(), path) for path, methods in documented.items() for method in methods} <= {
        (one.method, one.path) for one in ENDPOINTS
    }


@pytest.mark.parametrize(("method", "path"), PUBLIC)
def test_a_public_route_needs_no_key(guarded: Guarded, method: str, path: str) -> None:
    for key in (None, "unknown", "revoked", "search staff"):
        assert guarded.request(method, path, key).status_code not in (401, 403)


every_route = pytest.mark.parametrize(("method", "path", "needed"), GUARDED)


@every_route
def test_a_route_refuses_missing_and_invalid_keys(guarded: Guarded, method: str, path: str, needed: Permission) -> None:
    messages = set()
    for key in (None, "unknown", "malformed", "wrong secret"):
        answer = guarded.request(method, path, key)
        messages.add((key is None, refused(answer, 401, "unauthorized")["message"]))
        assert answer.headers["www-authenticate"] == 'Bearer realm="whosthere"'
    assert len(messages) == 2
    for key, why in (("revoked", "was revoked"), ("expired", "has expired")):
        assert why in refused(guarded.request(method, path, key), 401, "unauthorized")["message"]


@every_route
def test_a_route_refuses_lower_scopes(guarded: Guarded, method: str, path: str, needed: Permission) -> None:
    assert needed.scope is not None
    for scope in SCOPES[: SCOPES.index(needed.scope)]:
        message = refused(guarded.request(method, path, str(scope)), 403, "forbidden_scope")["message"]
        assert needed.scope in message


@every_route
def test_a_route_refuses_keys_of_another_gallery(guarded: Guarded, method: str, path: str, needed: Permission) -> None:
    if "{gallery}" in path or needed.every_gallery:
        answers = [guarded.request(method, path, f"{needed.scope} staff", gallery) for gallery in ("other", "nosuch")]
        there, missing = (refused(answer, 403, "forbidden_gallery")["message"] for answer in answers)
        assert there.replace("other", "nosuch") == missing
    else:
        assert (method, path) in NEED_NO_GALLERY


@every_route
def test_a_route_answers_every_sufficient_key(guarded: Guarded, method: str, path: str, needed: Permission) -> None:
    """The gallery does not exist, so that nothing is deleted."""
    assert needed.scope is not None
    sufficient = [str(scope) for scope in SCOPES[SCOPES.index(needed.scope) :]]
    sufficient += [] if needed.every_gallery else [f"{needed.scope} none"]
    for key in sufficient:
        answer = guarded.request(method, path, key)
        assert answer.status_code not in (401, 403), answer.text
        assert answer.status_code < 500


def test_a_key_may_be_sent_in_either_header(guarded: Guarded) -> None:
    right, wrong = guarded.keys["search"], guarded.keys["unknown"]
    for headers in (
        {"Authorization": f"Bearer {right}"},
        {"authorization": f"bearer  {right}"},
        {"X-API-Key": right},
        {"x-api-key": right, "Authorization": "Basic dXNlcjpwYXNz"},
        {"x-api-key": right, "Authorization": "Bearer of-a-gateway"},
    ):
        ok(guarded.client.get("/v1/galleries", headers=headers))
    for headers in (
        {"Authorization": right},
        {"Authorization": f"Basic {right}"},
        {"Authorization": "Bearer"},
        {"X-API-Key": ""},
        {"X-API-Key": f"Bearer {right}"},
        {"X-API-Key": wrong, "Authorization": f"Bearer {right}"},
        {"Cookie": f"key={right}"},
    ):
        refused(guarded.client.get("/v1/galleries", headers=headers), 401, "unauthorized")
    refused(guarded.client.get("/v1/galleries", params={"key": right, "api_key": right}), 401, "unauthorized")


def test_only_callers_with_a_key_learn_which_routes_exist(guarded: Guarded) -> None:
    for path in ("/v1/nothing", "/v1/galleries/staff/secrets", "/", "/v1/galleries/", "/metrics/x"):
        refused(guarded.request("GET", path, None), 401, "unauthorized")
        refused(guarded.request("GET", path, "search staff"), 404, "not_found")
    refused(guarded.request("PUT", "/v1/galleries", None), 401, "unauthorized")
    answer = guarded.request("PUT", "/v1/galleries", "search staff")
    refused(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, POST"


@pytest.mark.parametrize(
    "path",
    ["other", "staff/../other", "staff%2F..%2Fother", "./other", "/other", "%6Fther", "Staff", "staff%00", "staff%20"],
)
def test_a_limited_key_reaches_no_other_gallery(guarded: Guarded, path: str) -> None:
    headers = {"X-API-Key": guarded.keys["search staff"]}
    request = guarded.client.build_request("GET", "/v1/galleries/x", headers=headers)
    request.url = request.url.copy_with(raw_path=f"/v1/galleries/{path}".encode())
    assert guarded.client.send(request).status_code in (403, 404)
    ok(guarded.request("GET", "/v1/galleries/staff", "search staff"))


def test_the_key_is_checked_before_the_body_is_read(guarded: Guarded) -> None:
    host, port = guarded.service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=DEADLINE) as connection:
        connection.sendall(b"POST /v1/detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 401 ")
