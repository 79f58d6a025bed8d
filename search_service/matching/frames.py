"""One probe from several images of one person."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from indexer.errors import InvalidRequest
from indexer.rounding import reaches
from indexer.types import Liveness, Quality, Vectors

ENOUGH_SIZE = 112.0
"""Width of a face in pixels: the input size of embedders. More pixels do not raise a frame's weight."""

POOR_SHARE = 0.25
"""Relative weight of a frame whose face would fail the quality gate of enrollment."""

SURE_ATTACK_SHARE = 0.2
"""Share of the liveness threshold below which a single frame is enough to deny. For `minifasnet` it is 0.1: 1 %
of the live faces of LFW score so low (`benchmarks/results/liveness.csv`)."""

_SHORTEST_MEAN = 1e-6
"""Length of a mean, relative to the sum of the weights, below which it has no direction in float32."""


@dataclass(frozen=True, eq=False)
class FusedProbe:
    """One probe computed from several frames."""

    embedding: NDArray[np.float64]
    """(D,) of unit length."""
    disagreeing: NDArray[np.int64]
    """Places of the frames that show a different person than most frames. All frames where two people appear equally
    often, because it is unknown which one is meant."""


def weight_of(quality: Quality) -> float:
    """Returns the weight of a frame, above 0 and at most 1.

    The share of the pixels that embedders use, times the cosine of the head's turn, times POOR_SHARE for a face that
    would not be enrolled. Larger and frontal faces are more reliable; by how much was not measured.
    """
    size = min(max(quality.size, 1.0), ENOUGH_SIZE) / ENOUGH_SIZE
    turn = max(math.cos(min(abs(quality.yaw), 1.0) * math.pi / 2), POOR_SHARE)
    return size * turn * (POOR_SHARE if quality.reasons else 1.0)


def combine_liveness(frames: Sequence[Liveness]) -> Liveness:
    """Returns the liveness of a person in one or more frames: the median of the frames' scores.

    A single frame denies it only if its score is below SURE_ATTACK_SHARE of the threshold.
    """
    scores, threshold = [frame.score for frame in frames], frames[0].threshold
    score = float(np.median(scores))
    is_attacked = not reaches(min(scores), SURE_ATTACK_SHARE * threshold)
    return replace(frames[0], score=score, live=reaches(score, threshold) and not is_attacked)


def fuse(embeddings: Vectors, weights: NDArray[np.float64], same_threshold: float) -> FusedProbe:
    """Returns the weighted mean of the frames' embeddings, (N, D), scaled to unit length.

    `weights` is (N,). `same_threshold` is the cosine from which the model pack takes two faces for one person.

    Raises InvalidRequest when there are no frames, or when they cancel each other out.
    """
    if not len(embeddings):
        raise InvalidRequest("there are no frames to fuse; give one or more")
    exact = embeddings.astype(np.float64)
    total = weights @ exact
    length = float(np.linalg.norm(total))
    if length < _SHORTEST_MEAN * weights.sum():
        raise InvalidRequest("the frames are opposites of each other and have no mean; they are not of one person")
    people = sorted(_people(exact @ exact.T, weights, same_threshold), key=np.count_nonzero, reverse=True)
    is_clear = len(people) == 1 or people[0].sum() > people[1].sum()
    return FusedProbe(total / length, np.flatnonzero(~people[0] if is_clear else np.ones(len(exact), bool)))


def _people(
    similarities: NDArray[np.float64], weights: NDArray[np.float64], same_threshold: float
) -> list[NDArray[np.bool_]]:
    """Groups the frames by the person they seem to show: for each person, which of the N frames.

    A group starts with the frame most similar to the remaining ones and grows by the frame most similar to the group's
    mean, while that cosine is `same_threshold` or more. A poor frame is thus compared with all good ones together, and
    two people with equally many frames are not taken for one, as they would be if each frame were compared with all
    others. `similarities` is (N, N).
    """
    others = similarities * (1 - np.eye(len(weights)))
    left, people = np.ones(len(weights), bool), []
    while left.any():
        person = np.zeros_like(left)
        nearest, cosine = int(np.where(left, others @ (weights * left), -np.inf).argmax()), np.inf
        while cosine >= same_threshold:
            person[nearest], left[nearest] = True, False
            if not left.any():
                break
            own = weights * person
            squared = own @ similarities @ own
            cosines = similarities @ own / np.sqrt(squared) if squared > 0 else np.zeros(len(own))
            nearest = int(np.where(left, cosines, -np.inf).argmax())
            cosine = float(cosines[nearest])
        people.append(person)
    return people
