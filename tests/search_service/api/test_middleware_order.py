"""The middlewares are in the order in which each can rely on those around it."""

from __future__ import annotations

import logging

import pytest

from search_service.api.middleware.input_limits import MAX_JSON_BYTES
from search_service.api.middleware.stack import ORDER
from tests.search_service.api.endpoints import application
from tests.search_service.api.guarded import Guarded
from tests.search_service.api.guarded import guarded as guarded
from tests.search_service.api.serving import ok, refused
from tests.waiting import wait_for

TOO_LARGE = b" " * (MAX_JSON_BYTES + 1)


def test_the_application_has_exactly_the_documented_middlewares() -> None:
    added: list[object] = [one.cls for one in application().user_middleware]
    assert added == list(ORDER)


def test_refusals_of_all_middlewares_are_logged_with_their_request_id(
    guarded: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    """RequestContext is outside of the others."""
    caplog.set_level(logging.INFO, "search_service.api.middleware.request_context")
    client, key = guarded.client, {"X-API-Key": guarded.keys["admin"]}
    for answer, status, code in (
        (client.get("/v1/models", headers={"Host": "evil.example"}), 403, "forbidden_host"),
        (client.get("/v1/models"), 401, "unauthorized"),
        (client.post("/v1/keys", content=TOO_LARGE, headers=key), 413, "body_too_large"),
        (client.post("/v1/keys", headers=key | {"Idempotency-Key": ""}), 400, "invalid_request"),
    ):
        refused(answer, status, code)
        logged = {"request_id": answer.headers["x-request-id"], "status": status}
        wait_for(lambda logged=logged: any(logged.items() <= one.fields.items() for one in caplog.records), code)  # type: ignore[misc, attr-defined]


def test_callers_without_a_key_learn_nothing_about_their_input(guarded: Guarded) -> None:
    """Access is outside of InputLimits."""
    refused(guarded.client.post("/v1/keys", content=TOO_LARGE), 401, "unauthorized")
    refused(guarded.client.get("/v1/events?device=%00"), 401, "unauthorized")
    refused(guarded.client.post("/v1/keys", headers={"Idempotency-Key": ""}), 401, "unauthorized")


def test_a_body_is_limited_before_it_is_hashed(guarded: Guarded) -> None:
    """InputLimits is outside of Idempotency."""
    headers = {"X-API-Key": guarded.keys["admin"], "Idempotency-Key": ""}
    refused(guarded.client.post("/v1/keys", content=TOO_LARGE, headers=headers), 413, "body_too_large")


def test_callers_with_different_keys_may_use_the_same_idempotency_key(guarded: Guarded) -> None:
    """Access is outside of Idempotency."""
    for name, key in (("ana", "enroll"), ("ben", "admin")):
        headers = {"X-API-Key": guarded.keys[key], "Idempotency-Key": "same"}
        created = guarded.client.post("/v1/galleries/staff/identities", json={"external_id": name}, headers=headers)
        assert ok(created, 201)["external_id"] == name
