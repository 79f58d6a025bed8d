"""Finds enrolled faces whose photos are no longer among those of an enrollment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from indexer.enrollment.enroller import Result
from indexer.errors import NotFound
from indexer.gallery.spelling import normalize_text
from indexer.gallery.store import Store
from indexer.types import Gallery, Outcome


@dataclass(frozen=True)
class MissingFace:
    """An enrolled face without a photo. `kept` is why it must not be deleted yet; None if it may be."""

    external_id: str
    face_id: int
    kept: str | None = None


def missing_faces(before: Mapping[int, str], results: Sequence[Result]) -> list[MissingFace]:
    """Returns the faces of `before` that no photo of `results` has.

    The faces of an identity stay while one of its photos is rejected: it may be the same one, not readable at the
    moment, or its replacement.

    Args:
        before: The external id of each face's identity, before the enrollment.
        results: The results of all photos.
    """
    found = {result.face_id for result in results}
    rejected = {normalize_text(one.external_id): one.image for one in results if one.outcome is Outcome.REJECTED}
    unnamed = rejected.get("")
    missing = []
    for face_id, external_id in before.items():
        if face_id in found:
            continue
        image = rejected.get(normalize_text(external_id), unnamed)
        missing.append(MissingFace(external_id, face_id, None if image is None else f"{image} was rejected"))
    return missing


def remove_faces(store: Store, gallery: Gallery, missing: Sequence[MissingFace]) -> int:
    """Deletes the faces that may be deleted and returns their number. Their identities stay."""
    removed = 0
    for face in missing:
        if face.kept is None:
            with suppress(NotFound):  # deleted by others meanwhile
                store.faces.delete(gallery.id, face.face_id)
                removed += 1
    return removed
