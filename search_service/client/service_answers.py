"""The answers about the service itself: jobs, keys, webhooks and readiness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from search_service.client.enums import ENDED, Decision, DeliveryState, JobState, Scope


@dataclass(frozen=True)
class Job:
    """A bulk enrollment. `done` of its `images` were `enrolled`, `unchanged` or `rejected`."""

    id: str
    gallery: str
    state: JobState | str
    images: int
    done: int
    enrolled: int
    unchanged: int
    rejected: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    problem: str | None

    @property
    def ended(self) -> bool:
        return self.state in ENDED


@dataclass(frozen=True)
class Key:
    """A key, without its secret."""

    id: str
    name: str
    scopes: tuple[Scope | str, ...]
    galleries: tuple[str, ...] | None
    per_minute: int | None
    daily_probes: int | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True)
class MadeKey(Key):
    key: str = field(repr=False)
    """Returned only here; the service does not store it."""


@dataclass(frozen=True)
class OwnKey:
    """What the client's key opens. `name` is None where the service has no keys yet."""

    name: str | None
    scopes: tuple[Scope | str, ...]
    galleries: tuple[str, ...] | None
    expires_at: datetime | None


@dataclass(frozen=True)
class Webhook:
    """A webhook, without its secret."""

    url: str
    gallery: str | None
    decisions: tuple[Decision | str, ...]
    id: str
    created_at: datetime
    waiting: int
    dead: int


@dataclass(frozen=True)
class MadeWebhook(Webhook):
    secret: str = field(repr=False)
    """Signs deliveries. Returned only here."""


@dataclass(frozen=True)
class Delivery:
    """The delivery of one event to one webhook."""

    id: int
    webhook_id: str
    event_id: int
    state: DeliveryState | str
    attempts: int
    next_at: datetime
    problem: str | None


@dataclass(frozen=True)
class WebhookDeleted:
    deleted: str
    undelivered: int


@dataclass(frozen=True)
class Ready:
    """`status` is `ready`, `loading` or `failed`."""

    status: str
    problem: str | None = None
    galleries: Mapping[str, str] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        return self.status == "ready"


@dataclass(frozen=True)
class ModelFile:
    """A file of a model pack."""

    name: str
    sha256: str | None
    size: int | None
    licence: str | None
    origin: str | None
    url: str | None


@dataclass(frozen=True)
class Model:
    """A model pack. If it cannot be read, only `problem` is set."""

    name: str
    installed: bool
    dim: int | None = None
    fingerprint: str | None = None
    summary: str | None = None
    same_threshold: float | None = None
    thresholds_measured: bool | None = None
    files: tuple[ModelFile, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class Models:
    """The model packs, and the default of new galleries."""

    models: tuple[Model, ...]
    default: str
