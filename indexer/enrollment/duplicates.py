"""Finds identities of a gallery that look alike, and photos that look like another identity."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.gallery.embeddings import FaceVectors
from indexer.gallery.store import Store
from indexer.types import Gallery, Identity
from indexer.vectors.base import VectorIndex
from indexer.vectors.synchronizer import SynchronizedIndex

ALL_PAIRS = 100_000
"""Up to this many faces every pair is scored, in quadratic time; beyond, the index returns the nearest of each face."""

NEAREST = 8
"""Other identities requested from the index for each face."""

BLOCK_ROWS, BLOCK_COLUMNS = 1024, 4096
"""Scores in memory at a time: 16 MiB, and as much again for temporaries."""

MOST_PAIRS = 10_000
"""Pairs of identities returned, those with the highest scores."""

Ids = NDArray[np.int64]
Scores = NDArray[np.float32]
ProgressListener = Callable[[int, int], None]
"""Called with the number of faces compared and the total."""


@dataclass(frozen=True)
class Side:
    """One of two identities that look alike, with its most similar face."""

    external_id: str
    name: str | None
    face_id: int


@dataclass(frozen=True)
class Pair:
    """Two identities that look alike, the older one first; `score` is the cosine of their most similar faces."""

    score: float
    identities: tuple[Side, Side]


@dataclass(frozen=True)
class WrongPhoto:
    """A face that looks like another identity, and unlike the other faces of its own."""

    face: Side
    own_score: float
    """The highest cosine to another face of its own identity."""
    score: float
    looks_like: Side


@dataclass(frozen=True)
class Outlier:
    """A face unlike the other faces of its own identity; `own_score` is the highest cosine to one of them."""

    face: Side
    own_score: float


@dataclass(frozen=True)
class Duplicates:
    """The identities of a gallery that look alike, the most similar first, and the faces that may be wrong."""

    threshold: float
    faces: int
    exact: bool
    """Whether every pair of faces was scored, not only the NEAREST other identities of each face."""
    complete: bool
    """Whether `pairs` has all pairs, not only the best MOST_PAIRS."""
    pairs: tuple[Pair, ...]
    wrong_photos: tuple[WrongPhoto, ...]
    outliers: tuple[Outlier, ...] = ()
    """The most unlike first."""


def find_duplicates(
    store: Store,
    gallery: Gallery,
    index: SynchronizedIndex,
    threshold: float,
    progress: ProgressListener = lambda done, total: None,
    own_bound: float = -1.0,
) -> Duplicates:
    """Finds the pairs of identities with faces of cosine `threshold` or more, and photos that are likely of another
    person: those that look like one, and those below `own_bound` to every other face of their own identity.

    Raises:
        NotFound: The gallery was deleted.
        Conflict: The gallery was re-embedded meanwhile.
    """
    current = index.catch_up()
    exact = len(current) <= ALL_PAIRS
    if exact:
        scan = _all_pairs(current, threshold, own_bound, progress)
    else:
        scan = _nearest(store, gallery, current, threshold, own_bound, progress)
    best, complete = scan.pairs.best()
    near = [*best, *(suspect.near for suspect in scan.suspects)]
    ids = {i for one in near for i in (one.identity_id, one.other_identity)}
    people = store.identities.by_id(ids | {odd.identity_id for odd in scan.outliers})
    pairs = [Pair(one.score, sides) for one in best if (sides := _sides(one, people)) is not None]
    wrong_photos = [
        WrongPhoto(sides[0], suspect.own, suspect.near.score, sides[1])
        for suspect in sorted(scan.suspects, key=lambda suspect: _order(suspect.near))
        if (sides := _sides(suspect.near, people)) is not None
    ]
    outliers = [
        Outlier(_side(people[odd.identity_id], odd.face_id), odd.own)
        for odd in sorted(scan.outliers, key=lambda odd: (odd.own, odd.face_id))
        if odd.identity_id in people
    ]
    return Duplicates(threshold, scan.faces, exact, complete, tuple(pairs), tuple(wrong_photos), tuple(outliers))


@dataclass(frozen=True)
class _Near:
    """A face and a similar face of another identity."""

    score: float
    identity_id: int
    face_id: int
    other_identity: int
    other_face: int

    def swapped(self) -> _Near:
        return _Near(self.score, self.other_identity, self.other_face, self.identity_id, self.face_id)


def _order(near: _Near) -> tuple[float, int, int]:
    return -near.score, near.face_id, near.other_face


def _sides(near: _Near, people: Mapping[int, Identity]) -> tuple[Side, Side] | None:
    """Returns both identities; None if one was deleted meanwhile."""
    one, other = people.get(near.identity_id), people.get(near.other_identity)
    if one is None or other is None:
        return None
    return _side(one, near.face_id), _side(other, near.other_face)


def _side(identity: Identity, face_id: int) -> Side:
    return Side(identity.external_id, identity.name, face_id)


@dataclass(frozen=True)
class _Suspect:
    """A face similar to one of another identity. `own` is the highest score of the other faces of its identity."""

    near: _Near
    own: float


@dataclass(frozen=True)
class _Outlier:
    identity_id: int
    face_id: int
    own: float


class _Pairs:
    """The best pair of faces for each two identities, limited to the best MOST_PAIRS."""

    def __init__(self, threshold: float) -> None:
        self.floor = threshold
        """Lower scores are ignored."""
        self._best: dict[tuple[int, int], _Near] = {}
        self._complete = True

    def add(self, near: _Near) -> None:
        if near.score < self.floor:
            return
        if near.identity_id > near.other_identity:
            near = near.swapped()
        key = near.identity_id, near.other_identity
        if key not in self._best or _order(near) < _order(self._best[key]):
            self._best[key] = near
        if len(self._best) > 2 * MOST_PAIRS:
            self._prune()

    def best(self) -> tuple[list[_Near], bool]:
        """Returns the pairs, best first, and whether these are all."""
        if len(self._best) > MOST_PAIRS:
            self._prune()
        return sorted(self._best.values(), key=_order), self._complete

    def _prune(self) -> None:
        """Drops all but the best pairs. A dropped pair returns when better faces of it are found."""
        kept = sorted(self._best.items(), key=lambda item: _order(item[1]))[:MOST_PAIRS]
        self._best = dict(kept)
        self._complete = False
        self.floor = max(self.floor, kept[-1][1].score)


@dataclass(eq=False)
class _Scan:
    """The findings so far."""

    pairs: _Pairs
    faces: int = 0
    suspects: list[_Suspect] = field(default_factory=list)
    outliers: list[_Outlier] = field(default_factory=list)


def _all_pairs(index: VectorIndex, threshold: float, own_bound: float, progress: ProgressListener) -> _Scan:
    """Scores every face with every other, one block of the upper triangle at a time."""
    faces = _Faces.of(index)
    count = len(faces.ids)
    scan = _Scan(_Pairs(threshold), count)
    own, best = (np.full(count, -np.inf, np.float32) for _ in range(2))
    nearest = np.zeros(count, np.int64)
    for top in range(0, count, BLOCK_ROWS):
        rows = slice(top, min(top + BLOCK_ROWS, count))
        for left in range(top - top % BLOCK_COLUMNS, count, BLOCK_COLUMNS):
            columns = slice(left, min(left + BLOCK_COLUMNS, count))
            scores = faces.scores(rows, columns)
            theirs = faces.take_own(scores, rows, columns)
            if theirs is not None:
                np.maximum(own[rows], theirs.max(axis=1), out=own[rows])
                np.maximum(own[columns], theirs.max(axis=0), out=own[columns])
            _nearer(best[rows], nearest[rows], scores, left)
            _nearer(best[columns], nearest[columns], scores.T, top)
            for near in faces.pairs(scores, rows, columns, scan.pairs.floor):
                scan.pairs.add(near)
        progress(rows.stop, count)
    for row in np.flatnonzero((best >= threshold) & (own < threshold) & (own > -np.inf)).tolist():
        scan.suspects.append(_Suspect(faces.near(row, int(nearest[row]), float(best[row])), float(own[row])))
    scan.outliers += _outliers(faces.identities, faces.ids, own, own_bound)
    return scan


@dataclass(frozen=True, eq=False)
class _Faces:
    """The faces of an index, sorted by identity: (N,), (N,), (N,) and (N, D)."""

    ids: Ids
    identities: Ids
    numbers: Ids
    """The identities, numbered from 0."""
    vectors: NDArray[Any]

    @classmethod
    def of(cls, index: VectorIndex) -> _Faces:
        ids, identities, vectors = index.contents()
        order = np.lexsort((ids, identities))
        numbers = np.unique(identities[order], return_inverse=True)[1].astype(np.int64)
        return cls(ids[order], identities[order], numbers, vectors[order])

    def scores(self, rows: slice, columns: slice) -> Scores:
        a, b = (np.asarray(self.vectors[part], dtype=np.float32) for part in (rows, columns))
        return np.asarray(a @ b.T)

    def take_own(self, scores: Scores, rows: slice, columns: slice) -> Scores | None:
        """Replaces the scores between faces of one identity in a block by -inf, and returns them.

        The result is -inf elsewhere and for a face with itself. None if the block has no such scores.
        """
        a, b = self.numbers[rows], self.numbers[columns]
        if b[0] > a[-1] or b[-1] < a[0]:
            return None
        same = a[:, None] == b[None]
        own = np.where(same, scores, np.float32(-np.inf))
        scores[same] = -np.inf
        itself = np.arange(max(rows.start, columns.start), min(rows.stop, columns.stop))
        own[itself - rows.start, itself - columns.start] = -np.inf
        return own

    def pairs(self, scores: Scores, rows: slice, columns: slice, floor: float) -> Iterator[_Near]:
        """Yields the best pair of each two identities in a block that reaches `floor`, MOST_PAIRS + 1 at most."""
        a, b = np.nonzero(scores >= floor)
        values = scores[a, b]
        a, b = a + rows.start, b + columns.start
        upper = a < b  # the matrix is symmetric
        a, b, values = a[upper], b[upper], values[upper]
        if len(a) == 0:
            return
        order = np.lexsort((self.ids[b], self.ids[a], -values))
        both = self.numbers[a[order]] * (self.numbers[-1] + 1) + self.numbers[b[order]]
        firsts = np.sort(np.unique(both, return_index=True)[1])[: MOST_PAIRS + 1]
        for i in order[firsts].tolist():
            yield self.near(int(a[i]), int(b[i]), float(values[i]))

    def near(self, a: int, b: int, score: float) -> _Near:
        return _Near(score, int(self.identities[a]), int(self.ids[a]), int(self.identities[b]), int(self.ids[b]))


def _nearer(best: Scores, nearest: Ids, scores: Scores, first: int) -> None:
    """Updates `best` (N,) with the highest score of each row of (N, M), and `nearest` with its column plus `first`."""
    top = scores.argmax(axis=1)
    found = scores[np.arange(len(scores)), top]
    better = found > best
    best[better], nearest[better] = found[better], first + top[better]


def _outliers(identities: Ids, face_ids: Ids, own: Scores, own_bound: float) -> Iterator[_Outlier]:
    """Yields the faces whose own score (N,) is below the bound. It is -inf where the identity has no other face."""
    for row in np.flatnonzero((own < own_bound) & (own > -np.inf)).tolist():
        yield _Outlier(int(identities[row]), int(face_ids[row]), float(own[row]))


def _nearest(
    store: Store, gallery: Gallery, index: VectorIndex, threshold: float, own_bound: float, progress: ProgressListener
) -> _Scan:
    """Compares each face with the nearest other identities that the index returns, and with its own."""
    scan = _Scan(_Pairs(threshold))
    for part in store.embeddings.pages(gallery, BLOCK_ROWS):
        own = _own_scores(store, gallery, part)
        hits = index.nearest_identities(part.vectors, NEAREST + 1)
        ids = zip(part.face_ids.tolist(), part.identity_ids.tolist(), own.tolist(), hits, strict=True)
        for face_id, identity_id, own_score, some in ids:
            near = [
                _Near(hit.score, identity_id, face_id, hit.identity_id, hit.face_id)
                for hit in some
                if hit.identity_id != identity_id and hit.score >= threshold
            ]
            for one in near:
                scan.pairs.add(one)
            if near and -np.inf < own_score < threshold:
                scan.suspects.append(_Suspect(near[0], own_score))
        scan.outliers += _outliers(part.identity_ids, part.face_ids, own, own_bound)
        scan.faces += len(part.face_ids)
        progress(scan.faces, max(scan.faces, len(index)))
    return scan


def _own_scores(store: Store, gallery: Gallery, part: FaceVectors) -> Scores:
    """Returns (N,) the highest cosine of each face to another face of its identity; -inf if there is none."""
    own = store.embeddings.of_identities(gallery, np.unique(part.identity_ids).tolist())
    best = np.full(len(part.face_ids), -np.inf, np.float32)
    for left in range(0, len(own.face_ids), BLOCK_COLUMNS):
        columns = slice(left, left + BLOCK_COLUMNS)
        scores = part.vectors @ own.vectors[columns].T
        scores[part.identity_ids[:, None] != own.identity_ids[None, columns]] = -np.inf
        scores[part.face_ids[:, None] == own.face_ids[None, columns]] = -np.inf
        np.maximum(best, scores.max(axis=1), out=best)
    return best
