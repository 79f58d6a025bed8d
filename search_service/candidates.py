"""Finds the best identities for a face: the index ranks them by their best faces, all faces of each decide.

An identity with several faces can score higher by all of them than by its best one, up to a bound (`fusion.bound`).
So the index is asked for more identities until none that it has not returned can change the decision. The decision
then is that of scoring every identity of the gallery by all faces, and does not depend on how many are wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from indexer.app_context import AppContext
from indexer.clock import now
from indexer.rounding import reaches
from indexer.types import Gallery, Hit, Identity, NamedIdentity, Vectors
from indexer.vectors.base import VectorIndex
from search_service.matching.decision import REVIEW_MARGIN
from search_service.matching.fusion import Templates, bound, rescore
from search_service.matching.ranking import Candidate, Outranked, outranked, rank

SPARE = 4
"""Identities requested from the index beyond those wanted: the runner-up, and a few that may have expired."""

FIRST = 64
"""Identities requested from the index at first. They cost hardly more than ten, and are enough for most decisions."""

ROUNDING = 0.002
"""By how much the index's score may be below the exact one: some indexes keep embeddings in half precision."""

Ranked = tuple[tuple[Candidate, ...], Outranked | None]
"""The best candidates of one face, and a better identity that is not valid now."""


@dataclass(eq=False)
class _People:
    """The identities that were looked up so far, by id."""

    at: datetime
    valid: dict[int, NamedIdentity] = field(default_factory=dict)
    others: dict[int, Identity] = field(default_factory=dict)
    """Not valid at that time."""

    def faces(self, identity_id: int) -> int:
        person = self.valid.get(identity_id) or self.others.get(identity_id)
        return 0 if person is None else person.faces


class CandidateFinder:
    """Finds candidates in a gallery. Thread-safe."""

    def __init__(self, context: AppContext) -> None:
        self._context = context

    def find(
        self, gallery: Gallery, index: VectorIndex, vectors: Vectors, wanted: int, threshold: float
    ) -> list[Ranked]:
        """Returns the best `wanted` identities that are valid now, for each vector, scored by all of their faces.

        If the first one reaches `threshold`, it is the best of the gallery, and so is the second if it is close enough
        for a review. Otherwise no identity reaches the threshold.
        """
        if len(vectors) == 0:
            return []
        people, same_threshold = _People(now()), self._context.pack_of(gallery).same_threshold
        taken = wanted + SPARE
        requested = max(taken, FIRST)
        hits = self._nearest(index, vectors, requested)
        self._look_up([some[:taken] for some in hits], people)
        while any(len(some) >= taken and not _are_enough(some[:taken], people.valid, wanted) for some in hits):
            taken *= 4
            if taken >= requested:
                requested = 4 * taken
                hits = self._nearest(index, vectors, requested)
            self._look_up([some[:taken] for some in hits], people)
        scored = self._rescored([some[:taken] for some in hits], vectors, gallery, people, same_threshold)
        most = max(1, index.most_faces())
        while True:
            best = [_best_score(some, people.valid) for some in scored]
            decisive = [one - REVIEW_MARGIN if reaches(one, threshold) else threshold for one in best]
            while any(
                len(some) == requested and bound(some[-1].score + ROUNDING, most, same_threshold) >= score
                for some, score in zip(hits, decisive, strict=True)
            ):
                requested *= 4
                hits = self._nearest(index, vectors, requested)
            least = [max(one, threshold) - REVIEW_MARGIN for one in best]
            more = self._others_that_reach(least, hits, scored, people, most, same_threshold)
            if not any(more):
                break
            added = self._rescored(more, vectors, gallery, people, same_threshold)
            scored = [
                sorted((*some, *new), key=lambda hit: (-hit.score, hit.face_id))
                for some, new in zip(scored, added, strict=True)
            ]
        return [
            (rank(some, people.valid, wanted), outranked(some, people.valid, people.others, people.at))
            for some in scored
        ]

    def _nearest(self, index: VectorIndex, vectors: Vectors, requested: int) -> list[list[Hit]]:
        with self._context.stopwatch.stage("index"):
            return index.nearest_identities(vectors, requested)

    def _look_up(self, hits: Iterable[Iterable[Hit]], people: _People) -> None:
        """Adds the identities of the hits that are not known yet."""
        ids = {hit.identity_id for some in hits for hit in some} - people.valid.keys() - people.others.keys()
        valid = self._context.store.identities.valid(ids, people.at) if ids else {}
        people.valid |= valid
        if len(valid) < len(ids):
            people.others |= self._context.store.identities.by_id(ids - valid.keys())

    def _others_that_reach(
        self,
        least: Sequence[float],
        hits: Sequence[Sequence[Hit]],
        scored: Sequence[Sequence[Hit]],
        people: _People,
        most: int,
        same_threshold: float,
    ) -> list[list[Hit]]:
        """Returns the hits of each vector that are not scored yet and can score at least `least` by all faces."""
        known = [{hit.identity_id for hit in some} for some in scored]
        possible = [
            [
                hit
                for hit in some
                if hit.identity_id not in own and bound(hit.score + ROUNDING, most, same_threshold) >= score
            ]
            for some, own, score in zip(hits, known, least, strict=True)
        ]
        self._look_up(possible, people)
        return [
            [
                hit
                for hit in some
                if (faces := people.faces(hit.identity_id))
                and bound(hit.score + ROUNDING, faces, same_threshold) >= score
            ]
            for some, score in zip(possible, least, strict=True)
        ]

    def _rescored(
        self,
        hits: Sequence[Sequence[Hit]],
        vectors: Vectors,
        gallery: Gallery,
        people: _People,
        same_threshold: float,
    ) -> list[list[Hit]]:
        """Scores identities with several faces by all of them."""
        ids = {hit.identity_id for some in hits for hit in some}
        several = [identity_id for identity_id in ids if people.faces(identity_id) > 1]
        if not several:
            return [list(some) for some in hits]
        faces = self._context.store.embeddings.of_identities(gallery, several)
        return rescore(hits, vectors, Templates(faces.identity_ids, faces.vectors), same_threshold)


def _best_score(hits: Sequence[Hit], people: Mapping[int, NamedIdentity]) -> float:
    return max((hit.score for hit in hits if hit.identity_id in people), default=-1.0)


def _are_enough(hits: Sequence[Hit], people: Mapping[int, NamedIdentity], wanted: int) -> bool:
    """Whether at least `wanted` of the hits belong to `people`."""
    return sum(hit.identity_id in people for hit in hits) >= wanted
