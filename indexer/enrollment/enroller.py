"""Photos -> committed faces: resumable, idempotent, told row by row.

Workers take chunks of photos through reading, decoding, detecting and embedding, side by side; one thread commits
the chunks in order. What is committed is acknowledged; a run that ends early, however it ends, goes on where it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any, Protocol

from indexer.enrollment.lookalikes import Lookalike, Lookalikes
from indexer.enrollment.sources import Row
from indexer.errors import Conflict, RejectedImage
from indexer.gallery.faces import Enrolled, NewFace
from indexer.gallery.store import Store
from indexer.models.packs import Pack
from indexer.types import Face, Gallery, Outcome, Person, Pick, Reason, sha256
from indexer.vision import crops
from indexer.vision.batch_errors import as_rejection, isolate_failures
from indexer.vision.pipeline import Seen

CHUNK = 16
"""Photos that one worker takes at a time, and that are committed together."""

BYTES_AT_ONCE = 64 * 2**20
"""Bytes of photo files that one worker holds at a time, or one photo where that is larger. With the pixels that
`pipeline.PIXELS_AT_ONCE` lets it decode at a time, 144 MB, or one photo of 300 MB (`decode.Limits`), this bounds what
a worker holds; there are two workers more than cores. Chunks that wait to be committed hold embeddings alone, and
crops (15 kB each) where they are kept."""


@dataclass(frozen=True)
class Result:
    """What became of one row. `message` and `details` say more, to people and to programs: why it was rejected, or whom
    an enrolled face looks like."""

    image: str
    external_id: str
    outcome: Outcome
    reason: Reason | None = None
    face_id: int | None = None
    message: str | None = None
    details: Mapping[str, object] = field(default_factory=dict)


NOTHING_SAID = Enrolled(Outcome.UNCHANGED, None, None)
"""What becomes of a person of whom nothing is said beyond their id."""

Record = Callable[[Any, Sequence[Result]], None]
"""Writes results down in the transaction that commits them, its first argument (`store.Also`)."""


class Describes(Protocol):
    """A FacePipeline, or what asks one."""

    def load(self) -> None: ...

    def describe(self, images: Sequence[bytes], pick: Pick | None, gate: bool = False) -> list[Seen]: ...


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A row with everything found out about it but not committed: its face, or its rejection, or neither where the
    gallery has the image already. `alike` is whom the face looks like."""

    row: Row
    new: NewFace | None = None
    rejection: RejectedImage | None = None
    known_face: int | None = None
    alike: Lookalike | None = None


class Enroller:
    """Enrols rows into one gallery. `workers` chunks are on their way at a time.

    With `keep_crops` the aligned crops are kept beside the embeddings, so that others can be made of them. With
    `lookalikes`, faces that look like another identity are held, or told of, whichever it says: found as the chunks are
    committed, so that the same rows end the same however the workers take turns.
    """

    def __init__(
        self,
        store: Store,
        pipeline: Describes,
        gallery: Gallery,
        max_image_bytes: int,
        workers: int,
        keep_crops: bool = False,
        lookalikes: Lookalikes | None = None,
    ) -> None:
        self._store = store
        self._pipeline = pipeline
        self._gallery = gallery
        self._max_bytes = max_image_bytes
        self._workers = workers
        self._keep_crops = keep_crops
        self._lookalikes = lookalikes

    def enroll(self, rows: Sequence[Row], pick: Pick = Pick.ONLY, record: Record | None = None) -> Generator[Result]:
        """One result a row, in order, each yielded after it is committed. Close the iterator to stop early.

        `record` gets the results of each transaction in it: what it writes is there when they are, and only then.

        Raises Conflict when the gallery is re-embedded meanwhile; run again, it goes on with the other pack.
        """
        self._pipeline.load()
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="enroll")
        waiting: deque[Future[list[_Prepared]]] = deque()
        try:
            for start in range(0, len(rows), CHUNK):
                waiting.append(pool.submit(self._prepare, rows[start : start + CHUNK], pick))
                if len(waiting) >= 2 * self._workers:
                    yield from self._commit(waiting.popleft().result(), record)
            while waiting:
                yield from self._commit(waiting.popleft().result(), record)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _prepare(self, rows: Sequence[Row], pick: Pick) -> list[_Prepared]:
        """Reads and looks at the photos, as many at a time as BYTES_AT_ONCE allows."""
        prepared: list[_Prepared] = []
        batch: list[tuple[Row, bytes | RejectedImage]] = []
        for row in rows:
            batch.append((row, self._read(row)))
            held = sum(len(image) for _, image in batch if isinstance(image, bytes))
            if held + self._max_bytes > BYTES_AT_ONCE:  # the next photo may be as large as they come
                prepared += self._look(batch, pick)
                batch = []
        return prepared + self._look(batch, pick)

    def _look(self, batch: Sequence[tuple[Row, bytes | RejectedImage]], pick: Pick) -> list[_Prepared]:
        images = [image for _, image in batch if isinstance(image, bytes)]
        hashes = [sha256(image) for image in images]
        known = self._store.faces.known_images(self._gallery.id, hashes)
        new = [image for image, sha in zip(images, hashes, strict=True) if sha not in known]
        seen = iter(self._describe(new, pick))
        shas = iter(hashes)
        prepared = []
        for row, image in batch:
            if isinstance(image, RejectedImage):
                prepared.append(_Prepared(row, rejection=image))
                continue
            sha = next(shas)
            there = known.get(sha)
            if there is None:
                answer = next(seen)
                ready = [new_face(row.person, sha, face, self._keep_crops) for face in answer.faces[:1]]
                prepared.append(_Prepared(row, next(iter(ready), None), answer.rejection))
            elif there.external_id == row.person.external_id:
                prepared.append(_Prepared(row, known_face=there.face_id))
            else:
                prepared.append(_Prepared(row, rejection=another_identity(there.external_id)))
        return prepared

    def _describe(self, images: Sequence[bytes], pick: Pick) -> list[Seen]:
        """What the pipeline sees. An image that it fails on is rejected, or the run would end there every time;
        errors that no image is to blame for are raised."""
        answers = isolate_failures(images, lambda some: self._pipeline.describe(some, pick, gate=True))
        return [Seen(rejection=as_rejection(answer)) if isinstance(answer, Exception) else answer for answer in answers]

    def _read(self, row: Row) -> bytes | RejectedImage:
        try:
            return row.read(self._max_bytes)
        except RejectedImage as rejection:
            return rejection.without_traceback()

    def _commit(self, prepared: Sequence[_Prepared], record: Record | None) -> list[Result]:
        prepared = self._compared(prepared)
        kept = [p for p in prepared if p.rejection is None]
        says = any(p.new is not None or _says(p.row.person) for p in kept)
        results: list[Result] = []

        def tell(transaction: Any, became: Sequence[Enrolled]) -> None:
            told = iter(became) if says else repeat(NOTHING_SAID)
            results.extend(_result(p, told) for p in prepared)
            if record is not None:
                record(transaction, results)

        if says or record is not None:
            self._store.faces.enroll(self._gallery, [p.new or p.row.person for p in kept] if says else [], tell)
        else:
            tell(None, ())
        return results

    def _compared(self, prepared: Sequence[_Prepared]) -> Sequence[_Prepared]:
        """The same, with whom each new face looks like; rejected where it is held for that."""
        if self._lookalikes is None:
            return prepared
        places = [i for i, p in enumerate(prepared) if p.new is not None and p.rejection is None]
        alike = self._lookalikes.find([new for i in places if (new := prepared[i].new) is not None])
        compared = list(prepared)
        for i, other in zip(places, alike, strict=True):
            rejection = looks_like(other) if other is not None and self._lookalikes.hold else None
            compared[i] = replace(prepared[i], alike=other, rejection=rejection)
        return compared


def new_face(person: Person, image_sha256: str, face: Face, keep_crop: bool) -> NewFace:
    """The face of an image, ready to be enrolled, with its crop as a file where that is to be kept."""
    crop = crops.write(face.crop) if keep_crop and face.crop is not None else None
    return NewFace(person, image_sha256, replace(face, crop=None), crop)


def check_pack(gallery: Gallery, pack: Pack) -> None:
    """Raises Conflict when the gallery's embeddings were made by another state of the pack."""
    if (gallery.model, gallery.fingerprint, gallery.dim) != (pack.name, pack.fingerprint, pack.dim):
        raise Conflict(
            f"gallery {gallery.name!r} was made with {gallery.model} {gallery.fingerprint}, and this is "
            f"{pack.name} {pack.fingerprint}: their embeddings cannot be compared. `whosthere gallery reembed "
            f"{gallery.name} --model {pack.name}` moves it, from kept crops or the photos (--images)",
            code="model_mismatch",
        )


def another_identity(owner: str) -> RejectedImage:
    return RejectedImage(
        f"the same image is enrolled for identity {owner!r}; delete that face first if it is the wrong person's",
        code=Reason.LOOKS_LIKE_ANOTHER_IDENTITY,
        details={"external_id": owner},
    )


def looks_like(other: Lookalike) -> RejectedImage:
    """Why a face is held."""
    return RejectedImage(
        f"{other.message}; the same person under two ids, or somebody very alike: "
        "WHOSTHERE_LOOKALIKES=report enrols the photo and tells",
        code=Reason.LOOKS_LIKE_ANOTHER_IDENTITY,
        details=other.details,
    )


def _says(person: Person) -> bool:
    """Whether anything is said of a person beyond their id."""
    return any((person.name, person.valid_from, person.valid_until, person.metadata))


def _result(prepared: _Prepared, enrolled: Iterator[Enrolled]) -> Result:
    image, person = prepared.row.image, prepared.row.person.external_id
    if prepared.rejection is not None:
        return rejected(image, person, prepared.rejection)
    return committed(image, person, next(enrolled), prepared.alike, prepared.known_face)


def rejected(image: str, external_id: str, rejection: RejectedImage) -> Result:
    """Returns the result of an image that is not enrolled."""
    reason = Reason(rejection.code)
    return Result(image, external_id, Outcome.REJECTED, reason, message=rejection.message, details=rejection.details)


def committed(
    image: str, external_id: str, enrolled: Enrolled, alike: Lookalike | None = None, known_face: int | None = None
) -> Result:
    """Returns the result of an image that was given to the store. `alike` is whom an enrolled face looks like;
    `known_face` is the face of an image that was enrolled before."""
    rejection = rejection_of(enrolled)
    if rejection is not None:
        return rejected(image, external_id, rejection)
    result = Result(image, external_id, enrolled.outcome, face_id=known_face or enrolled.face_id)
    if alike is None or result.outcome is not Outcome.ENROLLED:
        return result
    return replace(result, message=alike.message, details=alike.details)


def rejection_of(enrolled: Enrolled) -> RejectedImage | None:
    """Returns why the store did not enroll a face, or None."""
    if enrolled.problem is not None:
        return RejectedImage(enrolled.problem, code=Reason.INVALID_ROW)
    if enrolled.outcome is Outcome.REJECTED:
        return another_identity(enrolled.owner or "")
    return None
