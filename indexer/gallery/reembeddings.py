"""Embeddings by packs other than the gallery's own, kept for migration and rollback.

A gallery is re-embedded by storing embeddings by another pack, face by face, and then binding the gallery to that pack.
The switch copies no embedding: it only checks that each face has one. Switching back works the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.orm import Session

from indexer.clock import now
from indexer.errors import Conflict
from indexer.gallery import change_log
from indexer.gallery.change_log import ChangeKind, Entry
from indexer.gallery.database import Repository, change_rows
from indexer.gallery.embeddings import (
    FaceVectors,
    by_pack,
    face_vectors,
    insert_embeddings,
)
from indexer.gallery.schema import (
    MAX_QUERY_VALUES,
    CropRow,
    EmbeddingRow,
    FaceRow,
    GalleryRow,
    IdentityRow,
    ReembeddingRow,
    batches,
)
from indexer.types import Box, Gallery, Vectors, check_vectors


@dataclass(frozen=True)
class OtherPack:
    """A pack other than the gallery's own, by which all or some of the faces have an embedding."""

    model: str
    fingerprint: str
    was_bound: bool
    """Whether the gallery was bound to it before."""


@dataclass(frozen=True, eq=False)
class UnembeddedFace:
    """A face without an embedding by a pack, and what an embedding can be computed from."""

    face_id: int
    external_id: str
    image_sha256: str
    box: Box
    """In pixels of the upright original, by the pack with which it was enrolled."""
    crop: bytes | None
    """The encoded crop; None if crops were not kept."""


@dataclass(frozen=True)
class SwitchResult:
    """The result of an attempt to bind a gallery to another pack."""

    gallery: Gallery
    """The gallery as it is now."""
    switched: bool
    missing: int
    """Number of faces without an embedding by the other pack: deleted if it switched, the reason if it did not."""
    newer: bool = False
    """Whether it did not switch because of faces that nobody has tried to embed yet: embed them and try again."""


class ReembeddingRepository(Repository):
    """The embeddings of galleries by other packs. Thread-safe; each call is one transaction except `delete`."""

    def start(self, gallery: Gallery, model: str, fingerprint: str, dim: int) -> None:
        """Allows embeddings by that pack to be stored; without effect if they are allowed already.

        Raises:
            Conflict: The gallery is bound to that pack, or was re-embedded since `gallery` was read.
        """
        with self._write() as session:
            change_log.lock_with_pack(session, gallery)
            if fingerprint == gallery.fingerprint:
                raise Conflict(f"gallery {gallery.name!r} is bound to {gallery.model} {fingerprint} already")
            if session.get(ReembeddingRow, (gallery.id, fingerprint)) is None:
                session.add(_new_row(gallery.id, model, fingerprint, dim, was_bound=False))

    def packs(self, gallery_id: int) -> list[OtherPack]:
        """Returns the other packs that have embeddings of the gallery's faces, latest first."""
        query = (
            select(ReembeddingRow)
            .where(ReembeddingRow.gallery_id == gallery_id)
            .order_by(ReembeddingRow.started_at.desc(), ReembeddingRow.fingerprint)
        )
        with self._read() as session:
            return [OtherPack(row.model, row.fingerprint, row.was_bound) for row in session.scalars(query)]

    def count(self, gallery_id: int, fingerprint: str) -> int:
        """Returns how many of the gallery's faces have an embedding by that pack."""
        faces = select(func.count()).select_from(FaceRow).where(FaceRow.gallery_id == gallery_id)
        with self._read() as session:
            return session.scalar(faces.where(_face_by_pack(fingerprint).is_not(None))) or 0

    def missing(self, gallery_id: int, fingerprint: str, after: int, limit: int) -> list[UnembeddedFace]:
        """Returns faces with an id above `after` that have no embedding by that pack, in the order of their ids."""
        query = (
            select(FaceRow.id, IdentityRow.external_id, FaceRow.image_sha256, FaceRow.box, CropRow.image)
            .join(IdentityRow, IdentityRow.id == FaceRow.identity_id)
            .outerjoin(CropRow, CropRow.face_id == FaceRow.id)
            .where(FaceRow.id > after)
            .order_by(FaceRow.id)
            .limit(limit)
        )
        with self._read() as session:
            rows = session.execute(query.where(*_is_missing(gallery_id, fingerprint)))
            return [UnembeddedFace(row.id, row.external_id, row.image_sha256, Box(*row.box), row.image) for row in rows]

    def pages(self, gallery: Gallery, size: int = 10_000) -> Iterator[FaceVectors]:
        """Yields the embeddings of all faces that have one by the pack of `gallery`, which need not be bound to it.

        `size` at a time, in the order of the faces' ids.
        """
        embedding = by_pack(EmbeddingRow.embedding, FaceRow.id, gallery.fingerprint).correlate(FaceRow)
        faces = select(FaceRow.id, FaceRow.identity_id, embedding.label("embedding"))
        query, after = faces.where(_face_by_pack(gallery.fingerprint).is_not(None)).order_by(FaceRow.id).limit(size), 0
        while True:
            with self._read() as session:
                rows = session.execute(query.where(FaceRow.gallery_id == gallery.id, FaceRow.id > after)).all()
            if not rows:
                return
            after = rows[-1].id
            yield face_vectors(rows, gallery.dim)

    def put(self, gallery: Gallery, fingerprint: str, face_ids: Sequence[int], vectors: Vectors) -> None:
        """Stores embeddings; deleted faces and faces that have one already are skipped.

        Raises:
            Conflict: The gallery was re-embedded since `gallery` was read, or these embeddings were deleted meanwhile.
            InvalidVector: A vector does not fit the pack.
        """
        with self._write() as session:
            change_log.lock_with_pack(session, gallery)
            row = _required_row(session, gallery, fingerprint)
            check_vectors(vectors, row.dim)
            given = dict(zip(face_ids, vectors, strict=True))
            is_missing = _is_missing(gallery.id, fingerprint)
            for batch in batches(list(given)):
                wanted = session.scalars(select(FaceRow.id).where(*is_missing, FaceRow.id.in_(batch))).all()
                insert_embeddings(session, fingerprint, wanted, [given[face_id] for face_id in wanted])

    def switch(
        self, gallery: Gallery, fingerprint: str, failed: AbstractSet[int] = frozenset(), drop_missing: bool = False
    ) -> SwitchResult:
        """Binds the gallery to another pack in one transaction, if every face has an embedding by that pack.

        The embeddings by the pack it was bound to are kept.

        Args:
            gallery: The gallery.
            fingerprint: Fingerprint of the other pack.
            failed: Ids of the faces that could not be embedded; any other face without an embedding needs a try first.
            drop_missing: Whether faces in `failed` are deleted instead of keeping the gallery from being switched.

        Raises:
            Conflict: The gallery was re-embedded since `gallery` was read, or these embeddings were deleted meanwhile.
        """
        with self._write() as session:
            last = change_log.lock_with_pack(session, gallery)
            gallery = replace(gallery, seq=last)
            row = _required_row(session, gallery, fingerprint)
            is_missing = _is_missing(gallery.id, fingerprint)
            missing, after = 0, 0
            while batch := _next_faces(session, is_missing, after):
                if any(face.id not in failed for face in batch):
                    return SwitchResult(gallery, False, missing, newer=True)
                missing, after = missing + len(batch), batch[-1].id
            if missing and not drop_missing:
                return SwitchResult(gallery, False, missing)
            if missing:
                last = _delete_faces(session, gallery.id, last, is_missing)
            change_log.record(session, gallery.id, last, [Entry(ChangeKind.REEMBEDDED, 0)])
            session.add(_new_row(gallery.id, gallery.model, gallery.fingerprint, gallery.dim, was_bound=True))
            pack: dict[str, Any] = {"model": row.model, "fingerprint": row.fingerprint, "dim": row.dim}
            change_rows(session, update(GalleryRow).where(GalleryRow.id == gallery.id).values(**pack))
            session.delete(row)
            return SwitchResult(replace(gallery, **pack, seq=last + 1), True, missing)

    def delete(self, gallery_id: int, fingerprint: str) -> int:
        """Deletes the embeddings by another pack, MAX_QUERY_VALUES in a transaction, and returns how many there were.

        Raises:
            Conflict: The pack is the gallery's own, or re-embedding by it is started again meanwhile.
        """
        with self._write() as session:
            _lock_other(session, gallery_id, fingerprint)
            session.execute(
                delete(ReembeddingRow).where(
                    ReembeddingRow.gallery_id == gallery_id, ReembeddingRow.fingerprint == fingerprint
                )
            )
        deleted, after = 0, 0
        while True:
            with self._write() as session:
                _lock_other(session, gallery_id, fingerprint)
                if session.get(ReembeddingRow, (gallery_id, fingerprint)) is not None:
                    raise Conflict(f"re-embedding of the gallery by {fingerprint} was started again meanwhile")
                batch = [face.id for face in _next_faces(session, [FaceRow.gallery_id == gallery_id], after)]
                if not batch:
                    return deleted
                by_other_pack = EmbeddingRow.face_id.in_(batch), EmbeddingRow.fingerprint == fingerprint
                deleted += change_rows(session, delete(EmbeddingRow).where(*by_other_pack))
            after = batch[-1]


def _face_by_pack(fingerprint: str) -> Any:
    """Returns the subquery for the id of a face that has an embedding by that pack, else NULL."""
    return by_pack(EmbeddingRow.face_id, FaceRow.id, fingerprint).correlate(FaceRow)


def _is_missing(gallery_id: int, fingerprint: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """Returns the conditions for a face of the gallery that has no embedding by that pack."""
    return FaceRow.gallery_id == gallery_id, _face_by_pack(fingerprint).is_(None)


def _next_faces(session: Session, conditions: Sequence[ColumnElement[bool]], after: int) -> Sequence[Any]:
    """Returns ids and identities of the next MAX_QUERY_VALUES faces with an id above `after`."""
    query = select(FaceRow.id, FaceRow.identity_id).where(*conditions, FaceRow.id > after)
    return session.execute(query.order_by(FaceRow.id).limit(MAX_QUERY_VALUES)).all()


def _delete_faces(session: Session, gallery_id: int, last: int, conditions: Sequence[ColumnElement[bool]]) -> int:
    """Deletes faces, records it in the change log and returns the number of the last change."""
    after = 0
    while batch := _next_faces(session, conditions, after):
        removed = [Entry(ChangeKind.FACE_REMOVED, face.identity_id, face.id) for face in batch]
        change_log.record(session, gallery_id, last, removed, faces=-len(removed))
        session.execute(delete(FaceRow).where(FaceRow.id.in_([face.id for face in batch])))
        last, after = last + len(batch), batch[-1].id
    return last


def _new_row(gallery_id: int, model: str, fingerprint: str, dim: int, was_bound: bool) -> ReembeddingRow:
    return ReembeddingRow(
        gallery_id=gallery_id, model=model, fingerprint=fingerprint, dim=dim, started_at=now(), was_bound=was_bound
    )


def _required_row(session: Session, gallery: Gallery, fingerprint: str) -> ReembeddingRow:
    row = session.get(ReembeddingRow, (gallery.id, fingerprint))
    if row is None:
        raise Conflict(
            f"the embeddings of gallery {gallery.name!r} by {fingerprint} were deleted meanwhile; start again"
        )
    return row


def _lock_other(session: Session, gallery_id: int, fingerprint: str) -> None:
    """Locks the gallery. Raises Conflict if it is bound to that pack."""
    change_log.lock(session, gallery_id)
    row = session.get_one(GalleryRow, gallery_id)
    if row.fingerprint == fingerprint:
        raise Conflict(f"gallery {row.name!r} is bound to {row.model} {fingerprint}: its embeddings cannot be deleted")
