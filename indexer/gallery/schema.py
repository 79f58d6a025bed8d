"""The tables of galleries. Alembic's migrations create them; a test compares both."""

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

MAX_NAME_LENGTH = 200
"""Characters in the name of a gallery or person, or in an external id."""

MAX_QUERY_VALUES = 500
"""Values in one `IN (...)`. SQLite before version 3.32 allows 999 parameters in a statement."""

Value = TypeVar("Value")


def batches(values: Sequence[Value]) -> Iterator[Sequence[Value]]:
    """Yields `values`, MAX_QUERY_VALUES at a time."""
    for start in range(0, len(values), MAX_QUERY_VALUES):
        yield values[start : start + MAX_QUERY_VALUES]


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
    """Stores aware datetimes as UTC; as naive UTC in SQLite, which has no time zones."""

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
"""A 64-bit integer. In SQLite it must be INTEGER, of 64 bits as well: only INTEGER PRIMARY KEY numbers rows itself."""


class GalleryRow(Base):
    __tablename__ = "galleries"
    __table_args__ = ({"sqlite_autoincrement": True},)  # ids are never reused: index files are named by them

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(MAX_NAME_LENGTH), unique=True)
    model: Mapped[str] = mapped_column(String(MAX_NAME_LENGTH))
    fingerprint: Mapped[str] = mapped_column(String(64))
    dim: Mapped[int] = mapped_column(Integer)
    seq: Mapped[int] = mapped_column(Id, default=0)
    """Number of the last change. Updating it locks the row: changes are committed in their numbers' order."""
    identities: Mapped[int] = mapped_column(Id, default=0)
    faces: Mapped[int] = mapped_column(Id, default=0)
    """How many it has. Changed by the transactions that add and delete them, with `change_log.record`."""
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class IdentityRow(Base):
    __tablename__ = "identities"
    __table_args__ = (
        UniqueConstraint("gallery_id", "external_id"),
        Index(None, "gallery_id", "id", "search_text"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    gallery_id: Mapped[int] = mapped_column(Id, ForeignKey("galleries.id", ondelete="CASCADE"))
    external_id: Mapped[str] = mapped_column(String(MAX_NAME_LENGTH))
    name: Mapped[str | None] = mapped_column(String(MAX_NAME_LENGTH))
    search_text: Mapped[str] = mapped_column(String)
    """External id and name, folded by `spelling.search_text`."""
    details: Mapped[dict[str, Any]] = mapped_column("metadata", JSON)
    valid_from: Mapped[datetime | None] = mapped_column(UtcDateTime)
    valid_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class FaceRow(Base):
    __tablename__ = "faces"
    __table_args__ = (
        UniqueConstraint("gallery_id", "image_sha256"),
        Index(None, "gallery_id", "id"),
        Index(None, "identity_id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    gallery_id: Mapped[int] = mapped_column(Id, ForeignKey("galleries.id", ondelete="CASCADE"))
    identity_id: Mapped[int] = mapped_column(Id, ForeignKey("identities.id", ondelete="CASCADE"))
    image_sha256: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the image file. An image has one enrolled face, so it belongs to one identity of a gallery."""
    box: Mapped[list[float]] = mapped_column(JSON)
    landmarks: Mapped[list[list[float]]] = mapped_column(JSON)
    detection_score: Mapped[float] = mapped_column(Float)
    quality: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class EmbeddingRow(Base):
    """A face's embedding by one pack.

    The transaction that inserts a face inserts its embedding by the gallery's pack. Embeddings by other packs are added
    while the gallery is re-embedded, and kept afterwards.
    """

    __tablename__ = "embeddings"

    face_id: Mapped[int] = mapped_column(
        Id, ForeignKey("faces.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    fingerprint: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Fingerprint of the pack."""
    embedding: Mapped[bytes] = mapped_column(LargeBinary)
    """Little-endian float32, written by `types.vector_to_bytes`."""


class CropRow(Base):
    """A face's aligned crop, if crops are kept."""

    __tablename__ = "crops"

    face_id: Mapped[int] = mapped_column(
        Id, ForeignKey("faces.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    image: Mapped[bytes] = mapped_column(LargeBinary)
    """An encoded image, written and read by `vision.crops`."""


class ReembeddingRow(Base):
    """A pack other than the gallery's own by which faces have embeddings: a future one or a former one."""

    __tablename__ = "reembeddings"

    gallery_id: Mapped[int] = mapped_column(Id, ForeignKey("galleries.id", ondelete="CASCADE"), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64), primary_key=True)
    model: Mapped[str] = mapped_column(String(MAX_NAME_LENGTH))
    dim: Mapped[int] = mapped_column(Integer)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    """When re-embedding by it started, or when the gallery was switched away from it."""
    was_bound: Mapped[bool] = mapped_column(Boolean)
    """Whether the gallery was bound to it before."""


class CalibrationRow(Base):
    """The distribution of a gallery's scores between different people, by one pack."""

    __tablename__ = "calibrations"

    gallery_id: Mapped[int] = mapped_column(Id, ForeignKey("galleries.id", ondelete="CASCADE"), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Fingerprint of the pack."""
    method: Mapped[int] = mapped_column(Integer)
    """Version of the method."""
    seq: Mapped[int] = mapped_column(Id)
    """Number of the gallery's last change at that time."""
    people: Mapped[int] = mapped_column(Integer)
    faces: Mapped[int] = mapped_column(Integer)
    curve: Mapped[dict[str, Any]] = mapped_column(JSON)
    """`points` (lists of a rate and a cosine) and `scale`."""
    made_at: Mapped[datetime] = mapped_column(UtcDateTime)


class ChangeRow(Base):
    """A change of a gallery. The log is append-only and numbered without gaps within a gallery."""

    __tablename__ = "changes"

    gallery_id: Mapped[int] = mapped_column(Id, ForeignKey("galleries.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(Id, primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(String(32))
    identity_id: Mapped[int] = mapped_column(Id)
    face_id: Mapped[int | None] = mapped_column(Id)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
