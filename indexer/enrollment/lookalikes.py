"""Finds new faces that look like an identity other than their own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from indexer.enrollment.comparison import Comparison
from indexer.gallery.faces import NewFace
from indexer.gallery.spelling import is_same_text
from indexer.gallery.store import Store
from indexer.models.packs import Pack
from indexer.types import Gallery, Reason, Vectors
from indexer.vectors.synchronizer import SynchronizedIndex

LOOKALIKE_FMR = 1e-6
"""False match rate of the bound, in galleries of up to a thousand faces."""

MAX_FALSE_HOLDS = 1e-3
"""Accepted share of new people held by mistake, in larger galleries."""


def lookalike_bound(pack: Pack, faces: int) -> float:
    """Returns the cosine from which two faces look alike, in a gallery of `faces`, by the pack's non-mated scores.

    It is at least the start of the measured tail, and at most 1.
    """
    fmr = min(LOOKALIKE_FMR, MAX_FALSE_HOLDS / max(faces, 1))
    return round(min(max(pack.tail.cosine(fmr), pack.tail.start), 1.0), 4)


@dataclass(frozen=True)
class Lookalike(Comparison):
    """The identity that a new face looks like, with its most similar face."""

    @property
    def reason(self) -> Reason:
        return Reason.LOOKS_LIKE_ANOTHER_IDENTITY

    @property
    def message(self) -> str:
        return f"the face looks like identity {self.external_id!r}: {self.scores}"

    @property
    def advice(self) -> str:
        return (
            "the same person under two ids, or two people who look very similar: WHOSTHERE_LOOKALIKES=report enrolls "
            "the photo and reports it"
        )


class Lookalikes:
    """Finds new faces that look like an identity other than the one they are enrolled for. Thread-safe.

    With `hold`, such faces are not enrolled. Two processes that enroll one person under two ids at the same moment may
    miss it; `find_duplicates` finds such identities.
    """

    def __init__(self, store: Store, gallery: Gallery, index: SynchronizedIndex, bound: float, hold: bool) -> None:
        """`bound` is the cosine from which two faces look alike."""
        self._store = store
        self._gallery = gallery
        self._index = index
        self._bound = bound
        self.hold = hold

    def nearest(self, faces: Sequence[NewFace]) -> list[Lookalike | None]:
        """Returns for each face the nearest enrolled identity, if its score reaches the bound.

        Raises:
            NotFound, Conflict: As the index does.
        """
        found = self._enrolled(np.stack([new.face.embedding for new in faces])) if faces else []
        return [hits[0] if hits else None for hits in found]

    def find(
        self,
        faces: Sequence[NewFace],
        nearest: Sequence[Lookalike | None] | None = None,
        held: Collection[int] = (),
    ) -> list[Lookalike | None]:
        """Compares each face with everybody enrolled and with those before it that are not held.

        Args:
            faces: The faces, in order.
            nearest: What `nearest` returns for them, if that is known.
            held: Indexes of faces that are held for another reason.

        Returns:
            For each face the identity that it looks like. None if it looks like nobody or more like its own identity,
            and if the same image is enrolled for another identity, which `FaceRepository.enroll` reports.

        Raises:
            NotFound, Conflict: As the index does.
        """
        if not faces:
            return []
        vectors = np.stack([new.face.embedding for new in faces])
        enrolled = nearest if nearest is not None else self.nearest(faces)
        scores = vectors @ vectors.T
        found: list[Lookalike | None] = []
        accepted: list[int] = []
        for i, new in enumerate(faces):
            before = [Lookalike(faces[j].person.external_id, None, float(scores[i, j]), self._bound) for j in accepted]
            one = enrolled[i]
            alike = max(before if one is None else [*before, one], key=lambda other: other.score, default=None)
            if alike is not None and (
                alike.score < self._bound
                or is_same_text(alike.external_id, new.person.external_id)
                or self._is_known(new, (faces[j] for j in accepted))
            ):
                alike = None
            found.append(alike)
            if i not in held and (alike is None or not self.hold):
                accepted.append(i)
        return found

    def _enrolled(self, vectors: Vectors) -> list[list[Lookalike]]:
        """Returns for each of (N, D) the nearest enrolled identity, if its score reaches the bound."""
        nearest = self._index.catch_up().nearest_identities(vectors, 1)
        hits = [[hit for hit in some if hit.score >= self._bound] for some in nearest]
        people = self._store.identities.by_id({hit.identity_id for some in hits for hit in some})
        return [
            [
                Lookalike(people[hit.identity_id].external_id, hit.face_id, hit.score, self._bound)
                for hit in some
                if hit.identity_id in people
            ]
            for some in hits
        ]

    def _is_known(self, new: NewFace, before: Iterable[NewFace]) -> bool:
        """Returns whether the same image is enrolled or comes earlier in the batch."""
        if any(other.image_sha256 == new.image_sha256 for other in before):
            return True
        return bool(self._store.faces.known_images(self._gallery.id, [new.image_sha256]))
