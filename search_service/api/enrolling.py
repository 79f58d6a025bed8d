"""Enrolls the photos of one request, described in the batches that searches share and committed together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace

from indexer.enrollment.enroller import Result, another_identity, committed, held, new_face, rejected
from indexer.errors import RejectedImage
from indexer.gallery.faces import NewFace
from indexer.gallery.spelling import is_same_text
from indexer.types import Gallery, Outcome, Person, sha256
from search_service.api.requests import EnrollRequest
from search_service.api.state import State
from search_service.inference_queue import Kind


async def enroll(service: State, request: EnrollRequest, before_commit: Callable[[], Awaitable[None]]) -> list[Result]:
    """Returns one result for each photo, in order; a rejected photo does not affect the others.

    Creates the identity if it is missing and a photo is enrolled. Nothing is stored if `before_commit` raises an error.
    """
    gallery, external_id, photos = request.gallery, request.external_id, request.photos
    hashes = await service.off_loop(lambda: [sha256(photo.data) for photo in photos])
    known = await service.off_loop(service.context.store.faces.known_images, gallery.id, hashes)
    unknown = [photo.data for photo, sha in zip(photos, hashes, strict=True) if sha not in known]
    if service.context.settings.lookalikes != "off":
        service.context.indexes.check_ready(gallery)
    pipeline = service.context.pipeline_of(gallery)
    liveness = service.context.liveness_check(request.liveness)
    seen = iter(await service.queue.describe(unknown, pipeline, Kind(request.pick, True, True, liveness)))
    keep_crops = service.context.settings.keep_crops

    def prepare(image: str, sha: str) -> NewFace | Result:
        if sha in known:
            if not is_same_text(known[sha].external_id, external_id):
                return rejected(image, external_id, another_identity(known[sha].external_id))
            return Result(image, external_id, Outcome.UNCHANGED, face_id=known[sha].face_id)
        found = next(seen)
        if found.rejection is not None:
            return rejected(image, external_id, found.rejection)
        return new_face(Person(external_id), sha, found.faces[0], keep_crops)

    def commit() -> list[Result]:
        names = [photo.name or "" for photo in photos]
        prepared = [prepare(name, sha) for name, sha in zip(names, hashes, strict=True)]
        results = _commit(service, gallery, [one for one in prepared if isinstance(one, NewFace)])
        return [
            replace(next(results), image=name) if isinstance(one, NewFace) else one
            for name, one in zip(names, prepared, strict=True)
        ]

    await before_commit()
    return await service.writers.run(commit)


def rejection(result: Result) -> RejectedImage:
    """Returns a rejected result as an error."""
    return RejectedImage(result.message or "", code=result.reason, details=result.details)


def _commit(service: State, gallery: Gallery, new: Sequence[NewFace]) -> Iterator[Result]:
    """Yields the result of each face. Those that may not belong to their identity are rejected where that is
    configured."""
    if not new:
        return
    checks = service.context.face_checks(gallery)
    findings = checks.find(new)
    accepted = [one for one, finding in zip(new, findings, strict=True) if not checks.holds(finding)]
    enrolled = iter(service.context.store.faces.enroll(gallery, accepted) if accepted else ())
    service.follow(gallery)
    for one, finding in zip(new, findings, strict=True):
        person = one.person.external_id
        if finding is not None and checks.holds(finding):
            yield rejected("", person, held(finding))
        else:
            yield committed("", person, next(enrolled), finding, face=one.face)
