"""What may happen while a body arrives: its caller hangs up, or its key is revoked."""

from __future__ import annotations

import logging
import re
import socket
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from search_service.api.permissions import BodyKind
from search_service.store.api_keys import Scope
from tests import photos
from tests.search_service.api.bulk import packed
from tests.search_service.api.guarded import Guarded
from tests.search_service.api.guarded import guarded as guarded
from tests.search_service.api.serving import image, ok, refused
from tests.waiting import DEADLINE, wait_for

STAFF = "/v1/galleries/staff"
JSON = "application/json"
FORM = "multipart/form-data; boundary=xyz"

BODIES = [
    ("POST", "/v1/galleries", JSON, BodyKind.JSON),
    ("PUT", f"{STAFF}/identities/ana", JSON, BodyKind.JSON),
    ("DELETE", f"{STAFF}/identities/ana", JSON, BodyKind.JSON),
    ("POST", f"{STAFF}/search", JSON, BodyKind.IMAGES),
    ("POST", f"{STAFF}/identities/ana/faces", FORM, BodyKind.IMAGES),
    ("POST", f"{STAFF}/enrollments", "application/zip", BodyKind.ARCHIVE),
    ("POST", f"{STAFF}/enrollments", FORM, BodyKind.ARCHIVE),
]
"""Method, path, content type and kind: every way in which a body is read."""


@pytest.mark.parametrize("idempotency_key", ["", "Idempotency-Key: {id}\r\n"])
@pytest.mark.parametrize(("method", "path", "content_type", "kind"), BODIES)
def test_a_caller_that_hangs_up_is_one_line_of_the_log_and_no_failure(
    guarded: Guarded,
    caplog: pytest.LogCaptureFixture,
    method: str,
    path: str,
    content_type: str,
    kind: BodyKind,
    idempotency_key: str,
) -> None:
    caplog.set_level(logging.INFO)
    request_id, service = uuid.uuid4().hex, guarded.service
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {guarded.keys['admin']}\r\nContent-Length: 100\r\n"
        f"X-Request-ID: {request_id}\r\nContent-Type: {content_type}\r\n{idempotency_key.format(id=request_id)}\r\n"
    )
    port = httpx.URL(service.url).port
    with socket.create_connection(("127.0.0.1", port), DEADLINE) as connection:
        connection.sendall(head.encode() + b"--xyz\r\nContent-Disposition: form-data")
        wait_for(lambda: service.held_bytes(kind) > 0, "the beginning of the body")

    def lines() -> list[Any]:
        logged = [getattr(record, "fields", {}) for record in caplog.records]
        return [fields["status"] for fields in logged if fields.get("request_id") == request_id]

    wait_for(lines, "the request is logged")
    counted = guarded.client.get("/metrics", headers={"X-API-Key": guarded.keys["admin"]}).text
    assert lines() == [499]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING or record.exc_info] == []
    assert re.search(r'requests_total\{.*status="499"', counted)
    assert not re.search(r'requests_total\{.*status="5', counted)


def revocable(guarded: Guarded) -> tuple[str, str]:
    """Returns the id and the text of a new key for everything."""
    key, text = guarded.service.context.keys.create(f"revocable-{uuid.uuid4().hex}", [Scope.ADMIN])
    return key.id, text


@pytest.mark.parametrize(("method", "path", "content_type", "kind"), BODIES)
def test_a_key_revoked_while_its_body_arrives_is_refused(
    guarded: Guarded, method: str, path: str, content_type: str, kind: BodyKind
) -> None:
    key_id, text = revocable(guarded)
    contents: dict[str, bytes] = {
        JSON: b"{}" if path != "/v1/galleries" else b'{"name": "made-by-a-revoked-key"}',
        FORM: b'--xyz\r\nContent-Disposition: form-data; name="image"; filename="f"\r\n\r\nx\r\n--xyz--\r\n',
        "application/zip": packed({"ana/1.jpg": photos.astronaut()}),
    }
    content = contents[content_type]

    def in_two_parts() -> Iterator[bytes]:
        yield content[:1]
        wait_for(lambda: guarded.service.held_bytes(kind) > 0, "the beginning of the body")
        guarded.service.context.keys.revoke(key_id)
        yield content[1:]

    headers = {"X-API-Key": text, "Content-Type": content_type}
    answer = guarded.client.request(method, path, content=in_two_parts(), headers=headers)
    assert "was revoked" in refused(answer, 401, "unauthorized")["message"]
    assert {one.name for one in guarded.service.context.store.galleries.list()} == {"staff", "other"}
    assert ok(guarded.request("GET", f"{STAFF}/identities", "admin", content=None, json=None))["identities"] == []
    assert ok(guarded.request("GET", "/v1/jobs", "admin", content=None, json=None))["jobs"] == []


@pytest.mark.parametrize(
    ("path", "data"), [("identities/collins/faces", {}), ("search", {"record": "true", "device": "door"})]
)
def test_a_key_revoked_while_a_photo_is_computed_changes_nothing(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch, path: str, data: dict[str, str]
) -> None:
    key_id, text = revocable(guarded)
    queue = guarded.service.queue

    def then_revoked(compute: Any) -> Any:
        async def call(*arguments: Any) -> Any:
            computed = await compute(*arguments)
            guarded.service.context.keys.revoke(key_id)
            return computed

        return call

    for name in ("describe", "search"):
        monkeypatch.setattr(queue, name, then_revoked(getattr(queue, name)))
    answer = guarded.client.post(
        f"{STAFF}/{path}", files=image(photos.astronaut()), data=data, headers={"X-API-Key": text}
    )
    refused(answer, 401, "unauthorized")
    assert ok(guarded.request("GET", f"{STAFF}/identities", "admin", json=None))["identities"] == []
    assert ok(guarded.request("GET", "/v1/events", "admin", json=None))["events"] == []
