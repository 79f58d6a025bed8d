"""Reads whole galleries from one state of the database."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from sqlalchemy import Engine, Row, select
from sqlalchemy.orm import Session

from indexer.gallery.database import storage_errors
from indexer.gallery.embeddings import by_pack
from indexer.gallery.galleries import read_counts, read_gallery
from indexer.gallery.schema import MAX_QUERY_VALUES, EmbeddingRow, FaceRow, IdentityRow
from indexer.types import Gallery, Person

FACES_AT_ONCE = 1_000
"""Rows fetched at a time, however many faces the identities have."""


@dataclass(frozen=True, eq=False)
class FaceRecord:
    """A face as it is stored, with its embedding by the gallery's pack."""

    id: int
    image_sha256: str
    box: Sequence[float]
    """Left, top, width, height."""
    landmarks: Sequence[Sequence[float]]
    detection_score: float
    quality: Mapping[str, object]
    created_at: datetime
    embedding: bytes
    """Little-endian float32, written by `types.vector_to_bytes`."""


@dataclass(frozen=True, eq=False)
class Record:
    """An identity with one of its faces; `face` is None if it has none."""

    person: Person
    face: FaceRecord | None


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A gallery in one state, unaffected by concurrent changes."""

    gallery: Gallery
    identities: int
    faces: int
    records: Iterator[Record]
    """One for each face and for each identity without faces: identities in the order of creation, the faces of each in
    the order of enrollment."""


@contextmanager
def snapshot_of(engine: Engine, name: str) -> Iterator[Snapshot]:
    """Opens a snapshot of the gallery that is readable inside the block. Raises NotFound."""
    # SQLite reads from one state in every transaction, PostgreSQL at this isolation level.
    level = {"isolation_level": "REPEATABLE READ"} if engine.dialect.name == "postgresql" else {}
    with storage_errors(), Session(engine.execution_options(**level)) as session:
        gallery = read_gallery(session, name)
        yield Snapshot(gallery, *read_counts(session, gallery.id), _records(session, gallery))


def _records(session: Session, gallery: Gallery) -> Iterator[Record]:
    """Yields identities with their faces, page by page: to sort a join of all of them, PostgreSQL would write every
    embedding to the disk before it returns the first."""
    for people in _people(session, gallery.id):
        groups = groupby(
            _faces(session, gallery.fingerprint, [p.id for p in people]), key=lambda face: face.identity_id
        )
        owner, faces = next(groups, (None, None))
        for p in people:
            person = Person(p.external_id, p.name, p.valid_from, p.valid_until, p.details)
            if owner != p.id or faces is None:
                yield Record(person, None)
                continue
            for face in faces:
                yield Record(person, _face(face))
            owner, faces = next(groups, (None, None))


def _people(session: Session, gallery_id: int) -> Iterator[Sequence[Row[Any]]]:
    """Yields MAX_QUERY_VALUES at a time from one statement: SQLite would sort all identities for each page."""
    columns = (
        IdentityRow.id,
        IdentityRow.external_id,
        IdentityRow.name,
        IdentityRow.valid_from,
        IdentityRow.valid_until,
        IdentityRow.details,
    )
    query = select(*columns).where(IdentityRow.gallery_id == gallery_id).order_by(IdentityRow.id)
    return session.execute(query, execution_options={"yield_per": MAX_QUERY_VALUES}).partitions()


def _faces(session: Session, fingerprint: str, identity_ids: Sequence[int]) -> Iterator[Row[Any]]:
    """Yields the faces of these identities, with FACES_AT_ONCE in memory."""
    columns = (
        FaceRow.id,
        FaceRow.identity_id,
        FaceRow.image_sha256,
        FaceRow.box,
        FaceRow.landmarks,
        FaceRow.detection_score,
        FaceRow.quality,
        FaceRow.created_at,
        by_pack(EmbeddingRow.embedding, FaceRow.id, fingerprint).label("embedding"),
    )
    query = select(*columns).where(FaceRow.identity_id.in_(identity_ids)).order_by(FaceRow.identity_id, FaceRow.id)
    yield from session.execute(query, execution_options={"yield_per": FACES_AT_ONCE})


def _face(row: Row[Any]) -> FaceRecord:
    return FaceRecord(
        row.id,
        row.image_sha256,
        row.box,
        row.landmarks,
        row.detection_score,
        row.quality,
        row.created_at,
        row.embedding,
    )
