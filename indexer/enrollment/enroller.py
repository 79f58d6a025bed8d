"""Enrolls photos: resumable, idempotent, with a result for each row.

Workers read, decode, detect and embed chunks of photos in parallel; one thread commits the chunks in order. Every
yielded result is committed, and an interrupted run can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any

from indexer.enrollment.face_checks import FaceChecks, Finding
from indexer.enrollment.own_faces import Source
from indexer.enrollment.reading import FaceDescriber, describe_or_reject, process_chunks, read_batches
from indexer.enrollment.rows import Row
from indexer.errors import Conflict, RejectedImage
from indexer.gallery.faces import Enrolled, NewFace
from indexer.gallery.store import Store
from indexer.models.packs import Pack
from indexer.types import Face, Gallery, Outcome, Person, Pick, Reason, sha256
from indexer.vision import crops
from indexer.vision.liveness.base import LivenessCheck


@dataclass(frozen=True)
class Result:
    """The result of one row. `message`, for people, and `details`, for programs, explain a rejection, or report why an
    enrolled face may not belong to its identity, which of the identity's fields changed, and by how many degrees the
    photo was turned, and the face's liveness if it was checked."""

    image: str
    external_id: str
    outcome: Outcome
    reason: Reason | None = None
    face_id: int | None = None
    message: str | None = None
    details: Mapping[str, object] = field(default_factory=dict)


UNCHANGED = Enrolled(Outcome.UNCHANGED, None, None)
"""The result of an identity with nothing but its id."""

Record = Callable[[Any, Sequence[Result]], None]
"""Stores results in the transaction that commits them, which is its first argument."""


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A processed row before the commit: its face, its rejection, or neither if the image is enrolled already.

    `finding` is why the face may not belong to its identity.
    """

    row: Row
    new: NewFace | None = None
    rejection: RejectedImage | None = None
    known_face: int | None = None
    finding: Finding | None = None


class Enroller:
    """Enrolls rows into one gallery, `workers` chunks at a time.

    With `keep_crops` the aligned crops are stored with the embeddings, for re-embedding. With `checks`, faces that
    may not belong to their identity are held or reported. They are compared when chunks are committed, so that the
    results do not depend on the order in which workers finish. With `liveness`, faces are checked for presentation
    attacks.
    """

    def __init__(
        self,
        store: Store,
        pipeline: FaceDescriber,
        gallery: Gallery,
        max_image_bytes: int,
        workers: int,
        keep_crops: bool = False,
        checks: FaceChecks | None = None,
        liveness: LivenessCheck | None = None,
    ) -> None:
        self._store = store
        self._pipeline = pipeline
        self._gallery = gallery
        self._max_bytes = max_image_bytes
        self._workers = workers
        self._keep_crops = keep_crops
        self._checks = checks
        self._liveness = liveness

    def enroll(self, rows: Sequence[Row], pick: Pick = Pick.ONLY, record: Record | None = None) -> Generator[Result]:
        """Enrolls the rows. Close the iterator to stop early.

        `record` is called with the results of each transaction inside it, so that both are committed together.

        Yields:
            One result for each row, in order, after it was committed.

        Raises:
            Conflict: The gallery was re-embedded meanwhile; run again with the new pack.
        """
        self._pipeline.load()
        with closing(process_chunks(rows, lambda some: self._prepare(some, pick), self._workers, "enroll")) as chunks:
            for prepared in chunks:
                yield from self._commit(prepared, record)

    def _prepare(self, rows: Sequence[Row], pick: Pick) -> list[_Prepared]:
        """Reads and processes the photos."""
        return [one for batch in read_batches(rows, self._max_bytes) for one in self._process(batch, pick)]

    def _process(self, batch: Sequence[tuple[Row, bytes | RejectedImage]], pick: Pick) -> list[_Prepared]:
        images = [image for _, image in batch if isinstance(image, bytes)]
        hashes = [sha256(image) for image in images]
        known = self._store.faces.known_images(self._gallery.id, hashes)
        new = [image for image, sha in zip(images, hashes, strict=True) if sha not in known]
        seen = iter(describe_or_reject(self._pipeline, new, pick, gate=True, liveness=self._liveness))
        shas = iter(hashes)
        prepared = []
        for row, image in batch:
            if isinstance(image, RejectedImage):
                prepared.append(_Prepared(row, rejection=image))
                continue
            sha = next(shas)
            enrolled = known.get(sha)
            if enrolled is None:
                answer = next(seen)
                ready = [new_face(row.person, sha, face, self._keep_crops) for face in answer.faces[:1]]
                prepared.append(_Prepared(row, next(iter(ready), None), answer.rejection))
            elif row.is_enrolled_for(enrolled.external_id):
                of_owner = replace(row, person=replace(row.person, external_id=enrolled.external_id))
                prepared.append(_Prepared(of_owner, known_face=enrolled.face_id))
            else:
                prepared.append(_Prepared(row, rejection=another_identity(enrolled.external_id)))
        return prepared

    def _commit(self, prepared: Sequence[_Prepared], record: Record | None) -> list[Result]:
        prepared = self._compare(prepared)
        kept = [p for p in prepared if p.rejection is None]
        has_changes = any(p.new is not None or _has_fields(p.row.person) for p in kept)
        results: list[Result] = []

        def collect(transaction: Any, enrolled: Sequence[Enrolled]) -> None:
            outcomes = iter(enrolled) if has_changes else repeat(UNCHANGED)
            results.extend(_result(p, outcomes) for p in prepared)
            if record is not None:
                record(transaction, results)

        if has_changes or record is not None:
            self._store.faces.enroll(
                self._gallery, [p.new or p.row.person for p in kept] if has_changes else [], collect
            )
        else:
            collect(None, ())
        return results

    def _compare(self, prepared: Sequence[_Prepared]) -> Sequence[_Prepared]:
        """Adds why new faces may not belong to their identities; rejects those that are held."""
        if self._checks is None:
            return prepared
        new = [(i, p.row, p.new) for i, p in enumerate(prepared) if p.new is not None and p.rejection is None]
        sources = [Source(row.image, row.stem is not None) for _, row, _ in new]
        findings = self._checks.find([face for _, _, face in new], sources)
        compared = list(prepared)
        for (i, _, _), finding in zip(new, findings, strict=True):
            rejection = held(finding) if finding is not None and self._checks.holds(finding) else None
            compared[i] = replace(prepared[i], finding=finding, rejection=rejection)
        return compared


def new_face(person: Person, image_sha256: str, face: Face, keep_crop: bool) -> NewFace:
    """Returns the face of an image for the store, with its encoded crop if it is kept."""
    crop = crops.encode(face.crop) if keep_crop and face.crop is not None else None
    return NewFace(person, image_sha256, replace(face, crop=None), crop)


def check_pack(gallery: Gallery, pack: Pack) -> None:
    """Raises Conflict if the gallery's embeddings were computed by another pack or version of it."""
    if (gallery.model, gallery.fingerprint, gallery.dim) != (pack.name, pack.fingerprint, pack.dim):
        raise Conflict(
            f"gallery {gallery.name!r} was created with {gallery.model} {gallery.fingerprint}, but the installed pack "
            f"is {pack.name} {pack.fingerprint}: their embeddings cannot be compared. `whosthere gallery reembed "
            f"{gallery.name} --model {pack.name}` moves it, using kept crops or the photos (--images)",
            code="model_mismatch",
        )


def another_identity(owner: str) -> RejectedImage:
    """Returns the rejection of an image that is enrolled for another identity."""
    return RejectedImage(
        f"the same image is enrolled for identity {owner!r}; delete that face first if it shows another person",
        code=Reason.LOOKS_LIKE_ANOTHER_IDENTITY,
        details={"external_id": owner},
    )


def held(finding: Finding) -> RejectedImage:
    """Returns the rejection of a face that is held."""
    return RejectedImage(f"{finding.message}; {finding.advice}", code=finding.reason, details=finding.details)


def _has_fields(person: Person) -> bool:
    """Returns whether a person has more than an id."""
    return any((person.name, person.valid_from, person.valid_until, person.metadata, person.cleared))


def _result(prepared: _Prepared, enrolled: Iterator[Enrolled]) -> Result:
    image, person = prepared.row.image, prepared.row.person.external_id
    if prepared.rejection is not None:
        return rejected(image, person, prepared.rejection)
    face = None if prepared.new is None else prepared.new.face
    return committed(image, person, next(enrolled), prepared.finding, prepared.known_face, face)


def rejected(image: str, external_id: str, rejection: RejectedImage) -> Result:
    """Returns the result of an image that is not enrolled."""
    reason = Reason(rejection.code)
    return Result(image, external_id, Outcome.REJECTED, reason, message=rejection.message, details=rejection.details)


def committed(
    image: str,
    external_id: str,
    enrolled: Enrolled,
    finding: Finding | None = None,
    known_face: int | None = None,
    face: Face | None = None,
) -> Result:
    """Returns the result of an image that was given to the store. `finding` is why an enrolled face may not belong to
    its identity; `known_face` is the face of an image that was enrolled before; `face` is the new one."""
    rejection = rejection_of(enrolled)
    if rejection is not None:
        return rejected(image, external_id, rejection)
    result = Result(image, external_id, enrolled.outcome, face_id=known_face or enrolled.face_id)
    messages: list[str] = []
    details: dict[str, object] = {}
    new = face if result.outcome is Outcome.ENROLLED else None
    if new is not None and finding is not None:
        messages.append(finding.message)
        details |= finding.details
    if enrolled.updated:
        messages.append(f"the identity's {', '.join(enrolled.updated)} changed")
        details["updated"] = list(enrolled.updated)
    if new is not None and new.turn:
        messages.append(f"the photo is not upright; it was turned clockwise by {new.turn} degrees")
        details["turn"] = new.turn
    if new is not None and new.liveness is not None:
        details["liveness"] = new.liveness.to_json()
        if not new.liveness.live:
            messages.append("the face does not seem to be live")
    return replace(result, message="; ".join(messages) or None, details=details)


def rejection_of(enrolled: Enrolled) -> RejectedImage | None:
    """Returns why the store did not enroll a face, or None."""
    if enrolled.problem is not None:
        return RejectedImage(enrolled.problem, code=Reason.INVALID_ROW)
    if enrolled.outcome is Outcome.REJECTED:
        return another_identity(enrolled.owner or "")
    return None
