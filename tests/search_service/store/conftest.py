"""Repositories of the service's tables over each kind of database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from indexer.gallery.database import open_database
from indexer.gallery.store import Store
from indexer.types import Gallery
from search_service.store import events as events_module
from search_service.store import webhooks as webhooks_module
from search_service.store.api_keys import ApiKeyRepository
from search_service.store.events import EventRepository
from search_service.store.idempotency import IdempotencyStore
from search_service.store.jobs import JobRepository
from search_service.store.webhooks import WebhookRepository
from tests.indexer.gallery.clock import Clock
from tests.indexer.gallery.faces import make_gallery
from tests.postgres import Database


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    engine = open_database(database.url)
    yield engine
    engine.dispose()


@pytest.fixture
def staff(engine: Engine) -> Gallery:
    return make_gallery(Store(engine))


@pytest.fixture
def keys(engine: Engine) -> ApiKeyRepository:
    return ApiKeyRepository(engine)


@pytest.fixture
def events(engine: Engine) -> EventRepository:
    return EventRepository(engine)


@pytest.fixture
def webhooks(engine: Engine) -> WebhookRepository:
    return WebhookRepository(engine)


@pytest.fixture
def jobs(engine: Engine) -> JobRepository:
    return JobRepository(engine)


@pytest.fixture
def answers(engine: Engine) -> IdempotencyStore:
    return IdempotencyStore(engine)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of events and webhooks, set to noon."""
    clock = Clock()
    monkeypatch.setattr(events_module, "now", clock)
    monkeypatch.setattr(webhooks_module, "now", clock)
    return clock
