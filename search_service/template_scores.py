"""An index's hits, each an identity's best face -> the same identities, each scored by all of its faces together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from indexer.gallery.store import FaceVectors
from indexer.types import Hit, Vectors
from indexer.vectors.base import rank
from search_service.matching.fusion import Faces, fused_score, sort_out

MOST_FACES = 32
"""Faces of one identity that are looked at for a probe: those that score highest. `fusion.MOST` of them are averaged;
the others help to tell which one does not belong."""


def fused(
    found: Sequence[Sequence[Hit]], probes: Vectors, faces: FaceVectors, same_threshold: float
) -> list[list[Hit]]:
    """For each of (Q, D) probes what was found, best first by the fused score, each with its best face still.

    `faces` are all those of the identities to be fused; others, as those of one face, keep their score.
    `same_threshold` is the pack's for one person.
    """
    people = {identity_id: _Template(vectors, same_threshold) for identity_id, vectors in by_person(faces).items()}
    return [
        sorted((_fused(hit, probe, people) for hit in hits), key=rank)
        for hits, probe in zip(found, probes, strict=True)
    ]


def by_person(faces: FaceVectors) -> dict[int, Vectors]:
    """(K, D) of each identity, in the order of its faces."""
    order = np.argsort(faces.identity_ids, kind="stable")
    ids, starts = np.unique(faces.identity_ids[order], return_index=True)
    parts = np.split(faces.vectors[order], starts[1:])
    return dict(zip(ids.tolist(), parts, strict=True)) if len(ids) else {}


def score(probe: NDArray[np.float32], vectors: Vectors, same_threshold: float) -> float:
    """The fused score of one probe (D,) with the faces (K, D) of one identity, K at least 1."""
    return _Template(vectors, same_threshold).score(probe)


class _Template:
    """The faces of one identity."""

    def __init__(self, vectors: Vectors, same_threshold: float) -> None:
        self._vectors = vectors
        self._same_threshold = same_threshold
        self._all = self._sorted_out(vectors) if len(vectors) <= MOST_FACES else None

    def score(self, probe: NDArray[np.float32]) -> float:
        scores = self._vectors @ probe
        if self._all is not None:
            return fused_score(self._all, scores.tolist())
        most = np.argsort(-scores, kind="stable")[:MOST_FACES]
        return fused_score(self._sorted_out(self._vectors[most]), scores[most].tolist())

    def _sorted_out(self, vectors: Vectors) -> Faces:
        return sort_out((vectors @ vectors.T).tolist(), self._same_threshold)


def _fused(hit: Hit, probe: NDArray[np.float32], people: Mapping[int, _Template]) -> Hit:
    person = people.get(hit.identity_id)
    return hit if person is None else Hit(hit.identity_id, hit.face_id, person.score(probe))
