"""Callers share the bytes that bodies may hold: one of them cannot take what the others need."""

from __future__ import annotations

import select
import socket
from contextlib import ExitStack
from pathlib import Path

from indexer.settings import read_settings
from search_service.api.permissions import BodyKind
from search_service.service_context import ServiceContext
from search_service.store.api_keys import Scope
from tests.search_service.api.serving import Running, base64_of, refused, running
from tests.variants import SETTINGS
from tests.waiting import DEADLINE, wait_for

TOGETHER = 100_000
UPLOAD = 20_000


def begin_upload(service: Running, key: str) -> socket.socket:
    """Sends half of a body."""
    connection = socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2])), DEADLINE)
    head = (
        f"POST /v1/detect HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {key}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {2 * UPLOAD}\r\n\r\n"
    )
    connection.sendall(head.encode() + b" " * UPLOAD)
    return connection


def test_slow_uploads_with_one_key_leave_room_for_others(tmp_path: Path) -> None:
    context = ServiceContext(read_settings(SETTINGS, home=tmp_path, max_waiting_bytes=TOGETHER))
    slow, other = (context.keys.create(name, [Scope.SEARCH])[1] for name in ("slow", "other"))
    photo = {"image": base64_of(b"x" * UPLOAD)}
    with running(context) as service, service.client() as client, ExitStack() as stack:
        uploads = [stack.enter_context(begin_upload(service, slow)) for _ in range(9)]
        wait_for(lambda: len(select.select(uploads, [], [], 0)[0]) == 6, "the answers to all but three uploads")
        assert service.held_bytes(BodyKind.IMAGES) == 3 * UPLOAD
        answer = client.post("/v1/detect", json=photo, headers={"X-API-Key": slow})
        assert "of yours" in refused(answer, 429, "overloaded")["message"]
        for _ in range(3):
            answer = client.post("/v1/detect", json=photo, headers={"X-API-Key": other})
            refused(answer, 422, "unreadable_image")
