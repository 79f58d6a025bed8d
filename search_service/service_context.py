"""The objects that a process of the search service shares: those of the galleries and those of the service's tables."""

from __future__ import annotations

from indexer.app_context import AppContext, locked_property
from search_service.store.api_keys import ApiKeyRepository
from search_service.store.events import EventRepository
from search_service.store.idempotency import IdempotencyStore
from search_service.store.jobs import JobRepository
from search_service.store.probe_counts import ProbeCountRepository
from search_service.store.webhooks import WebhookRepository


class ServiceContext(AppContext):
    """An AppContext with the repositories of the service's own tables. Thread-safe."""

    @locked_property
    def keys(self) -> ApiKeyRepository:
        return ApiKeyRepository(self.migrated_engine)

    @locked_property
    def probe_counts(self) -> ProbeCountRepository:
        return ProbeCountRepository(self.migrated_engine)

    @locked_property
    def events(self) -> EventRepository:
        return EventRepository(self.migrated_engine)

    @locked_property
    def webhooks(self) -> WebhookRepository:
        return WebhookRepository(self.migrated_engine)

    @locked_property
    def jobs(self) -> JobRepository:
        return JobRepository(self.migrated_engine)

    @locked_property
    def idempotency(self) -> IdempotencyStore:
        return IdempotencyStore(self.migrated_engine)
