"""Compares a newly built compressed index with exact search, and increases its rescored rows until recall suffices."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from indexer.types import Hit, Vectors
from indexer.vectors.mapped_file import Float16Vectors, MappedFile
from indexer.vectors.product_codes import BATCH_ROWS

TARGET_RECALL = 0.9999
"""Share of mated probes whose person must be found, relative to exact search."""

MIN_RESCORED, MAX_RESCORED = 256, 4096
"""Bounds of the rows rescored per query."""

MIN_MATE_SCORE = 0.4
"""Lower scores are below the threshold of every gallery large enough to be compressed: that of `sface` for an FPIR of
10 % is 0.42 with 20,000 faces."""

MAX_MATE_SCORE = 0.95
"""Perturbed copies that score higher are found by any method. Different people score that high only in test data."""

SCORE_TOLERANCE = 1e-3
"""Largest difference between two computations of a score in half precision."""

MATED_PROBES, NON_MATED_PROBES = 10_000, 500
"""Enough to see one miss in ten thousand, and few enough for exact search."""

TIMED_QUERIES = 100


@dataclass(frozen=True)
class SelfCheckReport:
    """The result of the check. Its fields are part of the index file and of the HTTP API."""

    mates_found: float
    """Recall: share of perturbed copies of the index's own faces whose face was found."""
    threshold: float
    """Lowest score of the perturbed copies: the cosine reached by one non-mated probe in a hundred, or
    MIN_MATE_SCORE."""
    strangers: int
    """Number of the NON_MATED_PROBES faces that score at least MIN_MATE_SCORE with another person."""
    same_identity: float
    """Share of those for which exact search returns the same other person; 1 if there are none."""
    rescored: int
    query_ms: float
    """Median time of a query."""


class RescoringIndex(Protocol):
    """What is checked: an index that rescores the best rows of a scan."""

    rescored: int
    """Rows rescored per query."""

    def nearest_identities(self, queries: Vectors, k: int) -> list[list[Hit]]: ...


def check(index: RescoringIndex, base: MappedFile) -> SelfCheckReport | None:
    """Compares an index of the rows of `base` with exact search, and increases `index.rescored` until its recall is
    TARGET_RECALL. Returns None for an empty index."""
    identities, vectors = base.identity_ids, base.vectors
    if len(base) == 0:
        return None
    random = np.random.default_rng(len(base))
    rows = random.choice(len(base), min(NON_MATED_PROBES, len(base)), replace=False)
    probes = vectors[rows].astype(np.float32)
    scores, nearest = _nearest_others(probes, identities[rows], vectors, identities)
    threshold = min(max(float(np.quantile(scores, 0.99)), MIN_MATE_SCORE), MAX_MATE_SCORE)

    mates = random.choice(len(base), min(MATED_PROBES, len(base)), replace=False)
    originals = vectors[mates].astype(np.float32)
    cosines = random.uniform(threshold, (1 + threshold) / 2, (len(mates), 1)).astype(np.float32)
    copies = perturbed(originals, cosines, random)
    missed = _increase_rescored(index, len(base), copies, identities[mates], np.einsum("nd,nd->n", copies, originals))

    high = np.flatnonzero(scores >= MIN_MATE_SCORE)
    same = [_nearest_other(index, probes[i], int(identities[rows[i]])) == nearest[i] for i in high]
    return SelfCheckReport(
        mates_found=round(1 - missed / len(mates), 5),
        threshold=round(threshold, 4),
        strangers=len(high),
        same_identity=round(float(np.mean(same)), 4) if same else 1.0,
        rescored=index.rescored,
        query_ms=round(_median_ms(index, copies), 3),
    )


def perturbed(
    vectors: NDArray[np.float32], cosines: NDArray[np.float32], random: np.random.Generator
) -> NDArray[np.float32]:
    """Returns unit vectors (N, D) that have the cosines (N, 1) with these unit vectors, in random directions."""
    noise = random.standard_normal(vectors.shape, dtype=np.float32)
    noise -= np.einsum("nd,nd->n", noise, vectors)[:, None] * vectors
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    return np.asarray(cosines * vectors + np.sqrt(1 - cosines**2) * noise, dtype=np.float32)


def _increase_rescored(
    index: RescoringIndex,
    rows: int,
    probes: NDArray[np.float32],
    owners: NDArray[np.int64],
    own_scores: NDArray[np.float32],
) -> int:
    """Doubles `index.rescored`, up to `rows`, until enough probes find their owner; returns how many still do not.

    A probe that finds another person with at least its own score is not a miss.
    """
    missed = np.arange(len(probes))
    while True:
        answers = index.nearest_identities(probes[missed], 1)
        is_missed = [
            hit.identity_id != owners[i] and hit.score < own_scores[i] - SCORE_TOLERANCE
            for i, (hit,) in zip(missed, answers, strict=True)
        ]
        missed = missed[np.array(is_missed, dtype=np.bool_)]
        is_enough = len(missed) <= (1 - TARGET_RECALL) * len(probes)
        if is_enough or index.rescored >= min(MAX_RESCORED, rows):
            return len(missed)
        index.rescored = min(2 * index.rescored, MAX_RESCORED)


def _nearest_others(
    probes: NDArray[np.float32], own: NDArray[np.int64], vectors: Float16Vectors, identities: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Returns by exact search the highest score of each probe (Q,) with another person, and that person (Q,).

    Both are -1 if there is nobody else.
    """
    best = np.full(len(probes), -1, np.float32)
    owners = np.full(len(probes), -1, np.int64)
    for start in range(0, len(vectors), BATCH_ROWS):
        batch = identities[start : start + BATCH_ROWS]
        scores = probes @ vectors[start : start + BATCH_ROWS].astype(np.float32).T
        scores[own[:, None] == batch[None, :]] = -np.inf
        top = scores.argmax(axis=1)
        top_scores = scores[np.arange(len(probes)), top]
        is_better = top_scores > best
        best[is_better], owners[is_better] = top_scores[is_better], batch[top[is_better]]
    return best, owners


def _nearest_other(index: RescoringIndex, probe: NDArray[np.float32], own: int) -> int:
    (hits,) = index.nearest_identities(probe[None], 2)
    return next((hit.identity_id for hit in hits if hit.identity_id != own), -1)


def _median_ms(index: RescoringIndex, probes: NDArray[np.float32]) -> float:
    times = []
    for probe in probes[:TIMED_QUERIES]:
        begun = time.perf_counter()
        index.nearest_identities(probe[None], 5)
        times.append(1000 * (time.perf_counter() - begun))
    return float(np.median(times))
