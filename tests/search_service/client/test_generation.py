"""The sync client is generated from the async one."""

from __future__ import annotations

from tests.search_service.client.generation import SYNC, sync_source


def test_sync_client_is_up_to_date() -> None:
    assert SYNC.read_text() == sync_source(), "run `make client`"
