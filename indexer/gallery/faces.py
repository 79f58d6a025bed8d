"""Faces in SQL, and the transaction that enrolls them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from indexer.clock import now
from indexer.errors import InvalidRequest, NotFound
from indexer.gallery import change_log, identities
from indexer.gallery.change_log import ChangeKind, Entry
from indexer.gallery.database import Repository, insert_returning_ids
from indexer.gallery.embeddings import insert_crops, insert_embeddings
from indexer.gallery.schema import CropRow, FaceRow, IdentityRow, batches
from indexer.gallery.validation import check_metadata, check_person
from indexer.types import (
    Box,
    Detection,
    Face,
    Gallery,
    Outcome,
    Person,
    Quality,
    Reason,
    StoredFace,
    check_vectors,
)


@dataclass(frozen=True, eq=False)
class NewFace:
    """One described face to enroll for `person`."""

    person: Person
    image_sha256: str
    face: Face
    crop: bytes | None = None
    """The encoded crop from `vision.crops`, if crops are kept."""


@dataclass(frozen=True)
class Enrolled:
    """The result for one NewFace or Person given to `FaceRepository.enroll`."""

    outcome: Outcome
    face_id: int | None
    identity_id: int | None
    owner: str | None = None
    """External id of the other identity for which the same image is enrolled."""
    updated: tuple[str, ...] = ()
    """The fields of an identity that existed which the description of the person changed."""
    problem: str | None = None
    """Why the description of the person cannot be combined with what is stored about them."""


OnEnrolled = Callable[[Session, list[Enrolled]], None]
"""Writes more rows in the transaction that enrolls faces."""


@dataclass(frozen=True)
class KnownImage:
    """An image that is enrolled already."""

    face_id: int
    identity_id: int
    external_id: str


class FaceRepository(Repository):
    """The faces of one database's galleries. Thread-safe; each call is one transaction."""

    def known_images(self, gallery_id: int, hashes: Iterable[str]) -> dict[str, KnownImage]:
        """Returns, by SHA-256, those of the images that are enrolled."""
        with self._read() as session:
            return _known_images(session, gallery_id, hashes)

    def enroll(
        self, gallery: Gallery, items: Sequence[NewFace | Person], on_enrolled: OnEnrolled | None = None
    ) -> list[Enrolled]:
        """Enrolls faces in one transaction and creates the identities that do not exist.

        Each item updates its person: what is given replaces what is stored, what is not given stays, and the later of
        two items about one person counts. A Person without a new face updates an identity and creates none. An image
        that is enrolled already is `unchanged` for the same person and `rejected` for another one. An item that would
        end a person's validity before it begins, or make their metadata too large, is `rejected` with a `problem`;
        the others are enrolled.

        Args:
            gallery: The gallery; the embeddings must be by its pack.
            items: Faces, and people without a new face.
            on_enrolled: Receives the results before they are committed.

        Returns:
            One result for each item, in the same order.

        Raises:
            Conflict: The gallery was re-embedded since `gallery` was read.
            InvalidRequest: The description of a person is not valid by itself.
            InvalidVector: An embedding does not fit the gallery.
            NotFound: The gallery was deleted.
        """
        people = [_person(item) for item in items]
        for person in people:
            check_person(person)
        faces = [item for item in items if isinstance(item, NewFace)]
        with self._write() as session:
            last = change_log.lock_with_pack(session, gallery)
            for new in faces:  # an embedding of another size would keep every index from being built
                check_vectors(new.face.embedding, gallery.dim)
            stored = identities.stored_ids(session, gallery.id, people)
            items = [_with_external_id(item, stored[_person(item).external_id]) for item in items]
            images = _known_images(session, gallery.id, [new.image_sha256 for new in faces])
            rows = identities.find_rows(session, gallery.id, stored.values())
            accepted = _accept(items, images, rows)
            needed = {new.person.external_id for new in accepted.faces}
            ids, entries, updates = identities.upsert(session, gallery.id, rows, accepted.people, needed)
            created = _insert_faces(session, gallery, accepted.faces, ids)
            entries += [Entry(ChangeKind.FACE_ADDED, image.identity_id, image.face_id) for image in created.values()]
            change_log.record(session, gallery.id, last, entries, len(ids) - len(rows), len(created))
            first, images = {id(new) for new in accepted.faces}, {**images, **created}
            updated = dict(zip(accepted.places, updates, strict=True))
            results: list[Enrolled] = []
            for i, item in enumerate(items):
                if i in accepted.problems:
                    results.append(Enrolled(Outcome.REJECTED, None, None, problem=accepted.problems[i]))
                    continue
                if isinstance(item, Person):
                    result = Enrolled(Outcome.UNCHANGED, None, ids.get(item.external_id))
                else:
                    result = _result(item, images[item.image_sha256], id(item) in first)
                results.append(replace(result, updated=updated.get(i, ())))
            if on_enrolled is not None:
                on_enrolled(session, results)
            return results

    def get(self, gallery_id: int, face_id: int) -> StoredFace:
        """Returns the face. Raises NotFound."""
        with self._read() as session:
            return _stored_face(_required_row(session, gallery_id, face_id), _crop(session, face_id) is not None)

    def crop(self, gallery_id: int, face_id: int) -> bytes:
        """Returns the kept crop, encoded by `vision.crops`. Raises NotFound, also where crops were not kept."""
        with self._read() as session:
            _required_row(session, gallery_id, face_id)
            found = _crop(session, face_id)
        if found is None:
            message = f"no crop of face {face_id} is kept; WHOSTHERE_KEEP_CROPS keeps those of later faces"
            raise NotFound(message, code="crop_not_kept")
        return found

    def owners(self, gallery_id: int) -> dict[int, str]:
        """Returns the external ids of all faces' identities by the faces' ids, in the order of enrollment."""
        query = select(FaceRow.id, IdentityRow.external_id).join(IdentityRow, IdentityRow.id == FaceRow.identity_id)
        with self._read() as session:
            rows = session.execute(query.where(FaceRow.gallery_id == gallery_id).order_by(FaceRow.id))
            return {row.id: row.external_id for row in rows}

    def delete(self, gallery_id: int, face_id: int) -> None:
        """Deletes the face; its identity stays, even without faces. Raises NotFound."""
        with self._write() as session:
            last = change_log.lock(session, gallery_id)
            row = _required_row(session, gallery_id, face_id)
            removed = [Entry(ChangeKind.FACE_REMOVED, row.identity_id, row.id)]
            change_log.record(session, gallery_id, last, removed, faces=-1)
            session.delete(row)

    def list(self, gallery_id: int, external_id: str, after: int = 0, limit: int | None = None) -> Sequence[StoredFace]:
        """Returns an identity's faces with an id above `after`, in the order of enrollment. Raises NotFound."""
        with self._read() as session:
            person = identities.required_row(session, gallery_id, external_id)
            has_crop = exists().where(CropRow.face_id == FaceRow.id)
            query = select(FaceRow, has_crop).where(FaceRow.identity_id == person.id, FaceRow.id > after)
            return [_stored_face(*row) for row in session.execute(query.order_by(FaceRow.id).limit(limit))]


def _person(item: NewFace | Person) -> Person:
    return item if isinstance(item, Person) else item.person


def _with_external_id(item: NewFace | Person, external_id: str) -> NewFace | Person:
    if external_id == _person(item).external_id:
        return item
    if isinstance(item, Person):
        return replace(item, external_id=external_id)
    return replace(item, person=replace(item.person, external_id=external_id))


def _known_images(session: Session, gallery_id: int, hashes: Iterable[str]) -> dict[str, KnownImage]:
    query = (
        select(FaceRow.image_sha256, FaceRow.id, IdentityRow.id, IdentityRow.external_id)
        .join(IdentityRow, IdentityRow.id == FaceRow.identity_id)
        .where(FaceRow.gallery_id == gallery_id)
    )
    known: dict[str, KnownImage] = {}
    for batch in batches(list(set(hashes))):
        for sha, face_id, identity_id, external_id in session.execute(query.where(FaceRow.image_sha256.in_(batch))):
            known[sha] = KnownImage(face_id, identity_id, external_id)
    return known


@dataclass
class _Accepted:
    """The items of an enrollment that are written, and the problems of the others by their index."""

    faces: list[NewFace] = field(default_factory=list)
    """Faces whose image is new, each image once."""
    people: list[Person] = field(default_factory=list)
    """Descriptions of people, in order."""
    places: list[int] = field(default_factory=list)
    """The index of the item of each of `people`."""
    problems: dict[int, str] = field(default_factory=dict)


def _accept(
    items: Sequence[NewFace | Person], images: Mapping[str, KnownImage], rows: Mapping[str, IdentityRow]
) -> _Accepted:
    """Decides what is written. An item with another person's image does not update its person."""
    owners = {sha: image.external_id for sha, image in images.items()}
    joined = {
        external_id: Person(external_id, None, row.valid_from, row.valid_until, row.details)
        for external_id, row in rows.items()
    }
    accepted = _Accepted()
    for i, item in enumerate(items):
        person = _person(item)
        if isinstance(item, NewFace) and owners.get(item.image_sha256, person.external_id) != person.external_id:
            continue
        before = joined.get(person.external_id, Person(person.external_id))
        after = identities.join(before, person)
        problem = _problem(before, person, after)
        if problem is not None:
            accepted.problems[i] = problem
            continue
        joined[person.external_id] = after
        accepted.people.append(person)
        accepted.places.append(i)
        if isinstance(item, NewFace) and item.image_sha256 not in owners:
            owners[item.image_sha256] = person.external_id
            accepted.faces.append(item)
    return accepted


def _problem(before: Person, given: Person, after: Person) -> str | None:
    """Returns why `given` cannot be joined with `before` to `after`; None if it can."""
    start, end = after.valid_from, after.valid_until
    has_dates = given.valid_from is not None or given.valid_until is not None
    if has_dates and start is not None and end is not None and end <= start:
        return (
            f"{given.external_id!r} would be valid until {end.isoformat()}, which must be after the start of validity, "
            f"{start.isoformat()}; give both dates"
        )
    try:
        check_metadata(after, before.metadata)
    except InvalidRequest as error:
        return error.message
    return None


def _insert_faces(
    session: Session, gallery: Gallery, faces: Sequence[NewFace], identity_ids: Mapping[str, int]
) -> dict[str, KnownImage]:
    """Inserts faces with their embeddings and crops and returns them by the SHA-256 of their images."""
    rows = [_face_values(gallery.id, identity_ids[new.person.external_id], new) for new in faces]
    face_ids = insert_returning_ids(session, FaceRow, rows)
    insert_embeddings(session, gallery.fingerprint, face_ids, [new.face.embedding for new in faces])
    pairs = list(zip(face_ids, faces, strict=True))
    insert_crops(session, [(face_id, new.crop) for face_id, new in pairs if new.crop is not None])
    return {
        new.image_sha256: KnownImage(face_id, identity_ids[new.person.external_id], new.person.external_id)
        for face_id, new in pairs
    }


def _result(new: NewFace, image: KnownImage, is_first: bool) -> Enrolled:
    if image.external_id != new.person.external_id:
        return Enrolled(Outcome.REJECTED, None, None, image.external_id)
    return Enrolled(Outcome.ENROLLED if is_first else Outcome.UNCHANGED, image.face_id, image.identity_id)


def _required_row(session: Session, gallery_id: int, face_id: int) -> FaceRow:
    row = session.scalar(select(FaceRow).where(FaceRow.gallery_id == gallery_id, FaceRow.id == face_id))
    if row is None:
        raise NotFound(f"there is no face {face_id} in this gallery", code="face_not_found")
    return row


def _crop(session: Session, face_id: int) -> bytes | None:
    return session.scalar(select(CropRow.image).where(CropRow.face_id == face_id))


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


def _stored_face(row: FaceRow, has_crop: bool) -> StoredFace:
    quality = {**row.quality, "reasons": tuple(Reason(r) for r in row.quality.get("reasons", ()))}
    return StoredFace(
        row.id,
        row.identity_id,
        row.image_sha256,
        Detection(Box(*row.box), np.asarray(row.landmarks, dtype=np.float32), row.detection_score),
        Quality(**quality),
        row.created_at,
        has_crop,
    )
