"""Scans every face in a few bytes, and rescores the best ones from half-precision vectors.

Embeddings of different people are spread almost evenly over the sphere, where clusters and graphs lose mates or time.
Scanning all faces in 4-bit product codes and rescoring the best few hundred does neither (`benchmarks/vectors.py`).
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import faiss
import numpy as np
from numpy.typing import NDArray

from indexer.errors import StorageUnavailable
from indexer.gallery.embeddings import FaceVectors
from indexer.types import Hit, Vectors
from indexer.vectors import mapped_file, self_check
from indexer.vectors.base import DamagedIndex, VectorIndex
from indexer.vectors.faiss_threads import single_thread
from indexer.vectors.locks import ReadWriteLock
from indexer.vectors.mapped_file import Float16Vectors, MappedFile
from indexer.vectors.product_codes import BATCH_ROWS, ProductCodeScan, encode
from indexer.vectors.self_check import SelfCheckReport

log = logging.getLogger(__name__)

Scalar = TypeVar("Scalar", bound=np.generic)

MIN_CHANGED_ROWS = 20_000
"""Rows added or removed after the build before a new index is due: half a kilobyte to one each. Larger galleries allow
a sixteenth of their rows to be added, and MAX_REMOVED_SHARE to be removed."""

MAX_REMOVED_SHARE = 0.2


class CandidateScan(Protocol):
    """Finds the rows that score best, approximately."""

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Appends (N, D) rows."""

    def search(self, queries: NDArray[np.float32], count: int) -> NDArray[np.int64]:
        """Returns the best rows (Q, `count`) of (Q, D) queries, best first, padded with -1.

        Returns fewer columns if the scan supports no more.
        """


_SelectBest = Callable[[NDArray[np.float32], NDArray[np.int64], int], tuple[list[Hit], int]]
"""Takes a query (D,), rows (N,) and `k`; returns the best `k` hits among the rows, and how many rows are of others."""


class CompressedIndex(VectorIndex):
    """The rows of a file, and those added since. Thread-safe: searches run concurrently."""

    checked: SelfCheckReport | None
    erases_on_disk = True

    def __init__(
        self,
        base: MappedFile,
        rescored: int,
        checked: SelfCheckReport | None,
        kind: str = "compressed",
        scan: Callable[[MappedFile], CandidateScan] = ProductCodeScan,
    ) -> None:
        self.kind = kind
        self.checked = checked
        self.rescored = rescored
        """Least number of rows rescored per query. More if at least half of them are removed, or belong to the
        returned people: a person with thousands of photos must not hide others."""
        self.base = base
        self._dim = base.vectors.shape[1]
        self._scan = scan(base)
        self._lock = ReadWriteLock()
        self._present = _GrowableArray(base.is_present())
        self._erased = base.face_ids[~self._present.all]
        self._faces = _GrowableArray(base.face_ids)
        self._identities = _GrowableArray(base.identity_ids)
        self._removed = len(self._erased)
        self._base_rows = _RowsByIdentity(base.identity_ids)
        self._added: _GrowableArray[np.float16] = _GrowableArray(np.empty((0, self._dim), np.float16))
        """Vectors added since the build; their rows follow those of the file."""
        self._added_rows: dict[int, int] = {}
        """Row of each added face."""
        self._added_by_identity: defaultdict[int, list[int]] = defaultdict(list)

    def __len__(self) -> int:
        return len(self._faces) - self._removed

    @property
    def is_outgrown(self) -> bool:
        rows = len(self.base)
        has_grown = len(self._added) > max(MIN_CHANGED_ROWS, rows // 16)
        return has_grown or self._removed > max(MIN_CHANGED_ROWS, MAX_REMOVED_SHARE * rows)

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
            self._present.append(np.ones(len(face_ids), np.bool_))
            self._added.append(halves)
            for row, (face, identity) in enumerate(zip(face_ids.tolist(), identity_ids.tolist(), strict=True), first):
                self._added_rows[face] = row
                self._added_by_identity[identity].append(row)

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

    def most_faces(self) -> int:
        with self._lock.reading():
            return self._base_rows.most + max(map(len, self._added_by_identity.values()), default=0)

    def face_ids(self) -> NDArray[np.int64]:
        with self._lock.reading():
            return np.sort(self._faces.all[self._present.all])

    def contents(self) -> tuple[NDArray[np.int64], NDArray[np.int64], Float16Vectors]:
        with self._lock.reading():
            rows = np.flatnonzero(self._present.all)
            vectors = np.empty((len(rows), self._dim), np.float16)
            for start in range(0, len(rows), BATCH_ROWS):  # verifying a batch takes three times its memory
                vectors[start : start + BATCH_ROWS] = self._vectors(rows[start : start + BATCH_ROWS])
            return self._faces.all[rows], self._identities.all[rows], vectors

    def erased_face_ids(self) -> NDArray[np.int64]:
        return self._erased

    def _nearest(self, queries: Vectors, k: int, select: _SelectBest) -> list[list[Hit]]:
        """Selects hits among the rows found by the scan: four times as many until there are `k` hits and enough rows
        of others, and finally among all rows."""
        answers: list[list[Hit]] = [[] for _ in queries]
        is_present, rows = self._present.all, len(self._faces)
        contiguous = np.ascontiguousarray(queries, dtype=np.float32)
        pending = np.flatnonzero(np.isfinite(contiguous).all(axis=1)).tolist() if len(self) and k > 0 else []
        count = max(self.rescored, self.rescored // 2 + 4 * k)
        while pending and count < rows:
            found = self._scan.search(contiguous[pending], count)
            unfinished = []
            for i, candidates in zip(pending, found, strict=True):
                known = candidates[candidates >= 0]
                answers[i], others = select(contiguous[i], known[is_present[known]], k)
                if len(answers[i]) < k or others < self.rescored // 2:
                    unfinished.append(i)
            pending = unfinished
            if found.shape[1] < count:
                break
            count *= 4
        for i in pending:
            answers[i], _ = select(contiguous[i], np.flatnonzero(is_present), k)
        return answers

    def _best_faces(self, query: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> tuple[list[Hit], int]:
        scores = self._scores(query, rows)
        order = np.lexsort((self._faces.all[rows], -scores))[:k]
        others = 0 if _may_tie_outside(scores[order], scores) else len(rows) - len(order)
        return self._hits(rows[order], scores[order]), others

    def _best_identities(self, query: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> tuple[list[Hit], int]:
        """Selects the best identities among `rows`, then the best of all rows of each."""
        all_scores = self._scores(query, rows)
        best, scores, found = self._best_row_per_identity(rows, all_scores, k)
        others = 0 if _may_tie_outside(scores, all_scores) else len(rows) - found
        all_rows = self._rows_of(self._identities.all[best])
        if len(all_rows) > found:
            best, scores, _ = self._best_row_per_identity(all_rows, self._scores(query, all_rows), k)
        return self._hits(best, scores), others

    def _best_row_per_identity(
        self, rows: NDArray[np.int64], scores: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], int]:
        """Returns the best row of each of the best `k` identities, best first, their scores, and how many of the rows
        belong to these identities."""
        order = np.lexsort((self._faces.all[rows], -scores))
        _, firsts, counts = np.unique(self._identities.all[rows[order]], return_index=True, return_counts=True)
        best = np.argsort(firsts)[:k]
        chosen = order[firsts[best]]
        return rows[chosen], scores[chosen], int(counts[best].sum())

    def _rows_of(self, identities: NDArray[np.int64]) -> NDArray[np.int64]:
        added = [row for identity in identities.tolist() for row in self._added_by_identity.get(identity, ())]
        rows = np.concatenate([*self._base_rows.of(identities), np.array(added, dtype=np.int64)])
        return np.asarray(rows[self._present.all[rows]], dtype=np.int64)

    def _scores(self, query: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the inner products (N,), computed in batches because there may be very many rows."""
        batches = np.split(rows, range(BATCH_ROWS, len(rows), BATCH_ROWS))
        return np.concatenate([_inner_products(self._vectors(batch), query) for batch in batches])

    def _vectors(self, rows: NDArray[np.int64]) -> Float16Vectors:
        """Returns the vectors of these rows. Raises StorageUnavailable if the file is damaged."""
        is_base = rows < len(self.base)
        try:
            if is_base.all():
                return self.base.read_vectors(rows)
            vectors = np.empty((len(rows), self._dim), np.float16)
            vectors[is_base] = self.base.read_vectors(rows[is_base])
        except DamagedIndex as error:
            self.is_damaged = True
            raise StorageUnavailable(f"{error.message}; the index is being rebuilt, try again") from error
        vectors[~is_base] = self._added.all[rows[~is_base] - len(self.base)]
        return vectors

    def _hits(self, rows: NDArray[np.int64], scores: NDArray[np.float32]) -> list[Hit]:
        identities, faces = self._identities.all[rows].tolist(), self._faces.all[rows].tolist()
        return [Hit(*hit) for hit in zip(identities, faces, scores.tolist(), strict=True)]

    def _remove(self, face_ids: Sequence[int]) -> None:
        is_present = self._present.all
        rows = mapped_file.rows_of(self.base.face_ids, np.asarray(face_ids, dtype=np.int64))
        rows = rows[is_present[rows]]
        self.base.erase(rows)
        is_present[rows] = False
        self._removed += len(rows)
        for face in face_ids:
            row = self._added_rows.pop(face, None)
            if row is not None:
                is_present[row] = False
                self._removed += 1
                self._added.all[row - len(self.base)] = 0
                self._added_by_identity[int(self._identities.all[row])].remove(row)


def build(path: Path, dim: int, pages: Iterable[FaceVectors], metadata: Mapping[str, Any]) -> MappedFile:
    """Writes the file of these faces, whose ids ascend, with the report of its self-check, and opens it.

    Raises OSError if the disk is full.
    """
    face_ids: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    identity_ids: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    with single_thread(), mapped_file.writing(path, dim) as writer:
        for page in pages:
            writer.add(page.vectors)
            face_ids.append(page.face_ids)
            identity_ids.append(page.identity_ids)
        faces, identities = np.concatenate(face_ids), np.concatenate(identity_ids)
        vectors = writer.vectors()
        codes, centroids = encode(vectors)
        states = np.full(len(faces), mapped_file.PRESENT, np.uint8)
        none, is_verified = np.empty(0, np.uint64), np.ones(len(faces), np.bool_)  # no checksums to compare yet
        base = MappedFile(path, {}, faces, identities, codes, centroids, vectors, none, states, is_verified)
        report = self_check.check(CompressedIndex(base, _first_rescored(len(base)), None), base)
        checked = asdict(report) if report else None
        writer.finish(faces, identities, codes, centroids, {**metadata, "checked": checked})
    return mapped_file.read(path)


def open_index(
    base: MappedFile, kind: str = "compressed", scan: Callable[[MappedFile], CandidateScan] | None = None
) -> CompressedIndex:
    """Opens the index of a file. With a `scan` more precise than product codes, the fewest rescored rows suffice."""
    stored = base.metadata.get("checked")
    checked = SelfCheckReport(**stored) if stored else None
    rescored = checked.rescored if checked and scan is None else self_check.MIN_RESCORED
    return CompressedIndex(base, rescored, checked, kind, scan or ProductCodeScan)


def _first_rescored(rows: int) -> int:
    """Returns the number of rescored rows that the self-check starts with: one in a thousand, within the bounds.

    The number of non-mates that the codes rank above a mate grows with the gallery, and real mates that resemble others
    have more of them near than the perturbed copies of the self-check.
    """
    return min(max(self_check.MIN_RESCORED, rows // 1000), self_check.MAX_RESCORED)


def _inner_products(vectors: Float16Vectors, query: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the inner products (N,) of (N, D) vectors with a query (D,). Those of equal vectors are equal.

    FAISS converts and multiplies in one step: 256 vectors of 512 numbers take a third of the time that NumPy takes.
    """
    count, dim = vectors.shape
    scores = np.empty(count, np.float32)
    if count:
        index: Any = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
        faiss.copy_array_to_vector(np.ascontiguousarray(vectors).view(np.uint8).ravel(), index.codes)
        index.ntotal = count
        with single_thread():
            ordered, rows = index.search(query[None], count)
        scores[rows[0]] = ordered[0]
    return scores


def _may_tie_outside(best: NDArray[np.float32], scores: NDArray[np.float32]) -> bool:
    """Returns whether the last row of a scan, whose rows have these `scores`, is among the `best`.

    Then rows that were not returned may be as good: copies of a face have equal codes, and the scan returns those with
    the highest ids.
    """
    return bool(len(best) < len(scores) and scores[-1] >= best[-1])


class _GrowableArray(Generic[Scalar]):
    """An array of rows with amortized appending. The initial array is not copied before the first append."""

    def __init__(self, initial: NDArray[Scalar]) -> None:
        self._buffer = initial
        self._length = len(initial)

    def __len__(self) -> int:
        return self._length

    @property
    def all(self) -> NDArray[Scalar]:
        return self._buffer[: self._length]

    def append(self, rows: NDArray[Scalar]) -> None:
        length = self._length + len(rows)
        if length > len(self._buffer):
            capacity = max(length, self._length + self._length // 8 + 1024)
            buffer = np.empty((capacity, *self._buffer.shape[1:]), self._buffer.dtype)
            buffer[: self._length] = self.all
            self._buffer = buffer
        self._buffer[self._length : length] = rows
        self._length = length


class _RowsByIdentity:
    """Finds the rows of each identity by binary search."""

    def __init__(self, identity_ids: NDArray[np.int64]) -> None:
        self._order = np.argsort(identity_ids, kind="stable").astype(np.int32)
        self._sorted = identity_ids[self._order]
        ends = np.flatnonzero(np.diff(self._sorted, prepend=-1, append=-1))
        self.most = int(np.diff(ends).max(initial=0))
        """Rows of the identity with most."""

    def of(self, identities: NDArray[np.int64]) -> list[NDArray[np.int32]]:
        """Returns one array of rows per identity."""
        starts = np.searchsorted(self._sorted, identities).tolist()
        ends = np.searchsorted(self._sorted, identities, "right").tolist()
        return [self._order[start:end] for start, end in zip(starts, ends, strict=True)]
