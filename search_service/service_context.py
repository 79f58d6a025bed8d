"""The objects that a process of the search service shares: those of the galleries and those of the service's tables."""

from __future__ import annotations

from indexer.app_context import AppContext, locked_property
from search_service.store.api_keys import Keys
from search_service.store.events import Events
from search_service.store.idempotency import Answers
from search_service.store.jobs import Jobs
from search_service.store.webhooks import Webhooks


class ServiceContext(AppContext):
    """An AppContext with the repositories of the service's own tables. Thread-safe."""

    @locked_property
    def keys(self) -> Keys:
        """The API keys."""
        return Keys(self.migrated_engine)

    @locked_property
    def events(self) -> Events:
        """The recorded events."""
        return Events(self.migrated_engine)

    @locked_property
    def webhooks(self) -> Webhooks:
        """The webhooks and the deliveries to them."""
        return Webhooks(self.migrated_engine)

    @locked_property
    def jobs(self) -> Jobs:
        """The bulk enrollments."""
        return Jobs(self.migrated_engine)

    @locked_property
    def answers(self) -> Answers:
        """The answers stored for repeated requests."""
        return Answers(self.migrated_engine)
