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
