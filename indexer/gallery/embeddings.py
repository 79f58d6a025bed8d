"""Embeddings in SQL by the packs that the galleries are bound to; `reembeddings` has those by other packs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import (
    ColumnElement,
    Connection,
    Executable,
    Row,
    ScalarSelect,
    bindparam,
    insert,
    select,
    true,
)
from sqlalchemy.orm import Session

from indexer.gallery import change_log
from indexer.gallery.database import Repository
from indexer.gallery.schema import CropRow, EmbeddingRow, FaceRow, GalleryRow, batches
from indexer.types import Gallery, Vectors, vector_to_bytes, vectors_from_bytes


@dataclass(frozen=True, eq=False)
class FaceVectors:
    """The embeddings of N faces: (N,) int64 ids of faces and of their identities, (N, D) float32 unit vectors."""

    face_ids: NDArray[np.int64]
    identity_ids: NDArray[np.int64]
    vectors: Vectors


Selection = Literal["faces", "identities", "after"]
"""Which faces: those with one of some ids, those of some identities, or the next ones after an id."""


class EmbeddingRepository(Repository):
    """Reads embeddings by the galleries' own packs, in the order of the faces' ids. Thread-safe.

    Every method raises Conflict if the gallery was re-embedded since `gallery` was read.
    """

    def of_faces(self, gallery: Gallery, face_ids: Sequence[int]) -> FaceVectors:
        """Returns the embeddings of these faces; deleted faces are left out."""
        return self._by_ids(gallery, "faces", face_ids)

    def of_identities(self, gallery: Gallery, identity_ids: Sequence[int]) -> FaceVectors:
        """Returns the embeddings of all faces of these identities."""
        return self._by_ids(gallery, "identities", identity_ids)

    def pages(self, gallery: Gallery, size: int = 10_000) -> Iterator[FaceVectors]:
        """Yields the embeddings of all faces, `size` at a time. Faces added meanwhile may be included."""
        after = 0
        while True:
            with self._read_rows() as connection:
                rows = _read(connection, gallery, "after", after=after, limit=size)
            if not rows:
                return
            after = rows[-1].id
            yield face_vectors(rows, gallery.dim)

    def _by_ids(self, gallery: Gallery, selection: Selection, ids: Sequence[int]) -> FaceVectors:
        rows: list[Row[Any]] = []
        with self._read_rows() as connection:
            for batch in batches(ids):
                rows += _read(connection, gallery, selection, ids=batch)
        return face_vectors(rows, gallery.dim)


def insert_embeddings(
    session: Session, fingerprint: str, face_ids: Sequence[int], vectors: Sequence[Any] | Vectors
) -> None:
    """Inserts one embedding by the pack `fingerprint` for each face."""
    if len(face_ids):
        rows = [
            {"face_id": face_id, "fingerprint": fingerprint, "embedding": vector_to_bytes(vector)}
            for face_id, vector in zip(face_ids, vectors, strict=True)
        ]
        session.execute(insert(EmbeddingRow), rows)


def insert_crops(session: Session, crops: Sequence[tuple[int, bytes]]) -> None:
    """Inserts crops, each given as a face's id and an encoded image."""
    if crops:
        session.execute(insert(CropRow), [{"face_id": face_id, "image": image} for face_id, image in crops])


def by_pack(column: Any, face_id: Any, fingerprint: Any) -> ScalarSelect[Any]:
    """Returns a subquery for a column of a face's embedding by a pack.

    A lookup by key for each face: with a join, PostgreSQL reads the whole table for each face as long as its statistics
    do not include the embeddings by a new pack.
    """
    found = select(column).where(EmbeddingRow.face_id == face_id, EmbeddingRow.fingerprint == fingerprint)
    return found.scalar_subquery()


def _read(connection: Connection, gallery: Gallery, selection: Selection, **values: Any) -> list[Row[Any]]:
    """Returns rows of `id`, `identity_id` and `embedding` in the order of the ids.

    One statement reads the pack and the embeddings, so that they belong together even if the gallery is switched to
    another pack meanwhile.
    """
    query = _query(selection)
    rows = connection.execute(query, {"gallery_id": gallery.id, **values}).all()
    for fingerprint in {row.fingerprint for row in rows}:
        change_log.check_pack_unchanged(gallery, fingerprint)
    return [row for row in rows if row.id is not None]


@cache
def _query(selection: Selection) -> Executable:
    faces = select(FaceRow.id, FaceRow.identity_id)
    gallery_id: ColumnElement[int] = bindparam("gallery_id")
    if selection == "after":
        faces = faces.where(FaceRow.gallery_id == gallery_id, FaceRow.id > bindparam("after"))
        faces = faces.limit(bindparam("limit"))
    else:
        column = FaceRow.id if selection == "faces" else FaceRow.identity_id
        # The sum keeps SQLite from reading the whole gallery in the order of the ids.
        faces = faces.where(FaceRow.gallery_id + 0 == gallery_id, column.in_(bindparam("ids", expanding=True)))
    page = faces.order_by(FaceRow.id).subquery()
    embedding = by_pack(EmbeddingRow.embedding, page.c.id, GalleryRow.fingerprint).correlate(page, GalleryRow)
    return (
        select(GalleryRow.fingerprint, page.c.id, page.c.identity_id, embedding.label("embedding"))
        .select_from(GalleryRow)
        .outerjoin(page, true())  # so that there is a row with the fingerprint even if there are no faces
        .where(GalleryRow.id == bindparam("gallery_id"))
        .order_by(page.c.id)
    )


def face_vectors(rows: Sequence[Any], dim: int) -> FaceVectors:
    """Returns the embeddings of rows with `id`, `identity_id` and `embedding`."""
    return FaceVectors(
        np.array([row.id for row in rows], dtype=np.int64),
        np.array([row.identity_id for row in rows], dtype=np.int64),
        vectors_from_bytes([row.embedding for row in rows], dim),
    )
