"""Whole galleries read from one state of the database, and people without faces written many at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from sqlalchemy import Engine, Row, func, insert, select
from sqlalchemy.orm import Session

from indexer.errors import NotFound
from indexer.gallery import changes
from indexer.gallery.changes import Entry, Kind
from indexer.gallery.clock import now
from indexer.gallery.database import storage_errors
from indexer.gallery.schema import EmbeddingRow, FaceRow, GalleryRow, IdentityRow
from indexer.types import Gallery, Person

AT_ONCE = 500
"""Identities that one statement names: SQLite allowed 999 parameters before version 3.32."""

FACES_HELD = 1_000
"""Rows fetched at a time, however many faces these identities have."""


@dataclass(frozen=True, eq=False)
class FaceRecord:
    """A face as it is stored, with its embedding by the gallery's own pack."""

    id: int
    image_sha256: str
    box: Sequence[float]
    """Left, top, width, height."""
    landmarks: Sequence[Sequence[float]]
    detection_score: float
    quality: Mapping[str, object]
    created_at: datetime
    embedding: bytes
    """As `types.vector_to_bytes` wrote it."""


@dataclass(frozen=True, eq=False)
class Record:
    """An identity with one of its faces; `face` is None where it has none."""

    person: Person
    face: FaceRecord | None


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A gallery in one state, whoever writes meanwhile."""

    gallery: Gallery
    identities: int
    faces: int
    records: Iterator[Record]
    """One a face, and one for each identity without faces: the identities in the order of their making, the faces of
    each in the order of their enrolment."""


class Exchange:
    """What moving galleries asks of the database, beside `store.Store`. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        # SQLite reads from one state within a transaction anyway; PostgreSQL must be asked to.
        level = {"isolation_level": "REPEATABLE READ"} if engine.dialect.name == "postgresql" else {}
        self._readers = engine.execution_options(**level)
        self._writers = engine.execution_options(writing=True)

    @contextmanager
    def snapshot(self, name: str) -> Iterator[Snapshot]:
        """The gallery as it is now, for as long as the context lasts. Raises NotFound."""
        with storage_errors(), Session(self._readers) as session:
            row = session.scalar(select(GalleryRow).where(GalleryRow.name == name))
            if row is None:
                raise NotFound(f"there is no gallery {name!r}", code="gallery_not_found")
            gallery = Gallery(row.id, row.name, row.model, row.fingerprint, row.dim, row.seq, row.created_at)
            people = session.scalar(select(func.count()).where(IdentityRow.gallery_id == gallery.id)) or 0
            faces = session.scalar(select(func.count()).where(FaceRow.gallery_id == gallery.id)) or 0
            yield Snapshot(gallery, people, faces, _records(session, gallery))

    def add_identities(self, gallery: Gallery, people: Sequence[Person]) -> set[str]:
        """Makes those of `people` that are missing, in one transaction: the external ids of those made.

        Of several of one id the first counts. The caller has checked them (`store.check_person`).
        Raises Conflict when the gallery was re-embedded since `gallery` was read, NotFound when it was deleted.
        """
        wanted: dict[str, Person] = {}
        for person in people:
            wanted.setdefault(person.external_id, person)
        with storage_errors(), Session(self._writers) as session, session.begin():
            last = changes.lock_as(session, gallery)
            there = _there(session, gallery.id, list(wanted))
            rows = [_identity_values(gallery.id, p) for p in wanted.values() if p.external_id not in there]
            if not rows:
                return set()
            ids = session.scalars(insert(IdentityRow).returning(IdentityRow.id, sort_by_parameter_order=True), rows)
            changes.record(session, gallery.id, last, [Entry(Kind.IDENTITY_CHANGED, id_) for id_ in ids])
            return wanted.keys() - there


def _records(session: Session, gallery: Gallery) -> Iterator[Record]:
    """Groups of identities, each with its faces: joined and sorted as a whole, PostgreSQL would write every embedding
    to the disk once more before it answers with the first."""
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
    """AT_ONCE at a time, of one statement: SQLite sorts all of a gallery's identities for each page of them."""
    columns = (
        IdentityRow.id,
        IdentityRow.external_id,
        IdentityRow.name,
        IdentityRow.valid_from,
        IdentityRow.valid_until,
        IdentityRow.details,
    )
    query = select(*columns).where(IdentityRow.gallery_id == gallery_id).order_by(IdentityRow.id)
    return session.execute(query, execution_options={"yield_per": AT_ONCE}).partitions()


def _faces(session: Session, fingerprint: str, identity_ids: Sequence[int]) -> Iterator[Row[Any]]:
    """The faces of these identities, FACES_HELD in memory at a time."""
    embedding = select(EmbeddingRow.embedding).where(
        EmbeddingRow.face_id == FaceRow.id, EmbeddingRow.fingerprint == fingerprint
    )
    columns = (
        FaceRow.id,
        FaceRow.identity_id,
        FaceRow.image_sha256,
        FaceRow.box,
        FaceRow.landmarks,
        FaceRow.detection_score,
        FaceRow.quality,
        FaceRow.created_at,
        embedding.scalar_subquery().label("embedding"),
    )
    query = select(*columns).where(FaceRow.identity_id.in_(identity_ids)).order_by(FaceRow.identity_id, FaceRow.id)
    yield from session.execute(query, execution_options={"yield_per": FACES_HELD})


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


def _there(session: Session, gallery_id: int, external_ids: Sequence[str]) -> set[str]:
    query = select(IdentityRow.external_id).where(IdentityRow.gallery_id == gallery_id)
    found: set[str] = set()
    for start in range(0, len(external_ids), AT_ONCE):
        some = external_ids[start : start + AT_ONCE]
        found |= set(session.scalars(query.where(IdentityRow.external_id.in_(some))))
    return found


def _identity_values(gallery_id: int, person: Person) -> dict[str, Any]:
    at = now()
    return {
        "gallery_id": gallery_id,
        "external_id": person.external_id,
        "name": person.name,
        "details": dict(person.metadata),
        "valid_from": person.valid_from,
        "valid_until": person.valid_until,
        "created_at": at,
        "updated_at": at,
    }
