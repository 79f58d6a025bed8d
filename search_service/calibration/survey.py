"""Searches some of a gallery's people among the others: the scores show how strangers score in this gallery."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexer.gallery.embeddings import FaceVectors
from indexer.models.packs import Pack
from indexer.types import Hit, Vectors
from search_service.matching.calibration import comparisons, duplicate_limit

NEIGHBORS = 8
"""Other people found for each person, so that the best one who is no duplicate is among them."""

AT_ONCE = 32
"""People searched in one call, during which the index cannot be changed."""

_NOBODY = -1
"""Identity id where fewer than NEIGHBORS people were found."""


@dataclass(frozen=True, eq=False)
class Survey:
    """P people of a gallery, each searched with one face."""

    probes: FaceVectors
    """One face of each person."""
    identity_ids: NDArray[np.int64]
    """(P, NEIGHBORS) the most similar other people of each, best first."""
    scores: NDArray[np.float64]
    """(P, NEIGHBORS) their scores."""
    people: int
    """People with faces in the gallery."""
    faces: int
    """Faces in the gallery."""

    @property
    def total(self) -> float:
        """Comparisons in the search of a stranger."""
        return comparisons(self.people, self.faces / max(self.people, 1))

    @property
    def compared(self) -> float:
        """Comparisons with other people in each search of the survey."""
        return self.total * (1 - 1 / max(self.people, 2))


@dataclass(frozen=True)
class Pair:
    """Two identities that look like one person, the lower id first, and their score."""

    a: int
    b: int
    score: float


@dataclass(frozen=True, eq=False)
class Strangers:
    """How strangers score in a gallery."""

    best: NDArray[np.float64]
    """(S,) each person's best score with another person who is not a likely duplicate."""
    row: NDArray[np.int64]
    """(S,) row of each person in the survey. People of whom only duplicates were found are left out."""
    duplicates: tuple[Pair, ...]
    """Best first."""


Nearest = Callable[[Vectors, int], list[list[Hit]]]
"""Returns so many identities for each of (Q, D) probes, best first."""


def survey(nearest: Nearest, probes: FaceVectors, people: int, faces: int, pace: float = 0.0) -> Survey:
    """Searches `probes`, one face a person, in a gallery of so many people and faces.

    Pauses `pace` times as long as it searches.
    """
    identity_ids = np.full((len(probes.face_ids), NEIGHBORS), _NOBODY, np.int64)
    scores = np.full(identity_ids.shape, -np.inf)
    for start in range(0, len(identity_ids), AT_ONCE):
        began = time.monotonic()
        some = slice(start, start + AT_ONCE)
        for row, hits in enumerate(nearest(probes.vectors[some], NEIGHBORS + 1), start):
            others = [hit for hit in hits if hit.identity_id != probes.identity_ids[row]][:NEIGHBORS]
            identity_ids[row, : len(others)] = [hit.identity_id for hit in others]
            scores[row, : len(others)] = [hit.score for hit in others]
        time.sleep(pace * (time.monotonic() - began))
    return Survey(probes, identity_ids, scores, people, faces)


def strangers(found: Survey, pack: Pack) -> Strangers:
    """Returns each person's best score with a stranger.

    A pair that scores higher than strangers do is likely one person enrolled under two ids. Removing such pairs lowers
    the limit, so this is repeated until there are no more.
    """
    own = np.broadcast_to(found.probes.identity_ids[:, None], found.identity_ids.shape)
    ordered = np.sort(np.stack([own, found.identity_ids], axis=-1).reshape(-1, 2), axis=1)
    pairs, pair_of = np.unique(ordered, axis=0, return_inverse=True)
    pair_of = pair_of.reshape(own.shape)
    is_duplicate, pair_scores = np.zeros(len(pairs), bool), np.zeros(len(pairs))
    while True:
        remaining = (found.identity_ids != _NOBODY) & ~is_duplicate[pair_of]
        rows = np.flatnonzero(remaining.any(axis=1))
        best = found.scores[rows, remaining[rows].argmax(axis=1)]
        limit = duplicate_limit(best, found.compared, pack.tail, pack.measured)
        more = remaining & (found.scores >= limit)
        if not more.any():
            break
        is_duplicate[pair_of[more]] = True
        pair_scores[pair_of[more]] = found.scores[more]
    duplicates = [
        Pair(int(a), int(b), float(score))
        for (a, b), score in zip(pairs[is_duplicate], pair_scores[is_duplicate], strict=True)
    ]
    return Strangers(best, rows, tuple(sorted(duplicates, key=lambda pair: -pair.score)))


def sample(face_ids: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Returns `most` of the faces: always the same ones, and mostly the same ones when other faces come and go."""
    return face_ids[_shuffled(face_ids)[:most]]


def one_face_per_person(faces: FaceVectors, most: int) -> FaceVectors:
    """Returns the face of each of `most` people that comes first in a `sample`."""
    rows = _shuffled(faces.face_ids)
    _, first = np.unique(faces.identity_ids[rows], return_index=True)
    return select_faces(faces, rows[np.sort(first)[:most]])


def select_faces(faces: FaceVectors, rows: NDArray[np.generic]) -> FaceVectors:
    """Returns the faces in these rows, or under this mask."""
    return FaceVectors(faces.face_ids[rows], faces.identity_ids[rows], faces.vectors[rows])


def _shuffled(face_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the places of the ids in an order that depends on each id alone."""
    mixed = face_ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # Knuth's multiplicative hash, with 64 bits
    return np.argsort(mixed ^ (mixed >> np.uint64(32)))
