"""/v1/events/stream and /v1/events/attendance."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from indexer.clock import now
from indexer.models.packs import SFACE
from indexer.settings import Settings, read_settings
from indexer.types import Gallery
from search_service.api import streams
from search_service.service_context import ServiceContext
from search_service.store.event_pages import Direction
from search_service.store.events import Sighting
from tests.postgres import Postgres
from tests.search_service.api.conftest import new_home
from tests.search_service.api.serving import Running, ok, refused, running
from tests.variants import SETTINGS

COUNT = 20


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> Settings:
    home = new_home(tmp_path_factory.mktemp("streams"), models_folder)
    if request.param == "sqlite":
        return read_settings(SETTINGS, home=home)
    server: Postgres = request.getfixturevalue("postgres")
    return read_settings({**SETTINGS, "WHOSTHERE_DATABASE_URL": server.migrated()}, home=home)


@pytest.fixture(scope="module")
def streaming(settings: Settings) -> Iterator[Running]:
    with running(ServiceContext(settings)) as service:
        yield service


@pytest.fixture(scope="module")
def other(settings: Settings, streaming: Running) -> Iterator[ServiceContext]:
    """Another process's context over the same data, as another worker has it."""
    with closing(ServiceContext(settings)) as context:
        yield context


@pytest.fixture
def staff(other: ServiceContext, request: pytest.FixtureRequest) -> Gallery:
    return other.store.galleries.create(request.node.name[:60], SFACE.name, SFACE.fingerprint, SFACE.dim)


def record(context: ServiceContext, gallery: Gallery, device: str, direction: Direction | None = None) -> int:
    seen = Sighting(device, direction, "no_match", False, None, None, 0.4)
    return context.events.record(gallery, seen, timedelta(0)).event.id


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]


def test_a_stream_resumes_without_gap_or_repetition(streaming: Running, other: ServiceContext, staff: Gallery) -> None:
    first, *rest = [record(other, staff, f"door-{n}") for n in range(COUNT)]
    with streaming.client() as client:
        query = {"gallery": staff.name}
        found = events_of(client.get("/v1/events/stream", params=query, headers={"Last-Event-ID": str(first)}))
        assert [event["id"] for event in found] == rest
        assert found[0] == ok(client.get(f"/v1/events/{rest[0]}"))
        last = {"Last-Event-ID": str(rest[-1])}
        assert events_of(client.get("/v1/events/stream", params=query, headers=last)) == []
        later = record(other, staff, "door-0")
        assert [one["id"] for one in events_of(client.get("/v1/events/stream", params=query, headers=last))] == [later]


def test_a_stream_sends_what_another_process_records(
    streaming: Running, other: ServiceContext, staff: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "LONGEST_SECONDS", 60.0)
    monkeypatch.setattr(streams, "POLL_SECONDS", 0.02)
    record(other, staff, "before")
    with streaming.client() as client, client.stream("GET", "/v1/events/stream", params={"device": "door"}) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("retry:")
        record(other, staff, "another")
        recorded = record(other, staff, "door")
        assert next(line for line in lines if line.startswith("data:")).startswith(f'data: {{"id": {recorded}')


def test_too_many_streams_are_refused(streaming: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming.app.state.service.streams, "locked", lambda: True)
    with streaming.client() as client:
        refused(client.get("/v1/events/stream"), 429, "overloaded")


def test_the_newest_events_are_listed_first_on_request(
    streaming: Running, other: ServiceContext, staff: Gallery
) -> None:
    recorded = [record(other, staff, f"door-{n}") for n in range(5)]
    query: dict[str, str] = {"gallery": staff.name, "order": "newest", "limit": "2"}
    found: list[int] = []
    with streaming.client() as client:
        while True:
            page = ok(client.get("/v1/events", params=query))
            found += [event["id"] for event in page["events"]]
            if page["cursor"] is None:
                break
            query["cursor"] = page["cursor"]
    assert found == recorded[::-1]


def test_attendance_is_json_or_csv(client: httpx.Client, gallery: str) -> None:
    today = now().date()
    days = {"gallery": gallery.rpartition("/")[2], "first": str(today), "until": str(today + timedelta(days=1))}
    assert ok(client.get("/v1/events/attendance", params=days)) == {"rows": []}
    table = client.get("/v1/events/attendance", params=days | {"csv": "true"})
    assert table.headers["content-disposition"].startswith("attachment")
    assert table.text.removeprefix("\ufeff").startswith("day,external_id,name,first_in")
    for wrong in ({"timezone": "Mars/Olympus"}, {"until": str(today)}, {"first": "1999-01-01"}, {"first": "today"}):
        refused(client.get("/v1/events/attendance", params=days | wrong), 400, "invalid_request")
