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

    `disagreeing` are the places of the frames that look like somebody else than the rest: all of them where there are
    two, because nobody can tell which.
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

    A frame disagrees when its cosine to the mean of the others is under `same_threshold`, the pack's for one person: so
    one poor frame among many makes no good one disagree.

    Raises InvalidRequest where there are none, or they cancel each other out.
    """
    if not frames:
        raise InvalidRequest("there are no frames to fuse; give one or more")
    total = _sum([_scaled(frame) for frame in frames])
    disagreeing = []
    for i, frame in enumerate(frames):
        rest = [a - b for a, b in zip(total, _scaled(frame), strict=True)]
        if len(frames) > 1 and _cosine(frame.embedding, rest) < same_threshold:
            disagreeing.append(i)
    length = math.hypot(*total)
    if length < _NOTHING * sum(frame.weight for frame in frames):
        raise InvalidRequest("the frames are opposites of each other and have no mean; they are not of one person")
    return Fused(tuple(value / length for value in total), tuple(disagreeing))


_NOTHING = 1e-6
"""Of the frames' weights: a mean that is shorter has no direction in float32."""


def _scaled(frame: Frame) -> list[float]:
    return [frame.weight * value for value in frame.embedding]


def _sum(vectors: Sequence[Sequence[float]]) -> list[float]:
    return [math.fsum(column) for column in zip(*vectors, strict=True)]


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """Of a vector of unit length with one of any; 0 where that has none."""
    length = math.hypot(*b)
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / length if length else 0.0
