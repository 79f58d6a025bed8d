"""The truth: galleries, identities and faces. Rows go in and come out as the frozen values of `indexer.types`.

The queries on the change log stand in `changes`, those on embeddings in `embeddings`; `Store` runs both. Calibrations
and whole galleries for export have doors of their own: `calibrations` and `exchange`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, bindparam, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from indexer.clock import now
from indexer.errors import Conflict, InvalidRequest, NotFound
from indexer.gallery import change_log, embeddings
from indexer.gallery.change_log import Change, Entry, Kind, Position
from indexer.gallery.database import Repository
from indexer.gallery.embeddings import Beside, Lacking, Switch
from indexer.gallery.metadata import MOST_BYTES, bytes_of, keepable
from indexer.gallery.schema import LONGEST_NAME, FaceRow, GalleryRow, IdentityRow, slices
from indexer.types import (
    Box,
    Detection,
    Face,
    Gallery,
    Identity,
    Named,
    Outcome,
    Person,
    Quality,
    Reason,
    StoredFace,
    Vectors,
    check_vectors,
    vectors_from_bytes,
)


@dataclass(frozen=True, eq=False)
class NewFace:
    """One described face, ready to be enrolled as `person`."""

    person: Person
    image_sha256: str
    face: Face
    crop: bytes | None = None
    """The file that `vision.crops` made of the face's crop, where it is to be kept."""


@dataclass(frozen=True)
class Enrolled:
    """What became of a NewFace: its face, whose image it was already, or what is wrong with what it says."""

    outcome: Outcome
    face_id: int | None
    identity_id: int | None
    owner: str | None = None
    """The external id of the other person that the same image is enrolled for."""
    problem: str | None = None
    """Why what is said of the person cannot be: it clashes with what was said of them before."""


Also = Callable[[Session, list[Enrolled]], None]
"""What else is written in the transaction in which faces are enrolled."""


@dataclass(frozen=True)
class Known:
    """An image that the gallery holds already."""

    face_id: int
    identity_id: int
    external_id: str


@dataclass(frozen=True, eq=False)
class FaceVectors:
    """Faces as an index wants them: (N,) int64 ids of faces and of their identities, (N, D) float32."""

    face_ids: NDArray[np.int64]
    identity_ids: NDArray[np.int64]
    vectors: Vectors


FACES_OF_ROW = select(func.count()).where(FaceRow.identity_id == IdentityRow.id).scalar_subquery()

WITH_COUNTS = select(IdentityRow, FACES_OF_ROW)

AMONG_IDS = IdentityRow.id.in_(bindparam("ids", expanding=True))

VALID_AMONG_IDS = select(
    IdentityRow.id, IdentityRow.external_id, IdentityRow.name, IdentityRow.details, FACES_OF_ROW
).where(
    or_(IdentityRow.valid_from.is_(None), IdentityRow.valid_from <= bindparam("at")),
    or_(IdentityRow.valid_until.is_(None), IdentityRow.valid_until > bindparam("at")),
    AMONG_IDS,
)

GALLERY_NAMED = select(
    *(GalleryRow.id, GalleryRow.name, GalleryRow.model, GalleryRow.fingerprint),
    *(GalleryRow.dim, GalleryRow.seq, GalleryRow.created_at),
).where(GalleryRow.name == bindparam("name"))


Check = Callable[[Identity | None], None]
"""Looks at an identity, or None where it is missing, under the lock under which it is changed: whoever raises keeps it
as it is."""


def _whatever(there: Identity | None) -> None:
    """The Check of those who do not mind."""


class Store(Repository):
    """The truth behind one database. Thread-safe; each call is one transaction."""

    # Galleries

    def create_gallery(self, name: str, model: str, fingerprint: str, dim: int) -> Gallery:
        """Raises Conflict when there is one of that name, InvalidRequest when the name is no name."""
        _check_in_urls("a gallery's name", name)
        if "/" in name:
            raise InvalidRequest(f"a gallery's name must not hold a slash; got {name!r}")
        row = GalleryRow(name=name, model=model, fingerprint=fingerprint, dim=dim, seq=0, created_at=now())
        try:
            with self._write() as session:
                session.add(row)
                session.flush()
                return _gallery(row)
        except IntegrityError as error:
            raise Conflict(f"there is a gallery {name!r} already", code="gallery_exists") from error

    def gallery(self, name: str) -> Gallery:
        """Raises NotFound."""
        with self._read_rows() as connection:
            return gallery_named(connection, name)

    def galleries(
        self, after: int = 0, limit: int | None = None, named: AbstractSet[str] | None = None
    ) -> list[Gallery]:
        """Those with an id above `after`, of IN_ONE_QUERY names at most where some are `named`, in the order of their
        making."""
        query = select(GalleryRow).where(GalleryRow.id > after).order_by(GalleryRow.id).limit(limit)
        if named is not None:
            query = query.where(GalleryRow.name.in_(named))
        with self._read() as session:
            return [_gallery(row) for row in session.scalars(query)]

    def delete_gallery(self, name: str) -> Gallery:
        """Deletes it with everything in it. Raises NotFound."""
        gallery = self.gallery(name)
        with self._write() as session:
            session.execute(delete(GalleryRow).where(GalleryRow.id == gallery.id))
        return gallery

    def counts(self, gallery_id: int) -> tuple[int, int]:
        """How many identities and faces a gallery holds."""
        with self._read() as session:
            return counts_of(session, gallery_id)

    # Identities

    def put_identity(
        self, gallery_id: int, person: Person, replace: bool = True, check: Check = _whatever
    ) -> tuple[Identity, bool]:
        """Makes the identity, or with `replace` replaces all that is said of it; whether it is new."""
        check_person(person)
        with self._write() as session:
            last = change_log.lock(session, gallery_id)
            row = _find_identity(session, gallery_id, person.external_id)
            created = row is None
            check(None if row is None else _identity(row, _face_count(session, row.id)))
            if row is None:
                row = IdentityRow(**_identity_values(gallery_id, person))
                session.add(row)
            if created or (replace and _say(row, person, replace_all=True)):
                session.flush()
                change_log.record(session, gallery_id, last, [Entry(Kind.IDENTITY_CHANGED, row.id)])
            return _identity(row, _face_count(session, row.id)), created

    def change_identity(self, gallery_id: int, external_id: str, change: Callable[[Identity], Person]) -> Identity:
        """Replaces what is said of the identity by what `change` makes of it, under one lock; its external id stays.
        Raises NotFound, and what `change` raises."""
        with self._write() as session:
            last = change_log.lock(session, gallery_id)
            row = _required_identity(session, gallery_id, external_id)
            faces = _face_count(session, row.id)
            before = _identity(row, faces)
            person = change(before)
            check_person(person, before.metadata)
            if _say(row, person, replace_all=True):
                session.flush()
                change_log.record(session, gallery_id, last, [Entry(Kind.IDENTITY_CHANGED, row.id)])
            return _identity(row, faces)

    def add_identities(self, gallery: Gallery, people: Sequence[Person]) -> set[str]:
        """Makes those of `people` that are missing, in one transaction: the external ids of those made.

        Of several of one id the first counts. Raises Conflict when the gallery was re-embedded since `gallery` was
        read, NotFound when it was deleted.
        """
        wanted: dict[str, Person] = {}
        for person in people:
            check_person(person)
            wanted.setdefault(person.external_id, person)
        with self._write() as session:
            last = change_log.lock_as(session, gallery)
            there = _identity_rows(session, gallery.id, people)
            rows = [_identity_values(gallery.id, p) for p in wanted.values() if p.external_id not in there]
            made = _insert_all(session, IdentityRow, rows)
            change_log.record(session, gallery.id, last, [Entry(Kind.IDENTITY_CHANGED, id_) for id_ in made])
            return wanted.keys() - there.keys()

    def identity(self, gallery_id: int, external_id: str) -> Identity:
        """Raises NotFound."""
        with self._read() as session:
            row = _required_identity(session, gallery_id, external_id)
            return _identity(row, _face_count(session, row.id))

    def identities(self, gallery_id: int, after: int = 0, limit: int | None = None) -> list[Identity]:
        """Those with an id above `after`, in the order of their making."""
        query = WITH_COUNTS.where(IdentityRow.gallery_id == gallery_id, IdentityRow.id > after)
        with self._read() as session:
            rows = session.execute(query.order_by(IdentityRow.id).limit(limit))
            return [_identity(row, count) for row, count in rows]

    def valid_identities(self, ids: Iterable[int], at: datetime) -> dict[int, Named]:
        """Those of `ids` that exist and are valid at that time, by id."""
        found: dict[int, Named] = {}
        with self._read_rows() as connection:
            for some in slices(list(ids)):
                rows = connection.execute(VALID_AMONG_IDS, {"ids": some, "at": at})
                found |= {row.id: Named(*row) for row in rows}
        return found

    def identities_by_id(self, ids: Iterable[int]) -> dict[int, Identity]:
        """Those of `ids` that exist, valid or not, by id."""
        found: dict[int, Identity] = {}
        with self._read() as session:
            for some in slices(list(ids)):
                rows = session.execute(WITH_COUNTS.where(AMONG_IDS), {"ids": some})
                found |= {row.id: _identity(row, count) for row, count in rows}
        return found

    def merge_identities(self, gallery_id: int, into: str, other: str) -> tuple[Identity, int]:
        """Moves the faces of `other` to `into` and deletes `other`, in one transaction: who is left, and how many faces
        were moved.

        What is said of `into` counts. Of `other` is taken what is not said of `into`: the name, and further keys of the
        metadata. Dates are not: whoever was valid for ever would end, or the other way round.

        Raises NotFound, and InvalidRequest where both are the same identity or their metadata is too much for one.
        """
        if into == other:
            raise InvalidRequest(f"identity {into!r} cannot be merged with itself; name two")
        with self._write() as session:
            last = change_log.lock(session, gallery_id)
            kept, gone = (_required_identity(session, gallery_id, external_id) for external_id in (into, other))
            moved = list(session.scalars(select(FaceRow.id).where(FaceRow.identity_id == gone.id).order_by(FaceRow.id)))
            of_gone = update(FaceRow).where(FaceRow.identity_id == gone.id).values(identity_id=kept.id)
            session.execute(of_gone.execution_options(synchronize_session=False))
            named = kept.name if kept.name is not None else gone.name
            both = Person(into, named, kept.valid_from, kept.valid_until, {**gone.details, **kept.details})
            _check_metadata(both, kept.details)
            changed = [Entry(Kind.IDENTITY_CHANGED, kept.id)] if _say(kept, both, replace_all=True) else []
            added = [Entry(Kind.FACE_ADDED, kept.id, face_id) for face_id in moved]
            change_log.record(session, gallery_id, last, [*changed, *added, Entry(Kind.IDENTITY_REMOVED, gone.id)])
            session.delete(gone)
            session.flush()
            return _identity(kept, _face_count(session, kept.id)), len(moved)

    def delete_identity(self, gallery_id: int, external_id: str, check: Check = _whatever) -> int:
        """Deletes the person and all their faces; how many faces. Raises NotFound."""
        with self._write() as session:
            last = change_log.lock(session, gallery_id)
            row = _required_identity(session, gallery_id, external_id)
            face_ids = list(session.scalars(select(FaceRow.id).where(FaceRow.identity_id == row.id)))
            check(_identity(row, len(face_ids)))
            gone = [Entry(Kind.FACE_REMOVED, row.id, face_id) for face_id in face_ids]
            change_log.record(session, gallery_id, last, [*gone, Entry(Kind.IDENTITY_REMOVED, row.id)])
            session.delete(row)
            return len(face_ids)

    # Faces

    def known_images(self, gallery_id: int, hashes: Iterable[str]) -> dict[str, Known]:
        """Which of these images (by SHA-256) are enrolled, and for whom."""
        with self._read() as session:
            return _known_images(session, gallery_id, hashes)

    def enroll(self, gallery: Gallery, said: Sequence[NewFace | Person], also: Also | None = None) -> list[Enrolled]:
        """Enrols faces in one transaction, making the identities that are missing.

        What is said of a person (with a face, or alone, where they get no new one) updates the identity where it
        differs, and what is said later counts; what is not said is kept. An image that is enrolled already changes
        nothing: `unchanged` for the same person, `rejected` for another one. So is, with a `problem`, whatever would
        let a person's validity end before it begins or their metadata be too much; the others are enrolled. One answer
        for each of `said`; `also` gets them before they are committed.

        Raises Conflict when the gallery was re-embedded since `gallery` was read: the embeddings are by that pack.
        """
        gallery_id = gallery.id
        faces = [one for one in said if isinstance(one, NewFace)]
        people = [_person(one) for one in said]
        for person in people:
            check_person(person)
        with self._write() as session:
            last = change_log.lock_as(session, gallery)
            for new in faces:  # one of another size would keep every index from being built
                check_vectors(new.face.embedding, gallery.dim)
            known = _known_images(session, gallery_id, [new.image_sha256 for new in faces])
            there = _identity_rows(session, gallery_id, people)
            ours, heard, refused = _welcome(said, known, _Told(there))
            ids, entries = _upsert(session, gallery_id, there, heard, {new.person.external_id for new in ours})
            rows = [_face_values(gallery_id, ids[new.person.external_id], new) for new in ours]
            face_ids = _insert_all(session, FaceRow, rows)
            embeddings.insert_all(session, gallery.fingerprint, face_ids, [new.face.embedding for new in ours])
            crops = [(face_id, new.crop) for face_id, new in zip(face_ids, ours, strict=True) if new.crop is not None]
            embeddings.insert_crops(session, crops)
            made = {
                new.image_sha256: Known(face_id, ids[new.person.external_id], new.person.external_id)
                for new, face_id in zip(ours, face_ids, strict=True)
            }
            entries += [Entry(Kind.FACE_ADDED, face.identity_id, face.face_id) for face in made.values()]
            change_log.record(session, gallery_id, last, entries)
            firsts, stored = {id(new) for new in ours}, {**known, **made}
            became: list[Enrolled] = []
            for i, one in enumerate(said):
                if i in refused:
                    became.append(Enrolled(Outcome.REJECTED, None, None, problem=refused[i]))
                elif isinstance(one, Person):
                    became.append(Enrolled(Outcome.UNCHANGED, None, ids.get(one.external_id)))
                else:
                    became.append(_became(one, stored[one.image_sha256], id(one) in firsts))
            if also is not None:
                also(session, became)
            return became

    def faces(self, gallery_id: int, external_id: str, after: int = 0, limit: int | None = None) -> list[StoredFace]:
        """A person's faces with an id above `after`, in the order of their enrolment. Raises NotFound."""
        with self._read() as session:
            person = _required_identity(session, gallery_id, external_id)
            query = select(FaceRow).where(FaceRow.identity_id == person.id, FaceRow.id > after)
            return [_face(row) for row in session.scalars(query.order_by(FaceRow.id).limit(limit))]

    def face(self, gallery_id: int, face_id: int) -> StoredFace:
        """Raises NotFound."""
        with self._read() as session:
            return _face(_required_face(session, gallery_id, face_id))

    def delete_face(self, gallery_id: int, face_id: int) -> None:
        """The identity stays, also without faces. Raises NotFound."""
        with self._write() as session:
            last = change_log.lock(session, gallery_id)
            row = _required_face(session, gallery_id, face_id)
            change_log.record(session, gallery_id, last, [Entry(Kind.FACE_REMOVED, row.identity_id, row.id)])
            session.delete(row)

    # What indexes follow

    def last_change(self, gallery_id: int) -> int | None:
        """Number of the gallery's last change; None when the gallery is gone."""
        with self._read() as session:
            return session.scalar(select(GalleryRow.seq).where(GalleryRow.id == gallery_id))

    def position(self, gallery_id: int, seq: int | None = None) -> Position | None:
        """Where the change log ends, and what change `seq` (or the last one) was; None when the gallery is gone."""
        with self._read_rows() as connection:
            return change_log.position(connection, gallery_id, seq)

    def changes_since(self, gallery_id: int, seq: int, limit: int = 10_000) -> list[Change]:
        with self._read() as session:
            return change_log.since(session, gallery_id, seq, limit)

    def vectors_of(self, gallery: Gallery, face_ids: Sequence[int]) -> FaceVectors:
        """The embeddings of these faces; those that are gone are left out.

        Raises Conflict when the gallery was re-embedded since `gallery` was read.
        """
        rows: list[Any] = []
        with self._read_rows() as connection:
            for some in slices(face_ids):
                rows += embeddings.own(connection, gallery, "of ids", ids=some)
        return _face_vectors(rows, gallery.dim)

    def vectors_of_identity(self, gallery: Gallery, identity_id: int) -> FaceVectors:
        """The embeddings of a person's faces, in the order of their ids; none of nobody. Raises as `vectors_of`."""
        return self.vectors_of_people(gallery, [identity_id])

    def vectors_of_people(self, gallery: Gallery, identity_ids: Sequence[int]) -> FaceVectors:
        """The same of several people, in any order."""
        rows: list[Any] = []
        with self._read_rows() as connection:
            for some in slices(identity_ids):
                rows += embeddings.own(connection, gallery, "of identities", ids=some)
        return _face_vectors(rows, gallery.dim)

    def all_vectors(self, gallery: Gallery, at_once: int = 10_000) -> Iterator[FaceVectors]:
        """The embeddings of all faces, in the order of their ids, `at_once` at a time. Faces added while this runs may
        be among them.

        Raises Conflict when the gallery was re-embedded since `gallery` was read.
        """
        after = 0
        while True:
            with self._read_rows() as connection:
                rows = embeddings.own(connection, gallery, "after", after=after, limit=at_once)
            if not rows:
                return
            after = rows[-1].id
            yield _face_vectors(rows, gallery.dim)

    # Embeddings by another pack

    def start_reembedding(self, gallery: Gallery, model: str, fingerprint: str, dim: int) -> None:
        """Lets embeddings by that pack be laid beside; nothing happens where they may be already.

        Raises Conflict when the gallery is bound to that pack, or was re-embedded since `gallery` was read.
        """
        with self._write() as session:
            embeddings.start(session, gallery, model, fingerprint, dim)

    def former_packs(self, gallery_id: int) -> list[Beside]:
        """The other packs whose embeddings lie beside, all or some of them, the latest first."""
        with self._read() as session:
            return embeddings.beside(session, gallery_id)

    def embedded(self, gallery_id: int, fingerprint: str) -> int:
        """How many of the gallery's faces have an embedding by that pack."""
        with self._read() as session:
            return embeddings.embedded(session, gallery_id, fingerprint)

    def lacking(self, gallery_id: int, fingerprint: str, after: int, limit: int) -> list[Lacking]:
        """Faces with an id above `after` that have no embedding by that pack, in the order of their ids."""
        with self._read() as session:
            return embeddings.lacking(session, gallery_id, fingerprint, after, limit)

    def put_embeddings(self, gallery: Gallery, fingerprint: str, face_ids: Sequence[int], vectors: Vectors) -> None:
        """Lays embeddings beside. Faces that are gone, or have one already, are passed over.

        Raises Conflict when the gallery was re-embedded since `gallery` was read, or these embeddings were forgotten.
        """
        with self._write() as session:
            embeddings.put(session, gallery, fingerprint, face_ids, vectors)

    def switch_model(
        self, gallery: Gallery, fingerprint: str, in_vain: AbstractSet[int] = frozenset(), drop_missing: bool = False
    ) -> Switch:
        """Binds the gallery to a pack whose embeddings lie beside, in one transaction; those it had lie beside then.

        It does so only when every face has an embedding by that pack; with `drop_missing` the faces that were looked
        at `in_vain` are deleted first. Raises as `put_embeddings`.
        """
        with self._write() as session:
            return embeddings.switch(session, gallery, fingerprint, in_vain, drop_missing)

    def forget_embeddings(self, gallery_id: int, fingerprint: str) -> int:
        """Deletes the embeddings by another pack, a transaction every few hundred; how many there were.

        Raises Conflict when it is the gallery's own, or somebody begins with it again meanwhile.
        """
        with self._write() as session:
            embeddings.give_up(session, gallery_id, fingerprint)
        forgotten, after = 0, 0
        while True:
            with self._write() as session:
                some, last = embeddings.forget_some(session, gallery_id, fingerprint, after)
            if last is None:
                return forgotten
            forgotten, after = forgotten + some, last


def check_name(what: str, value: str) -> None:
    """Raises InvalidRequest unless `value` is 1 to LONGEST_NAME visible characters on one line."""
    if not value or value != value.strip() or not value.isprintable() or len(value) > LONGEST_NAME:
        raise InvalidRequest(
            f"{what} must be 1 to {LONGEST_NAME} printable characters without space around them; got {value!r}"
        )


def _check_in_urls(what: str, value: str) -> None:
    """Raises InvalidRequest unless it is a name that can be a part of a URL."""
    check_name(what, value)
    if value in (".", ".."):
        raise InvalidRequest(f"{what} must not be {value!r}: no URL can name it")


def check_person(person: Person, stored: Mapping[str, object] | None = None) -> None:
    """Raises InvalidRequest on a bad id or name, dates without a zone or in the wrong order, metadata that is not JSON
    or too much. What is `stored` of it already may stay."""
    _check_in_urls("an external_id", person.external_id)
    if person.name is not None:
        check_name("a name", person.name)
    start, end = person.valid_from, person.valid_until
    for what, date in (("valid_from", start), ("valid_until", end)):
        if date is None:
            continue
        if date.utcoffset() is None:
            raise InvalidRequest(f"{what} ({date.isoformat()}) must have a time zone")
        try:
            date.astimezone(UTC)
        except OverflowError as error:
            raise InvalidRequest(f"{what} ({date.isoformat()}) is not in the years 1 to 9999 in UTC") from error
    _check_metadata(person, stored)
    if start is not None and end is not None and end <= start:
        raise InvalidRequest(f"valid_until ({end.isoformat()}) must be after valid_from ({start.isoformat()})")


def _check_metadata(person: Person, stored: Mapping[str, object] | None = None) -> None:
    """Raises InvalidRequest unless the metadata is JSON, and little enough or what is `stored` already."""
    if person.metadata == stored:
        return
    try:
        size = bytes_of(keepable(person.metadata))
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"the metadata of {person.external_id!r} must be JSON: {error}") from error
    if size > MOST_BYTES:
        raise InvalidRequest(
            f"the metadata of {person.external_id!r} would be {size:,} bytes of JSON; expected {MOST_BYTES:,} at most"
        )


def gallery_named(reader: Session | Connection, name: str) -> Gallery:
    """Raises NotFound."""
    row = reader.execute(GALLERY_NAMED, {"name": name}).one_or_none()
    if row is None:
        raise NotFound(f"there is no gallery {name!r}", code="gallery_not_found")
    return _gallery(row)


def counts_of(session: Session, gallery_id: int) -> tuple[int, int]:
    """How many identities and faces a gallery holds."""
    people = session.scalar(select(func.count()).where(IdentityRow.gallery_id == gallery_id))
    faces = session.scalar(select(func.count()).where(FaceRow.gallery_id == gallery_id))
    return people or 0, faces or 0


def _known_images(session: Session, gallery_id: int, hashes: Iterable[str]) -> dict[str, Known]:
    query = (
        select(FaceRow.image_sha256, FaceRow.id, IdentityRow.id, IdentityRow.external_id)
        .join(IdentityRow, IdentityRow.id == FaceRow.identity_id)
        .where(FaceRow.gallery_id == gallery_id)
    )
    known: dict[str, Known] = {}
    for some in slices(list(set(hashes))):
        for sha, face_id, identity_id, owner in session.execute(query.where(FaceRow.image_sha256.in_(some))):
            known[sha] = Known(face_id, identity_id, owner)
    return known


class _Told:
    """The validity dates and metadata of people as they are told one after the other."""

    def __init__(self, there: Mapping[str, IdentityRow]) -> None:
        self._told = {
            external_id: Person(external_id, None, row.valid_from, row.valid_until, row.details)
            for external_id, row in there.items()
        }

    def problem(self, person: Person) -> str | None:
        """Why this cannot be said of the person after all the rest; what can be is taken down."""
        before = self._told.get(person.external_id, Person(person.external_id))
        after = _joined(before, person)
        start, end = after.valid_from, after.valid_until
        said = person.valid_from is not None or person.valid_until is not None
        if said and start is not None and end is not None and end <= start:
            return (
                f"{person.external_id!r} would be valid until {end.isoformat()}, which must be after "
                f"{start.isoformat()}, from when they are valid; say both dates"
            )
        try:
            _check_metadata(after, before.metadata)
        except InvalidRequest as error:
            return error.message
        self._told[person.external_id] = after
        return None


def _person(one: NewFace | Person) -> Person:
    return one if isinstance(one, Person) else one.person


def _welcome(
    said: Sequence[NewFace | Person], known: Mapping[str, Known], told: _Told
) -> tuple[list[NewFace], list[Person], dict[int, str]]:
    """The faces whose image is new, each image once; what is said that counts, in its order; and, by its place in
    `said`, what is wrong with the rest. Nothing that comes with another person's image counts."""
    owners = {sha: face.external_id for sha, face in known.items()}
    first: list[NewFace] = []
    heard: list[Person] = []
    refused: dict[int, str] = {}
    for i, one in enumerate(said):
        person = _person(one)
        me = person.external_id
        if isinstance(one, NewFace) and owners.get(one.image_sha256, me) != me:
            continue
        problem = told.problem(person)
        if problem is not None:
            refused[i] = problem
            continue
        heard.append(person)
        if isinstance(one, NewFace) and one.image_sha256 not in owners:
            owners[one.image_sha256] = me
            first.append(one)
    return first, heard, refused


def _identity_rows(session: Session, gallery_id: int, people: Iterable[Person]) -> dict[str, IdentityRow]:
    """The rows of those that are there, by external id."""
    query = select(IdentityRow).where(IdentityRow.gallery_id == gallery_id)
    rows: dict[str, IdentityRow] = {}
    for some in slices(list({person.external_id for person in people})):
        rows |= {r.external_id: r for r in session.scalars(query.where(IdentityRow.external_id.in_(some)))}
    return rows


def _upsert(
    session: Session,
    gallery_id: int,
    rows: Mapping[str, IdentityRow],
    people: Sequence[Person],
    needed: AbstractSet[str],
) -> tuple[dict[str, int], list[Entry]]:
    """Updates the identities of `people`, whose rows are `rows`, and makes those that are missing and `needed`; ids by
    external id, and what changed."""
    new = [p.external_id for p in people if p.external_id in needed and p.external_id not in rows]
    missing = {external_id: Person(external_id) for external_id in new}
    for person in people:
        if person.external_id in missing:
            missing[person.external_id] = _joined(missing[person.external_id], person)
    new_ids = _insert_all(session, IdentityRow, [_identity_values(gallery_id, p) for p in missing.values()])
    ids = {external_id: row.id for external_id, row in rows.items()} | dict(zip(missing, new_ids, strict=True))
    changed = dict.fromkeys(new_ids)
    for person in people:
        row = rows.get(person.external_id)
        if row is not None and _say(row, person, replace_all=False):
            changed[row.id] = None
    session.flush()
    return ids, [Entry(Kind.IDENTITY_CHANGED, identity_id) for identity_id in changed]


def _joined(before: Person, after: Person) -> Person:
    """All that is said of one person; what is said later counts."""
    return Person(
        before.external_id,
        after.name if after.name is not None else before.name,
        after.valid_from if after.valid_from is not None else before.valid_from,
        after.valid_until if after.valid_until is not None else before.valid_until,
        {**before.metadata, **after.metadata},
    )


def _insert_all(session: Session, table: type[FaceRow | IdentityRow], rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """The new ids, in the order of `rows`."""
    if not rows:
        return []
    return list(session.scalars(insert(table).returning(table.id, sort_by_parameter_order=True), list(rows)))


def _became(new: NewFace, stored: Known, is_new: bool) -> Enrolled:
    if stored.external_id != new.person.external_id:
        return Enrolled(Outcome.REJECTED, None, None, stored.external_id)
    return Enrolled(Outcome.ENROLLED if is_new else Outcome.UNCHANGED, stored.face_id, stored.identity_id)


def _find_identity(session: Session, gallery_id: int, external_id: str) -> IdentityRow | None:
    return session.scalar(
        select(IdentityRow).where(IdentityRow.gallery_id == gallery_id, IdentityRow.external_id == external_id)
    )


def _required_identity(session: Session, gallery_id: int, external_id: str) -> IdentityRow:
    row = _find_identity(session, gallery_id, external_id)
    if row is None:
        raise NotFound(f"there is no identity {external_id!r} in this gallery", code="identity_not_found")
    return row


def _required_face(session: Session, gallery_id: int, face_id: int) -> FaceRow:
    row = session.scalar(select(FaceRow).where(FaceRow.gallery_id == gallery_id, FaceRow.id == face_id))
    if row is None:
        raise NotFound(f"there is no face {face_id} in this gallery", code="face_not_found")
    return row


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


def _say(row: IdentityRow, person: Person, replace_all: bool) -> bool:
    """Writes what is said of a person to their row; whether that changed anything."""
    said: dict[str, Any] = {
        "name": person.name,
        "valid_from": person.valid_from,
        "valid_until": person.valid_until,
        "details": dict(person.metadata) if replace_all else {**row.details, **person.metadata},
    }
    new = {k: v for k, v in said.items() if getattr(row, k) != v and (replace_all or v is not None)}
    for key, value in new.items():
        setattr(row, key, value)
    if new:
        row.updated_at = now()
    return bool(new)


def _face_count(session: Session, identity_id: int) -> int:
    return session.scalar(select(func.count()).where(FaceRow.identity_id == identity_id)) or 0


def _face_values(gallery_id: int, identity_id: int, new: NewFace) -> Mapping[str, Any]:
    detection, quality = new.face.detection, new.face.quality
    box = detection.box
    return {
        "gallery_id": gallery_id,
        "identity_id": identity_id,
        "image_sha256": new.image_sha256,
        "box": [round(v, 2) for v in (box.x, box.y, box.w, box.h)],
        "landmarks": [[round(float(v), 2) for v in point] for point in detection.landmarks],
        "detection_score": round(detection.score, 4),
        "quality": {**asdict(quality), "reasons": [str(reason) for reason in quality.reasons]},
        "created_at": now(),
    }


def _gallery(row: Any) -> Gallery:
    return Gallery(row.id, row.name, row.model, row.fingerprint, row.dim, row.seq, row.created_at)


def _identity(row: IdentityRow, faces: int) -> Identity:
    return Identity(
        row.id,
        row.external_id,
        row.name,
        row.details,
        row.valid_from,
        row.valid_until,
        faces,
        row.created_at,
        row.updated_at,
    )


def _face(row: FaceRow) -> StoredFace:
    quality = {**row.quality, "reasons": tuple(Reason(r) for r in row.quality.get("reasons", ()))}
    return StoredFace(
        row.id,
        row.identity_id,
        row.image_sha256,
        Detection(Box(*row.box), np.asarray(row.landmarks, dtype=np.float32), row.detection_score),
        Quality(**quality),
        row.created_at,
    )


def _face_vectors(rows: Sequence[Any], dim: int) -> FaceVectors:
    return FaceVectors(
        np.array([r.id for r in rows], dtype=np.int64),
        np.array([r.identity_id for r in rows], dtype=np.int64),
        vectors_from_bytes([r.embedding for r in rows], dim),
    )
