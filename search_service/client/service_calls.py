"""The calls for jobs, webhooks and keys. Nothing here performs I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from search_service.client.answers import Enrolled
from search_service.client.enums import Decision, DeliveryState, Outcome, Scope
from search_service.client.errors import NotDone
from search_service.client.request_bodies import iso_time, json_body, without_none
from search_service.client.retry import Api, Pages, Pause, Request, Steps, address, parser_of
from search_service.client.service_answers import (
    Delivery,
    Job,
    Key,
    MadeKey,
    MadeWebhook,
    OwnKey,
    Webhook,
    WebhookDeleted,
)

FIRST_POLL_SECONDS = 0.1
LONGEST_POLL_SECONDS = 2.0
"""Pauses between polls while waiting for a job: they double from the first to the longest."""


@dataclass(frozen=True)
class JobCalls:
    api: Api
    id: str

    def show(self) -> Steps[Job]:
        """Returns the job with its progress."""
        return self.api.get(address("jobs", self.id), Job, {"limit": 1})

    def rows(self, *, outcome: Outcome | str | None = None) -> Pages[Enrolled]:
        """Yields the results so far, or those with one outcome."""
        return self.api.pages(address("jobs", self.id), "results", Enrolled, without_none({"outcome": outcome}))

    def cancel(self) -> Steps[Job]:
        """Cancels the job. Enrolled photos stay enrolled; an ended job does not change."""
        return self.api.post(address("jobs", self.id, "cancel"), Job)

    def wait(self, timeout_seconds: float | None = None) -> Steps[Job]:
        """Waits until the job is done, failed or cancelled. Raises NotDone."""
        began, pause = self.api.clock(), FIRST_POLL_SECONDS
        while True:
            job = yield from self.show()
            if job.ended:
                return job
            if timeout_seconds is not None and self.api.clock() - began + pause > timeout_seconds:
                raise NotDone(f"job {self.id} is {job.state} after {timeout_seconds:g} s: {job.done} of {job.images}")
            yield Pause(pause)
            pause = min(2 * pause, LONGEST_POLL_SECONDS)


@dataclass(frozen=True)
class WebhookCalls:
    api: Api

    def list(self) -> Steps[tuple[Webhook, ...]]:
        """Returns all webhooks, in the order of their creation."""
        return self.api.send(Request("GET", address("webhooks")), parser_of(tuple[Webhook, ...], "webhooks"))

    def create(
        self, url: str, *, gallery: str | None = None, decisions: Sequence[Decision | str] | None = None
    ) -> Steps[MadeWebhook]:
        """Sends every new event to a URL; by default the matches of every gallery."""
        body = json_body(without_none({"url": url, "gallery": gallery, "decisions": decisions and list(decisions)}))
        return self.api.post(address("webhooks"), MadeWebhook, body)

    def show(self, webhook_id: str) -> Steps[Webhook]:
        """Returns a webhook."""
        return self.api.get(address("webhooks", webhook_id), Webhook)

    def delete(self, webhook_id: str) -> Steps[WebhookDeleted]:
        """Deletes a webhook with its waiting deliveries."""
        return self.api.delete(address("webhooks", webhook_id), WebhookDeleted)

    def deliveries(self, webhook_id: str, *, state: DeliveryState | str = DeliveryState.DEAD) -> Pages[Delivery]:
        """Yields the dead deliveries, oldest first, or the waiting ones."""
        path = address("webhooks", webhook_id, "deliveries")
        return self.api.pages(path, "deliveries", Delivery, {"state": state})

    def replay(self, webhook_id: str) -> Steps[int]:
        """Retries the dead deliveries. Returns their number."""
        request = Request("POST", address("webhooks", webhook_id, "replay"), idempotent=True)
        return self.api.send(request, parser_of(int, "replayed"))


@dataclass(frozen=True)
class KeyCalls:
    api: Api

    def list(self) -> Pages[Key]:
        """Yields all keys by name, including revoked ones."""
        return self.api.pages(address("keys"), "keys", Key)

    def own(self) -> Steps[OwnKey]:
        """Returns what this client's key opens."""
        return self.api.get(address("keys", "self"), OwnKey)

    def create(
        self,
        name: str,
        *,
        scopes: Sequence[Scope | str],
        galleries: Sequence[str] | None = None,
        expires_at: datetime | None = None,
        per_minute: int | None = None,
        daily_probes: int | None = None,
    ) -> Steps[MadeKey]:
        """Creates a key. As soon as one exists, every request needs a key. The secret is returned only once.

        If the answer is lost (ServiceUnreachable), revoke the key, if it exists, and create another.
        """
        optional = {
            "galleries": galleries and list(galleries),
            "expires_at": iso_time(expires_at),
            "per_minute": per_minute,
            "daily_probes": daily_probes,
        }
        body = json_body(without_none({"name": name, "scopes": list(scopes), **optional}))
        return self.api.send(Request("POST", address("keys"), body=body, unrepeatable=True), parser_of(MadeKey))

    def revoke(self, key_id: str) -> Steps[Key]:
        """Revokes a key. It stays in the list."""
        return self.api.delete(address("keys", key_id), Key)
