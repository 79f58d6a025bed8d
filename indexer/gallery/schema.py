"""The tables. `migrations/` makes them; a test checks that both say the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    UniqueConstraint,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

LONGEST_NAME = 200
"""Characters in a gallery's name, an external id or a person's name."""

IN_ONE_QUERY = 500
"""Values bound in one `IN (...)`: SQLite allowed 999 parameters before version 3.32."""

Value = TypeVar("Value")


def slices(values: Sequence[Value]) -> Iterator[Sequence[Value]]:
    """IN_ONE_QUERY of them at a time."""
    for start in range(0, len(values), IN_ONE_QUERY):
        yield values[start : start + IN_ONE_QUERY]


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class UtcDateTime(TypeDecorator[datetime]):
    """Times are aware in Python and UTC in every database; SQLite, which has no time zones, stores naive UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


Id = BigInteger().with_variant(Integer, "sqlite")
"""64 bits everywhere. SQLite's own INTEGER PRIMARY KEY has 64 bits, and only it counts up by itself."""


class GalleryRow(Base):
    __tablename__ = "galleries"
    __table_args__ = ({"sqlite_autoincrement": True},)  # ids are never used twice: indexes are kept under them

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(LONGEST_NAME), unique=True)
    model: Mapped[str] = mapped_column(String(LONGEST_NAME))
    fingerprint: Mapped[str] = mapped_column(String(64))
    dim: Mapped[int] = mapped_column(Integer)
    seq: Mapped[int] = mapped_column(Id, default=0)
    """Number of the last change. Raising it locks the row, so changes are committed in the order of their numbers."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class IdentityRow(Base):
    __tablename__ = "identities"
    __table_args__ = (UniqueConstraint("gallery_id", "external_id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    gallery_id: Mapped[int] = mapped_column(Id, ForeignKey("galleries.id", ondelete="CASCADE"))
    external_id: Mapped[str] = mapped_column(String(LONGEST_NAME))
    name: Mapped[str | None] = mapped_column(String(LONGEST_NAME))
    details: Mapped[dict[str, Any]] = mapped_column("metadata", JSON)
    valid_from: Mapped[datetime | None] = mapped_column(UtcDateTime)
    valid_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class FaceRow(Base):
    __tablename__ = "faces"
    __table_args__ = (
        UniqueConstraint("gallery_id", "image_sha256"),
        Index(None, "identity_id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    gallery_id: Mapped[int] = mapped_column(Id, ForeignKey("galleries.id", ondelete="CASCADE"))
    identity_id: Mapped[int] = mapped_column(Id, ForeignKey("identities.id", ondelete="CASCADE"))
    image_sha256: Mapped[str] = mapped_column(String(64))
    """One image holds one enrolled face, so its bytes belong to one identity of a gallery."""
    box: Mapped[list[float]] = mapped_column(JSON)
    landmarks: Mapped[list[list[float]]] = mapped_column(JSON)
    detection_score: Mapped[float] = mapped_column(Float)
    quality: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class EmbeddingRow(Base):
    """A face's embedding by one pack. Each face has one by its gallery's pack, from the transaction that makes the
    face on; others lie beside it while the gallery is re-embedded, and after."""

    __tablename__ = "embeddings"

    face_id: Mapped[int] = mapped_column(
        Id, ForeignKey("faces.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    fingerprint: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Of the pack."""
    embedding: Mapped[bytes] = mapped_column(LargeBinary)
    """Little-endian float32: `types.vector_to_bytes`."""


class CropRow(Base):
    """A face's aligned crop, where crops are kept."""

    __tablename__ = "crops"

    face_id: Mapped[int] = mapped_column(
        Id, ForeignKey("faces.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    image: Mapped[bytes] = mapped_column(LargeBinary)
    """A file: `vision.crops` writes and reads it."""


class ReembeddingRow(Base):
    """A pack other than the gallery's own whose embeddings lie beside: one that is being built, or a former one."""

    __tablename__ = "reembeddings"

    gallery_id: Mapped[int] = mapped_column(Id, ForeignKey("galleries.id", ondelete="CASCADE"), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64), primary_key=True)
    model: Mapped[str] = mapped_column(String(LONGEST_NAME))
    dim: Mapped[int] = mapped_column(Integer)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    """When its embeddings came to lie beside: the start of the building, or the moment it became a former one."""
    was_bound: Mapped[bool] = mapped_column(Boolean)
    """Whether it is a former one: the gallery was bound to it."""


class CalibrationRow(Base):
    """How a gallery's people score against each other, by one pack."""

    __tablename__ = "calibrations"

    gallery_id: Mapped[int] = mapped_column(Id, ForeignKey("galleries.id", ondelete="CASCADE"), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Of the pack."""
    method: Mapped[int] = mapped_column(Integer)
    """The way it was computed."""
    seq: Mapped[int] = mapped_column(Id)
    """Number of the gallery's last change then."""
    people: Mapped[int] = mapped_column(Integer)
    faces: Mapped[int] = mapped_column(Integer)
    curve: Mapped[dict[str, Any]] = mapped_column(JSON)
    """`points`: lists of a rate and a cosine; `scale`."""
    made_at: Mapped[datetime] = mapped_column(UtcDateTime)


class ChangeRow(Base):
    """The change log: append-only, numbered without gaps within a gallery."""

    __tablename__ = "changes"

    gallery_id: Mapped[int] = mapped_column(Id, ForeignKey("galleries.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(String(32))
    identity_id: Mapped[int] = mapped_column(Id)
    face_id: Mapped[int | None] = mapped_column(Id)
    at: Mapped[datetime] = mapped_column(UtcDateTime)


# What a running service keeps beside the galleries


class KeyRow(Base):
    """An API key. The key itself is kept nowhere."""

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    """The part of the key that is no secret."""
    name: Mapped[str] = mapped_column(String(LONGEST_NAME), unique=True)
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
    key: Mapped[str] = mapped_column(String(LONGEST_NAME), primary_key=True)
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
    external_id: Mapped[str | None] = mapped_column(String(LONGEST_NAME))
    name: Mapped[str | None] = mapped_column(String(LONGEST_NAME))
    device: Mapped[str] = mapped_column(String(LONGEST_NAME))
    direction: Mapped[str | None] = mapped_column(String(8))
    decision: Mapped[str] = mapped_column(String(16))
    score: Mapped[float | None] = mapped_column(Float)
    threshold: Mapped[float] = mapped_column(Float)
    request_id: Mapped[str | None] = mapped_column(String(64))


class SightingRow(Base):
    """When a person was last recorded at a device: within the cooldown they are not recorded again."""

    __tablename__ = "sightings"

    gallery_id: Mapped[int] = mapped_column(Id, ForeignKey("galleries.id", ondelete="CASCADE"), primary_key=True)
    external_id: Mapped[str] = mapped_column(String(LONGEST_NAME), primary_key=True)
    """Empty for whoever was not recognised."""
    device: Mapped[str] = mapped_column(String(LONGEST_NAME), primary_key=True)
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
