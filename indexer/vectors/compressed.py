"""Every face is scanned in a few bytes, and the best are scored from half-precision vectors.

Embeddings of different people are spread almost evenly over the sphere, where clusters and graphs lose mates or time.
Scanning all faces in 4-bit product codes (FAISS fast scan: André et al. 2017, https://arxiv.org/abs/1704.07355; Jégou
et al. 2011) and scoring the best few hundred of them does neither (`benchmarks/vectors.py`).
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import faiss
import numpy as np
from numpy.typing import NDArray

from indexer.errors import StorageUnavailable
from indexer.gallery.embeddings import FaceVectors
from indexer.types import Hit, Vectors
from indexer.vectors import mapped_file
from indexer.vectors.base import DamagedIndex
from indexer.vectors.locks import SharedLock
from indexer.vectors.mapped_file import Codes, Halves, Resting

log = logging.getLogger(__name__)

Scalar = TypeVar("Scalar", bound=np.generic)

PARTS = 64
"""Sub-quantisers: 32 bytes a face. With half of them mates near the threshold are lost, with twice as many the scan
takes twice as long (`benchmarks/results/vectors.csv`)."""

SAMPLE = 65_536
"""Faces that the codes are trained on: FAISS asks for 39 a centroid, which are 16."""

CENTROIDS = 16

FIRST_RESCORED, MOST_RESCORED = 256, 4096
"""Rows scored a query: as many as the check at the build asks for, from the first to the most. More where half of them
or more are removed ones, or of the people who are answered with: somebody with thousands of photos hides nobody."""

PROMISE = 0.9999
"""Share of mates that must be found, of those that exact search finds."""

LEAST_MATE = 0.4
"""A mate that scores less is under the threshold of any gallery that is large enough to be compressed: that of `sface`
for an FPIR of 10 % is 0.42 at 20,000 faces."""

MOST_MATE = 0.95
"""Copies that are closer are found by anything; where strangers are as close, they are copies of each other."""

ROUNDING = 1e-3
"""How far two ways to compute a score in half precision may differ."""

MATES, STRANGERS = 10_000, 500
"""Probes that an index is checked with: enough to see one miss in ten thousand, and few enough to search exactly."""

LEAST_TAIL = 20_000
"""Rows that may come after the build, at half a kilobyte to one each, before it is time for another one; or a
sixteenth of those at the build."""

DEAD_SHARE = 0.2
"""Of the rows, before it is time for a build without the dead."""


@dataclass(frozen=True)
class Checked:
    """What an index found out about itself when it was built, against exact search over the same faces."""

    mates_found: float
    """Share of perturbed copies of its own faces, as close as mates are, whose face was found."""
    threshold: float
    """The perturbed copies score this or more: the cosine that one stranger in a hundred reaches, or LEAST_MATE."""
    strangers: int
    """Of STRANGERS of its faces, how many look like another person, with a cosine of LEAST_MATE or more."""
    same_identity: float
    """The share of those whose nearest other person is the one that exact search finds; 1 where there are none."""
    rescored: int
    query_ms: float
    """Median of one query."""


class Scan(Protocol):
    """Names the rows that score best, nearly."""

    def add(self, vectors: NDArray[np.float32]) -> None:
        """(N, D) rows more."""
        ...

    def search(self, queries: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """(Q, D) -> rows (Q, `count`), best first; -1 where there are fewer. Fewer columns where it tells no more than
        that."""
        ...


_Best = Callable[[NDArray[np.float32], NDArray[np.int64], int], tuple[list[Hit], int]]
"""A query, rows and `k` -> the best `k` of these rows, and how many of them are of nobody who is answered with."""


class CompressedIndex:
    """The faces of a file (`resting.Resting`), and those that came since. Thread-safe: searches run side by side."""

    replaced = False
    erases = True

    def __init__(
        self,
        base: Resting,
        rescored: int,
        checked: Checked | None,
        kind: str = "compressed",
        scan: Callable[[Resting], Scan] | None = None,
    ) -> None:
        self.kind = kind
        self.checked = checked
        self.rescored = rescored
        self.damaged = False
        """Whether the file turned out not to be what was written. It answers no more, and is to be made anew."""
        self.base = base
        self._dim = base.vectors.shape[1]
        self._scan = (scan or CodeScan)(base)
        self._lock = SharedLock()
        self._alive = _Growing(base.alive())
        self.erased = base.face_ids[~self._alive.all]
        """Faces that were taken out of the file before it was opened."""
        self._faces = _Growing(base.face_ids)
        self._identities = _Growing(base.identity_ids)
        self._dead = len(base) - int(self._alive.all.sum())
        self._groups = _Groups(base.identity_ids)
        self._tail: _Growing[np.float16] = _Growing(np.empty((0, self._dim), np.float16))
        self._tail_rows: dict[int, int] = {}
        """Face id -> row, of the faces that came after the build."""
        self._tail_groups: defaultdict[int, list[int]] = defaultdict(list)

    def __len__(self) -> int:
        return len(self._faces) - self._dead

    @property
    def outgrown(self) -> bool:
        rows = len(self.base)
        return len(self._tail) > max(LEAST_TAIL, rows // 16) or self._dead > max(LEAST_TAIL, DEAD_SHARE * rows)

    def put(self, face_ids: NDArray[np.int64], identity_ids: NDArray[np.int64], vectors: Vectors) -> None:
        if len(face_ids) == 0:
            return
        halves = np.asarray(vectors, dtype=np.float16)
        with self._lock.writing():
            self._remove(face_ids.tolist())
            first = len(self._faces)
            self._scan.add(halves.astype(np.float32))
            self._faces.append(face_ids)
            self._identities.append(identity_ids)
            self._alive.append(np.ones(len(face_ids), np.bool_))
            self._tail.append(halves)
            for row, (face, identity) in enumerate(zip(face_ids.tolist(), identity_ids.tolist(), strict=True), first):
                self._tail_rows[face] = row
                self._tail_groups[identity].append(row)

    def remove(self, face_ids: Sequence[int]) -> None:
        if not face_ids:
            return
        with self._lock.writing():
            self._remove(face_ids)
        try:
            self.base.erase_in_successor(np.asarray(face_ids, dtype=np.int64))
        except OSError as error:
            log.warning("%s may still hold embeddings of removed faces: %s", self.base.path, error)

    def nearest_faces(self, queries: Vectors, k: int) -> list[list[Hit]]:
        with self._lock.reading():
            return self._nearest(queries, k, self._best_faces)

    def nearest_identities(self, queries: Vectors, k: int) -> list[list[Hit]]:
        with self._lock.reading():
            return self._nearest(queries, k, self._best_identities)

    def face_ids(self) -> NDArray[np.int64]:
        with self._lock.reading():
            return np.sort(self._faces.all[self._alive.all])

    def contents(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]:
        with self._lock.reading():
            rows = np.flatnonzero(self._alive.all)
            return self._faces.all[rows], self._identities.all[rows], self._pick(rows)

    def _nearest(self, queries: Vectors, k: int, best: _Best) -> list[list[Hit]]:
        """What `best` makes of each query and of the rows that the scan names for it, more of them until there are `k`
        answers and enough rows beside theirs; at last of all rows."""
        answers: list[list[Hit]] = [[] for _ in queries]
        alive, rows = self._alive.all, len(self._faces)
        left = list(range(len(queries))) if len(self) and k > 0 else []
        wanted = np.ascontiguousarray(queries, dtype=np.float32)
        count = max(self.rescored, 4 * k)
        while left and count < rows:
            found = self._scan.search(wanted[left], count)
            wider = []
            for i, some in zip(left, found, strict=True):
                known = some[some >= 0]
                answers[i], others = best(wanted[i], known[alive[known]], k)
                if len(answers[i]) < k or others < self.rescored // 2:
                    wider.append(i)
            left = wider
            if found.shape[1] < count:
                break
            count *= 4
        for i in left:
            answers[i], _ = best(wanted[i], np.flatnonzero(alive), k)
        return answers

    def _best_faces(self, query: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> tuple[list[Hit], int]:
        scores = self._scores(query, rows)
        order = np.lexsort((self._faces.all[rows], -scores))[:k]
        return self._hits(rows[order], scores[order]), len(rows) - len(order)

    def _best_identities(self, query: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> tuple[list[Hit], int]:
        """First the best row of each identity among `rows`; then all rows of the best identities, however many. And
        how many of `rows` are of others."""
        best, scores = self._best_rows(rows, self._scores(query, rows), k)
        identities = self._identities.all[best]
        others = len(rows) - int(np.isin(self._identities.all[rows], identities).sum())
        every = self._rows_of(identities)
        if len(every) > len(rows) - others:
            best, scores = self._best_rows(every, self._scores(query, every), k)
        return self._hits(best, scores), others

    def _best_rows(
        self, rows: NDArray[np.int64], scores: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best row of each of the best `k` identities, best first; equals by face id."""
        order = np.lexsort((self._faces.all[rows], -scores))
        _, firsts = np.unique(self._identities.all[rows[order]], return_index=True)
        chosen = order[np.sort(firsts)[:k]]
        return rows[chosen], scores[chosen]

    def _rows_of(self, identities: NDArray[np.int64]) -> NDArray[np.int64]:
        later = [row for identity in identities.tolist() for row in self._tail_groups.get(identity, ())]
        rows = np.concatenate([*self._groups.rows(identities), np.array(later, dtype=np.int64)])
        return np.asarray(rows[self._alive.all[rows]], dtype=np.int64)

    def _scores(self, query: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(N,), in parts: it may be asked for all rows."""
        scores = [
            self._pick(some).astype(np.float32) @ query for some in np.split(rows, range(SAMPLE, len(rows), SAMPLE))
        ]
        return np.concatenate(scores)

    def _pick(self, rows: NDArray[np.int64]) -> Halves:
        """The vectors of these rows. Raises StorageUnavailable where the file is damaged, from when on it is."""
        at_rest = rows < len(self.base)
        try:
            if at_rest.all():
                return self.base.pick(rows)
            picked = np.empty((len(rows), self._dim), np.float16)
            picked[at_rest] = self.base.pick(rows[at_rest])
        except DamagedIndex as error:
            self.damaged = True
            raise StorageUnavailable(f"{error.message}; the index is made anew, ask again") from error
        picked[~at_rest] = self._tail.all[rows[~at_rest] - len(self.base)]
        return picked

    def _hits(self, rows: NDArray[np.int64], scores: NDArray[np.float32]) -> list[Hit]:
        identities, faces = self._identities.all[rows].tolist(), self._faces.all[rows].tolist()
        return [Hit(*hit) for hit in zip(identities, faces, scores.tolist(), strict=True)]

    def _remove(self, face_ids: Sequence[int]) -> None:
        alive = self._alive.all
        gone = mapped_file.rows_of(self.base.face_ids, np.asarray(face_ids, dtype=np.int64))
        gone = gone[alive[gone]]
        self.base.erase(gone)
        alive[gone] = False
        self._dead += len(gone)
        for face in face_ids:
            row = self._tail_rows.pop(face, None)
            if row is not None:
                alive[row] = False
                self._dead += 1
                self._tail.all[row - len(self.base)] = 0
                self._tail_groups[int(self._identities.all[row])].remove(row)


class CodeScan:
    """All codes, by FAISS."""

    def __init__(self, base: Resting) -> None:
        dim = base.vectors.shape[1]
        plain = faiss.IndexPQ(dim + -dim % PARTS, PARTS, 4, faiss.METRIC_INNER_PRODUCT)
        faiss.copy_array_to_vector(np.ascontiguousarray(base.centroids).ravel(), plain.pq.centroids)
        plain.is_trained = True
        if len(base):
            faiss.copy_array_to_vector(np.ascontiguousarray(base.codes).ravel(), plain.codes)
        plain.ntotal = len(base)
        self._codes: Any = faiss.IndexPQFastScan(plain)  # type: ignore[arg-type]

    def add(self, vectors: NDArray[np.float32]) -> None:
        with _one_thread():
            self._codes.add(_padded(vectors))

    def search(self, queries: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        _, rows = self._codes.search(_padded(queries), count)
        return np.asarray(rows, dtype=np.int64)


def build(path: Path, dim: int, parts: Iterable[FaceVectors], about: Mapping[str, Any]) -> Resting:
    """Writes the file of these faces, whose ids ascend, and opens it. `about` is written down with it.

    Raises OSError when the disk is full.
    """
    face_ids: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    identity_ids: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    with _one_thread(), mapped_file.writing(path, dim) as writer:
        for part in parts:
            writer.add(part.vectors)
            face_ids.append(part.face_ids)
            identity_ids.append(part.identity_ids)
        faces, identities = np.concatenate(face_ids), np.concatenate(identity_ids)
        vectors = writer.vectors()
        codes, centroids = _encode(vectors)
        written = np.ones(len(faces), np.bool_)  # this moment: there is nothing to check yet
        rested = Resting(path, {}, faces, identities, codes, centroids, vectors, np.empty(0, np.uint64), written)
        checked = _check(CompressedIndex(rested, _first_rescored(len(rested)), None))
        writer.finish(faces, identities, codes, centroids, {**about, "checked": asdict(checked) if checked else None})
    return mapped_file.read(path)


def _first_rescored(rows: int) -> int:
    """One in a thousand, beyond FIRST_RESCORED: as many strangers come out better than a mate by the codes' error as
    there are strangers, and real mates that look like somebody else have more of them near than copies do."""
    return min(max(FIRST_RESCORED, rows // 1000), MOST_RESCORED)


def over(base: Resting, kind: str = "compressed", scan: Callable[[Resting], Scan] | None = None) -> CompressedIndex:
    """The index of a file. The check was of its codes: with another `scan`, of more than codes, the fewest rows do."""
    told = base.about.get("checked")
    checked = Checked(**told) if told else None
    rescored = checked.rescored if checked and scan is None else FIRST_RESCORED
    return CompressedIndex(base, rescored, checked, kind, scan)


class _Growing(Generic[Scalar]):
    """An array that rows are added to. The first ones are not copied before there are more."""

    def __init__(self, first: NDArray[Scalar]) -> None:
        self._room = first
        self._length = len(first)

    def __len__(self) -> int:
        return self._length

    @property
    def all(self) -> NDArray[Scalar]:
        return self._room[: self._length]

    def append(self, rows: NDArray[Scalar]) -> None:
        length = self._length + len(rows)
        if length > len(self._room):
            room = np.empty(
                (max(length, self._length + self._length // 8 + 1024), *self._room.shape[1:]), self._room.dtype
            )
            room[: self._length] = self.all
            self._room = room
        self._room[self._length : length] = rows
        self._length = length


class _Groups:
    """The rows of each identity."""

    def __init__(self, identity_ids: NDArray[np.int64]) -> None:
        self._order = np.argsort(identity_ids, kind="stable").astype(np.int32)
        self._sorted = identity_ids[self._order]

    def rows(self, identities: NDArray[np.int64]) -> list[NDArray[np.int32]]:
        """Of each identity."""
        firsts = np.searchsorted(self._sorted, identities).tolist()
        ends = np.searchsorted(self._sorted, identities, "right").tolist()
        return [self._order[first:end] for first, end in zip(firsts, ends, strict=True)]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Leaves the other cores to searches; FAISS's threads wait for each other very often while it trains, and for one
    row that is added, which takes many times as long when others need the cores. It holds for the calling thread."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _padded(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """With zeros behind, so that PARTS divides the dimension; no inner product changes."""
    pad = -vectors.shape[1] % PARTS
    return np.pad(vectors, ((0, 0), (0, pad))) if pad else np.ascontiguousarray(vectors)


def _encode(vectors: Halves) -> tuple[Codes, NDArray[np.float32]]:
    """The codes of all rows, and the centroids (PARTS, CENTROIDS, D / PARTS) that they are of."""
    dim = vectors.shape[1] + -vectors.shape[1] % PARTS
    quantiser = faiss.ProductQuantizer(dim, PARTS, 4)
    quantiser.cp.min_points_per_centroid = 1  # it would print a warning for a small gallery
    if len(vectors) == 0:
        return np.empty((0, PARTS // 2), np.uint8), np.zeros((PARTS, CENTROIDS, dim // PARTS), np.float32)
    rows = np.unique(np.linspace(0, len(vectors) - 1, min(SAMPLE, len(vectors))).astype(np.int64))
    sample = vectors[np.resize(rows, max(len(rows), CENTROIDS))]  # a point for each centroid at least
    quantiser.train(_padded(sample.astype(np.float32)))
    codes = [
        quantiser.compute_codes(_padded(vectors[i : i + SAMPLE].astype(np.float32)))
        for i in range(0, len(vectors), SAMPLE)
    ]
    centroids = faiss.vector_to_array(quantiser.centroids).reshape(PARTS, CENTROIDS, dim // PARTS)
    return np.concatenate(codes), centroids


def _check(index: CompressedIndex) -> Checked | None:
    """Compares the index with exact search, and widens its re-scoring until it keeps the promise. None when it is
    empty."""
    base = index.base
    identities, vectors = base.identity_ids, base.vectors
    if len(base) == 0:
        return None
    random = np.random.default_rng(len(base))
    rows = random.choice(len(base), min(STRANGERS, len(base)), replace=False)
    probes = vectors[rows].astype(np.float32)
    exact, owners = _exact(probes, identities[rows], vectors, identities)
    threshold = min(max(float(np.quantile(exact, 0.99)), LEAST_MATE), MOST_MATE)
    mates = random.choice(len(base), min(MATES, len(base)), replace=False)
    originals = vectors[mates].astype(np.float32)
    copies = _copies(originals, threshold, random)
    own = np.einsum("nd,nd->n", copies, originals)
    missed = np.arange(len(mates))
    while True:
        answers = index.nearest_identities(copies[missed], 1)
        missed = np.array(
            [
                i
                for i, (hit,) in zip(missed, answers, strict=True)
                if hit.identity_id != identities[mates[i]] and hit.score < own[i] - ROUNDING
            ],
            dtype=np.int64,
        )
        if len(missed) <= (1 - PROMISE) * len(mates) or index.rescored >= min(MOST_RESCORED, len(base)):
            break
        index.rescored = min(2 * index.rescored, MOST_RESCORED)
    high = np.flatnonzero(exact >= LEAST_MATE)
    same = [_top_other(index, probes[i], int(identities[rows[i]])) == owners[i] for i in high]
    return Checked(
        mates_found=round(1 - len(missed) / len(mates), 5),
        threshold=round(threshold, 4),
        strangers=len(high),
        same_identity=round(float(np.mean(same)), 4) if same else 1.0,
        rescored=index.rescored,
        query_ms=round(_median_ms(index, copies), 3),
    )


def _exact(
    probes: NDArray[np.float32], own: NDArray[np.int64], vectors: Halves, identities: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The highest score of each probe with another person's face, and whose it is; -1 where there is nobody else."""
    best = np.full(len(probes), -1, np.float32)
    owners = np.full(len(probes), -1, np.int64)
    for start in range(0, len(vectors), SAMPLE):
        some = identities[start : start + SAMPLE]
        scores = probes @ vectors[start : start + SAMPLE].astype(np.float32).T
        scores[own[:, None] == some[None, :]] = -np.inf
        top = scores.argmax(axis=1)
        found = scores[np.arange(len(probes)), top]
        better = found > best
        best[better], owners[better] = found[better], some[top[better]]
    return best, owners


def _copies(vectors: NDArray[np.float32], threshold: float, random: np.random.Generator) -> NDArray[np.float32]:
    """Probes that score `threshold` to halfway to 1 with `vectors`."""
    cosines = random.uniform(threshold, (1 + threshold) / 2, (len(vectors), 1)).astype(np.float32)
    return turned(vectors, cosines, random)


def turned(
    vectors: NDArray[np.float32], cosines: NDArray[np.float32], random: np.random.Generator
) -> NDArray[np.float32]:
    """Unit vectors that score `cosines`, (N, 1), with these, in any direction from them."""
    aside = random.standard_normal(vectors.shape, dtype=np.float32)
    aside -= np.einsum("nd,nd->n", aside, vectors)[:, None] * vectors
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    return np.asarray(cosines * vectors + np.sqrt(1 - cosines**2) * aside, dtype=np.float32)


def _top_other(index: CompressedIndex, probe: NDArray[np.float32], own: int) -> int:
    (hits,) = index.nearest_identities(probe[None], 2)
    return next((hit.identity_id for hit in hits if hit.identity_id != own), -1)


def _median_ms(index: CompressedIndex, probes: NDArray[np.float32]) -> float:
    times = []
    for i in range(min(100, len(probes))):
        begun = time.perf_counter()
        index.nearest_identities(probes[i : i + 1], 5)
        times.append(1000 * (time.perf_counter() - begun))
    return float(np.median(times))
