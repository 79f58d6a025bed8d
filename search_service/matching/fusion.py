"""Several faces of one identity -> one score for a probe.

The faces are averaged anew for every probe: each counts for exp(score / SPREAD), so that the photos that are like the
probe count for more and a poor one for less, and the mean is brought to unit length. That is between the best face
alone, which a lucky stranger finds more easily the more faces there are, and the plain mean, which loses people who
look different from photo to photo. A face that looks like somebody else than the rest is left out.
(`benchmarks/results/fusion.csv`)
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

SPREAD = 0.2
"""Cosine by which a face must score higher to count e times as much. From 0.1 to 0.3 it makes no difference
that LFW shows."""

MOST = 8
"""Faces of one identity that are averaged for a probe: those that score highest. What comes after them counts
little."""


@dataclass(frozen=True)
class Faces:
    """The faces of one identity that count. `sort_out` makes it."""

    kept: tuple[int, ...]
    """Their places."""
    alike: tuple[tuple[float, ...], ...]
    """The cosine of each of them to each."""
    split: bool
    """There are two, of two people it seems, and nobody can tell which is right: each stands for itself."""

    @property
    def single(self) -> bool:
        return self.split or len(self.kept) == 1


def sort_out(alike: Sequence[Sequence[float]], same_threshold: float) -> Faces:
    """Leaves out, one after another, the face that is least like the others, while its mean cosine to them is under
    `same_threshold`, the pack's for one person, and theirs to each other is not.

    `alike` (K, K) is the cosine of each face to each, K at least 1.
    """
    kept = list(range(len(alike)))
    while len(kept) > 2:
        means = [_mean(alike[i], [j for j in kept if j != i]) for i in kept]
        odd = min(range(len(kept)), key=means.__getitem__)
        rest = kept[:odd] + kept[odd + 1 :]
        together = sum(_mean(alike[i], [j for j in rest if j != i]) for i in rest) / len(rest)
        if means[odd] >= same_threshold or together < same_threshold:
            break
        kept = rest
    split = len(kept) == 2 and alike[kept[0]][kept[1]] < same_threshold
    return Faces(tuple(kept), tuple(tuple(alike[i][j] for j in kept) for i in kept), split)


def fused_score(faces: Faces, scores: Sequence[float]) -> float:
    """The cosine of a probe to the weighted mean of the faces. `scores` are its cosines to all K faces.

    The mean m = sum(w_i f_i) is not needed itself: its product with the probe is sum(w_i s_i), and its squared length
    sum(w_i w_j f_i f_j).
    """
    mine = [scores[place] for place in faces.kept]
    best = max(mine)
    if faces.single:
        return best
    places = heapq.nlargest(MOST, range(len(mine)), key=mine.__getitem__)
    weights = {i: math.exp((mine[i] - best) / SPREAD) for i in places}
    product = math.fsum(weights[i] * mine[i] for i in places)
    squared = math.fsum(weights[i] * weights[j] * faces.alike[i][j] for i in places for j in places)
    if squared <= 0:  # faces that cancel each other out have no mean
        return best
    return min(max(product / math.sqrt(squared), -1.0), 1.0)


def _mean(row: Sequence[float], places: Sequence[int]) -> float:
    return math.fsum(row[j] for j in places) / len(places)
