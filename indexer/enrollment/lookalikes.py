"""Who looks like whom: new faces against everybody enrolled, and everybody against everybody."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.gallery.faces import NewFace
from indexer.gallery.store import Store
from indexer.models.packs import Pack
from indexer.types import Gallery, Identity, Vectors
from indexer.vectors.base import VectorIndex
from indexer.vectors.synchronizer import SynchronizedIndex

LOOKALIKE_FMR = 1e-6
"""How often two faces of different people are taken for lookalikes, in galleries of up to a thousand faces."""

HELD_IN_VAIN = 1e-3
"""Share of new people who may be taken for a lookalike of any of the faces of a larger gallery."""

ALL_PAIRS = 100_000
"""Faces up to which every pair is scored, which takes four times as long for twice as many; beyond, the index names
the nearest of each."""

NEAREST = 8
"""Identities that the index names for each face, beyond its own."""

BLOCK_ROWS, BLOCK_COLUMNS = 1024, 4096
"""Scores at a time: 16 MiB, and as much again for a few things that are asked of them."""

MOST_PAIRS = 10_000
"""Pairs of identities that are told, the best of all."""

Ids = NDArray[np.int64]
Scores = NDArray[np.float32]
Tell = Callable[[int, int], None]
"""Hears how many faces were looked at, of how many."""


def lookalike_bound(pack: Pack, faces: int) -> float:
    """The cosine from which a face is taken for a lookalike of one of so many, by how the pack's strangers score.

    Not below the start of their tail, and not above 1, which no cosine is.
    """
    fmr = min(LOOKALIKE_FMR, HELD_IN_VAIN / max(faces, 1))
    return round(min(max(pack.tail.cosine(fmr), pack.tail.start), 1.0), 4)


# New faces


@dataclass(frozen=True)
class Lookalike:
    """The identity that a new face looks like, by its most similar face."""

    external_id: str
    face_id: int | None
    """None where that face came in the same few photos, and had no id yet."""
    score: float
    bound: float

    @property
    def message(self) -> str:
        return f"the face looks like identity {self.external_id!r}: cosine {self.score:.3f}, bound {self.bound:.3f}"

    @property
    def details(self) -> dict[str, object]:
        """For programs."""
        return {
            "external_id": self.external_id,
            "face_id": self.face_id,
            "score": round(self.score, 4),
            "bound": self.bound,
        }


class Lookalikes:
    """Finds new faces that look like another identity than the one they are to be enrolled for. Thread-safe.

    With `hold` such faces are not to be enrolled. Two processes that enrol one person under two ids at the same moment
    may miss each other's; `find_duplicates` finds them.
    """

    def __init__(self, store: Store, gallery: Gallery, index: SynchronizedIndex, bound: float, hold: bool) -> None:
        """`bound` is the cosine from which two faces look alike."""
        self._store = store
        self._gallery = gallery
        self._index = index
        self._bound = bound
        self.hold = hold

    def find(self, faces: Sequence[NewFace]) -> list[Lookalike | None]:
        """Whom each of `faces` looks like, of all who are enrolled and of those before it that are not held.

        None where it looks like nobody, or more like a face of its own person; and where the very image is another
        person's, for which `FaceRepository.enroll` has its own result. Raises NotFound and Conflict as the index does.
        """
        if not faces:
            return []
        vectors = np.stack([new.face.embedding for new in faces])
        enrolled = self._enrolled(vectors)
        scores = vectors @ vectors.T
        found: list[Lookalike | None] = []
        welcome: list[int] = []
        for i, new in enumerate(faces):
            before = [Lookalike(faces[j].person.external_id, None, float(scores[i, j]), self._bound) for j in welcome]
            alike = max((*before, *enrolled[i]), key=lambda other: other.score, default=None)
            if alike is not None and (
                alike.score < self._bound
                or alike.external_id == new.person.external_id
                or self._is_known(new, (faces[j] for j in welcome))
            ):
                alike = None
            found.append(alike)
            if alike is None or not self.hold:
                welcome.append(i)
        return found

    def _enrolled(self, vectors: Vectors) -> list[list[Lookalike]]:
        """The identity that is nearest to each of (N, D), its own or another, where it is near enough; else nobody."""
        nearest = self._index.caught_up().nearest_identities(vectors, 1)
        hits = [[hit for hit in some if hit.score >= self._bound] for some in nearest]
        people = self._store.identities.by_id({hit.identity_id for some in hits for hit in some})
        return [
            [
                Lookalike(people[hit.identity_id].external_id, hit.face_id, hit.score, self._bound)
                for hit in some
                if hit.identity_id in people
            ]
            for some in hits
        ]

    def _is_known(self, new: NewFace, before: Iterable[NewFace]) -> bool:
        """Whether the image itself is somebody's already."""
        if any(other.image_sha256 == new.image_sha256 for other in before):
            return True
        return bool(self._store.faces.known_images(self._gallery.id, [new.image_sha256]))


# Everybody


@dataclass(frozen=True)
class Side:
    """One of two identities that look alike, by the face that does most."""

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
    """A face that looks like somebody else, and like none of the other faces of the identity it is enrolled for."""

    face: Side
    own_score: float
    """The highest cosine to another face of its own identity."""
    score: float
    looks_like: Side


@dataclass(frozen=True)
class Duplicates:
    """Who looks alike in a gallery, the most similar first."""

    threshold: float
    faces: int
    exact: bool
    """Whether every pair of faces was scored; else the NEAREST other identities of each face were."""
    complete: bool
    """Whether all pairs are told; else the best MOST_PAIRS."""
    pairs: tuple[Pair, ...]
    wrong_photos: tuple[WrongPhoto, ...]


def find_duplicates(
    store: Store, gallery: Gallery, index: SynchronizedIndex, threshold: float, tell: Tell = lambda done, total: None
) -> Duplicates:
    """All pairs of identities with faces whose cosine is `threshold` or more, and the photos that are likely another
    person's.

    Raises NotFound when the gallery is gone, Conflict when it was re-embedded meanwhile.
    """
    current = index.caught_up()
    exact = len(current) <= ALL_PAIRS
    scan = _all_pairs(current, threshold, tell) if exact else _nearest(store, gallery, current, threshold, tell)
    best, complete = scan.pairs.best()
    near = [*best, *(wrong.near for wrong in scan.wrong)]
    people = store.identities.by_id({i for one in near for i in (one.identity_id, one.other_identity)})
    pairs = [Pair(one.score, sides) for one in best if (sides := _sides(one, people)) is not None]
    wrong_photos = [
        WrongPhoto(sides[0], wrong.own, wrong.near.score, sides[1])
        for wrong in sorted(scan.wrong, key=lambda wrong: _order(wrong.near))
        if (sides := _sides(wrong.near, people)) is not None
    ]
    return Duplicates(threshold, scan.faces, exact, complete, tuple(pairs), tuple(wrong_photos))


@dataclass(frozen=True)
class _Near:
    """A face, and one of another identity that is near to it."""

    score: float
    identity_id: int
    face_id: int
    other_identity: int
    other_face: int

    def turned(self) -> _Near:
        return _Near(self.score, self.other_identity, self.other_face, self.identity_id, self.face_id)


def _order(near: _Near) -> tuple[float, int, int]:
    return -near.score, near.face_id, near.other_face


def _sides(near: _Near, people: Mapping[int, Identity]) -> tuple[Side, Side] | None:
    """Both identities; None where one was deleted meanwhile."""
    one, other = people.get(near.identity_id), people.get(near.other_identity)
    if one is None or other is None:
        return None
    return Side(one.external_id, one.name, near.face_id), Side(other.external_id, other.name, near.other_face)


@dataclass(frozen=True)
class _Wrong:
    """A face that is near to one of another identity, while the nearest other one of its own scores `own`."""

    near: _Near
    own: float


class _Pairs:
    """The best pair of faces of each two identities, of those that are among the best MOST_PAIRS."""

    def __init__(self, threshold: float) -> None:
        self.floor = threshold
        """Nothing below counts any more."""
        self._best: dict[tuple[int, int], _Near] = {}
        self._complete = True

    def add(self, near: _Near) -> None:
        if near.score < self.floor:
            return
        if near.identity_id > near.other_identity:
            near = near.turned()
        key = near.identity_id, near.other_identity
        if key not in self._best or _order(near) < _order(self._best[key]):
            self._best[key] = near
        if len(self._best) > 2 * MOST_PAIRS:
            self._prune()

    def best(self) -> tuple[list[_Near], bool]:
        """Best first, and whether these are all."""
        if len(self._best) > MOST_PAIRS:
            self._prune()
        return sorted(self._best.values(), key=_order), self._complete

    def _prune(self) -> None:
        """Two identities that go here come back when better faces of theirs are found: what it takes to be among the
        best only rises."""
        kept = sorted(self._best.items(), key=lambda item: _order(item[1]))[:MOST_PAIRS]
        self._best = dict(kept)
        self._complete = False
        self.floor = max(self.floor, kept[-1][1].score)


@dataclass(eq=False)
class _Scan:
    """What was found so far."""

    pairs: _Pairs
    faces: int = 0
    wrong: list[_Wrong] = field(default_factory=list)


def _all_pairs(index: VectorIndex, threshold: float, tell: Tell) -> _Scan:
    """Every face with every other, a block at a time; each block of the upper triangle tells of both its sides."""
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
        tell(rows.stop, count)
    for row in np.flatnonzero((best >= threshold) & (own < threshold) & (own > -np.inf)).tolist():
        scan.wrong.append(_Wrong(faces.near(row, int(nearest[row]), float(best[row])), float(own[row])))
    return scan


@dataclass(frozen=True, eq=False)
class _Faces:
    """The faces of an index, those of an identity beside each other. (N,), (N,), (N,), (N, D)."""

    ids: Ids
    identities: Ids
    numbers: Ids
    """The identities, numbered from 0 on."""
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
        """Takes the scores between faces of one identity out of a block, where -inf is left: those scores, and -inf
        elsewhere and for a face with itself. None where there are none."""
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
        """The best of each two identities in a block, where it is `floor` or more; one more than MOST_PAIRS at most."""
        a, b = np.nonzero(scores >= floor)
        values = scores[a, b]
        a, b = a + rows.start, b + columns.start
        upper = a < b  # the other half of the matrix says the same
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
    """Puts the highest of each row of (N, M) into `best`, (N,), where it beats what is there, and its column, counted
    from `first`, into `nearest`."""
    top = scores.argmax(axis=1)
    found = scores[np.arange(len(scores)), top]
    better = found > best
    best[better], nearest[better] = found[better], first + top[better]


def _nearest(store: Store, gallery: Gallery, index: VectorIndex, threshold: float, tell: Tell) -> _Scan:
    """The nearest other identities of each face, as the index has them."""
    scan = _Scan(_Pairs(threshold))
    for part in store.embeddings.pages(gallery, BLOCK_ROWS):
        suspects: list[_Near] = []
        hits = index.nearest_identities(part.vectors, NEAREST + 1)
        for face_id, identity_id, some in zip(part.face_ids.tolist(), part.identity_ids.tolist(), hits, strict=True):
            near = [
                _Near(hit.score, identity_id, face_id, hit.identity_id, hit.face_id)
                for hit in some
                if hit.identity_id != identity_id and hit.score >= threshold
            ]
            for one in near:
                scan.pairs.add(one)
            suspects += near[:1]
        scan.wrong += [wrong for wrong in _with_own(store, gallery, suspects) if wrong.own < threshold]
        scan.faces += len(part.face_ids)
        tell(scan.faces, max(scan.faces, len(index)))
    return scan


def _with_own(store: Store, gallery: Gallery, suspects: Sequence[_Near]) -> Iterator[_Wrong]:
    """Those whose identity has other faces, with the score of the nearest of these."""
    for near in suspects:
        own = store.embeddings.of_identities(gallery, [near.identity_id])
        mine = own.face_ids == near.face_id
        if mine.any() and not mine.all():
            yield _Wrong(near, float((own.vectors[~mine] @ own.vectors[mine][0]).max()))
