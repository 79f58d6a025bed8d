"""Photos of one person, enrolled while the caller waits: in the batches that searches share, committed together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from indexer.enrollment.enroller import Result, another_identity, looks_like, new_face
from indexer.enrollment.lookalikes import Lookalike
from indexer.errors import RejectedImage
from indexer.gallery.faces import Enrolled, KnownImage, NewFace
from indexer.types import Gallery, Outcome, Person, Pick, Reason, sha256
from indexer.vision.pipeline import Seen
from search_service.api.requests import Upload
from search_service.api.state import State
from search_service.inference_queue import Kind


async def enroll(
    service: State, gallery: Gallery, external_id: str, photos: Sequence[Upload], pick: Pick | None
) -> list[Result]:
    """One result a photo, in order; what is wrong with one is in its own result. The identity is made where it is
    missing and one of them is enrolled."""
    hashes = await service.off_loop(lambda: [sha256(photo.data) for photo in photos])
    known = await service.off_loop(service.context.store.faces.known_images, gallery.id, hashes)
    unknown = [photo.data for photo, sha in zip(photos, hashes, strict=True) if sha not in known]
    pipeline = service.context.pipeline_of(gallery)
    seen = iter(await service.queue.describe(unknown, pipeline, Kind(pick, gate=True)))
    keep_crops = service.context.settings.keep_crops

    def commit() -> list[Result]:
        ready = [
            _known(external_id, known[sha]) if sha in known else _ready(external_id, sha, next(seen), keep_crops)
            for sha in hashes
        ]
        became = _commit(service, gallery, [one for one in ready if isinstance(one, NewFace)])
        return [next(became) if isinstance(one, NewFace) else one for one in ready]

    results = await service.off_loop(commit)
    return [replace(result, image=photo.name or "") for result, photo in zip(results, photos, strict=True)]


def rejection(result: Result) -> RejectedImage:
    """A rejected result as the error that it is when there is no other."""
    return RejectedImage(result.message or "", code=result.reason, details=result.details)


def _known(external_id: str, there: KnownImage) -> Result:
    if there.external_id != external_id:
        return _rejected(external_id, another_identity(there.external_id))
    return Result("", external_id, Outcome.UNCHANGED, face_id=there.face_id)


def _ready(external_id: str, sha: str, seen: Seen, keep_crop: bool) -> NewFace | Result:
    if seen.rejection is not None:
        return _rejected(external_id, seen.rejection)
    return new_face(Person(external_id), sha, seen.faces[0], keep_crop)


def _commit(service: State, gallery: Gallery, new: Sequence[NewFace]) -> Iterator[Result]:
    """What became of each; those that look like somebody else are held where that is wanted."""
    if not new:
        return iter(())
    lookalikes = service.context.lookalikes(gallery)
    alike = lookalikes.find(new) if lookalikes is not None else [None] * len(new)
    hold = lookalikes is not None and lookalikes.hold
    welcome = [one for one, other in zip(new, alike, strict=True) if other is None or not hold]
    became = iter(service.context.store.faces.enroll(gallery, welcome) if welcome else ())
    service.follow(gallery)
    return iter(
        [
            _rejected(one.person.external_id, looks_like(other))
            if other is not None and hold
            else _became(one.person.external_id, next(became), other)
            for one, other in zip(new, alike, strict=True)
        ]
    )


def _became(external_id: str, became: Enrolled, alike: Lookalike | None) -> Result:
    if became.outcome is Outcome.REJECTED:  # somebody else enrolled the image this moment
        return _rejected(external_id, another_identity(became.owner or ""))
    result = Result("", external_id, became.outcome, face_id=became.face_id)
    if alike is None or became.outcome is not Outcome.ENROLLED:
        return result
    return replace(result, message=alike.message, details=alike.details)


def _rejected(external_id: str, why: RejectedImage) -> Result:
    reason = Reason(why.code)
    return Result("", external_id, Outcome.REJECTED, reason, message=why.message, details=why.details)
