"""Embeddings in SQL: those by the gallery's own pack, and those by other packs that lie beside.

A gallery is re-embedded by laying embeddings by another pack beside its own, face by face, and then naming that pack in
the gallery's row. That moves no embedding: the switch only looks whether each face has one, and so does the way back.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, cast

from sqlalchemy import (
    ColumnElement,
    Connection,
    CursorResult,
    Engine,
    Executable,
    Row,
    ScalarSelect,
    bindparam,
    delete,
    func,
    insert,
    select,
    true,
    update,
)
from sqlalchemy.orm import Session

from indexer.clock import now
from indexer.errors import Conflict
from indexer.gallery import change_log
from indexer.gallery.change_log import Entry, Kind
from indexer.gallery.schema import (
    IN_ONE_QUERY,
    CropRow,
    EmbeddingRow,
    FaceRow,
    GalleryRow,
    IdentityRow,
    ReembeddingRow,
    slices,
)
from indexer.types import Box, Gallery, Vectors, check_vectors, vector_to_bytes


@dataclass(frozen=True)
class Beside:
    """A pack other than the gallery's own, by which all or some of its faces have an embedding."""

    model: str
    fingerprint: str
    was_bound: bool
    """Whether the gallery was bound to it."""


@dataclass(frozen=True, eq=False)
class Lacking:
    """A face without an embedding by a pack, and what one can be made of."""

    face_id: int
    external_id: str
    image_sha256: str
    box: Box
    """In the upright original, by the pack it was enrolled with."""
    crop: bytes | None
    """None where it was not kept."""


@dataclass(frozen=True)
class Switch:
    """How an attempt to bind a gallery to another pack ended."""

    gallery: Gallery
    """As it is now."""
    switched: bool
    missing: int
    """Faces without an embedding by the other pack: deleted where it switched, else why it did not."""
    newer: bool = False
    """It did not switch because there are such faces that nobody has looked at yet: look, and try again."""


Which = Literal["of ids", "of identities", "after"]
"""Which faces: those with one of some ids, those of some identities, or the next ones after an id."""


def own(connection: Connection, gallery: Gallery, which: Which, **values: Any) -> list[Row[Any]]:
    """Rows of `id`, `identity_id` and `embedding`, by the gallery's own pack, of the faces that `which` names for
    `values` (`ids`, or `after` and `limit`), in the order of their ids. Raises Conflict when that pack is not the one
    that `gallery` was read with.

    One statement tells the pack and the embeddings, so that they belong together whoever switches meanwhile.
    """
    rows = connection.execute(_own(which, _is_sqlite(connection)), {"gallery_id": gallery.id, **values}).all()
    for fingerprint in {row.fingerprint for row in rows}:
        change_log.check_pack_is(gallery, fingerprint)
    return [row for row in rows if row.id is not None]


@cache
def _own(which: Which, sqlite: bool) -> Executable:
    faces = select(FaceRow.id, FaceRow.identity_id).where(_of_gallery(sqlite) == bindparam("gallery_id"))
    if which == "after":
        faces = faces.where(FaceRow.id > bindparam("after")).limit(bindparam("limit"))
    else:
        named = FaceRow.id if which == "of ids" else FaceRow.identity_id
        faces = faces.where(named.in_(bindparam("ids", expanding=True)))
    page = faces.order_by(FaceRow.id).subquery()
    embedding = by_pack(EmbeddingRow.embedding, page.c.id, GalleryRow.fingerprint).correlate(page, GalleryRow)
    return (
        select(GalleryRow.fingerprint, page.c.id, page.c.identity_id, embedding.label("embedding"))
        .select_from(GalleryRow)
        .outerjoin(page, true())  # so that there is a row also where there are no faces
        .where(GalleryRow.id == bindparam("gallery_id"))
        .order_by(page.c.id)
    )


def insert_all(session: Session, fingerprint: str, face_ids: Sequence[int], vectors: Sequence[Any] | Vectors) -> None:
    if len(face_ids):
        rows = [
            {"face_id": face_id, "fingerprint": fingerprint, "embedding": vector_to_bytes(vector)}
            for face_id, vector in zip(face_ids, vectors, strict=True)
        ]
        session.execute(insert(EmbeddingRow), rows)


def insert_crops(session: Session, crops: Sequence[tuple[int, bytes]]) -> None:
    if crops:
        session.execute(insert(CropRow), [{"face_id": face_id, "image": image} for face_id, image in crops])


def start(session: Session, gallery: Gallery, model: str, fingerprint: str, dim: int) -> None:
    """Raises Conflict when the gallery is bound to that pack already, or was re-embedded meanwhile."""
    change_log.lock_as(session, gallery)
    if fingerprint == gallery.fingerprint:
        raise Conflict(f"gallery {gallery.name!r} is bound to {gallery.model} {fingerprint} already")
    if session.get(ReembeddingRow, (gallery.id, fingerprint)) is None:
        session.add(_beside_row(gallery.id, model, fingerprint, dim, was_bound=False))


def beside(session: Session, gallery_id: int) -> list[Beside]:
    """The latest first."""
    rows = session.scalars(
        select(ReembeddingRow)
        .where(ReembeddingRow.gallery_id == gallery_id)
        .order_by(ReembeddingRow.started_at.desc(), ReembeddingRow.fingerprint)
    )
    return [Beside(row.model, row.fingerprint, row.was_bound) for row in rows]


def embedded(session: Session, gallery_id: int, fingerprint: str) -> int:
    """How many of the gallery's faces have an embedding by that pack."""
    there = by_pack(EmbeddingRow.face_id, FaceRow.id, fingerprint).correlate(FaceRow)
    faces = select(func.count()).select_from(FaceRow).where(FaceRow.gallery_id == gallery_id, there.is_not(None))
    return session.scalar(faces) or 0


def lacking(session: Session, gallery_id: int, fingerprint: str, after: int, limit: int) -> list[Lacking]:
    """The next faces with an id above `after` that have no embedding by that pack, in the order of their ids."""
    rows = session.execute(
        select(FaceRow.id, IdentityRow.external_id, FaceRow.image_sha256, FaceRow.box, CropRow.image)
        .join(IdentityRow, IdentityRow.id == FaceRow.identity_id)
        .outerjoin(CropRow, CropRow.face_id == FaceRow.id)
        .where(*_lacks(session, gallery_id, fingerprint), FaceRow.id > after)
        .order_by(FaceRow.id)
        .limit(limit)
    )
    return [Lacking(row.id, row.external_id, row.image_sha256, Box(*row.box), row.image) for row in rows]


def put(session: Session, gallery: Gallery, fingerprint: str, face_ids: Sequence[int], vectors: Vectors) -> None:
    """Lays embeddings beside. Faces that are gone, or have one already, are passed over.

    Raises Conflict when the gallery was re-embedded meanwhile or the building was given up, InvalidVector.
    """
    change_log.lock_as(session, gallery)
    row = _required(session, gallery, fingerprint)
    check_vectors(vectors, row.dim)
    given = dict(zip(face_ids, vectors, strict=True))
    lack = _lacks(session, gallery.id, fingerprint)
    for some in slices(list(given)):
        wanted = session.scalars(select(FaceRow.id).where(*lack, FaceRow.id.in_(some))).all()
        insert_all(session, fingerprint, wanted, [given[face_id] for face_id in wanted])


def switch(
    session: Session, gallery: Gallery, fingerprint: str, in_vain: AbstractSet[int], drop_missing: bool
) -> Switch:
    """Binds the gallery to a pack whose embeddings lie beside; its own lie beside from now on.

    Faces that lack an embedding are missing where they are among those that were looked at `in_vain`, and with
    `drop_missing` are deleted; any other one needs a look first. Raises as `put`.
    """
    last = change_log.lock_as(session, gallery)
    gallery = replace(gallery, seq=last)
    row = _required(session, gallery, fingerprint)
    lack = _lacks(session, gallery.id, fingerprint)
    missing, after = 0, 0
    while some := _next(session, lack, after):
        if any(face.id not in in_vain for face in some):
            return Switch(gallery, False, missing, newer=True)
        missing, after = missing + len(some), some[-1].id
    if missing and not drop_missing:
        return Switch(gallery, False, missing)
    if missing:
        last = _drop(session, gallery.id, last, lack)
    change_log.record(session, gallery.id, last, [Entry(Kind.REEMBEDDED, 0)])
    session.add(_beside_row(gallery.id, gallery.model, gallery.fingerprint, gallery.dim, was_bound=True))
    named: dict[str, Any] = {"model": row.model, "fingerprint": row.fingerprint, "dim": row.dim}
    session.execute(
        update(GalleryRow)
        .where(GalleryRow.id == gallery.id)
        .values(**named)
        .execution_options(synchronize_session=False)
    )
    session.delete(row)
    return Switch(replace(gallery, **named, seq=last + 1), True, missing)


def give_up(session: Session, gallery_id: int, fingerprint: str) -> None:
    """From now on nothing is laid beside for that pack. Raises Conflict when it is the gallery's own."""
    change_log.lock(session, gallery_id)
    _check_beside(session, gallery_id, fingerprint)
    session.execute(
        delete(ReembeddingRow).where(ReembeddingRow.gallery_id == gallery_id, ReembeddingRow.fingerprint == fingerprint)
    )


def forget_some(session: Session, gallery_id: int, fingerprint: str, after: int) -> tuple[int, int | None]:
    """Deletes the embeddings by a pack that was given up of the next IN_ONE_QUERY faces with an id above `after`: how
    many, and the last of these faces, None where there are no more.

    Raises Conflict when somebody has begun with that pack again, or the gallery is bound to it.
    """
    change_log.lock(session, gallery_id)
    _check_beside(session, gallery_id, fingerprint)
    if session.get(ReembeddingRow, (gallery_id, fingerprint)) is not None:
        raise Conflict(f"somebody began meanwhile to embed the gallery by {fingerprint} again")
    some = [face.id for face in _next(session, [_in_gallery(session, gallery_id)], after)]
    if not some:
        return 0, None
    gone = session.execute(
        delete(EmbeddingRow)
        .where(EmbeddingRow.face_id.in_(some), EmbeddingRow.fingerprint == fingerprint)
        .execution_options(synchronize_session=False)
    )
    return cast(CursorResult[Any], gone).rowcount, some[-1]


def _in_gallery(session: Session, gallery_id: int) -> ColumnElement[bool]:
    return _of_gallery(_is_sqlite(session.get_bind())) == gallery_id


def _is_sqlite(database: Engine | Connection) -> bool:
    return database.dialect.name == "sqlite"


def _of_gallery(sqlite: bool) -> ColumnElement[int]:
    """A face's gallery, for pages in the order of the ids. The sum keeps SQLite from looking it up in the index of its
    images and sorting all of it for each page. An index of both columns would lead PostgreSQL away from that of the
    images."""
    return FaceRow.gallery_id + 0 if sqlite else cast(ColumnElement[int], FaceRow.gallery_id)


def by_pack(what: Any, face_id: Any, fingerprint: Any) -> ScalarSelect[Any]:
    """Of a face's embedding by a pack. One look into the key for each face: joined, PostgreSQL reads the whole table
    for each face where it has not counted yet how many embeddings by a new pack there are."""
    found = select(what).where(EmbeddingRow.face_id == face_id, EmbeddingRow.fingerprint == fingerprint)
    return found.scalar_subquery()


def _lacks(session: Session, gallery_id: int, fingerprint: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """That a face of the gallery has no embedding by that pack."""
    there = by_pack(EmbeddingRow.face_id, FaceRow.id, fingerprint).correlate(FaceRow)
    return _in_gallery(session, gallery_id), there.is_(None)


def _drop(session: Session, gallery_id: int, last: int, which: Sequence[ColumnElement[bool]]) -> int:
    """Deletes faces, IN_ONE_QUERY at a time, telling the log; the number of the last change."""
    after = 0
    while some := _next(session, which, after):
        removed = [Entry(Kind.FACE_REMOVED, face.identity_id, face.id) for face in some]
        change_log.record(session, gallery_id, last, removed)
        session.execute(delete(FaceRow).where(FaceRow.id.in_([face.id for face in some])))
        last, after = last + len(some), some[-1].id
    return last


def _next(session: Session, which: Sequence[ColumnElement[bool]], after: int) -> Sequence[Any]:
    """Ids and identities of the next IN_ONE_QUERY faces that `which` names with an id above `after`."""
    query = select(FaceRow.id, FaceRow.identity_id).where(*which, FaceRow.id > after)
    return session.execute(query.order_by(FaceRow.id).limit(IN_ONE_QUERY)).all()


def _beside_row(gallery_id: int, model: str, fingerprint: str, dim: int, was_bound: bool) -> ReembeddingRow:
    return ReembeddingRow(
        gallery_id=gallery_id, model=model, fingerprint=fingerprint, dim=dim, started_at=now(), was_bound=was_bound
    )


def _required(session: Session, gallery: Gallery, fingerprint: str) -> ReembeddingRow:
    row = session.get(ReembeddingRow, (gallery.id, fingerprint))
    if row is None:
        raise Conflict(f"embedding gallery {gallery.name!r} by {fingerprint} was given up meanwhile; begin again")
    return row


def _check_beside(session: Session, gallery_id: int, fingerprint: str) -> None:
    """For who holds the gallery's lock. Raises Conflict when it is bound to that pack."""
    row = session.get_one(GalleryRow, gallery_id)
    if row.fingerprint == fingerprint:
        raise Conflict(
            f"gallery {row.name!r} is bound to {row.model} {fingerprint}: its embeddings cannot be forgotten"
        )
