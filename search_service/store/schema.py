"""The tables of the running service. Alembic's migrations create them; a test compares both."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Boolean, Float, ForeignKey, Index, Integer, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from indexer.gallery.schema import MAX_NAME_LENGTH, Base, Id, UtcDateTime


class ApiKeyRow(Base):
    """An API key. The key itself is kept nowhere."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    """The part of the key that is no secret."""
    name: Mapped[str] = mapped_column(String(MAX_NAME_LENGTH), unique=True)
    secret_sha256: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[list[str]] = mapped_column(JSON)
    galleries: Mapped[list[str] | None] = mapped_column(JSON)
    """Names of those that it opens; NULL for all."""
    per_minute: Mapped[int | None] = mapped_column(Integer)
    """Requests a minute that it may make; NULL for any number."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class AnswerRow(Base):
    """The answer to a request with an `Idempotency-Key`, given again when the request is made again."""

    __tablename__ = "answers"
    __table_args__ = (Index(None, "expires_at"),)

    owner: Mapped[str] = mapped_column(String(16), primary_key=True)
    """Id of the API key; empty without one."""
    key: Mapped[str] = mapped_column(String(MAX_NAME_LENGTH), primary_key=True)
    request_sha256: Mapped[str] = mapped_column(String(64))
    """Of method, path and body; while it is being answered, whoever does."""
    status: Mapped[int | None] = mapped_column(Integer)
    """NULL while the first request is being answered."""
    headers: Mapped[dict[str, str] | None] = mapped_column(JSON)
    """NULL where the body is no answer, but what it is made from once more."""
    body: Mapped[bytes | None] = mapped_column(LargeBinary)
    locked_until: Mapped[datetime] = mapped_column(UtcDateTime)
    """When whoever answers it is taken for dead."""
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)


class JobRow(Base):
    """A bulk enrolment. Whichever worker holds it renews `locked_until`; another one goes on with it after."""

    __tablename__ = "jobs"
    __table_args__ = (Index(None, "state", "created_at"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    gallery_id: Mapped[int] = mapped_column(Id, ForeignKey("galleries.id", ondelete="CASCADE"), index=True)
    state: Mapped[str] = mapped_column(String(16))
    options: Mapped[dict[str, Any]] = mapped_column(JSON)
    images: Mapped[int] = mapped_column(Integer)
    attempts: Mapped[int] = mapped_column(Integer)
    """How often somebody began with it since it last got further: what ends its workers must not do so for ever."""
    problem: Mapped[str | None] = mapped_column(String)
    worker: Mapped[str | None] = mapped_column(String(64))
    """Names one claim. Whoever writes for the job shows it, so that a worker taken for dead writes nothing."""
    locked_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class JobPartRow(Base):
    """A piece of the file that a job works through; deleted when it has ended."""

    __tablename__ = "job_parts"

    job_id: Mapped[str] = mapped_column(String(32), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    place: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    data: Mapped[bytes] = mapped_column(LargeBinary)


class JobResultRow(Base):
    """What became of one image of a job."""

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
    """Somebody was seen. What it says of the identity is what was true then, and stays when the identity goes."""

    __tablename__ = "events"
    __table_args__ = (
        Index(None, "gallery_id", "at"),
        Index(None, "gallery_id", "external_id", "at"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    gallery_id: Mapped[int] = mapped_column(Id, ForeignKey("galleries.id", ondelete="CASCADE"))
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    identity_id: Mapped[int | None] = mapped_column(Id)
    """NULL where nobody was recognised."""
    external_id: Mapped[str | None] = mapped_column(String(MAX_NAME_LENGTH))
    name: Mapped[str | None] = mapped_column(String(MAX_NAME_LENGTH))
    device: Mapped[str] = mapped_column(String(MAX_NAME_LENGTH))
    direction: Mapped[str | None] = mapped_column(String(8))
    decision: Mapped[str] = mapped_column(String(16))
    score: Mapped[float | None] = mapped_column(Float)
    threshold: Mapped[float] = mapped_column(Float)
    request_id: Mapped[str | None] = mapped_column(String(64))


class SightingRow(Base):
    """When a person was last recorded at a device: within the cooldown they are not recorded again."""

    __tablename__ = "sightings"

    gallery_id: Mapped[int] = mapped_column(Id, ForeignKey("galleries.id", ondelete="CASCADE"), primary_key=True)
    external_id: Mapped[str] = mapped_column(String(MAX_NAME_LENGTH), primary_key=True)
    """Empty for whoever was not recognised."""
    device: Mapped[str] = mapped_column(String(MAX_NAME_LENGTH), primary_key=True)
    event_id: Mapped[int] = mapped_column(Id)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    direction: Mapped[str | None] = mapped_column(String(8))
    sure: Mapped[bool] = mapped_column(Boolean)
    """Whether it was a match."""


class WebhookRow(Base):
    """Where events are sent."""

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    url: Mapped[str] = mapped_column(String)
    secret: Mapped[str] = mapped_column(String(64))
    """Signs what is sent, so it is kept as it is."""
    gallery_id: Mapped[int | None] = mapped_column(Id, ForeignKey("galleries.id", ondelete="CASCADE"))
    """NULL for every gallery."""
    decisions: Mapped[list[str]] = mapped_column(JSON)
    """Which events: those with one of these decisions."""
    failures: Mapped[int] = mapped_column(Integer, default=0)
    """Tries that failed since the last one that did not."""
    paused_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """After a failure: nothing is sent before, and then one event, to see."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class DeliveryRow(Base):
    """One event on its way to one webhook; deleted when it has arrived."""

    __tablename__ = "deliveries"
    __table_args__ = (
        Index(None, "webhook_id", "state", "next_at", "id"),
        Index(None, "webhook_id", "state", "since"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    webhook_id: Mapped[str] = mapped_column(String(32), ForeignKey("webhooks.id", ondelete="CASCADE"))
    event_id: Mapped[int] = mapped_column(Id, ForeignKey("events.id", ondelete="CASCADE"), index=True)
    state: Mapped[str] = mapped_column(String(16))
    """`waiting`, or `dead` when it was tried too often."""
    attempts: Mapped[int] = mapped_column(Integer)
    since: Mapped[datetime] = mapped_column(UtcDateTime)
    """When it began to wait: it was recorded, or is tried anew after it was dead."""
    next_at: Mapped[datetime] = mapped_column(UtcDateTime)
    """When it is tried next; whoever tries it moves this on first."""
    problem: Mapped[str | None] = mapped_column(String)
