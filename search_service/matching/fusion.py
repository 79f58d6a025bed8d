"""Scores of identities that have several enrolled faces.

The faces of an identity are averaged separately for each probe. A face has the weight exp(score / SPREAD): photos that
resemble the probe count more, poor photos count less, and the mean is scaled to unit length. The result lies between
the score of the best face, which favors strangers when an identity has many faces, and that of the plain mean, which
misses people who look different from photo to photo. A face that resembles a different person than the other faces do
is left out. Measured in `benchmarks/results/fusion.csv`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from indexer.types import Hit, Vectors

SPREAD = 0.2
"""A face that scores higher by this cosine has e times the weight. LFW shows no difference from 0.1 to 0.3."""

MOST_AVERAGED = 8
"""Faces of one identity that are averaged for a probe: those with the highest scores. The others have little weight."""

MOST_FACES = 32
"""Faces of one identity that are examined for a probe: those with the highest scores. MOST_AVERAGED of them are
averaged; the others help to detect a face of a different person."""

_PAIRS_AT_ONCE = 256
"""Pairs of a probe and an identity that are computed together: at most 16 MB of faces with 512 numbers each."""


Number = TypeVar("Number", float, NDArray[np.float64])


class Templates:
    """Enrolled faces, grouped by identity."""

    def __init__(self, identity_ids: NDArray[np.int64], vectors: Vectors) -> None:
        """Takes the identity of each face, (F,), and the embeddings, (F, D)."""
        order = np.argsort(identity_ids, kind="stable")
        self._vectors = vectors[order]
        self.identity_ids, self._starts, self._counts = np.unique(
            identity_ids[order], return_index=True, return_counts=True
        )

    def rows_of(self, identity_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the row of each identity in `identity_ids`, (P,); -1 for identities that have no faces here."""
        if not len(self.identity_ids):
            return np.full(len(identity_ids), -1, np.int64)
        rows = np.searchsorted(self.identity_ids, identity_ids)
        rows[rows == len(self.identity_ids)] = 0
        return np.where(self.identity_ids[rows] == identity_ids, rows, -1)

    def scores(self, probes: Vectors, rows: NDArray[np.int64], same_threshold: float) -> NDArray[np.float64]:
        """Returns the fused score of each pair of a probe, (P, D), and the identity in a row, (P,).

        `same_threshold` is the cosine from which the model pack takes two faces for one person.
        """
        scores = np.empty(len(rows), np.float64)
        order = np.argsort(self._counts[rows], kind="stable")  # pairs with similar numbers of faces need little padding
        for start in range(0, len(order), _PAIRS_AT_ONCE):
            some = order[start : start + _PAIRS_AT_ONCE]
            scores[some] = self._scores(probes[some], rows[some], same_threshold)
        return scores

    def _scores(self, probes: Vectors, rows: NDArray[np.int64], same_threshold: float) -> NDArray[np.float64]:
        starts, counts = self._starts[rows], self._counts[rows]
        columns = np.arange(min(int(counts.max()), MOST_FACES))
        present = columns < counts[:, None]
        places = starts[:, None] + np.where(present, columns, 0)
        for pair in np.flatnonzero(counts > MOST_FACES):
            own = self._vectors[starts[pair] : starts[pair] + counts[pair]]
            places[pair] = starts[pair] + np.argsort(-(own @ probes[pair]), kind="stable")[:MOST_FACES]
        faces = self._vectors[places]
        scores = (faces @ probes[:, :, None])[..., 0]
        return fused_scores(scores, faces @ faces.transpose(0, 2, 1), present, same_threshold)


def rescore(
    hits: Sequence[Sequence[Hit]], probes: Vectors, templates: Templates, same_threshold: float
) -> list[list[Hit]]:
    """Returns the hits of each probe with fused scores, best first; equal scores are ordered by face id.

    Each hit keeps its best face. Identities without faces in `templates` keep their score. `probes` is (Q, D).
    """
    identities = np.array([hit.identity_id for some in hits for hit in some], np.int64)
    rows = templates.rows_of(identities)
    places = np.flatnonzero(rows >= 0)
    owners = np.repeat(np.arange(len(hits)), [len(some) for some in hits])[places]
    fused = dict(zip(places.tolist(), templates.scores(probes[owners], rows[places], same_threshold), strict=True))
    numbered = enumerate(hit for some in hits for hit in some)
    scored = iter([replace(hit, score=float(fused[i])) if i in fused else hit for i, hit in numbered])
    return [sorted((next(scored) for _ in some), key=lambda hit: (-hit.score, hit.face_id)) for some in hits]


def fused_scores(
    scores: NDArray[np.floating], similarities: NDArray[np.floating], present: NDArray[np.bool_], same_threshold: float
) -> NDArray[np.float64]:
    """Returns the cosine of each probe to the weighted mean of one identity's faces, (P,).

    `scores`, (P, K), are the cosines of the probe to the faces, `similarities`, (P, K, K), those between the faces, and
    `present`, (P, K), marks the places that hold a face; at least one does. The mean m = sum(w_i f_i) itself is
    not needed: its product with the probe is sum(w_i s_i), and its squared length sum(w_i w_j f_i f_j).

    Two faces that do not resemble each other are not averaged: it is unknown which one is wrong, so the better counts.
    Three or more that resemble each other less than faces of one person do, on average, count as if they resembled each
    other that much: the mean of different people may resemble anybody. So `bound` holds.
    """
    exact, cosines = scores.astype(np.float64), similarities.astype(np.float64)
    kept = consistent_faces(cosines, present, same_threshold)
    masked = np.where(kept, exact, -np.inf)
    best = masked.max(axis=1)
    order = np.argsort(-masked, axis=1, kind="stable")[:, :MOST_AVERAGED]
    averaged = np.zeros_like(kept)
    np.put_along_axis(averaged, order, values=True, axis=1)
    weights = np.where(averaged & kept, np.exp((masked - best[:, None]) / SPREAD), 0.0)
    product = (weights * exact).sum(axis=1)
    squared = (weights[:, None, :] @ cosines @ weights[:, :, None])[:, 0, 0]
    least = _squared_length(weights.sum(axis=1) ** 2, (weights**2).sum(axis=1), same_threshold)
    alone = (kept.sum(axis=1) == 1) | _are_two_strangers(cosines, kept, same_threshold)
    has_mean = ~alone & (squared > 0)  # faces that cancel each other out have no mean
    mean = np.clip(product / np.sqrt(np.where(has_mean, np.maximum(squared, least), 1.0)), -1.0, 1.0)
    return np.asarray(np.where(has_mean, mean, best))


def bound(best: float, faces: int, same_threshold: float) -> float:
    """Returns the highest score that an identity with so many faces can have, of which `best` is the most similar."""
    averaged = min(faces, MOST_AVERAGED)
    return best / math.sqrt(_squared_length(1.0, 1 / averaged, same_threshold)) if best > 0 else best


def _squared_length(squared_sum: Number, sum_of_squares: Number, same_threshold: float) -> Number:
    """Returns the squared length of a weighted sum of faces whose cosines to each other are all `same_threshold`.

    Takes the square of the weights' sum, and the sum of their squares.
    """
    cosine = min(max(same_threshold, 0.0), 1.0)
    return cosine * squared_sum + (1 - cosine) * sum_of_squares


def consistent_faces(
    similarities: NDArray[np.float64], present: NDArray[np.bool_], same_threshold: float
) -> NDArray[np.bool_]:
    """Returns which faces of each identity count, (P, K).

    Removes the face that is least similar to the others, one after another, as long as its mean cosine to the others
    is below `same_threshold` and their mean cosine to each other is not. Two faces always stay.
    """
    kept = present.copy()
    pairs = np.arange(len(kept))
    undecided = kept.sum(axis=1) > 2
    while undecided.any():
        count = np.maximum(kept.sum(axis=1), 3)
        both = kept[:, :, None] & kept[:, None, :] & ~np.eye(kept.shape[1], dtype=bool)
        sums = np.where(both, similarities, 0.0).sum(axis=2)
        odd = np.where(kept, sums, np.inf).argmin(axis=1)
        mean_of_odd = sums[pairs, odd] / (count - 1)
        mean_of_rest = (sums.sum(axis=1) - 2 * sums[pairs, odd]) / ((count - 1) * (count - 2))
        removed = undecided & (mean_of_odd < same_threshold) & (mean_of_rest >= same_threshold)
        kept[pairs[removed], odd[removed]] = False
        undecided = removed & (kept.sum(axis=1) > 2)
    return kept


def _are_two_strangers(
    similarities: NDArray[np.float64], kept: NDArray[np.bool_], same_threshold: float
) -> NDArray[np.bool_]:
    """Returns for which identities, (P,), exactly two faces are kept and do not resemble each other."""
    first = kept.argmax(axis=1)
    last = kept.shape[1] - 1 - kept[:, ::-1].argmax(axis=1)
    unlike = similarities[np.arange(len(kept)), first, last] < same_threshold
    return np.asarray((kept.sum(axis=1) == 2) & unlike)
