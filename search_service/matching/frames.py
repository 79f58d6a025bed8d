"""Several images of one person -> one probe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from indexer.errors import InvalidRequest
from indexer.types import Quality

ENOUGH_SIZE = 112.0
"""Pixels across: what an embedder sees. More of them add nothing."""

POOR_SHARE = 0.25
"""What a frame counts for that would not be enrolled, of one that would."""


@dataclass(frozen=True)
class Frame:
    """The face of one image: its embedding, of unit length, and what it counts for."""

    embedding: Sequence[float]
    weight: float


@dataclass(frozen=True)
class Fused:
    """One probe made of several frames. `embedding` is of unit length.

    `disagreeing` are the places of the frames that look like somebody else than most: all of them where as many look
    like one person as like another, because nobody can tell which is meant.
    """

    embedding: tuple[float, ...]
    disagreeing: tuple[int, ...]


def weight_of(quality: Quality) -> float:
    """What a frame counts for, above 0, at most 1: its share of the pixels that embedders use, times the cosine of
    the head's turn, times POOR_SHARE where the face would not be enrolled.

    Larger and frontal faces tell more; how much more was not measured.
    """
    size = min(max(quality.size, 1.0), ENOUGH_SIZE) / ENOUGH_SIZE
    turn = max(math.cos(min(abs(quality.yaw), 1.0) * math.pi / 2), POOR_SHARE)
    return size * turn * (POOR_SHARE if quality.reasons else 1.0)


def fuse(frames: Sequence[Frame], same_threshold: float) -> Fused:
    """The mean of the frames' embeddings, each counting for its weight, brought to unit length.

    Frames agree that are of one person by `same_threshold`, the pack's: see `_people`.

    Raises InvalidRequest where there are none, or they cancel each other out.
    """
    if not frames:
        raise InvalidRequest("there are no frames to fuse; give one or more")
    total = [math.fsum(column) for column in zip(*map(_scaled, frames), strict=True)]
    length = math.hypot(*total)
    if length < _NOTHING * sum(frame.weight for frame in frames):
        raise InvalidRequest("the frames are opposites of each other and have no mean; they are not of one person")
    people = sorted(_people(frames, same_threshold), key=len, reverse=True)
    most = people[0] if len(people) == 1 or len(people[0]) > len(people[1]) else []
    disagreeing = tuple(i for i in range(len(frames)) if i not in most)
    return Fused(tuple(value / length for value in total), disagreeing)


_NOTHING = 1e-6
"""Of the frames' weights: a mean that is shorter has no direction in float32."""


def _people(frames: Sequence[Frame], same_threshold: float) -> list[list[int]]:
    """The places of the frames of each person they seem to show.

    Each group grows from the frame that is most like the rest by the one that is most like its mean, while the cosine
    to that is `same_threshold` or more. So a poor frame is compared with all good ones together, and two people of
    whom there are as many frames do not pass for one, as they would where each frame is compared with all others.
    """
    alike = [[_product(one.embedding, other.embedding) for other in frames] for one in frames]
    weights = [frame.weight for frame in frames]
    left, people = list(range(len(frames))), []
    while left:
        seed = max(left, key=lambda i: math.fsum(weights[j] * alike[i][j] for j in left if j != i))
        person = [seed]
        left.remove(seed)
        while left:
            cosine, nearest = max((_cosine_to_mean(alike[i], person, alike, weights), i) for i in left)
            if cosine < same_threshold:
                break
            person.append(nearest)
            left.remove(nearest)
        people.append(person)
    return people


def _cosine_to_mean(
    row: Sequence[float], places: Sequence[int], alike: Sequence[Sequence[float]], weights: Sequence[float]
) -> float:
    """Of a frame to the weighted mean of those at `places`, by its cosines to each; 0 where they have none."""
    product = math.fsum(weights[i] * row[i] for i in places)
    squared = math.fsum(weights[i] * weights[j] * alike[i][j] for i in places for j in places)
    return product / math.sqrt(squared) if squared > 0 else 0.0


def _scaled(frame: Frame) -> list[float]:
    return [frame.weight * value for value in frame.embedding]


def _product(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))
