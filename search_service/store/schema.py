"""The tables of the running service. Alembic's migrations create them; a test compares both."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Date, Float, ForeignKey, Index, Integer, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from indexer.gallery.schema import MAX_NAME_LENGTH, Base, Id, UtcDateTime


class ApiKeyRow(Base):
    """An API key, without its secret."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    """The public part of the key."""
    name: Mapped[str] = mapped_column(String(MAX_NAME_LENGTH), unique=True)
    secret_sha256: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[list[str]] = mapped_column(JSON)
    galleries: Mapped[list[str] | None] = mapped_column(JSON)
    """Names of the galleries it is limited to; NULL for all."""
    per_minute: Mapped[int | None] = mapped_column(Integer)
    """Rate limit in requests a minute; NULL for no limit."""
    daily_probes: Mapped[int | None] = mapped_column(Integer)
    """Budget of different probes a day (UTC); NULL for no limit."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class ProbeCountRow(Base):
    """How many different probes were searched with a key on one day."""

    __tablename__ = "probe_counts"

    key_id: Mapped[str] = mapped_column(String(16), ForeignKey("keys.id", ondelete="CASCADE"), primary_key=True)
    day: Mapped[date] = mapped_column(Date, primary_key=True)
    """In UTC."""
    probes: Mapped[int] = mapped_column(BigInteger)


class AnswerRow(Base):
    """The answer to a request with an `Idempotency-Key`, returned again if the request is repeated."""

    __tablename__ = "answers"
    __table_args__ = (Index(None, "expires_at"),)

    owner: Mapped[str] = mapped_column(String(16), primary_key=True)
    """Id of the API key; empty if there was none."""
    key: Mapped[str] = mapped_column(String(MAX_NAME_LENGTH), primary_key=True)
    request_sha256: Mapped[str] = mapped_column(String(64))
    """SHA-256 of method, path and body; the holder of the claim until the request is answered."""
    status: Mapped[int | None] = mapped_column(Integer)
    """NULL while the first request is being answered."""
    headers: Mapped[dict[str, str] | None] = mapped_column(JSON)
    """NULL if the body is the data from which the answer is computed again."""
    body: Mapped[bytes | None] = mapped_column(LargeBinary)
    locked_until: Mapped[datetime] = mapped_column(UtcDateTime)
    """End of the claim's lease."""
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)


class JobRow(Base):
    """A bulk enrollment. The worker that claimed it renews `locked_until`, after which another one can claim it."""

    __tablename__ = "jobs"
    __table_args__ = (Index(None, "state", "created_at"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    gallery_id: Mapped[int] = mapped_column(Id, ForeignKey("galleries.id", ondelete="CASCADE"), index=True)
    state: Mapped[str] = mapped_column(String(16))
    options: Mapped[dict[str, Any]] = mapped_column(JSON)
    images: Mapped[int] = mapped_column(Integer)
    attempts: Mapped[int] = mapped_column(Integer)
    """Claims since its last progress, limited so that a job that ends its workers is not repeated for ever."""
    problem: Mapped[str | None] = mapped_column(String)
    worker: Mapped[str | None] = mapped_column(String(64))
    """Identifies one claim. Writing requires it, so that a worker whose lease has ended writes nothing."""
    locked_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class JobPartRow(Base):
    """A part of a job's file; deleted when the job is finished."""

    __tablename__ = "job_parts"

    job_id: Mapped[str] = mapped_column(String(32), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    place: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    data: Mapped[bytes] = mapped_column(LargeBinary)


class JobResultRow(Base):
    """The result for one image of a job."""

    __tablename__ = "job_results"

    job_id: Mapped[str] = mapped_column(String(32), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    place: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    image: Mapped[str] = mapped_column(String)
    external_id: Mapped[str] = mapped_column(String)
    outcome: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(String(64))
    face_id: Mapped[int | None] = mapped_column(Id)
    message: Mapped[str | None] = mapped_column(String)
    details: Mapped[dict[str, Any]] = mapped_column(JSON)


class EventRow(Base):
    """A recorded sighting. The identity's data is that of the time of recording, and outlives the identity."""

    __tablename__ = "events"
    __table_args__ = (
        Index(None, "gallery_id", "id"),
        Index(None, "gallery_id", "at", "id"),
        Index(None, "gallery_id", "external_id", "id"),
        Index(None, "gallery_id", "device", "id"),
        Index(None, "gallery_id", "decision", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    gallery_id: Mapped[int] = mapped_column(Id, ForeignKey("galleries.id", ondelete="CASCADE"))
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    identity_id: Mapped[int | None] = mapped_column(Id)
    """NULL if nobody was recognized."""
    external_id: Mapped[str | None] = mapped_column(String(MAX_NAME_LENGTH))
    name: Mapped[str | None] = mapped_column(String(MAX_NAME_LENGTH))
    device: Mapped[str] = mapped_column(String(MAX_NAME_LENGTH))
    direction: Mapped[str | None] = mapped_column(String(8))
    decision: Mapped[str] = mapped_column(String(16))
    score: Mapped[float | None] = mapped_column(Float)
    threshold: Mapped[float] = mapped_column(Float)
    request_id: Mapped[str | None] = mapped_column(String(64))
    reasons: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    """NULL in events of former versions."""
    liveness: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """NULL if it was not checked."""


class SightingRow(Base):
    """When a person was last recorded at a device: they are not recorded again within the cooldown."""

    __tablename__ = "sightings"

    gallery_id: Mapped[int] = mapped_column(Id, ForeignKey("galleries.id", ondelete="CASCADE"), primary_key=True)
    external_id: Mapped[str] = mapped_column(String(MAX_NAME_LENGTH), primary_key=True)
    """`events.NOBODY` for people who were not recognized, `events.ATTACKER` for presentation attacks."""
    device: Mapped[str] = mapped_column(String(MAX_NAME_LENGTH), primary_key=True)
    event_id: Mapped[int] = mapped_column(Id)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    direction: Mapped[str | None] = mapped_column(String(8))
    sure: Mapped[bool] = mapped_column(Boolean)
    """Whether it was a match."""


class WebhookRow(Base):
    """An endpoint to which events are sent."""

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    url: Mapped[str] = mapped_column(String)
    secret: Mapped[str] = mapped_column(String(64))
    """Signs deliveries, so it is stored in plain text."""
    gallery_id: Mapped[int | None] = mapped_column(Id, ForeignKey("galleries.id", ondelete="CASCADE"))
    """NULL for every gallery."""
    decisions: Mapped[list[str]] = mapped_column(JSON)
    """Decisions of the events that are sent."""
    failures: Mapped[int] = mapped_column(Integer, default=0)
    """Failed attempts since the last successful one."""
    paused_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """Set after a failure: nothing is sent before that time, and then one event as a test."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class DeliveryRow(Base):
    """The delivery of one event to one webhook; deleted when it succeeded."""

    __tablename__ = "deliveries"
    __table_args__ = (
        Index(None, "webhook_id", "state", "next_at", "id"),
        Index(None, "webhook_id", "state", "since"),
        Index(None, "webhook_id", "state", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    webhook_id: Mapped[str] = mapped_column(String(32), ForeignKey("webhooks.id", ondelete="CASCADE"))
    event_id: Mapped[int] = mapped_column(Id, ForeignKey("events.id", ondelete="CASCADE"), index=True)
    state: Mapped[str] = mapped_column(String(16))
    """`waiting`, or `dead` after too many attempts."""
    attempts: Mapped[int] = mapped_column(Integer)
    since: Mapped[datetime] = mapped_column(UtcDateTime)
    """When it was queued: at recording, or when it was replayed."""
    next_at: Mapped[datetime] = mapped_column(UtcDateTime)
    """Time of the next attempt, moved on when the delivery is claimed."""
    problem: Mapped[str | None] = mapped_column(String)
